"""The system checks of the plugin, and the check that stops migrations which would fail."""
from collections.abc import Iterable
from typing import Any

from django.core.checks import CheckMessage, Error, Tags, Warning, register
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
def check_tasks(app_configs: Any, **kwargs: Any) -> list[Warning]:
    """Warn about plugins whose tasks cannot be imported (`netbox_celery.W001`). NetBox itself keeps working."""
    registry.registered_tasks()
    return [
        Warning(
            f'The tasks of {failure.plugin} cannot be imported: {failure}',
            hint='NetBox and workers continue without them. Install the missing package or fix the module, then '
                 'restart NetBox, its workers and beat.',
            obj=failure.module,
            id='netbox_celery.W001',
        ) for failure in discovery.failures()
    ]


@register(Tags.database)
def check_forerunner(app_configs: Any, databases: Iterable[str] | None = None, **options: Any) -> list[CheckMessage]:
    """Report tables of an earlier plugin of the same name, and fail if migrations would not convert them.

    `netbox migrate` (before it changes anything) and `netbox check --database default` run this check.
    """
    return [problem for alias in databases or () for problem in _problems(alias)]


def stop_migration(using: str, **kwargs: Any) -> None:
    """Stop migrations that would leave tables of an earlier plugin unconverted (a receiver of `pre_migrate`).

    Programs that run migrations, such as `netbox upgrade`, skip the checks.
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
        return []  # unreachable databases are reported elsewhere
    if not tables:
        return []
    found = f'{" and ".join(tables)}: created by another plugin (netbox-celery before 0.2)'
    if ('netbox_celery', '0002_workflow_root') in applied:
        return [Error(
            f'{found}, but the migrations of this plugin are recorded as applied, as by `netbox migrate --fake`.',
            hint="Execute DELETE FROM django_migrations WHERE app = 'netbox_celery'; (netbox dbshell), then run "
                 "`netbox migrate`, which renames these tables and converts their rows.",
            id='netbox_celery.E001'
        )]
    return [Warning(
        f'{found}.',
        hint=f'`netbox migrate` renames them to {" and ".join(ASIDE[table] for table in tables)} and converts their '
             f'rows.',
        id='netbox_celery.W002'
    )]
