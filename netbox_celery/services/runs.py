"""Runs tasks, cancels runs and runs them again on behalf of a user.

The engine does the work; these functions add the entry in the change log. The caller must check the permissions on the
objects, with `restrict()`.
"""
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext as _

from users.models import User

from ..celery import app
from ..choices import ResultStatusChoices
from ..engine.calls.options import is_internal
from ..engine.catalogue import discovery
from ..engine.catalogue.queues import check_repeated
from ..engine.sending import control
from ..engine.workflows import family as workflow
from ..engine.workflows.canvas import CALLERS, called_tasks
from ..host import ACTION_CREATE, ACTION_UPDATE, record_change, record_changes, take_snapshot
from ..models import CeleryResult, CeleryTask
from ..reading.viewing import is_unconstrained

__all__ = (
    'NotRunnable',
    'cancel',
    'cancel_many',
    'cancel_workflow',
    'cancellable',
    'check_calls',
    'check_rerun',
    'is_under_way',
    'may_run',
    'rerun',
    'run',
    'why_not_runnable',
)


class NotRunnable(Exception):
    """A task cannot be run; the text is the reason."""


#: Maximum number of runs cancelled in one statement.
BATCH = 500


def why_not_runnable(task: CeleryTask) -> str:
    """Return why a task of the catalogue cannot be run by anyone, or an empty string."""
    if not task.enabled:
        return _('The task {task} is disabled.').format(task=task)
    if not task.present:
        absent = _(
            'The task {task} is not registered on any worker. Check that its plugin is installed and that a worker is '
            'running.'
        ).format(task=task)
        why = discovery.why_unregistered(task.name, task.plugin)
        return f'{absent} {why}' if why else absent
    if strategy := task.defaults.get('strategy'):
        return _(
            'The task {task} can only be called from code: it has a custom strategy ({strategy}), so its runs cannot '
            'be tracked.'
        ).format(task=task, strategy=strategy)
    return ''


def may_run(user: User, task: CeleryTask) -> bool:
    """Whether a user may run a task of the catalogue."""
    return user.has_perm('netbox_celery.run_celerytask', task)


def check_rerun(user: User, *results: CeleryResult) -> None:
    """Check that a user may run each task that running some runs again would call, and that it can be run.

    GUARANTEE: users cannot run a task again that they are not allowed to run. For `celery.map` and the like, the tasks
    that they call count. Constraints cannot match a task outside of the catalogue: only users who may run all tasks may
    run it.

    Args:
        user: The user who runs them again.
        *results: The runs.

    Raises:
        django.core.exceptions.PermissionDenied: The user may not run one of the tasks.
        NotRunnable: One of the tasks cannot be run.
    """
    for result in results:
        try:
            names = set(called_tasks(result.celery_name, result.args, result.kwargs))
        except RecursionError as exc:
            raise NotRunnable(_('The arguments of the run are nested too deeply to be run again.')) from exc
        check_calls(user, names)


def check_calls(user: User, names: Iterable[str]) -> None:
    """Check that a user may run the tasks with some names, and that they can be run (see `check_rerun`)."""
    names = set(names)
    catalogued = {task.name: task for task in CeleryTask.objects.filter(name__in=names)}
    for name in names:
        # A task that calls others and cannot be resolved to these: only for users who may run all tasks
        task = None if name in CALLERS else catalogued.get(name)
        permitted = is_unconstrained(user, CeleryTask, 'run') if task is None else may_run(user, task)
        if not permitted:
            raise PermissionDenied(_('You do not have permission to run this task.'))
    for name in sorted(catalogued):
        if reason := why_not_runnable(catalogued[name]):
            raise NotRunnable(reason)


