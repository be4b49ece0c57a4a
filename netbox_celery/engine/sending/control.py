"""Cancels runs, also by Celery's remote control, and runs them again."""
import logging
from functools import partial

from celery.app import control
from django.db import DatabaseError, transaction
from django.utils.translation import gettext as _
from kombu.utils.functional import maybe_list

from ...choices import ResultStatusChoices
from ..app import get_app
from ..calls.ids import respelled
from ..exceptions import NotRerunnable
from ..store import branches, lifecycle
from ..store.database import caller, execute, now_or_on_commit, on_commit, refuse_read_only
from ..store.payload import call_of, is_uuid
from ..workflows.requests import load_requests
from .admission import advance

__all__ = (
    'Control',
    'NotRerunnable',
    'cancel',
    'cancel_many',
    'cancellation',
    'options_of_row',
    'rerun',
    'terminate_cancelled',
)

logger = logging.getLogger(__name__)

#: Pools that can terminate a single run: its process, or its greenlet while that waits for something.
TERMINABLE_POOLS = ('prefork', 'processes', 'gevent', 'eventlet')

# Runs that have not finished within the time that a message to a worker takes.
CANCELLED = f"""
    SELECT task_id FROM {lifecycle.TABLE} AS run JOIN {lifecycle.WORKERS} AS worker ON worker.key = run.holder
    WHERE run.status = 'running' AND run.holder = %s AND run.cancelled < now() - interval '3 seconds'
        AND worker.pool = ANY(%s)
"""

#: Options that are kept when a run is run again; times, links and the position in a workflow belong to that one run.
REPEATED = (
    'queue', 'exchange', 'routing_key', 'priority', 'serializer', 'compression', 'time_limit', 'soft_time_limit',
    'ignore_result', 'shadow', 'argsrepr', 'kwargsrepr',
)


def cancellation(result):
    """Return how a run would be cancelled.

    Returns:
        `none`: it has finished. `revoke`: it has not started, and will not. `terminate`: its process, or its greenlet,
        will be terminated. `cooperative`: its worker cannot do that; the task itself must check `self.is_cancelled()`.
    """
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

    A waiting run is revoked immediately, whether or not a worker is online: no worker can claim it afterwards. For a
    running one, its process or greenlet is terminated if the pool can do that; otherwise the task sees the cancel in
    `self.is_cancelled()`. Its row then finishes as revoked, even if the task succeeds.

    Args:
        result: The `CeleryResult`; it is not refreshed.
        user: The user who cancels; the run's error names them.

    Returns:
        Whether there was anything to cancel: `False` if it had finished or was being cancelled already.
    """
    return bool(cancel_many([result.pk], user))


def cancel_many(ids, user=None, error=None):
    """Cancel runs by primary key (see `cancel`).

    Args:
        ids: The primary keys.
        user: The user who cancels, or `None`.
        error: The error of the runs; by default it names the user who cancelled them.

    Returns:
        The primary keys of those that could be cancelled.
    """
    error = error or (_('Cancelled by {user}').format(user=user) if user else _('Cancelled'))
    connection = caller()
    with refuse_read_only(f'{len(ids)} run(s) were not cancelled'), transaction.atomic(using=connection.alias):
        cancelled = lifecycle.cancel(connection, ids, error)
        if not cancelled:
            return []
        on_commit(partial(_notify_workers, cancelled), robust=True)
    return [id for id, *__ in cancelled]


def _notify_workers(cancelled):
    """Notify Celery. If that fails, waiting runs stay cancelled: the row alone keeps them from running."""
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
        logger.warning('Workers could not be notified that %s runs were cancelled: %s', len(cancelled), exc)


def terminate_cancelled(connection, app, worker):
    """Tell a worker again to terminate its runs that are cancelled and still running.

    Celery's broadcast of the cancel does not reach a worker that is disconnected from the broker at that moment.

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
    """Return the options of a run, or an empty dict if its row does not have a dict."""
    return result.options if isinstance(result.options, dict) else {}


def _register_again(task_ids):
    """Register the requests that this worker executes by their IDs again.

    Celery forgets the request with an ID when another one with that ID is done: the previous attempt, or the task that
    this one replaces. Their end may be reported after the message of the next one has arrived.
    """
    from celery.worker import state  # other processes do not need it

    for request in _copy_of(state.active_requests):
        if request.id in task_ids:
            state.requests.setdefault(request.id, request)


def _copy_of(requests):
    """Return the requests in a set, which the worker's main thread may change meanwhile, as a list."""
    while True:
        try:
            return list(requests)
        except RuntimeError:
            continue


def rerun(result, user=None):
    """Run a task again with the arguments of an earlier run.

    Args:
        result: The earlier `CeleryResult`, fully loaded.
        user: The user that the new run acts as; by default the user of the earlier run.

    Returns:
        The new `CeleryResult`.

    Raises:
        NotRerunnable: The row does not have the arguments, or its branch is not ready.
    """
    if not result.is_rerunnable:
        raise NotRerunnable(_(
            'The arguments of this run are not stored: the caller redacted them, or they are too large.'
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


# Celery's remote control

#: Commands that cancel runs.
COMMANDS = ('revoke', 'terminate')

# `terminate` ends a run that is running; `revoke` keeps a waiting one from starting.
REVOKABLE = f"""
    SELECT id FROM {lifecycle.TABLE}
    WHERE task_id = ANY(%s::uuid[]) AND completed IS NULL AND cancelled IS NULL AND ({lifecycle.WAITING} OR %s)
"""


class Control(control.Control):
    """Celery's remote control (`app.control`, `AsyncResult.revoke()`, `celery control`), with a lasting `revoke`.

    Celery sends `revoke` and `terminate` to the workers that are online, which keep them in memory. Here they are marks
    in the rows as well, like any cancel: a worker that starts later does not run a revoked task.
    """

    def broadcast(self, command, arguments=None, destination=None, **options):
        """Broadcast a command to workers; see `celery.app.control.Control.broadcast`.

        A `revoke` or `terminate` without a destination is written into the rows of the runs first: in a transaction, on
        commit, while the workers that are online get it immediately.
        """
        for name in ('task_id', 'ids'):
            if arguments and arguments.get(name):
                arguments = {**arguments, name: respelled(arguments[name])}
        if command in COMMANDS and not destination:
            # Other programs pass a number (Flower), or a text
            terminate = command == 'terminate' or bool(arguments.get('terminate'))
            now_or_on_commit(partial(_cancel_by_id, maybe_list(arguments['task_id']), terminate))
        return super().broadcast(command, arguments, destination, **options)


def _cancel_by_id(task_ids, terminate):
    try:
        found = execute(caller(), REVOKABLE, ([id for id in map(str, task_ids) if is_uuid(id)], terminate))
        cancel_many([id for (id,) in found], error='Revoked')
    except DatabaseError:
        logger.exception('The revocation of %s could not be written', ', '.join(map(str, task_ids)))
