"""Starts the run of a schedule that is due, or records a failed run that says why not, and sets its next time.

Beat does this (`netbox_celery.scheduler`), in any number of processes: the one that locks the schedule's row starts its
run.
"""
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from django.db import connection, transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.translation import gettext as _

from ...choices import ResultReasonChoices as Reason
from ...choices import ResultStatusChoices as Status
from ...choices import ScheduleKindChoices as Kind
from ...choices import ScheduleMissedChoices as Missed
from ...choices import ScheduleOriginChoices as Origin
from ...choices import ScheduleOverlapChoices as Overlap
from ..calls.policies import SCHEDULE_KEYS, EngineKey, has_key
from ..catalogue.registry import get_task
from ..exceptions import BranchNotReady
from ..store import branches
from ..store.database import UNAVAILABLE, is_read_only
from ..store.payload import clean_text, text_of
from . import due

if TYPE_CHECKING:
    from ...models import CeleryResult, CelerySchedule

__all__ = (
    'DUE_HEADER',
    'find_due',
    'fire',
    'resume_after_clock',
    'run_now',
    'start_run',
)

logger = logging.getLogger(__name__)

#: Message header with the time at which a run was due (ISO 8601, UTC); `self.request` has it.
DUE_HEADER = 'netbox_celery_due'
#: A time that is overdue for longer than this was missed. A standby beat takes over sooner.
LATE = timedelta(seconds=60)
#: When a schedule that failed because of an unexpected error is tried again.
PUT_OFF = timedelta(seconds=60)
#: The fields from which due times are calculated.
TIMING_FIELDS = (
    'next_run', 'kind', 'crontab', 'timezone', 'interval', 'at', 'start', 'end', 'missed', 'missed_max',
)
#: Schedules that are fetched at a time.
BATCH = 100
#: After this time the transaction of a beat that hangs releases its schedule.
HANGING = "SET LOCAL idle_in_transaction_session_timeout = '10s'"


def find_due() -> list[int]:
    """Return the primary keys of schedules that are due, the longest overdue first; at most a batch of them."""
    return list(_due().order_by('next_run').values_list('pk', flat=True)[:BATCH])


def _due():
    from ...models import CelerySchedule

    return CelerySchedule.objects.filter(enabled=True, next_run__lte=Now())


def fire(
    pk: int, permissions: dict[tuple[int, int], bool], start: Callable[['CelerySchedule', datetime], Any] | None = None
) -> bool:
    """Start the run of a schedule that is due, and calculate its next time.

    GUARANTEE: each due time is handled once. The row of the schedule is locked, and its next time is written in the
    transaction that makes the row of the run, whose message is sent on commit, or else by the sweep. So neither a beat
    that dies at any point, nor a second one at the same time, loses or repeats a run.

    GUARANTEE: no row is locked while times are calculated. They are valid if the row is still the same when locked.

    Args:
        pk: Primary key of the schedule.
        permissions: A dict that caches who may run what, for as long as the caller keeps it.
        start: Called to start a run instead of `start_run`, which it has to call.

    Returns:
        Whether the schedule was due, and not locked by another process.

    Raises:
        django.db.OperationalError: The database is unavailable; nothing has happened.
        django.db.InternalError: It is read-only, likewise.
    """
    from ...models import CelerySchedule

    try:
        seen = _due().filter(pk=pk).annotate(now=Now()).first()
        if seen is None:
            return False
        times = _calculate(seen)
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute(HANGING)
            schedule = _due().filter(pk=pk).select_related('task', 'owner').select_for_update(
                skip_locked=True, no_key=True, of=('self',)
            ).first()
            if schedule is None or _is_edited(schedule, seen):
                return False
            schedule.now = seen.now
            CelerySchedule.objects.filter(pk=pk).update(**_fire(schedule, times, permissions, start or start_run))
    except Exception as exc:
        if isinstance(exc, UNAVAILABLE) and not connection.is_usable() or is_read_only(exc):
            raise
        logger.exception('Schedule %s could not be run, trying again in %s', pk, PUT_OFF)
        CelerySchedule.objects.filter(pk=pk).update(next_run=Now() + PUT_OFF)
    return True


