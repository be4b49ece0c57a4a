"""Modules of plugins that NetBox or a worker could not import: pages show where tasks are missing, and why."""
from typing import Any

from django.utils.translation import gettext as _

from users.models import User

from ..engine.catalogue import discovery, registry
from ..models import CeleryWorker

__all__ = (
    'unloaded_modules',
)

FIELDS = ('plugin', 'module', 'error', 'place')


def unloaded_modules(user: User, plugin: str | None = None) -> list[dict[str, Any]]:
    """Return the modules that this NetBox process, or a worker that is online, could not import.

    Args:
        user: The reader; only workers that they may view are included.
        plugin: Only modules of this package; by default of all.

    Returns:
        A list of dicts of `plugin`, `module`, `error`, `place`, and `where`, a list of names.
    """
    registry.registered_tasks()
    found: dict[tuple[str, ...], list[str]] = {}
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
