"""Finds and settles what was lost: runs of dead workers, messages that were never sent, runs that expired in the queue.

Every worker's parent sweeps, in a thread beside its heartbeat; an advisory lock admits one at a time. Each run is
settled by a guarded transition, so a sweep that is wrong about a worker's death, or dies itself, does no harm.

A row may contain anything, including what cannot be read or sent. It does not block others: each row of each duty is
settled separately. A row that cannot be settled is logged once and skipped for a while.
"""
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

from amqp.exceptions import MessageNacked
from billiard.exceptions import WorkerLostError
from celery import states
from celery.exceptions import TaskRevokedError
from celery.worker import state

from ...choices import ResultStatusChoices as Status
from ...config import get_config
from ..calls.hooks import report_failure
from ..identity import identity
from ..results import chords
from ..runs.ending import ENDS
from ..schedules.sync import sync_catalogue
from ..sending import replace
from ..sending.admission import advance_all, advance_line
from ..sending.control import terminate_cancelled
from ..sending.publish import COLUMNS, is_away, send_row
from ..store import lifecycle
from ..store.database import UNAVAILABLE, EngineConnection
from ..store.payload import PayloadDecoder, call_of, is_uuid, text_of
from .missing import GRACE, find_fetched, find_missing

__all__ = (
    'duties',
    'release',
    'sweep',
)

logger = logging.getLogger(__name__)

#: How often a worker writes which tasks it has, seconds.
CATALOGUE_INTERVAL = 60

#: Key of the advisory lock ("celery" on a phone's keys).
LOCK = 235379
#: A row without `sent` this long after its creation was not sent by the process that made it, seconds.
UNSENT_AFTER = 15
#: Rows settled in one round.
BATCH = 500
#: A row that could not be settled is skipped for this long, seconds: those behind it get their turn.
LEFT_OUT = 300

ALIVE = f"""
    SELECT key FROM {lifecycle.WORKERS}
    WHERE {lifecycle.ALIVE}
"""
#: The columns of a run that `_let_go` takes.
RUN = 'task_id, celery_name, claims, nesting, status'
LOST = f"""
    SELECT {RUN}, worker FROM {lifecycle.TABLE}
    WHERE completed IS NULL AND (
        status = 'running' AND (holder IS NULL OR holder NOT IN ({ALIVE}))
        OR {replace.ON_ITS_WAY} AND holder NOT IN ({ALIVE})
    ) AND holder IS DISTINCT FROM %(own)s AND task_id <> ALL(%(left_out)s::uuid[])
    ORDER BY id LIMIT {BATCH}
"""
HELD = f"""
    SELECT {RUN} FROM {lifecycle.TABLE}
    WHERE completed IS NULL AND holder = %s AND (status = 'running' OR {replace.ON_ITS_WAY})
"""
UNSENT = f"""
    SELECT id, {COLUMNS} FROM {lifecycle.TABLE}
    WHERE {lifecycle.WAITING} AND completed IS NULL AND sent IS NULL AND {lifecycle.SENDABLE}
        -- The message of a run that was claimed before is certainly lost
        AND (attempt > 0 OR last_updated < now() - make_interval(secs => %(after)s))
        AND task_id <> ALL(%(left_out)s::uuid[])
    ORDER BY id LIMIT {BATCH}
"""
CALL = f"""
    SELECT COALESCE(message, jsonb_build_array(args, kwargs)::text), message IS NULL, exact_call FROM {lifecycle.TABLE}
    WHERE task_id = %s
"""
EXPIRED = f"""
    SELECT task_id FROM {lifecycle.TABLE}
    WHERE {lifecycle.WAITING} AND completed IS NULL AND expires < now() AND task_id <> ALL(%(left_out)s::uuid[])
    ORDER BY id LIMIT {BATCH}
"""
MARK_SENT = f'UPDATE {lifecycle.TABLE} SET sent = now() WHERE id = %s AND sent IS NULL'
FORGET_WORKERS = f"DELETE FROM {lifecycle.WORKERS} WHERE heartbeat < now() - interval '1 day'"

FORGET_WINDOWS = f'DELETE FROM {lifecycle.WINDOWS} WHERE until < now()'


