"""Outcomes that a process reports of runs that another one executes: a worker's parent does, of its children.

The parent also moves messages, so that it does not wait for a database that is away: the thread of its heartbeat writes
then what it could not write, and another one sends what waited in line (`netbox_celery.engine.worker.presence`).
"""
import logging
from collections import deque
from functools import partial
from queue import Empty, SimpleQueue

from ...choices import ResultStatusChoices as Status
from ..identity import identity
from ..sending.admission import advance_line
from ..store import lifecycle
from ..store.database import UNUSABLE, get_connection
from ..store.recorder import recorder

__all__ = (
    'advance_next',
    'close_run',
    'requeue_run',
    'status_of',
    'stop_waiting',
    'write_deferred',
)

logger = logging.getLogger(__name__)

#: Writes of the parent that wait for the database: IDs of runs, and functions to call with a connection.
_deferred = deque()
#: Concurrency keys of runs that the parent has ended; `None` wakes the thread that waits for them.
_freed: SimpleQueue = SimpleQueue()


def write_deferred(connection):
    """Write what waits for the database, in order.

    Raises:
        What `UNUSABLE` names: The database cannot be used yet; what waits waits on.
    """
    while _deferred:
        task_id, function = _deferred[0]
        try:
            function(connection)
        except UNUSABLE:
            raise
        except Exception:
            # What cannot be written at all must not keep back what comes after it.
            logger.exception('What became of task %s could not be written', task_id)
        _deferred.popleft()


def advance_next(connection, timeout):
    """Send what waits in line for the next run that the parent ends.

    Args:
        connection: The connection of the thread that calls this.
        timeout: How long to wait for such an end, seconds.

    Returns:
        Whether there was one, or the wait was stopped.
    """
    try:
        key = _freed.get(timeout=timeout)
    except Empty:
        return False
    if key is not None:
        advance_line(connection, key)
    return True


def stop_waiting():
    """Wake who waits in `advance_next`."""
    _freed.put(None)


def _write(task_id, function):
    """Write for a run from a worker's parent, at once or, while the database is away, from the heartbeat thread.

    Order is kept: what waits goes first. The parent also moves messages, so it must not wait long; and an error in it
    would end the worker. A child, which comes here if it could not claim a run, has no heartbeat: its recorder writes.
    """
    if not identity.is_parent or not _deferred:
        try:
            return function(get_connection())
        except UNUSABLE as exc:
            logger.warning('What became of task %s cannot be written yet: %s', task_id, exc)
        except Exception:
            logger.exception('What became of task %s could not be written', task_id)
            return None
    if not identity.is_parent:
        recorder.end_later(task_id, function)
    else:
        _deferred.append((task_id, function))
    return None


def close_run(
    task_id, status, *, attempt=None, reason='', error='', traceback='', exact_result=None, in_backend=False
):
    """End a run from outside the process that runs it: one that nobody claimed, or one that this worker holds.

    Args:
        attempt: The attempt that this worker holds, if it may be ended too.
        exact_result: The exception, as Celery's result backend tells it.
        in_backend: Whether Celery's result backend is told as well.
    """
    def write(connection):
        end = partial(
            _finish, connection, task_id, status, reason=reason, error=error, traceback=traceback,
            exact_result=exact_result, in_backend=in_backend
        )
        row = None
        if identity.key is not None and attempt is not None:
            row = end(holder=identity.key, attempt=attempt)
        return row or end()
    return _write(task_id, write)


def _finish(connection, task_id, status, **values):
    """End a run, and send what waited in line for that.

    A worker's parent leaves the sending to its thread: a slow broker must not hold it up.
    """
    row = lifecycle.finish(connection, task_id, status, **values, patience=0)
    if row is not None and row[3]:
        if identity.is_parent:
            _freed.put(row[3])
        else:
            advance_line(connection, row[3])
    return row


def requeue_run(task_id, *, attempt, reason='', error=''):
    """Put a run that this worker holds back into the queue, before the broker delivers its message again.

    Returns:
        How the run ended, if the message must not go back: it was cancelled, or has been given back too often.
    """
    def write(connection):
        row = lifecycle.requeue(
            connection, task_id, by='holder', holder=identity.key, attempt=attempt, reason=reason, error=error,
            patience=0
        )
        if row is not None:
            return row[1] if row[1] != Status.STATUS_PENDING else None
        row = _finish(
            connection, task_id, Status.STATUS_ERRORED, holder=identity.key, attempt=attempt, reason=reason,
            error=f'{error}. It is not run again after {lifecycle.MOST_LOSSES} times'
        )
        return row and row[1]
    return _write(task_id, write)


def status_of(task_id):
    """Return the status of a run, as far as can be told at once; `None` if it cannot, or there is none."""
    try:
        found = lifecycle.explain(get_connection(), task_id)
    except UNUSABLE:
        return None
    return found and found[0]
