"""What people do to tasks and runs, from the user interface and from REST: run, cancel, run again.

The engine does it; here it gets its entry in the change log. Permissions are the caller's to check: on the objects,
with `restrict()`.
"""
from django.core.exceptions import PermissionDenied
from django.utils.translation import gettext as _

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
    """A task is disabled or absent; the text says so."""


#: Runs that are cancelled in one statement.
BATCH = 500


def why_not_runnable(task):
    """Return in words why nobody may run a task of the catalogue, or an empty string."""
    if not task.enabled:
        return _('The task {task} is disabled.').format(task=task)
    if not task.present:
        absent = _(
            'The task {task} is absent: no worker has it any more. Is its plugin installed, and a worker running?'
        ).format(task=task)
        why = discovery.why_unregistered(task.name, task.plugin)
        return f'{absent} {why}' if why else absent
    if strategy := task.defaults.get('strategy'):
        return _(
            'The task {task} can be called from code alone: it has a strategy of its own ({strategy}), and its runs '
            'cannot be tracked.'
        ).format(task=task, strategy=strategy)
    return ''


def may_run(user, task):
    """Whether a user may run a task of the catalogue."""
    return user.has_perm('netbox_celery.run_celerytask', task)


def check_rerun(user, *results):
    """Check that a user may run each task that a repetition of runs would call, and that it can be run.

    GUARANTEE: nobody runs a task again that they may not run. `celery.map` and its like are the tasks that they call;
    no constraint says anything of what the catalogue does not have, so that is for those who may run all tasks.

    Args:
        user: Who wants to run them again.
        *results: The runs.

    Raises:
        django.core.exceptions.PermissionDenied: They may not run one of the tasks.
        NotRunnable: One is disabled or absent.
    """
    for result in results:
        try:
            names = set(called_tasks(result.celery_name, result.args, result.kwargs))
        except RecursionError as exc:
            raise NotRunnable(_('The arguments of the run are nested too deeply to be run again.')) from exc
        check_calls(user, names)


def check_calls(user, names):
    """Check that a user may run tasks, by name, and that they can be run (see `check_rerun`)."""
    names = set(names)
    catalogued = {task.name: task for task in CeleryTask.objects.filter(name__in=names)}
    for name in names:
        # What calls others, and is none of what they are, is for those who may run all
        task = None if name in CALLERS else catalogued.get(name)
        permitted = is_unconstrained(user, CeleryTask, 'run') if task is None else may_run(user, task)
        if not permitted:
            raise PermissionDenied(_('You do not have permission to run this task.'))
    for name in sorted(catalogued):
        if reason := why_not_runnable(catalogued[name]):
            raise NotRunnable(reason)


def run(request, task, args=(), kwargs=None, **options):
    """Run a task of the catalogue under the name of the request's user.

    Args:
        request: The HTTP request.
        task: The `CeleryTask`.
        args: Positional arguments.
        kwargs: Keyword arguments.
        **options: As for `CeleryResult.enqueue`.

    Returns:
        What `CeleryResult.enqueue` does.

    Raises:
        django.core.exceptions.PermissionDenied: It is one of Celery's own, which calls what they may not run.
        NotRunnable: What it calls is disabled or absent.
    """
    if is_internal(task.name):
        check_calls(request.user, called_tasks(task.name, args, kwargs))
    result = CeleryResult.enqueue(task.name, args=args, kwargs=kwargs, user=request.user, **options)
    if not result.joined:
        record_change(result, request, ACTION_CREATE)
    return result


def cancel(request, result):
    """Cancel a run. Returns `False` if it had ended already (or was being cancelled), and then changes nothing."""
    take_snapshot(result)
    if not control.cancel(result, user=request.user):
        return False
    result.refresh_from_db()
    record_change(result, request, ACTION_UPDATE, message=_('Cancelled'))
    return True


def cancel_many(request, ids):
    """Cancel runs by primary key (see `cancel`). Returns how many could be cancelled."""
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


def cancel_workflow(request, result):
    """Cancel all runs of a workflow that have not ended, and what they would start from now on.

    Those that the user may not cancel go on.

    Returns:
        How many could be cancelled, and how many go on.
    """
    cancelled = 0
    while True:
        runs = workflow.members(result)
        permitted = _permitted(request, runs)
        # What runs may have started another one before it was cancelled, or have ended meanwhile: look until there is
        # nothing new. The parts of chords come last, since one that ended after the first look may be sending the body.
        ids = list(_to_cancel(permitted).values_list('pk', flat=True))
        cancelled += cancel_many(request, ids) if ids else 0
        if not workflow.mark_parts(permitted.values_list('pk', flat=True)) and not ids:
            return cancelled, _to_cancel(runs).count()


def cancellable(request, result):
    """Return the runs of a run's workflow that its user may cancel and that can still be cancelled, a queryset."""
    return _to_cancel(_permitted(request, workflow.members(result)))


def is_under_way(request, result):
    """Whether there is a run of a run's workflow that its user may cancel and that has not ended yet."""
    return _permitted(request, workflow.members(result)).filter(
        status__in=ResultStatusChoices.UNFINISHED
    ).exists()


def _permitted(request, runs):
    """Return those of some runs that a request's user may cancel: they must be allowed to view them, too."""
    return runs.restrict(request.user, 'cancel').restrict(request.user, 'view')


def _to_cancel(runs):
    return runs.filter(status__in=ResultStatusChoices.UNFINISHED, cancelled__isnull=True)


def rerun(request, result):
    """Run a task again with the same arguments, under the name of the request's user. Returns what `enqueue` does.

    Raises:
        netbox_celery.engine.sending.control.NotRerunnable: The row does not hold the arguments (too large, or hidden).
        netbox_celery.engine.exceptions.QueueRefused: It went to a queue that people cannot send to.
    """
    check_repeated(app, result.celery_name, control.options_of_row(result))
    new = control.rerun(result, user=request.user)
    if not new.joined:
        record_change(new, request, ACTION_CREATE, message=_('Run again from {result}').format(result=result.pk))
    return new