def _calculate(schedule):
    """Return the due times and the next one (see `due.last_due`), or the `ValueError` if its timing is not valid."""
    is_all = schedule.missed == Missed.MISSED_RUN_ALL
    try:
        return due.last_due(schedule, schedule.next_run, schedule.now, schedule.missed_max if is_all else 1)
    except ValueError as exc:
        return exc


def _is_edited(schedule, seen):
    """Whether a schedule's timing was changed since it was seen."""
    return any(getattr(schedule, name) != getattr(seen, name) for name in TIMING_FIELDS)


def _fire(schedule, calculated, permissions, start):
    """Start the runs that are due, and return the new values of the schedule's columns."""
    if isinstance(calculated, ValueError):
        _fail(schedule, schedule.next_run, Reason.REASON_INVALID_CALL, _(
            'The schedule was disabled: its timing is not valid. {error}'
        ).format(error=calculated))
        return {'enabled': False, 'next_run': None, 'last_run': schedule.now}
    times, following = calculated
    written: dict[str, Any] = {'next_run': following}
    if following is None and schedule.kind == Kind.KIND_ONCE:
        written['enabled'] = False
    if schedule.missed == Missed.MISSED_SKIP and schedule.now - times[-1] > LATE:
        logger.info('Schedule %s: skipped the runs that were due until %s', schedule, times[-1])
        return written
    written['last_run'] = schedule.now
    if why := branches.check(schedule.branch):
        return written | _without_branch(schedule, times[-1], why)
    if why := why_not_permitted(schedule, permissions):
        _fail(schedule, times[-1], Reason.REASON_NOT_PERMITTED, _('The schedule was disabled. {why}').format(why=why))
        return written | {'enabled': False, 'next_run': None, 'stopped': schedule.now}
    if not schedule.task.enabled:
        _fail(schedule, times[-1], Reason.REASON_TASK_DISABLED, _('The task {task} is disabled.').format(
            task=schedule.task
        ))
        return written
    for moment in times:
        start(schedule, moment)
    return written


def _without_branch(schedule, moment, why):
    """Record that the branch of a schedule is not ready, and return the new values of the schedule's columns.

    If the branch no longer exists, the schedule is disabled.
    """
    if not branches.is_gone(schedule.branch):
        _fail(schedule, moment, Reason.REASON_BRANCH_NOT_READY, why)
        return {}
    _fail(schedule, moment, Reason.REASON_BRANCH_NOT_READY, _('The schedule was disabled. {why}').format(why=why))
    return {'enabled': False, 'next_run': None, 'stopped': schedule.now}


def why_not_permitted(schedule: 'CelerySchedule', permissions: dict[tuple[int, int], bool]) -> str:
    """Return in words why a schedule is not permitted to run as its owner, or an empty string.

    Schedules from settings and code run without a user, unless a user took ownership.

    Args:
        schedule: The `CelerySchedule`.
        permissions: A dict that caches who may run what, for as long as the caller keeps it.
    """
    from ...models import CeleryTask

    owner = schedule.owner
    if owner is None:
        if schedule.origin != Origin.ORIGIN_USER:
            return ''
        return _('Its owner was deleted. Another user can take ownership.')
    if not owner.is_active:
        return _('Its owner {owner} is no longer active.').format(owner=owner)
    key = owner.pk, schedule.task_id
    if key not in permissions:
        permissions[key] = CeleryTask.objects.restrict(owner, 'run').filter(pk=schedule.task_id).exists()
    if not permissions[key]:
        return _('Its owner {owner} is not permitted to run the task {task}.').format(
            owner=owner, task=schedule.task
        )
    return ''


def start_run(
    schedule: 'CelerySchedule', moment: datetime, headers: dict[str, Any] | None = None
) -> 'CeleryResult | None':
    """Start a run. If the task cannot be called like that, record a failed run instead.

    Args:
        schedule: The `CelerySchedule`.
        moment: When it was due.
        headers: Further headers of its message, a dict.

    Returns:
        The new `CeleryResult`, or `None` if the call failed.
    """
    from ...models import CeleryResult

    options = call_options(schedule, moment)
    options['headers'] = {**(headers or {}), **options['headers']}
    try:
        with transaction.atomic():
            result = CeleryResult.enqueue(
                schedule.task.name, args=schedule.args, kwargs=schedule.kwargs, user=schedule.owner_id, **options
            )
    except UNAVAILABLE:
        raise
    except Exception as exc:
        if is_read_only(exc):
            raise
        logger.warning('Schedule %s: %s cannot be called: %s', schedule, schedule.task, exc)
        _fail(schedule, moment, Reason.REASON_INVALID_CALL, f'{type(exc).__name__}: {text_of(exc)}')
    else:
        logger.info('Schedule %s: %s[%s], due %s', schedule, schedule.task, result.task_id, moment)
        return result
    return None


