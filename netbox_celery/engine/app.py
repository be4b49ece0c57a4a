"""The Celery app of this process. `netbox_celery.celery`, which the engine does not import, creates and binds it."""
from typing import Any

__all__ = (
    'bind',
    'get_app',
)

_bound: list[Any] = []


def bind(app: Any) -> None:
    """Make an app the one of this process."""
    _bound[:] = [app]


def get_app() -> Any:
    """Return the app of this process.

    Raises:
        RuntimeError: NetBox is not set up yet: `ready()` of the plugin creates the app.
    """
    if not _bound:
        raise RuntimeError('There is no Celery app yet: import netbox_celery.celery, or set up Django')
    return _bound[0]
