"""Django's system checks of the plugin: what an operator has to do before anything else can work."""
from django.core.checks import Error, Tags, Warning, register
from django.db import DatabaseError, connections
from django.db.migrations.recorder import MigrationRecorder

from .migrations._forerunner import ASIDE, forerunner_tables

__all__ = (
    'check_forerunner',
)


@register(Tags.database)
def check_forerunner(app_configs, databases=None, **options):
    """Say what becomes of the tables of an earlier plugin of the same name, and stop where nothing would.

    `netbox migrate` and `netbox check --database default` run it, both before they do anything.
    """
    found = []
    for alias in databases or ():
        connection = connections[alias]
        try:
            tables = forerunner_tables(connection) if connection.vendor == 'postgresql' else []
            applied = MigrationRecorder(connection).applied_migrations() if tables else {}
        except DatabaseError:
            continue  # it cannot be reached: that is for others to say
        if ('netbox_celery', '0002_workflow_root') in applied:
            found.append(Error(
                f'{" and ".join(tables)}: made by another plugin (netbox-celery before 0.2), while the migrations of '
                f'this one are recorded as applied, as by `netbox migrate --fake`.',
                hint="Execute DELETE FROM django_migrations WHERE app = 'netbox_celery'; (netbox dbshell), then run "
                     "`netbox migrate`, which moves these tables aside and converts their rows.",
                id='netbox_celery.E001'
            ))
        elif tables:
            found.append(Warning(
                f'{" and ".join(tables)}: made by another plugin (netbox-celery before 0.2).',
                hint=f'`netbox migrate` renames them to {" and ".join(ASIDE[table] for table in tables)}, and converts '
                     f'their rows.',
                id='netbox_celery.W001'
            ))
    return found
