"""Converts the tables of the earlier plugin of the same name, which may be in the place of ours.

Until version 0.1.1b7, PyPI's `netbox-celery` was another plugin with the same app label, the same names of its two
tables, and its own migration `0001_initial`, so that Django considers ours applied. Our first two migrations therefore
look for its tables: if they are found, they are renamed with all their rows, and our tables are created in their place
and filled from these rows. Primary keys do not change, so tags, custom fields, journal, change log and foreign keys of
other plugins still refer to the right run.

Each step is part of its migration's transaction: if one fails, nothing has changed. The earlier tables are recognized
by a column that ours never had. A database without them is not changed.
"""
from django.contrib.auth import get_user_model
from django.db import router
from django.db.migrations.operations import AddIndex
from django.db.migrations.operations.base import Operation

__all__ = (
    'ASIDE',
    'MIGRATIONS',
    'ConvertForerunner',
    'MoveForerunnerAside',
    'ReplaceForerunner',
    'forerunner_tables',
)

RESULTS = 'netbox_celery_celeryresult'
LOG = 'netbox_celery_celerylogentry'

#: A column of each of its tables that all its versions have, and none of ours.
SHAPES = {RESULTS: 'job_kwargs', LOG: 'job_result_id'}
#: Names under which its tables are kept.
ASIDE = {RESULTS: 'netbox_celery_forerunner_result', LOG: 'netbox_celery_forerunner_log'}
#: Its migrations that are not ours.
MIGRATIONS = (
    '0002_rename_data_celeryresult_kwargs_celeryresult_args', '0003_celeryresult_result',
    '0004_alter_celeryresult_custom_field_data',
)

NOT_RUN = 'Not run: it was waiting when this version of netbox-celery replaced an earlier plugin of the same name'
LOST = 'Not finished when this version of netbox-celery replaced an earlier plugin of the same name'

HAS_ENDED = "status IN ('completed', 'failed', 'errored')"
#: SQL for our columns, from its rows. `{args}`, `{kwargs}` and `{result}` depend on how far it had migrated.
RESULT_COLUMNS = {
    'id': 'id',
    'created': 'created',
    'last_updated': 'last_updated',
    'custom_field_data': "COALESCE(custom_field_data, '{{}}')",
    'task_id': 'task_id',
    'celery_name': 'celery_name',
    'name': 'celery_name',
    'args': "COALESCE(NULLIF({args}, 'null'), '[]')",
    'kwargs': "COALESCE(NULLIF({kwargs}, 'null'), '{{}}')",
    'result': '{result}',
    'data': "CASE WHEN NULLIF(job_kwargs, 'null') IS NOT NULL THEN jsonb_build_object('job_kwargs', job_kwargs) END",
    'user_id': '(SELECT "user".id FROM {users} AS "user" WHERE "user".id = user_id)',
    'status': f"CASE WHEN {HAS_ENDED} THEN status WHEN status = 'pending' THEN 'revoked' ELSE 'errored' END",
    'reason': "CASE WHEN status = 'running' THEN 'worker_lost' ELSE '' END",
    # Its tasks did not write `completed` if they set the status themselves. A run of ours without it is unfinished
    'completed': f'CASE WHEN {HAS_ENDED} THEN COALESCE(completed, last_updated, created) ELSE now() END',
    'error': f"""CASE
        WHEN {HAS_ENDED} THEN '' WHEN status = 'pending' THEN '{NOT_RUN}' WHEN status = 'running' THEN '{LOST}'
        ELSE 'Its status was: ' || status
    END""",
    'attempt': "CASE WHEN status = 'pending' THEN 0 ELSE 1 END",
    'root_id': 'task_id',
    'options': "'{{}}'",
    'attempts': "'[]'",
    'queue': "''",
    'step': "''",
    'worker': "''",
    'traceback': "''",
    'claims': '0',
    'nesting': '0',
    'in_backend': 'false',
}
LEVELS = {'debug': 10, 'default': 20, 'info': 20, 'success': 25, 'warning': 30, 'failure': 40, 'error': 40,
          'critical': 50}
