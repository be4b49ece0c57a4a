"""What `netbox check` says of the plugin: warnings, since the rest of NetBox works."""
from django.core import checks

from .engine import catalogue, discovery

__all__ = (
    'check_tasks',
)


@checks.register('netbox_celery')
def check_tasks(app_configs, **kwargs):
    """Warn of plugins whose tasks cannot be imported (`netbox_celery.W001`)."""
    catalogue.registered_tasks()
    return [
        checks.Warning(
            f'The tasks of {failure.plugin} cannot be imported: {failure}',
            hint='Workers and NetBox go on without them. Install what is missing, or mend the module; then restart '
                 'NetBox, its workers and beat.',
            obj=failure.module,
            id='netbox_celery.W001',
        ) for failure in discovery.failures()
    ]
