"""What people do to tasks and runs, from the user interface and from REST: run, cancel, run again.

The engine does it; here it gets its entry in the change log. Permissions are the caller's to check: on the objects,
with `restrict()`.
"""
from django.utils.translation import gettext as _

from .engine import control
from .host import ACTION_CREATE, ACTION_UPDATE, record_change
from .models import CeleryResult

__all__ = (
    'cancel',
    'rerun',
    'run',
)


def run(request, task, args=(), kwargs=None, **options):
    """Run a task of the catalogue under the name of the request's user.

    Args:
        request: The HTTP request.
        task: The `CeleryTask`.
        args: Positional arguments.
        kwargs: Keyword arguments.
        **options: As for `CeleryResult.enqueue`.

    Returns:
        The new `CeleryResult`.
    """
    result = CeleryResult.enqueue(task.name, args=args, kwargs=kwargs, user=request.user, **options)
    record_change(result, request, ACTION_CREATE)
    return result


def cancel(request, result):
    """Cancel a run. Returns `False` if it had ended already (or was being cancelled), and then changes nothing."""
    result.snapshot()
    if not control.cancel(result, user=request.user):
        return False
    result.refresh_from_db()
    record_change(result, request, ACTION_UPDATE, message=_('Cancelled'))
    return True


def rerun(request, result):
    """Run a task again with the same arguments, under the name of the request's user. Returns the new row.

    Raises:
        netbox_celery.engine.control.NotRerunnable: The row does not hold the arguments (too large, or redacted).
    """
    new = control.rerun(result, user=request.user)
    record_change(new, request, ACTION_CREATE, message=_('Run again from {result}').format(result=result.pk))
    return new