IS_NUMBER = "log_level ~ '^[0-9]{1,4}$'"
NAMES = ', '.join(f"'{name}'" for name in ('', *LEVELS))
#: A level is a number as text. Anything else may be a line of a task that gave its arguments in another order.
LOG_COLUMNS = {
    'id': 'id',
    'result_id': 'job_result_id',
    'attempt': '1',
    'level': f"""CASE
        WHEN {IS_NUMBER} THEN CASE
            WHEN log_level::int < 20 THEN 10 WHEN log_level::int < 25 THEN 20 WHEN log_level::int < 30 THEN 25
            WHEN log_level::int < 40 THEN 30 WHEN log_level::int < 50 THEN 40 ELSE 50
        END
        ELSE CASE lower(log_level) {' '.join(f"WHEN '{name}' THEN {level}" for name, level in LEVELS.items())} ELSE 20 END
    END""",
    'grouping': 'grouping',
    'message': f"""CASE
        WHEN {IS_NUMBER} OR lower(log_level) IN ({NAMES}) THEN message
        ELSE concat_ws(': ', log_level, NULLIF(message, ''))
    END""",
    'created': 'created',
}

#: Foreign keys between one of its tables and any other: its own to users, and those of other plugins to its rows.
FOREIGN_KEYS = '''
    SELECT quote_ident(conname), conrelid::regclass::text, confrelid::regclass::text, pg_get_constraintdef(oid)
    FROM pg_constraint
    WHERE contype = 'f' AND conparentid = 0 AND (conrelid = ANY(%(tables)s::regclass[]::oid[]))
        <> (confrelid = ANY(%(tables)s::regclass[]::oid[]))
'''
INDEXES = 'SELECT indexrelid::regclass::text, indexrelid FROM pg_index WHERE indrelid = %s::regclass'


def columns_of(connection, table):
    """Return the names of a table's columns; none if there is no such table."""
    with connection.cursor() as cursor:
        cursor.execute(
            'SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped',
            [table]
        )
        return {name for name, in cursor.fetchall()}


def forerunner_tables(connection):
    """Return the names of the tables that are the earlier plugin's, not ours."""
    return [table for table, column in SHAPES.items() if column in columns_of(connection, table)]


class ForerunnerOperation(Operation):
    """Does not change the state of the models, and does nothing backwards: tables that were moved aside stay there."""
    reduces_to_sql = False
    reversible = True

    def state_forwards(self, app_label, state):
        pass

    def database_forwards(self, app_label, schema_editor, from_state, to_state):
        if router.allow_migrate(schema_editor.connection.alias, app_label, model_name='celeryresult'):
            self.forwards(app_label, schema_editor, from_state)

    def database_backwards(self, app_label, schema_editor, from_state, to_state):
        pass


class MoveForerunnerAside(ForerunnerOperation):
    """Rename the earlier plugin's tables, with their indexes and sequences, so that their names are free for ours."""

    def forwards(self, app_label, schema_editor, from_state):
        connection, execute = schema_editor.connection, schema_editor.execute
        tables = forerunner_tables(connection)
        # Passed to `ConvertForerunner`, in the same transaction
        schema_editor.netbox_celery_forerunner = moved = {}
        if not tables:
            return
        with connection.cursor() as cursor:
            cursor.execute(FOREIGN_KEYS, {'tables': tables})
            keys = cursor.fetchall()
        for name, table, __, __ in keys:
            # Its own keys, too: rows unknown to Django would keep users from being deleted
            execute(f'ALTER TABLE {table} DROP CONSTRAINT {name}')
        schema_editor.netbox_celery_foreign_keys = [key for key in keys if key[1] not in tables]
        for table in tables:
            moved[table] = self.move(connection, execute, table)
        for name in MIGRATIONS:
            execute('DELETE FROM django_migrations WHERE app = %s AND name = %s', (app_label, name))

    @staticmethod
    def move(connection, execute, table):
        """Rename a table, and return its new name."""
        aside, number = ASIDE[table], 1
        while columns_of(connection, aside):
            number += 1
            aside = f'{ASIDE[table]}_{number}'
        with connection.cursor() as cursor:
            cursor.execute(INDEXES, [table])
            indexes = cursor.fetchall()
            cursor.execute("SELECT pg_get_serial_sequence(%s, 'id')", [table])
            sequence, = cursor.fetchone()
        for index, oid in indexes:
            execute(f'ALTER INDEX {index} RENAME TO {aside}_{oid}')
        if sequence:
            execute(f'ALTER SEQUENCE {sequence} RENAME TO {aside}_id_seq')
        execute(f'ALTER TABLE {table} RENAME TO {aside}')
        execute(f"COMMENT ON TABLE {aside} IS 'What {table} was in netbox-celery before 0.2; nothing uses it any more'")
        return aside

    def describe(self):
        return 'Move the tables of an earlier plugin of the same name aside'


