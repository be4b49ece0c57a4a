"""What people do to schedules, from the user interface and from REST: who may, and in whose name it then runs.

Runs act as the owner of their schedule, so who may decide what they do is decided here, for each way to do it: the
form, bulk edit, import and REST all call `authorize()` before they save.
"""
from django.core.exceptions import PermissionDenied, ValidationError
from django.utils.translation import gettext as _

from ..engine.calls.options import is_internal
from ..engine.schedules.firing import why_not_permitted
from ..engine.store import branches
from ..engine.store.payload import sorted_text
from ..engine.workflows.canvas import called_tasks
from ..host import ACTION_CREATE, record_change, save_permitted
from ..models import CelerySchedule, CeleryTask
from ..reading.viewing import Reader
from .runs import NotRunnable, check_calls

__all__ = (
    'authorize',
    'check_may_run',
    'check_object',
    'may_run',
    'run_now',
    'set_enabled',
    'take_over',
    'why_not_runnable_as_owner',
)

#: What a run does. Whoever changes one of these becomes the owner.
WHAT_RUNS = (
    'task_id', 'args', 'kwargs', 'queue', 'priority', 'expires', 'options', 'object_type_id', 'object_id',
)


def may_run(user, task_id):
    """Whether a user may run a task of the catalogue, with the constraints of their permissions."""
    return CeleryTask.objects.restrict(user, 'run').filter(pk=task_id).exists()


def check_may_run(user, *task_ids):
    """Raise `PermissionDenied` if a user may not run each of some tasks."""
    for task_id in dict.fromkeys(task_ids):
        if task_id is not None and not may_run(user, task_id):
            raise PermissionDenied(_('You need the permission to run its task.'))


def check_inner(user, schedule):
    """Raise `PermissionDenied` if a schedule runs one of Celery's own tasks, which calls what a user may not run."""
    # A schedule that is being filled in may have no task yet
    if schedule.task_id is not None and is_internal(schedule.task.name):
        try:
            check_calls(user, called_tasks(schedule.task.name, schedule.args, schedule.kwargs))
        except NotRunnable:
            pass  # what is disabled or absent is said when it is to run


def why_not_runnable_as_owner(schedule, reader):
    """Return in words why a schedule may not run in its owner's name, or an empty string.

    Args:
        schedule: The `CelerySchedule`.
        reader: The `Reader` who is told. They read no names that they may not view.
    """
    why = why_not_permitted(schedule, {})
    if why and schedule.owner and not (reader.may_view(schedule.owner) and reader.may_view(schedule.task)):
        return _('Its owner is not active any more, or may not run the task.')
    return why


def authorize(user, schedule):
    """Check that a user may save a schedule as it is now, and make them its owner if they change what it runs.

    GUARANTEE: nobody lets a run act as somebody else. The owner is never what a request says: it is the one who is
    stored, if all that is run is what is stored with them, and else the user. Both are written in the same statement,
    so that somebody who saves at the same time cannot come between them.

    Args:
        user: Who makes or changes the schedule.
        schedule: The `CelerySchedule`, validated and not saved yet; its owner is set.

    Raises:
        django.core.exceptions.PermissionDenied: They may not run its task, or the one that it had.
        django.core.exceptions.ValidationError: It is to be enabled, and its owner may not run its task any more, or its
            branch is not ready; or there is no such object that they may view.
    """
    before = None if schedule._state.adding else CelerySchedule.objects.filter(pk=schedule.pk).first()
    check_may_run(user, schedule.task_id, before and before.task_id)
    check_inner(user, schedule)
    if before is None or _what_runs(before) != _what_runs(schedule):
        check_object(user, before, schedule.object_type, schedule.object_id)
        schedule.owner = user
    else:
        schedule.owner_id = before.owner_id
    is_being_enabled = schedule.enabled and not (before and before.enabled)
    if is_being_enabled and (
        why := why_not_runnable_as_owner(schedule, Reader(user)) or branches.check(schedule.branch)
    ):
        raise ValidationError({'enabled': why})


def check_object(user, before, object_type, object_id):
    """Refuse an object that a user may not view, in the same words as one that there is not.

    It is not to be found out that it exists. So this comes before the model's own validation, which takes the one and
    refuses the other.

    Args:
        user: Who makes or changes the schedule.
        before: The schedule as it is stored, or `None` if it is not: what nobody changes is not checked.
        object_type: The `ContentType` of the object, or `None`.
        object_id: Its primary key, or `None`.

    Raises:
        django.core.exceptions.ValidationError: There is no such object that they may view.
    """
    if object_type is None or object_id is None or before and (
        (before.object_type_id, before.object_id) == (object_type.pk, object_id)
    ):
        return
    manager = getattr(object_type.model_class(), 'objects', None)
    if not hasattr(manager, 'restrict') or not manager.restrict(user, 'view').filter(pk=object_id).exists():
        raise ValidationError({'object_id': _('There is no such object.')})


def _what_runs(schedule):
    # As JSON: in Python, `1` is the same as `true`
    return [sorted_text(getattr(schedule, name)) for name in WHAT_RUNS]


def run_now(request, schedule):
    """Run a schedule's task now, in the name of the request's user. Returns what `CeleryResult.enqueue` does."""
    check_inner(request.user, schedule)
    result = schedule.run_now(request.user)
    if not result.joined:
        record_change(result, request, ACTION_CREATE, message=_('Run by hand from the schedule {schedule}').format(
            schedule=schedule
        ))
    return result


def set_enabled(user, schedule, enabled):
    """Enable or disable a schedule (see `authorize` and `save_permitted`)."""
    schedule.snapshot()
    schedule.enabled = enabled
    authorize(user, schedule)
    schedule.full_clean()
    save_permitted(user, schedule)


def take_over(user, schedule):
    """Make a user the owner of a schedule, and enable it if beat has stopped it for want of one.

    Raises:
        django.core.exceptions.PermissionDenied: They may not run its task.
        django.core.exceptions.ValidationError: It cannot be enabled: it would never be due.
        utilities.exceptions.PermissionsViolation: They may not change it then.
    """
    check_may_run(user, schedule.task_id)
    check_inner(user, schedule)
    schedule.snapshot()
    schedule.owner = user
    schedule.enabled = schedule.enabled or schedule.stopped is not None
    schedule.full_clean()
    save_permitted(user, schedule)
