"""How a worker's parent writes ends of runs that its children execute: without waiting for the database.

The parent also moves messages. If the database is away, the thread of its heartbeat later writes what the parent could
not, and another thread sends what waited in line (`netbox_celery.engine.worker.presence`).
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
#: Concurrency keys of runs that the parent has ended; `None` wakes the thread that waits for them.
_freed: SimpleQueue[str | None] = SimpleQueue()


def write_deferred(connection):
    """Write what waits for the database, in order.

    Raises:
        What `UNUSABLE` names: The database cannot be used yet; what waits goes on waiting.
    """
    while _deferred:
        task_id, function = _deferred[0]
        try:
            function(connection)
        except UNUSABLE:
            raise
        except Exception:
            # What cannot be written at all must not keep back what comes after it.
            logger.exception('The end of task %s could not be written', task_id)
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


def write(task_id, function):
    """Write for a run from a worker's parent, now or, while the database is away, from the heartbeat thread.

    Order is kept: what waits goes first. The parent must not wait long, and an error in it would end the worker. A
    child, which comes here if it could not claim a run, has no heartbeat: its recorder writes.

    Args:
        task_id: ID of the run.
        function: Called with a connection.

    Returns:
        What the function returned, or `None` if it is still to be called or has failed.
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
    """Send what waits in line for a run that was ended.

    A worker's parent leaves that to its thread: a slow broker must not hold it up.
    """
    if identity.is_parent:
        _freed.put(key)
    else:
        advance_line(connection, key)


def status_of(task_id):
    """Return the status of a run; `None` if there is none, or the database does not tell now."""
    try:
        found = lifecycle.explain(get_connection(), task_id)
    except UNUSABLE:
        return None
    return found and found[0]
