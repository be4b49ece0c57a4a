"""Cancel a run, run one again: what people and programs do to runs that exist."""
import logging
from functools import partial

from django.db import transaction
from django.utils.translation import gettext as _

from ..app import get_app
from ..calls.exact import call_of
from ..exceptions import NotRerunnable
from ..store import branches, lifecycle
from ..store.database import caller, execute, on_commit, refuse_read_only
from ..workflows.requests import load_requests
from .admission import advance

__all__ = (
    'NotRerunnable',
    'cancel',
    'cancel_many',
    'cancellation',
    'options_of_row',
    'rerun',
    'terminate_cancelled',
)

logger = logging.getLogger(__name__)

#: Pools that can end a single run: its process, or its greenlet when that waits for something.
TERMINABLE_POOLS = ('prefork', 'processes', 'gevent', 'eventlet')

# Those that do not end by themselves within the time that it takes to tell a worker of it.
CANCELLED = f"""
    SELECT task_id FROM {lifecycle.TABLE} AS run JOIN {lifecycle.WORKERS} AS worker ON worker.key = run.holder
    WHERE run.status = 'running' AND run.holder = %s AND run.cancelled < now() - interval '3 seconds'
        AND worker.pool = ANY(%s)
"""

#: Options of a run that a repetition keeps; times, links and places in a workflow belong to that one run.
REPEATED = (
    'queue', 'exchange', 'routing_key', 'priority', 'serializer', 'compression', 'time_limit', 'soft_time_limit',
    'ignore_result', 'shadow', 'argsrepr', 'kwargsrepr',
)


def cancellation(result):
    """Return what a cancel would do to a run.

    Returns:
        `none`: it has ended. `revoke`: it has not begun, and will not. `terminate`: its process, or its greenlet, will
        be ended. `cooperative`: its worker cannot end it; the task itself must look at `self.is_cancelled()`.
    """
    from ...choices import ResultStatusChoices

    if result.is_finished:
        return 'none'
    if result.status in ResultStatusChoices.WAITING:
        return 'revoke'
    return 'terminate' if _is_terminable(result.holder) else 'cooperative'


def _is_terminable(holder):
    from ...models import CeleryWorker

    return CeleryWorker.objects.filter(key=holder, pool__in=TERMINABLE_POOLS).exists()


def cancel(result, user=None):
    """Cancel a run.

    One that waits is revoked at once, whether or not a worker is up: no worker can claim it any more. One that runs
    has its process or its greenlet ended where the pool can do that; elsewhere the task sees it in
    `self.is_cancelled()`. Its row then ends as revoked, however the task ends.

    Args:
        result: The `CeleryResult`; it is not refreshed.
        user: Who cancels; the run's error says so.

    Returns:
        Whether there was anything to cancel: `False` if it had ended or was being cancelled already.
    """
    return bool(cancel_many([result.pk], user))


def cancel_many(ids, user=None, error=None):
    """Cancel runs by primary key (see `cancel`), with what is to be said of it, if not by whom.

    Returns:
        The primary keys of those that could be cancelled.
    """
    error = error or (_('Cancelled by {user}').format(user=user) if user else _('Cancelled'))
    connection = caller()
    with (
        refuse_read_only(f'The cancel of {len(ids)} run(s) was not done'), transaction.atomic(using=connection.alias)
    ):
        cancelled = lifecycle.cancel(connection, ids, error)
        if not cancelled:
            return []
        on_commit(partial(_tell_workers, cancelled), robust=True)
    return [id for id, *__ in cancelled]


def _tell_workers(cancelled):
    """Let Celery know. What fails here delays nothing that waits: the row alone keeps it from running."""
    app = get_app()
    waiting = [str(task_id) for __, task_id, status, *__ in cancelled if status != 'running']
    running = [(str(task_id), holder) for __, task_id, status, holder, __ in cancelled if status == 'running']
    terminable = [task_id for task_id, holder in running if _is_terminable(holder)]
    try:
        requests = load_requests(waiting) if waiting else {}
        for task_id in waiting:
            app.backend.mark_as_revoked(task_id, 'revoked', requests.get(task_id))
        if waiting:
            app.control.revoke(waiting)
        if terminable:
            app.control.revoke(terminable, terminate=True)
        for key in {key for *__, key in cancelled if key}:
            advance(app, partial(execute, caller()), key)
    except Exception as exc:  # noqa: BLE001 - brokers and backends fail each in their own way
        logger.warning('Workers could not be told of the cancel of %s runs: %s', len(cancelled), exc)


def terminate_cancelled(connection, app, worker):
    """Tell a worker once more to end the processes of its runs that are cancelled and still go on.

    Celery's broadcast of the cancel reaches nobody who is away from the broker at that moment.

    Args:
        connection: An `EngineConnection`.
        app: The Celery app.
        worker: The `Identity` of the worker.
    """
    task_ids = [str(task_id) for (task_id,) in connection.execute(CANCELLED, (worker.key, list(TERMINABLE_POOLS)))]
    if task_ids:
        _register_again(task_ids)
        app.control.revoke(task_ids, terminate=True, destination=[worker.name])


def options_of_row(result):
    """Return the options of a run, or none if its row holds something else."""
    return result.options if isinstance(result.options, dict) else {}


def _register_again(task_ids):
    """Let this worker know of requests by their IDs that it is executing.

    It forgets the one with an ID when another one with that ID is done: the attempt before this one, or the task that
    this one replaces, whose end it may hear of after the message of the next.
    """
    from celery.worker import state  # whoever is no worker needs none of it

    for request in _copy_of(state.active_requests):
        if request.id in task_ids:
            state.requests.setdefault(request.id, request)


def _copy_of(requests):
    """Return the requests in a set that the worker's main thread changes meanwhile, as a list."""
    while True:
        try:
            return list(requests)
        except RuntimeError:
            continue


def rerun(result, user=None):
    """Run a task again with the arguments of an earlier run.

    Args:
        result: The earlier `CeleryResult`, fully loaded.
        user: Under whose name; by default that of the earlier run.

    Returns:
        The new `CeleryResult`.

    Raises:
        NotRerunnable: The row does not hold the arguments, or its branch is not ready.
    """
    if not result.is_rerunnable:
        raise NotRerunnable(_(
            'The arguments of this run were not kept: they are hidden by its caller, or too large.'
        ))
    if why := branches.check(result.branch):
        raise NotRerunnable(_('The run cannot be repeated in its branch. {why}').format(why=why))
    args, kwargs, options = call_of(result.exact_call, result.args, result.kwargs, options_of_row(result))
    if not isinstance(args, list) or not isinstance(kwargs, dict) or not isinstance(options, dict):
        raise NotRerunnable(_('The row does not hold what this run was called with.'))
    options = {key: value for key, value in options.items() if key in REPEATED}
    if result.branch:
        options['headers'] = {branches.HEADER: result.branch}
    return type(result).enqueue(
        result.celery_name, args=args, kwargs=kwargs, user=user or result.user_id,
        instance=result.object, netbox_name=result.name, **options
    )
