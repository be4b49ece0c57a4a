"""What was lost is found: runs of dead workers, messages that never went out, runs that expired in the queue.

Every worker's parent sweeps, in a thread beside its heartbeat; an advisory lock lets one do it at a time. Each finding
is settled by a guarded transition, so a sweep that is wrong about a worker's death, or dies itself, does no harm.

A row may hold anything, also what cannot be read or sent. It holds up no other: each row of each duty is settled by
itself, and what cannot be is said once and left out for a while.
"""
import logging
import time
from functools import partial
from uuid import UUID

from amqp.exceptions import MessageNacked
from billiard.exceptions import WorkerLostError
from celery import states
from celery.exceptions import TaskRevokedError
from celery.worker import state

from ...choices import ResultStatusChoices as Status
from ...config import get_config
from ..calls.exact import call_of
from ..calls.hooks import tell_of_failure
from ..identity import identity
from ..results import chords
from ..runs.ending import ENDS
from ..schedules.sync import sync_catalogue
from ..sending import replace
from ..sending.admission import advance_all, advance_line
from ..sending.control import terminate_cancelled
from ..sending.publish import COLUMNS, is_away, send_row
from ..store import lifecycle
from ..store.database import UNAVAILABLE
from ..store.payload import PayloadDecoder, is_uuid, text_of
from .missing import GRACE, find_fetched, find_missing

__all__ = (
    'duties',
    'release',
    'sweep',
)

logger = logging.getLogger(__name__)

#: How often a worker says which tasks it has, seconds.
CATALOGUE_INTERVAL = 60

#: Key of the advisory lock ("celery" on a phone's keys).
LOCK = 235379
#: A row without `sent` this long after its creation was not sent by whoever made it, seconds.
UNSENT_AFTER = 15
#: Rows settled in one go.
BATCH = 500
#: A row that could not be settled is left out for so long, seconds: those behind it have their turn.
LEFT_OUT = 300

ALIVE = f"""
    SELECT key FROM {lifecycle.WORKERS}
    WHERE {lifecycle.ALIVE}
"""
#: A run, as `_let_go` takes it.
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
        -- What was claimed before has lost its message for sure.
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
    """Rows that a duty could not settle, by task ID, and until when it leaves them out."""

    def __init__(self):
        self._until = {}
        self._said = set()

    def ids(self):
        """Return the IDs of the rows that are left out now."""
        now = time.monotonic()
        self._until = {task_id: until for task_id, until in self._until.items() if until > now}
        if not self._until and len(self._said) > BATCH:
            self._said.clear()
        return list(self._until)

    def add(self, task_id, exc):
        self._until[task_id] = time.monotonic() + LEFT_OUT
        if task_id not in self._said:
            self._said.add(task_id)
            logger.error('Task %s cannot be settled, and is left out: %r', task_id, exc, exc_info=exc)

    def each(self, rows, settle):
        """Settle rows, which begin with their task ID, each by itself."""
        for row in rows:
            try:
                settle(row)
            except UNAVAILABLE:
                raise
            except Exception as exc:  # noqa: BLE001 - whatever a row holds
                self.add(row[0], exc)


_lost, _abandoned, _expired, _unsent = LeftOut(), LeftOut(), LeftOut(), LeftOut()


def duties(app):
    """Return what a worker does beside its heartbeat: pairs of an interval in seconds and a function."""
    interval = get_config().sweep_interval
    suspects, settled, watch = set(), set(), chords.Watch()
    return (
        (interval, lambda connection: sweep(connection, app, settled)),
        (interval, lambda connection: close_abandoned(connection, app, suspects)),
        (interval, lambda connection: terminate_cancelled(connection, app, identity)),
        (GRACE, lambda connection: find_missing(connection, app)),
        (chords.GRACE, lambda connection: watch.look(connection, app)),
        (CATALOGUE_INTERVAL, lambda connection: sync_catalogue()),
    )


