"""Writes the ends that a worker's parent reports for runs of its children, without waiting for the database.

The parent also moves messages. If the database is unavailable, the thread of its heartbeat writes later what the parent
could not write, and another thread sends the runs that waited in line (`netbox_celery.engine.worker.presence`).
"""
import logging
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from ..identity import identity
from ..sending.admission import advance_line
from ..store import lifecycle
from ..store.database import UNUSABLE, get_connection
from ..store.recorder import recorder

__all__ = (
    'advance',
    'advance_next',
    'status_of',
    'stop_waiting',
    'write',
    'write_deferred',
)

logger = logging.getLogger(__name__)

#: Writes of the parent that wait for the database: IDs of runs, and functions to call with a connection.
_deferred: deque[tuple[str, Callable[[Any], Any]]] = deque()
#: Concurrency keys of runs that the parent has finished; `None` wakes the thread that waits for them.
_freed: SimpleQueue[str | None] = SimpleQueue()


def write_deferred(connection):
    """Execute the writes that wait for the database, in order.

    Raises:
        One of `UNUSABLE`: The database cannot be used yet; the writes continue to wait.
    """
    while _deferred:
        task_id, function = _deferred[0]
        try:
            function(connection)
        except UNUSABLE:
            raise
        except Exception:
            # A write that can never succeed must not block those after it
            logger.exception('The end of task %s could not be written', task_id)
        _deferred.popleft()


def advance_next(connection, timeout):
    """Send the runs that wait in line for the next run that the parent finishes.

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
    """Wake the thread that waits in `advance_next`."""
    _freed.put(None)


def write(task_id, function):
    """Write for a run from a worker's parent: now or, if the database is unavailable, later in the heartbeat thread.

    The order is kept: earlier writes come first. The parent must not wait long, and an error in it would end the
    worker. A child calls this if it could not claim a run; it has no heartbeat, so its recorder writes.

    Args:
        task_id: ID of the run.
        function: Called with a connection.

    Returns:
        The function's return value, or `None` if it will be called later or has failed.
    """
    if not identity.is_parent or not _deferred:
        try:
            return function(get_connection())
        except UNUSABLE as exc:
            logger.warning('The end of task %s cannot be written yet: %s', task_id, exc)
        except Exception:
            logger.exception('The end of task %s could not be written', task_id)
            return None
    if not identity.is_parent:
        recorder.end_later(task_id, function)
    else:
        _deferred.append((task_id, function))
    return None


def advance(connection, key):
    """Send the runs that wait in line for a run that has finished.

    A worker's parent leaves that to its thread: a slow broker must not delay it.
    """
    if identity.is_parent:
        _freed.put(key)
    else:
        advance_line(connection, key)


def status_of(task_id):
    """Return the status of a run; `None` if there is no such run, or if the database cannot be read now."""
    try:
        found = lifecycle.explain(get_connection(), task_id)
    except UNUSABLE:
        return None
    return found and found[0]
