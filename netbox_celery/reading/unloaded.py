"""What NetBox and the workers could not import of plugins, for the pages: where a task is missing, and why."""
from django.utils.translation import gettext as _

from ..engine.catalogue import discovery, registry
from ..models import CeleryWorker

__all__ = (
    'unloaded_modules',
)

FIELDS = ('plugin', 'module', 'error', 'place')


def unloaded_modules(user, plugin=None):
    """Return which modules could not be imported, and where: by this process of NetBox, and by workers that are alive.

    Args:
        user: Who is told; they hear of the workers that they may view.
        plugin: The package in question; by default all.

    Returns:
        A list of dicts of `plugin`, `module`, `error`, `place`, and `where`, a list of names.
    """
    registry.registered_tasks()
    found: dict = {}
    for failure in discovery.failures():
        _add(found, failure.as_dict(), _('NetBox'))
    for worker in CeleryWorker.objects.restrict(user, 'view').filter(stopped=None).only(
        'name', 'versions', 'heartbeat', 'stopped'
    ):
        if worker.is_alive:
            for failure in worker.not_loaded:
                _add(found, failure, worker.name)
    return [
        dict(zip(FIELDS, key)) | {'where': where} for key, where in sorted(found.items()) if plugin in (None, key[0])
    ]


def _add(found, failure, where):
    places = found.setdefault(tuple(str(failure.get(field, '')) for field in FIELDS), [])
    if where not in places:
        places.append(where)