class LeftOut:
    """Rows that a duty could not settle, by task ID, and until when it skips them."""

    def __init__(self):
        self._until: dict[UUID, float] = {}
        self._logged: set[UUID] = set()

    def ids(self):
        """Return the IDs of the rows to be skipped now."""
        now = time.monotonic()
        self._until = {task_id: until for task_id, until in self._until.items() if until > now}
        if not self._until and len(self._logged) > BATCH:
            self._logged.clear()
        return list(self._until)

    def add(self, task_id, exc):
        self._until[task_id] = time.monotonic() + LEFT_OUT
        if task_id not in self._logged:
            self._logged.add(task_id)
            logger.error('Task %s cannot be settled, and is skipped: %r', task_id, exc, exc_info=exc)

    def each(self, rows, settle):
        """Settle rows separately; the first column of each is its task ID."""
        for row in rows:
            try:
                settle(row)
            except UNAVAILABLE:
                raise
            except Exception as exc:  # noqa: BLE001 - a row may contain anything
                self.add(row[0], exc)


_lost, _abandoned, _expired, _unsent = LeftOut(), LeftOut(), LeftOut(), LeftOut()


def duties(app: Any) -> tuple[tuple[float, Callable[[EngineConnection], object]], ...]:
    """Return the duties of a worker besides its heartbeat: pairs of an interval in seconds and a function."""
    interval = get_config().sweep_interval
    suspects: set[tuple[UUID, int]] = set()
    settled: set[UUID] = set()
    watch = chords.Watch()
    return (
        (interval, lambda connection: sweep(connection, app, settled)),
        (interval, lambda connection: close_abandoned(connection, app, suspects)),
        (interval, lambda connection: terminate_cancelled(connection, app, identity)),
        (GRACE, lambda connection: find_missing(connection, app)),
        (chords.GRACE, lambda connection: watch.look(connection, app)),
        (CATALOGUE_INTERVAL, lambda connection: sync_catalogue()),
    )


def sweep(connection: EngineConnection, app: Any, settled: set[UUID]) -> None:
    """Settle what was lost, unless another worker is doing so.

    Args:
        connection: An `EngineConnection`.
        app: The Celery app.
        settled: See `find_fetched`.
    """
    # A session lock outlives a killed parent as long as a child has its socket. This one belongs to a transaction
    with connection.advisory_lock(LOCK, get_config().worker_lost_after) as locked:
        if not locked:
            return
        judged = (
            lambda: close_lost(connection, app),
            lambda: find_fetched(connection, app, settled),
        ) if identity.may_declare_lost else ()
        for settle in (
            *judged,
            lambda: expire(connection, app),
            lambda: advance_all(app, connection.execute),
            lambda: resend(connection, app),
            lambda: connection.execute(FORGET_WORKERS),
            lambda: connection.execute(FORGET_WINDOWS),
        ):
            try:
                settle()
            except UNAVAILABLE:
                raise
            except Exception:
                logger.exception('A part of the sweep failed')


def close_lost(connection, app):
    """Requeue the runs of dead workers if their tasks ask for it (`acks_late`), and close the others."""
    found = connection.execute(LOST, {
        # This worker knows what it holds, even if its row has just been deleted (`close_abandoned`)
        'own': identity.key, 'lost_after': get_config().worker_lost_after, 'steady': identity.steady_for,
        'left_out': _lost.ids(),
    })
    _lost.each(found, lambda row: _let_go(connection, app, row[:-1], f'The worker {row[-1]} that ran it was lost'))


def close_abandoned(connection, app, suspects):
    """Release runs that this live worker holds but does not execute.

    The answer to their claim was lost, or their end could not be written during a long outage of the database.

    Args:
        suspects: The runs that the last call found, a set that is kept between calls: a run that has just started or
            finished is found once, but not twice.
    """
    held = connection.execute(HELD, (identity.key,))
    executing = _executing()
    found = {(task_id, claims): (task_id, name, claims, *rest)
             for task_id, name, claims, *rest in held if task_id not in executing}
    error = f'The worker {identity.name} no longer runs it'
    _abandoned.each(
        [found[key] for key in suspects & found.keys()], lambda run: _let_go(connection, app, run, error)
    )
    suspects.clear()
    suspects.update(found)


def _executing():
    """Return the IDs of the tasks that this worker has reserved or executes."""
    while True:
        try:
            ids = {request.id for request in (*state.active_requests, *state.reserved_requests)}
        except RuntimeError:
            continue  # the worker's main thread added one in the meantime
        return {UUID(id) for id in ids if is_uuid(id)}


