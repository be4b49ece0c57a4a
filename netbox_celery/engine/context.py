"""The user and request under which a task changes NetBox objects."""
from contextlib import nullcontext
from uuid import UUID

from django.utils.functional import SimpleLazyObject

from .. import host

__all__ = (
    'change_context',
)


def change_context(run):
    """Return a context manager for the body of a run.

    Changes of NetBox objects in it are recorded under the user who started the run, joined by the run's request ID.
    Without a user they are NetBox's own, as those of its housekeeping: no change log entries.

    Args:
        run: The `Run`, or `None` for a body that is not tracked.
    """
    if run is None or run.user_id is None:
        return nullcontext()
    request_id = run.request_id if isinstance(run.request_id, UUID) else UUID(str(run.request_id or run.task_id))
    return host.change_tracking(SimpleLazyObject(lambda: _load_user(run.user_id)), request_id)


def _load_user(pk):
    from django.contrib.auth import get_user_model

    return get_user_model().objects.get(pk=pk)