def call_options(schedule: 'CelerySchedule', moment: datetime) -> dict[str, Any]:
    """Return the options of a run that is due at `moment`, for `CeleryResult.enqueue`."""
    options = dict(schedule.options)
    options['headers'] = {**(options.get('headers') or {}), DUE_HEADER: moment.isoformat()}
    if schedule.branch:
        options['headers'][branches.HEADER] = schedule.branch
    if schedule.queue:
        options['queue'] = schedule.queue
    if schedule.priority is not None:
        options['priority'] = schedule.priority
    if schedule.expires is not None:
        options['expires'] = moment + timedelta(seconds=schedule.expires)
    if schedule.overlap != Overlap.OVERLAP_ALLOW:
        options['on_conflict'] = schedule.overlap
        if not has_key(get_task(schedule.task.name)):
            options |= {'concurrency_key': EngineKey(f'{SCHEDULE_KEYS}{schedule.pk}'), 'limit': 1}
    return options | {'netbox_schedule': schedule.pk, 'instance': schedule.object}


def _fail(schedule, moment, reason, error):
    """Make the row of a run that failed before it was sent."""
    from ...models import CeleryResult

    logger.error('Schedule %s: %s', schedule, error)
    task_id = uuid4()
    CeleryResult.objects.bulk_create([CeleryResult(
        task_id=task_id, root_id=task_id, request_id=task_id, celery_name=schedule.task.name, name=schedule.task.name,
        args=None if schedule.hides('args') else schedule.args,
        kwargs=None if schedule.hides('kwargs') else schedule.kwargs, queue=schedule.queue, user_id=schedule.owner_id,
        options={'headers': {DUE_HEADER: moment.isoformat()}, **{
            name: schedule.options[name] for name in ('argsrepr', 'kwargsrepr') if name in schedule.options
        }}, schedule=schedule, branch=schedule.branch,
        object_type_id=schedule.object_type_id, object_id=schedule.object_id, status=Status.STATUS_FAILED,
        reason=reason, error=clean_text(error), completed=schedule.now
    )])


def run_now(schedule: 'CelerySchedule', user: Any) -> 'CeleryResult':
    """Run a schedule's task now, in addition to its times. Its overlap policy applies.

    Args:
        schedule: The `CelerySchedule`.
        user: The user that the run acts as. The caller checks that they may run the task.

    Returns:
        The new `CeleryResult`.

    Raises:
        TypeError: The arguments do not match the task's signature.
        BranchNotReady: It runs in a branch that is not ready.
        kombu.exceptions.OperationalError: The broker refused the message (outside a transaction).
    """
    from ...models import CeleryResult

    if why := branches.check(schedule.branch):
        raise BranchNotReady(why)
    return CeleryResult.enqueue(
        schedule.task.name, args=schedule.args, kwargs=schedule.kwargs, user=user,
        **call_options(schedule, timezone.now())
    )


def resume_after_clock() -> None:
    """Recalculate when schedules are due that were written in the future: the clock was wrong then.

    A clock that goes back repeats no run: what was due is not due again. But if it was ahead by more than a minute,
    schedules would wait until it is that late again.
    """
    from ...models import CelerySchedule

    ahead = CelerySchedule.objects.filter(
        Q(last_run__gt=Now() + LATE) | Q(last_updated__gt=Now() + LATE), enabled=True, present=True
    ).annotate(now=Now())
    for seen in list(ahead):
        try:
            following = due.next_due(seen, seen.now)
        except ValueError:
            following = seen.now  # `fire` then reports what is wrong
        with transaction.atomic():
            schedule = ahead.select_for_update(no_key=True).filter(pk=seen.pk).first()
            if schedule is None or _is_edited(schedule, seen):
                continue  # until the next call
            logger.warning('Schedule %s was written in the future: the clock has changed', schedule)
            CelerySchedule.objects.filter(pk=seen.pk).update(
                last_run=schedule.last_run and min(schedule.last_run, schedule.now), last_updated=schedule.now,
                next_run=following
            )
