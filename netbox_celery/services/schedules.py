"""Decides who may save, run and own a schedule.

Runs act as the owner of their schedule, so every way to change what a schedule runs must be authorized here: the form,
bulk edit, import and REST all call `authorize()` before they save.
"""
from typing import Any

from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest
from django.utils.translation import gettext as _

from users.models import User

from ..engine.calls.options import is_internal
from ..engine.schedules.firing import why_not_permitted
from ..engine.store import branches
from ..engine.store.payload import sorted_text
from ..engine.workflows.canvas import called_tasks
from ..host import ACTION_CREATE, record_change, save_permitted
from ..models import CeleryResult, CelerySchedule, CeleryTask
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

#: Columns that define what a run does. A user who changes one becomes the owner.
WHAT_RUNS = (
    'task_id', 'args', 'kwargs', 'queue', 'priority', 'expires', 'options', 'object_type_id', 'object_id',
)


def may_run(user: User, task_id: int | None) -> bool:
    """Whether a user may run a task of the catalogue, under the constraints of their permissions."""
    return CeleryTask.objects.restrict(user, 'run').filter(pk=task_id).exists()


def check_may_run(user: User, *task_ids: int | None) -> None:
    """Raise `PermissionDenied` if a user may not run one of the tasks."""
    for task_id in dict.fromkeys(task_ids):
        if task_id is not None and not may_run(user, task_id):
            raise PermissionDenied(_('You do not have permission to run the task.'))


def check_inner(user: User, schedule: CelerySchedule) -> None:
    """Raise `PermissionDenied` if a schedule runs one of Celery's own tasks that calls a task the user may not run."""
    # In a form, a schedule may have no task yet
    if schedule.task_id is not None and is_internal(schedule.task.name):
        try:
            check_calls(user, called_tasks(schedule.task.name, schedule.args, schedule.kwargs))
        except NotRunnable:
            pass  # reported when the schedule is due


def why_not_runnable_as_owner(schedule: CelerySchedule, reader: Reader) -> str:
    """Return why a schedule may not run as its owner, or an empty string.

    Args:
        schedule: The `CelerySchedule`.
        reader: The `Reader` of the text, which contains no names that they may not view.
    """
    why = why_not_permitted(schedule, {})
    if why and schedule.owner and not (reader.may_view(schedule.owner) and reader.may_view(schedule.task)):
        return _('The owner is inactive or not allowed to run the task.')
    return why


def authorize(user: User, schedule: CelerySchedule) -> None:
    """Check that a user may save a schedule as it is now, and make them the owner if they change what it runs.

    GUARANTEE: a user cannot make a run act as another user. The owner never comes from the request: it is the stored
    owner if everything that defines the run equals what is stored, and the user otherwise. Owner and definition are
    written in one statement, so that a concurrent save cannot separate them.

    Args:
        user: The user who creates or changes the schedule.
        schedule: The `CelerySchedule`, validated and not saved yet; its owner is set.

    Raises:
        django.core.exceptions.PermissionDenied: The user may not run its task, or its previous task.
        django.core.exceptions.ValidationError: The schedule is being enabled, but its owner may no longer run its task
            or its branch is not ready; or the object does not exist or the user may not view it.
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


def check_object(
    user: User, before: CelerySchedule | None, object_type: ContentType | None, object_id: int | None
) -> None:
    """Refuse an object that the user may not view with the same message as one that does not exist.

    The user must not learn that the object exists. So this check comes before the model's own validation, which accepts
    a hidden object and refuses a missing one.

    Args:
        user: The user who creates or changes the schedule.
        before: The stored schedule, or `None` for a new one: an unchanged object is not checked.
        object_type: The `ContentType` of the object, or `None`.
        object_id: The primary key of the object, or `None`.

    Raises:
        django.core.exceptions.ValidationError: The object does not exist, or the user may not view it.
    """
    if object_type is None or object_id is None or before and (
        (before.object_type_id, before.object_id) == (object_type.pk, object_id)
    ):
        return
    manager: Any = getattr(object_type.model_class(), 'objects', None)
    if not hasattr(manager, 'restrict') or not manager.restrict(user, 'view').filter(pk=object_id).exists():
        raise ValidationError({'object_id': _('Object not found.')})


def _what_runs(schedule: CelerySchedule) -> list[str]:
    # As JSON: in Python, 1 equals True
    return [sorted_text(getattr(schedule, name)) for name in WHAT_RUNS]


def run_now(request: HttpRequest, schedule: CelerySchedule) -> CeleryResult:
    """Run a schedule's task now, as the request's user. Returns the run that `CeleryResult.enqueue` returns."""
    check_inner(request.user, schedule)
    result = schedule.run_now(request.user)
    if not result.joined:
        record_change(result, request, ACTION_CREATE, message=_('Run manually from the schedule {schedule}').format(
            schedule=schedule
        ))
    return result


def set_enabled(user: User, schedule: CelerySchedule, enabled: bool) -> None:
    """Enable or disable a schedule (see `authorize` and `save_permitted`)."""
    schedule.snapshot()
    schedule.enabled = enabled
    authorize(user, schedule)
    schedule.full_clean()
    save_permitted(user, schedule)


def take_over(user: User, schedule: CelerySchedule) -> None:
    """Make a user the owner of a schedule, and enable the schedule if beat had stopped it because of its owner.

    Raises:
        django.core.exceptions.PermissionDenied: The user may not run its task.
        django.core.exceptions.ValidationError: The schedule cannot be enabled: it would never be due.
        utilities.exceptions.PermissionsViolation: The user would not be allowed to change the schedule afterwards.
    """
    check_may_run(user, schedule.task_id)
    check_inner(user, schedule)
    schedule.snapshot()
    schedule.owner = user
    schedule.enabled = schedule.enabled or schedule.stopped is not None
    schedule.full_clean()
    save_permitted(user, schedule)
