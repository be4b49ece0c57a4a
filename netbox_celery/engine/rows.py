"""The rows of new runs: a call as column values, and the statement that inserts them."""
from collections.abc import Mapping
from datetime import UTC, datetime
from uuid import UUID

from kombu.exceptions import EncodeError

from .. import host
from ..config import get_config
from .lifecycle import TABLE
from .options import Own, sent_options
from .payload import clean_line, clean_text, cut_json, dumps, limited_jsonb, sendable_jsonb, whole_number
from .times import aware, nearest

__all__ = (
    'COLUMNS',
    'CONSTANTS',
    'INSERT',
    'REFERENCES',
    'USERS',
    'build_row',
    'foreign_row',
    'insert_statement',
    'options_json',
    'payload_columns',
)

USERS = 'users_user'
SCHEDULES = 'netbox_celery_celeryschedule'

#: Columns without a default in the database.
CONSTANTS = {
    'custom_field_data': "'{}'", 'reason': "''", 'step': "''", 'worker': "''", 'attempt': '0', 'attempts': "'[]'",
    'error': "''", 'traceback': "''", 'claims': '0', 'in_backend': 'false',
}
#: Who starts a run may have been deleted by now, and so may its schedule: then it is nobody's, and belongs to none. A
#: foreign key would refuse the row instead, in a transaction with all else that is in it, and as late as its commit.
REFERENCES = {
    'user_id': f'(SELECT id FROM {USERS} WHERE id = %(user_id)s::bigint FOR KEY SHARE)',
    'schedule_id': f'(SELECT id FROM {SCHEDULES} WHERE id = %(schedule_id)s::bigint FOR KEY SHARE)',
}
COLUMNS = (
    'created', 'last_updated', 'task_id', 'celery_name', 'name', 'args', 'kwargs', 'options', 'queue', 'user_id',
    'object_type_id', 'object_id', 'status', 'scheduled', 'expires', 'value_max', 'data', 'request_id', 'parent_id',
    'root_id', 'group_id', 'message', 'nesting', 'schedule_id',
)


def insert_statement(conflict='DO NOTHING', **expressions):
    """Return the statement that inserts a row with the values of `build_row`, and returns its primary key.

    Args:
        conflict: What becomes of it if there is such a row.
        **expressions: SQL for the values of further columns, or of those that are the same for every new row.
    """
    values = CONSTANTS | {column: f'%({column})s' for column in COLUMNS} | REFERENCES | expressions
    target = '' if conflict == 'DO NOTHING' else '(task_id) '
    return f'''
        INSERT INTO {TABLE} AS run ({", ".join(values)}) VALUES ({", ".join(values.values())})
        ON CONFLICT {target}{conflict}
        RETURNING id
    '''


INSERT = insert_statement()


def build_row(app, name, args, kwargs, options, own, task, run=None):
    """Return the column values of a new run.

    Raises:
        kombu.exceptions.EncodeError: An argument cannot be written as JSON, or the message is to be something else.
    """
    if options.get('serializer') not in (None, *app.conf.accept_content):
        raise EncodeError(f'{name}: serializer {options["serializer"]!r} is not accepted by any worker; "json" is')
    args, kwargs = list(args or ()), dict(kwargs or {})
    payload = payload_columns(name, args, kwargs, options)
    now = datetime.now(UTC)
    eta = options.get('eta')
    scheduled = eta if eta and eta > now else None
    task_id = options['task_id']
    parent_id = options.get('parent_id')
    return payload | {
        'created': now,
        'last_updated': now,
        'task_id': task_id,
        'celery_name': clean_text(name)[:255],
        'name': clean_line(str(own.name or options.get('shadow') or _default_name(name, kwargs)))[:255],
        'options': options_json(name, options, task),
        'queue': clean_text(_queue_name(app, name, args, kwargs, options, task))[:255],
        'user_id': own.user_id if own.user_id is not None else _starter(run),
        'object_type_id': own.object_type_id,
        'object_id': own.object_id,
        'status': 'scheduled' if scheduled else 'pending',
        'scheduled': scheduled,
        'expires': aware(options.get('expires')),
        'value_max': whole_number(own.value_max),
        'data': None if own.data is None else limited_jsonb(own.data, get_config().payload_length),
        'request_id': task_id,
        'parent_id': _uuid(parent_id) if parent_id != task_id else None,
        'root_id': _uuid(options.get('root_id')) or task_id,
        'group_id': _uuid(options.get('group_id')),
        'nesting': options.get('replaced_task_nesting') or 0,
        'schedule_id': own.schedule_id,
    }


def payload_columns(name, args, kwargs, options):
    """Return the columns for arguments: for people, and where that is not all of it, for sending again."""
    columns, message = {}, False
    for column, value in (('args', args), ('kwargs', kwargs)):
        try:
            text, changed = sendable_jsonb(value)
        except TypeError as exc:
            raise EncodeError(
                f'{name}: {column} cannot be sent as JSON ({exc}). Pass primary keys instead of model instances.'
            ) from exc
        except ValueError as exc:
            raise EncodeError(f'{name}: {column} cannot be sent as JSON ({exc})') from exc
        if options.get(f'{column}repr') is not None:
            text, changed = None, True
        elif (shown := cut_json(text, get_config().payload_length)) != text:
            text, changed = shown, True
        columns[column] = text
        message = message or changed
    columns['message'] = dumps([args, kwargs]) if message else None
    return columns


def options_json(name, options, task):
    try:
        return sendable_jsonb(sent_options(options, task))[0]
    except (TypeError, ValueError) as exc:
        raise EncodeError(f'{name}: an option cannot be sent as JSON ({exc})') from exc


def _default_name(name, kwargs):
    if name in ('celery.map', 'celery.starmap') and isinstance(kwargs.get('task'), Mapping):
        return f'{kwargs["task"].get("task")} ({name.removeprefix("celery.")} {len(kwargs.get("it") or ())})'
    return name


def _queue_name(app, name, args, kwargs, options, task):
    """Return the name of the queue that the message goes to."""
    queue = options.get('queue')
    if queue is None and not options.get('exchange') and app.conf.task_routes:
        queue = app.amqp.router.route(dict(options), name, args, kwargs, task).get('queue')
    return getattr(queue, 'name', queue) or app.conf.task_default_queue


def _starter(run):
    """Return who starts a run that names nobody: who started the run that calls it, else who asks NetBox for it."""
    if run is not None:
        return run.user_id
    user = host.current_user()
    return user.pk if user is not None else None


def _uuid(value):
    try:
        return value and str(UUID(str(value)))
    except ValueError:
        return None


def foreign_row(task, request):
    """Return the column values for a run whose message came without a row."""
    options = {
        'task_id': request.id, 'shadow': request.shadow, 'eta': nearest(request.eta),
        'expires': nearest(request.expires), 'root_id': request.root_id, 'parent_id': request.parent_id,
        'group_id': request.group, 'replaced_task_nesting': request.replaced_task_nesting,
        'queue': (request.delivery_info or {}).get('routing_key') or None,
    }
    return build_row(task.app, task.name, request.args, request.kwargs, options, Own.merge(task, {}), task)