def run(
    request: HttpRequest, task: CeleryTask, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None,
    **options: Any
) -> CeleryResult:
    """Run a task of the catalogue as the request's user.

    Args:
        request: The HTTP request.
        task: The `CeleryTask`.
        args: Positional arguments.
        kwargs: Keyword arguments.
        **options: As for `CeleryResult.enqueue`.

    Returns:
        The run that `CeleryResult.enqueue` returns.

    Raises:
        django.core.exceptions.PermissionDenied: One of Celery's own tasks calls a task that the user may not run.
        NotRunnable: It calls a task that cannot be run.
    """
    if is_internal(task.name):
        check_calls(request.user, called_tasks(task.name, args, kwargs))
    result = CeleryResult.enqueue(task.name, args=args, kwargs=kwargs, user=request.user, **options)
    if not result.joined:
        record_change(result, request, ACTION_CREATE)
    return result


def cancel(request: HttpRequest, result: CeleryResult) -> bool:
    """Cancel a run. Returns `False`, without any change, if it had finished or was already being cancelled."""
    take_snapshot(result)
    if not control.cancel(result, user=request.user):
        return False
    result.refresh_from_db()
    record_change(result, request, ACTION_UPDATE, message=_('Cancelled'))
    return True


def cancel_many(request: HttpRequest, ids: Iterable[int]) -> int:
    """Cancel runs by primary key (see `cancel`). Returns the number of runs cancelled."""
    ids, count = list(ids), 0
    for start in range(0, len(ids), BATCH):
        runs = CeleryResult.objects.prefetch_related('tags')
        before = runs.in_bulk(ids[start:start + BATCH])
        cancelled = control.cancel_many(list(before), user=request.user)
        after = runs.in_bulk(cancelled)
        for pk, result in after.items():
            take_snapshot(before[pk])
            result._prechange_snapshot = getattr(before[pk], '_prechange_snapshot', None)
        record_changes(after.values(), request, ACTION_UPDATE, message=_('Cancelled'))
        count += len(cancelled)
    return count


def cancel_workflow(request: HttpRequest, result: CeleryResult) -> tuple[int, int]:
    """Cancel all active and waiting runs of a workflow, and keep them from starting others.

    Runs that the user may not cancel continue.

    Returns:
        The number of runs cancelled, and the number of runs that continue.
    """
    cancelled = 0
    while True:
        runs = workflow.members(result)
        permitted = _permitted(request, runs)
        # A run may have started another one before it was cancelled, or have finished meanwhile: repeat until nothing
        # new is found. Parts of chords come last: one that finished after the query may be sending the body.
        ids = list(_to_cancel(permitted).values_list('pk', flat=True))
        cancelled += cancel_many(request, ids) if ids else 0
        if not workflow.mark_parts(permitted.values_list('pk', flat=True)) and not ids:
            return cancelled, _to_cancel(runs).count()


def cancellable(request: HttpRequest, result: CeleryResult) -> QuerySet:
    """Return a queryset of the runs in a run's workflow that the user may cancel and that can still be cancelled."""
    return _to_cancel(_permitted(request, workflow.members(result)))


def is_under_way(request: HttpRequest, result: CeleryResult) -> bool:
    """Whether a run's workflow has a run that the user may cancel and that has not finished."""
    return _permitted(request, workflow.members(result)).filter(
        status__in=ResultStatusChoices.UNFINISHED
    ).exists()


def _permitted(request: HttpRequest, runs: QuerySet) -> QuerySet:
    """Return the runs that the request's user may cancel, which they must also be allowed to view."""
    return runs.restrict(request.user, 'cancel').restrict(request.user, 'view')


def _to_cancel(runs: QuerySet) -> QuerySet:
    return runs.filter(status__in=ResultStatusChoices.UNFINISHED, cancelled__isnull=True)


def rerun(request: HttpRequest, result: CeleryResult) -> CeleryResult:
    """Run a task again with the same arguments, as the request's user. Returns the run that `enqueue` returns.

    Raises:
        netbox_celery.engine.sending.control.NotRerunnable: The arguments are not stored (too large, or redacted).
        netbox_celery.engine.exceptions.QueueRefused: The run used a queue that users cannot choose.
    """
    check_repeated(app, result.celery_name, control.options_of_row(result))
    new = control.rerun(result, user=request.user)
    if not new.joined:
        record_change(new, request, ACTION_CREATE, message=_('Run again from run {result}').format(result=result.pk))
    return new
