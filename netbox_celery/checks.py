"""What `netbox check` says of the plugin, and a stop before migrations that would not work."""
from django.core.checks import Error, Tags, Warning, register
from django.core.management.base import CommandError
from django.db import DatabaseError, connections
from django.db.migrations.recorder import MigrationRecorder

from .engine.catalogue import discovery, registry
from .migrations._forerunner import ASIDE, forerunner_tables

__all__ = (
    'check_forerunner',
    'check_tasks',
    'stop_migration',
)


@register('netbox_celery')
def check_tasks(app_configs, **kwargs):
    """Warn of plugins whose tasks cannot be imported (`netbox_celery.W001`): the rest of NetBox works."""
    registry.registered_tasks()
    return [
        Warning(
            f'The tasks of {failure.plugin} cannot be imported: {failure}',
            hint='Workers and NetBox go on without them. Install what is missing, or mend the module; then restart '
                 'NetBox, its workers and beat.',
            obj=failure.module,
            id='netbox_celery.W001',
        ) for failure in discovery.failures()
    ]


@register(Tags.database)
def check_forerunner(app_configs, databases=None, **options):
    """Say what becomes of the tables of an earlier plugin of the same name, and stop where nothing would.

    `netbox migrate` and `netbox check --database default` run it, both before they do anything.
    """
    return [problem for alias in databases or () for problem in _problems(alias)]


def stop_migration(using, **kwargs):
    """Do so before migrations of a program (`netbox upgrade`), which skips the checks.

    A receiver of `pre_migrate`.
    """
    for problem in _problems(using):
        if problem.is_serious():
            raise CommandError(f'{problem.msg} {problem.hint}')


def _problems(alias):
    connection = connections[alias]
    try:
        tables = forerunner_tables(connection) if connection.vendor == 'postgresql' else []
        applied = MigrationRecorder(connection).applied_migrations() if tables else {}
    except DatabaseError:
        return []  # it cannot be reached: that is for others to say
    if not tables:
        return []
    made = f'{" and ".join(tables)}: made by another plugin (netbox-celery before 0.2)'
    if ('netbox_celery', '0002_workflow_root') in applied:
        return [Error(
            f'{made}, while the migrations of this one are recorded as applied, as by `netbox migrate --fake`.',
            hint="Execute DELETE FROM django_migrations WHERE app = 'netbox_celery'; (netbox dbshell), then run "
                 "`netbox migrate`, which moves these tables aside and converts their rows.",
            id='netbox_celery.E001'
        )]
    return [Warning(
        f'{made}.',
        hint=f'`netbox migrate` renames them to {" and ".join(ASIDE[table] for table in tables)}, and converts their '
             f'rows.',
        id='netbox_celery.W002'
    )]
