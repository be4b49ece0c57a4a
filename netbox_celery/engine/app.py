"""The Celery app of this process: `netbox_celery.celery`, which the engine does not import, makes it and binds it."""

__all__ = (
    'bind',
    'get_app',
)

_bound = []


def bind(app):
    """Let an app be that of this process."""
    _bound[:] = [app]


def get_app():
    """Return the app of this process.

    Raises:
        RuntimeError: NetBox has not been set up yet: `ready()` of the plugin makes the app.
    """
    if not _bound:
        raise RuntimeError('There is no Celery app yet: import netbox_celery.celery, or set up Django')
    return _bound[0]