class ConvertForerunner(ForerunnerOperation):
    """Fill our tables from the earlier plugin's, with the same primary keys."""

    def forwards(self, app_label, schema_editor, from_state):
        connection, execute = schema_editor.connection, schema_editor.execute
        moved = getattr(schema_editor, 'netbox_celery_forerunner', {})
        if RESULTS in moved:
            had = columns_of(connection, moved[RESULTS])
            there = {
                'args': 'args' if 'args' in had else 'NULL::jsonb',
                'kwargs': 'kwargs' if 'kwargs' in had else 'data',
                'result': 'result' if 'result' in had else 'NULL::jsonb',
                'users': connection.ops.quote_name(get_user_model()._meta.db_table),
            }
            copy(execute, moved[RESULTS], RESULTS, {
                column: expression.format(**there) for column, expression in RESULT_COLUMNS.items()
            })
            if LOG in moved:
                copy(execute, moved[LOG], LOG, LOG_COLUMNS, f'WHERE job_result_id IN (SELECT id FROM {RESULTS})')
        for table, aside in moved.items():
            self.continue_numbers(connection, execute, table, aside)
        for name, table, referred, definition in getattr(schema_editor, 'netbox_celery_foreign_keys', ()):
            if referred in moved:
                execute(f'ALTER TABLE {table} ADD CONSTRAINT {name} {definition}')

    @staticmethod
    def continue_numbers(connection, execute, table, aside):
        """Give new rows primary keys that no row had before: remains of deleted rows must not become theirs."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_get_serial_sequence(%s, 'id'), pg_get_serial_sequence(%s, 'id')", [table, aside])
            sequence, former = cursor.fetchone()
        last = f'(SELECT last_value FROM {former})' if former else '0'
        execute(f"SELECT setval('{sequence}', GREATEST({last}, (SELECT max(id) FROM {aside}), 0) + 1, false)")

    def describe(self):
        return 'Convert the rows of an earlier plugin of the same name'


class ReplaceForerunner(ForerunnerOperation):
    """Do what our first migration would have done, if Django mistook the earlier plugin's for it."""

    def __init__(self, initial):
        self.initial = initial

    def forwards(self, app_label, schema_editor, from_state):
        connection = schema_editor.connection
        foreign = forerunner_tables(connection)
        models = [model for (app, __), model in from_state.models.items() if app == app_label]
        tables = {from_state.apps.get_model(app_label, model.name)._meta.db_table for model in models}
        if RESULTS not in foreign and any(columns_of(connection, table) for table in tables - {*foreign}):
            return  # ours are there
        for operation in self.initial:
            # The models already have their indexes, which are created with the tables
            if not isinstance(operation, AddIndex):
                operation.database_forwards(app_label, schema_editor, from_state, from_state)
        for statement in schema_editor.deferred_sql:
            schema_editor.execute(statement, None)
        schema_editor.deferred_sql.clear()

    def describe(self):
        return 'Make the first tables, if an earlier plugin of the same name has been in their place'


def copy(execute, source, target, columns, where=''):
    execute(
        f'INSERT INTO {target} ({", ".join(columns)}) SELECT {", ".join(columns.values())} FROM {source} {where}', None
    )