def release(connection: EngineConnection, app: Any) -> None:
    """Release the runs that this worker still holds when it stops."""
    error = 'The worker was stopped while the task was running'
    _abandoned.each(
        connection.execute(HELD, (identity.key,)), lambda run: _let_go(connection, app, run, error)
    )


def _let_go(connection, app, run, error):
    task_id, name, claims, nesting, status = run
    if status != Status.STATUS_RUNNING:
        if closed := replace.settle(connection, task_id, claims, error):
            if closed[1]:
                advance_line(connection, closed[1])
            app.backend.report_end(task_id, WorkerLostError(error), states.FAILURE)
        return
    found = connection.execute(CALL, (task_id,))
    if not found:
        return  # the row was deleted
    args, kwargs, *rest = _decode(*found[0])
    if nesting:
        # The run continued as another task; its name is in the message, if that is known
        name = rest[0] if rest and isinstance(rest[0], str) else None
    task = app.tasks.get(name)
    again, lost = ENDS['worker_lost_given_back'], ENDS['worker_lost']
    row = task is not None and task.acks_late and lifecycle.requeue(
        connection, task_id, by='claim', claims=claims, reason=again.reason, error=error, resend=True
    ) or lifecycle.finish(
        connection, task_id, lost.status, claims=claims, reason=lost.reason, error=error,
        exact_result=app.backend.exception_text(WorkerLostError(error))
    )
    if not row:
        return  # it was settled in the meantime
    if row[1] == Status.STATUS_PENDING:
        logger.warning('Task %s[%s] will be run again: %s', name, task_id, error)
    elif row[1] == Status.STATUS_REVOKED:
        app.backend.report_end(task_id, TaskRevokedError('revoked'), states.REVOKED)
    else:
        logger.error('Task %s[%s] is lost: %s', name, task_id, error)
        app.backend.report_end(task_id, WorkerLostError(error), states.FAILURE)
        if task is not None:
            report_failure(task, str(task_id), args, kwargs, WorkerLostError(error))


def _decode(message, is_original, exact):
    """Return the arguments, and what else a row stores of a call, or no arguments if it cannot be read."""
    try:
        args, kwargs, *rest = PayloadDecoder().decode(message)
        if is_original:
            args, kwargs, __ = call_of(exact, args, kwargs, None)
    except Exception:
        logger.warning('The arguments of a lost run cannot be read', exc_info=True)
        return (), {}
    return args, kwargs, *rest


def expire(connection, app):
    """Revoke runs that expired while they waited; a broker may drop their messages silently."""
    expired = ENDS['expired_in_queue']

    def settle(row):
        (task_id,) = row
        if lifecycle.finish(
            connection, task_id, expired.status, reason=expired.reason,
            error='Expired before a worker started it',
            exact_result=app.backend.exception_text(TaskRevokedError('expired'))
        ):
            app.backend.report_end(task_id, TaskRevokedError('expired'), states.REVOKED)
    _expired.each(connection.execute(EXPIRED, {'left_out': _expired.ids()}), settle)


def resend(connection, app):
    """Send the messages of rows that were not sent: the broker was unavailable, or the process died before sending.

    If the broker, or anything else, refuses one row, those behind it are sent nevertheless.
    """
    for id, task_id, name, *row in connection.execute(UNSENT, {'after': UNSENT_AFTER, 'left_out': _unsent.ids()}):
        try:
            send_row(app, task_id, name, *row)
        except Exception as exc:
            if is_away(exc):
                logger.warning('Unsent messages have to wait, the broker is unavailable: %s', exc)
                return
            if isinstance(exc, MessageNacked):
                _unsent.add(task_id, exc)  # its queue is full
            else:
                logger.exception('Task %s[%s] cannot be sent', name, task_id)
                _unsent.each([(task_id,)], partial(_cannot_be_sent, connection, app, exc))
            continue
        connection.execute(MARK_SENT, (id,))
        logger.info('Task %s[%s] was sent again', name, task_id)


def _cannot_be_sent(connection, app, exc, row):
    (task_id,), end = row, ENDS['unsendable']
    if lifecycle.finish(
        connection, task_id, end.status, reason=end.reason,
        error=f'Cannot be sent: {text_of(exc)}', exact_result=app.backend.exception_text(exc)
    ):
        app.backend.report_end(task_id, exc, states.FAILURE)