def sweep(connection, app, settled):
    """Settle what was lost, unless another worker is at it.

    Args:
        connection: An `EngineConnection`.
        app: The Celery app.
        settled: See `find_fetched`.
    """
    # Locks of a session outlive a killed parent as long as a child has its socket. This one is held by a statement.
    with connection.advisory_lock(LOCK, get_config().worker_lost_after) as locked:
        if not locked:
            return
        judged = (
            lambda: close_lost(connection, app),
            lambda: find_fetched(connection, app, settled),
        ) if identity.can_judge else ()
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
    """Requeue the runs of dead workers whose tasks asked for it (`acks_late`), and end the others."""
    found = connection.execute(LOST, {
        # What this worker holds it knows better than a row that may just have been deleted (`close_abandoned`)
        'own': identity.key, 'lost_after': get_config().worker_lost_after, 'steady': identity.steady_for,
        'left_out': _lost.ids(),
    })
    _lost.each(found, lambda row: _let_go(connection, app, row[:-1], f'The worker {row[-1]} that ran it was lost'))


def close_abandoned(connection, app, suspects):
    """Let go of runs that this living worker holds but does not execute.

    The answer to their claim was lost, or their end could not be written while the database was away for long.

    Args:
        suspects: Those that the last look found, a set that is kept from look to look: what has only just begun or
            ended is found once, but not twice.
    """
    held = connection.execute(HELD, (identity.key,))
    executing = _executing()
    found = {(task_id, claims): (task_id, name, claims, *rest)
             for task_id, name, claims, *rest in held if task_id not in executing}
    error = f'The worker {identity.name} does not run it any more'
    _abandoned.each(
        [found[key] for key in suspects & found.keys()], lambda run: _let_go(connection, app, run, error)
    )
    suspects.clear()
    suspects.update(found)


def _executing():
    """Return the IDs of the tasks that this worker has in hand."""
    while True:
        try:
            ids = {request.id for request in (*state.active_requests, *state.reserved_requests)}
        except RuntimeError:
            continue  # the worker's main thread added one meanwhile
        return {UUID(id) for id in ids if is_uuid(id)}


def release(connection, app):
    """Let go of what this worker still holds when it stops."""
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
            app.backend.tell_end(task_id, WorkerLostError(error), states.FAILURE)
        return
    found = connection.execute(CALL, (task_id,))
    if not found:
        return  # somebody has deleted it
    args, kwargs, *rest = _decode(*found[0])
    if nesting:
        # What replaced it was another task, if that is known
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
        return  # it went on by itself
    if row[1] == Status.STATUS_PENDING:
        logger.warning('Task %s[%s] will be run again: %s', name, task_id, error)
    elif row[1] == Status.STATUS_REVOKED:
        app.backend.tell_end(task_id, TaskRevokedError('revoked'), states.REVOKED)
    else:
        logger.error('Task %s[%s] is lost: %s', name, task_id, error)
        app.backend.tell_end(task_id, WorkerLostError(error), states.FAILURE)
        if task is not None:
            tell_of_failure(task, str(task_id), args, kwargs, WorkerLostError(error))


def _decode(message, is_original, exact):
    """Return the arguments, and what else a row remembers of a call, or none if it cannot be read."""
    try:
        args, kwargs, *rest = PayloadDecoder().decode(message)
        if is_original:
            args, kwargs, __ = call_of(exact, args, kwargs, None)
    except Exception:
        logger.warning('The arguments of a lost run cannot be read', exc_info=True)
        return (), {}
    return args, kwargs, *rest


def expire(connection, app):
    """End runs that expired while they waited; a broker may drop their messages without a word."""
    expired = ENDS['expired_in_queue']

    def settle(row):
        (task_id,) = row
        if lifecycle.finish(
            connection, task_id, expired.status, reason=expired.reason,
            error='It expired before a worker began it',
            exact_result=app.backend.exception_text(TaskRevokedError('expired'))
        ):
            app.backend.tell_end(task_id, TaskRevokedError('expired'), states.REVOKED)
    _expired.each(connection.execute(EXPIRED, {'left_out': _expired.ids()}), settle)


def resend(connection, app):
    """Send the messages of rows that were not sent: the broker was away, or the process died in between.

    What the broker, or anything else, refuses of a row is the row's own affair: those behind it are sent.
    """
    for id, task_id, name, *row in connection.execute(UNSENT, {'after': UNSENT_AFTER, 'left_out': _unsent.ids()}):
        try:
            send_row(app, task_id, name, *row)
        except Exception as exc:
            if is_away(exc):
                logger.warning('What was not sent waits for the broker: %s', exc)
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
        error=f'It cannot be sent: {text_of(exc)}', exact_result=app.backend.exception_text(exc)
    ):
        app.backend.tell_end(task_id, exc, states.FAILURE)
