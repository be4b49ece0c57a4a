"""Finds runs whose messages the broker lost, or holds for a dead worker, and marks them as unsent.

A Redis that was flushed, or restarted without persistence, has lost its queues. The rows show what was sent: if a run
waits, was sent a while ago, and its message is neither in a queue nor held by a worker, the message is lost.

And a message that a worker had fetched but not started when it was killed stays assigned to that worker in Redis, until
the visibility timeout (an hour) is over.

Both are sent again; if the message turns up after all, the claim refuses the second copy. This is for Redis, where a
queue can be read without consuming it. RabbitMQ keeps Celery's messages on disk, and notices that a worker died.
"""
import json
import logging
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from redis import Redis

from ...config import get_config
from ..calls.ids import canonical
from ..calls.queues import is_reserved
from ..identity import identity
from ..internals import key_of_queue
from ..store import lifecycle
from ..store.database import EngineConnection

__all__ = (
    'find_fetched',
    'find_missing',
)

logger = logging.getLogger(__name__)

#: A run that was sent this long ago has started, or its message is in the broker, seconds.
GRACE = 60
#: With more messages than this in the queues, they are not read: the broker has not lost its queues.
MOST_MESSAGES = 10_000

SUSPECTS = f"""
    SELECT id, task_id::text, queue FROM {lifecycle.TABLE}
    WHERE {lifecycle.WAITING} AND completed IS NULL AND sent < now() - make_interval(secs => {GRACE})
        AND last_updated < now() - make_interval(secs => {GRACE})
        AND (scheduled IS NULL OR scheduled < now() - make_interval(secs => {GRACE}))
        AND queue <> '' AND {lifecycle.SENDABLE}
    ORDER BY id LIMIT {MOST_MESSAGES}
"""
DEAD = f"""
    SELECT key, heartbeat, queues, COALESCE((versions #>> '{{{lifecycle.WORKER_STATE},interval}}')::float, %(interval)s)
    FROM {lifecycle.WORKERS} WHERE stopped IS NULL AND NOT ({lifecycle.ALIVE})
"""
# It may have fetched messages until the first heartbeat that it missed
FETCHED = f"""
    SELECT id, task_id::text FROM {lifecycle.TABLE}
    WHERE {lifecycle.WAITING} AND completed IS NULL AND (queue = ANY(%(queues)s) OR queue = '')
        AND sent < %(heartbeat)s + make_interval(secs => %(interval)s)
        AND {lifecycle.SENDABLE}
    ORDER BY id LIMIT {MOST_MESSAGES}
"""
# GUARANTEE: only runs that still wait are sent again. `resend` of the sweep does so.
UNSEND = f"""
    UPDATE {lifecycle.TABLE} SET sent = NULL WHERE id = ANY(%s) AND {lifecycle.WAITING} RETURNING task_id
"""


def find_missing(connection: EngineConnection, app: Any) -> int:
    """Mark runs whose messages the broker has lost as unsent.

    Args:
        connection: An `EngineConnection`.
        app: The Celery app.

    Returns:
        The number of such runs.
    """
    suspects = connection.execute(SUSPECTS)
    if not suspects:
        return 0
    held = _held_by_broker(app, {queue for __, __, queue in suspects})
    if held is None:
        return 0
    missing = [id for id, task_id, __ in suspects if task_id not in held]
    found = connection.execute(UNSEND, (missing,)) if missing else []
    if found:
        logger.error('The broker lost the messages of %s run(s), which will be sent again', len(found))
    return len(found)


def find_fetched(connection: EngineConnection, app: Any, settled: set[UUID]) -> None:
    """Mark runs whose messages a dead worker had fetched as unsent.

    A message that another worker holds is sent a second time, but only once for each worker that dies.

    Args:
        connection: An `EngineConnection`.
        app: The Celery app.
        settled: Keys of the dead workers that were handled, a set that is kept between calls.
    """
    config = get_config()
    dead = connection.execute(DEAD, {
        'lost_after': config.worker_lost_after, 'steady': identity.steady_for, 'interval': config.heartbeat_interval,
    })
    new = [worker for worker in dead if worker[0] not in settled]
    fetched: dict[int, str] = {}
    for __, heartbeat, queues, interval in new:
        fetched.update(connection.execute(FETCHED, {
            'heartbeat': heartbeat, 'queues': queues if isinstance(queues, list) else json.loads(queues),
            'interval': 2 * interval,
        }))
    if fetched and (held := _held_by_workers(app)):
        found = connection.execute(UNSEND, ([id for id, task_id in fetched.items() if task_id in held],))
        if found:
            logger.error('Dead workers had fetched the messages of %s run(s), which will be sent again', len(found))
    settled.clear()
    settled.update(key for key, *__ in dead)


@contextmanager
def _redis(app):
    """Yield Kombu's channel to Redis and a plain client, or `None` twice if the broker is not Redis."""
    with app.connection_for_write() as broker:
        if broker.transport.driver_type == 'redis':
            channel = broker.default_channel
            yield channel, Redis(connection_pool=channel.client.connection_pool)
        else:
            yield None, None


def _held_by_workers(app):
    """Return the IDs of the tasks whose messages workers hold."""
    with _redis(app) as (channel, client):
        return _unacknowledged(channel, client) if channel is not None else set()


def _unacknowledged(channel, client):
    entries = client.hvals(channel.global_keyprefix + channel.unacked_key)
    return {_task_id(entry, 0) for entry in entries}


def _held_by_broker(app, queues):
    """Return the IDs of the tasks whose messages the broker holds, or `None` if that is unknown."""
    with _redis(app) as (channel, client):
        if channel is None:
            return None
        # A message that was sent to the name of another kind of key is nowhere
        keys = [
            key for queue in queues if not is_reserved(queue) for priority in channel.priority_steps
            if client.type(key := key_of_queue(channel, queue, priority)) in (b'list', b'none')
        ]
        if sum(client.llen(key) for key in keys) > MOST_MESSAGES:
            return None
        # Read what workers hold before and after the queues: a message that moves in between is seen at least once
        held = _unacknowledged(channel, client)
        for key in keys:
            held |= {_task_id(entry) for entry in client.lrange(key, 0, -1)}
        return held | _unacknowledged(channel, client)


def _task_id(entry, *path):
    """Return the ID of the task in a message as Redis holds it, or `None` if it is not a message of a task."""
    try:
        message = json.loads(entry)
        for step in path:
            message = message[step]
        task_id = message['headers']['id']
    except (LookupError, RecursionError, TypeError, ValueError):
        return None
    return canonical(task_id) if isinstance(task_id, str) else None
