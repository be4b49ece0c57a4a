"""Messages that the broker lost, or keeps for a worker that is dead.

A Redis that was restarted without persistence, or flushed, forgets its queues. Rows know what was sent: a row that
waits, was sent a while ago, and whose message is neither in a queue nor in the hands of a worker, has none.

And what a worker had fetched but not begun when it was killed stays in its hands for Redis, until the visibility
timeout (an hour) is over.

Both are sent again; should the message turn up after all, the claim refuses the second copy. Looked for in Redis,
where a queue can be read without taking from it. RabbitMQ keeps Celery's messages on disk, and sees that a worker died.
"""
import json
import logging
from contextlib import contextmanager

from redis import Redis

from ...config import get_config
from ..calls.ids import canonical
from ..calls.queues import is_reserved
from ..identity import identity
from ..internals import key_of_queue
from ..store import lifecycle

__all__ = (
    'find_fetched',
    'find_missing',
)

logger = logging.getLogger(__name__)

#: A run that was sent so long ago should have been started, or its message is in the broker, seconds.
GRACE = 60
#: With more messages than this in the queues, they are not read: there is no lack of them.
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
# It may have fetched something for as long as it did not miss a heartbeat.
FETCHED = f"""
    SELECT id, task_id::text FROM {lifecycle.TABLE}
    WHERE {lifecycle.WAITING} AND completed IS NULL AND (queue = ANY(%(queues)s) OR queue = '')
        AND sent < %(heartbeat)s + make_interval(secs => %(interval)s)
        AND {lifecycle.SENDABLE}
    ORDER BY id LIMIT {MOST_MESSAGES}
"""
# GUARANTEE: only what still waits is sent again. `resend` of the sweep takes it from here.
UNSEND = f"""
    UPDATE {lifecycle.TABLE} SET sent = NULL WHERE id = ANY(%s) AND {lifecycle.WAITING} RETURNING task_id
"""


def find_missing(connection, app):
    """Mark runs as unsent whose messages the broker has lost.

    Args:
        connection: An `EngineConnection`.
        app: The Celery app.

    Returns:
        How many there were.
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
        logger.error('The broker has lost messages, which will be sent again: of %s run(s)', len(found))
    return len(found)


def find_fetched(connection, app, settled):
    """Mark runs as unsent whose messages a dead worker had fetched.

    What another worker has in hand is sent a second time by that, but only once for each worker that dies.

    Args:
        connection: An `EngineConnection`.
        app: The Celery app.
        settled: Keys of the dead workers that were looked at, a set that is kept from look to look.
    """
    config = get_config()
    dead = connection.execute(DEAD, {
        'lost_after': config.worker_lost_after, 'steady': identity.steady_for, 'interval': config.heartbeat_interval,
    })
    new = [worker for worker in dead if worker[0] not in settled]
    fetched = {}
    for __, heartbeat, queues, interval in new:
        fetched.update(connection.execute(FETCHED, {
            'heartbeat': heartbeat, 'queues': queues if isinstance(queues, list) else json.loads(queues),
            'interval': 2 * interval,
        }))
    if fetched and (held := _held_by_workers(app)):
        found = connection.execute(UNSEND, ([id for id, task_id in fetched.items() if task_id in held],))
        if found:
            logger.error('Dead workers had fetched messages, which will be sent again: of %s run(s)', len(found))
    settled.clear()
    settled.update(key for key, *__ in dead)


@contextmanager
def _redis(app):
    """Yield Kombu's channel to Redis and a plain client, or `None` twice if the broker is another one."""
    with app.connection_for_write() as broker:
        if broker.transport.driver_type == 'redis':
            channel = broker.default_channel
            yield channel, Redis(connection_pool=channel.client.connection_pool)
        else:
            yield None, None


def _held_by_workers(app):
    """Return the IDs of the tasks whose messages workers have in hand."""
    with _redis(app) as (channel, client):
        return _unacknowledged(channel, client) if channel is not None else set()


def _unacknowledged(channel, client):
    entries = client.hvals(channel.global_keyprefix + channel.unacked_key)
    return {_task_id(entry, 0) for entry in entries}


def _held_by_broker(app, queues):
    """Return the IDs of the tasks whose messages the broker holds, or `None` if that cannot be told."""
    with _redis(app) as (channel, client):
        if channel is None:
            return None
        # What went where no list can be is nowhere
        keys = [
            key for queue in queues if not is_reserved(queue) for priority in channel.priority_steps
            if client.type(key := key_of_queue(channel, queue, priority)) in (b'list', b'none')
        ]
        if sum(client.llen(key) for key in keys) > MOST_MESSAGES:
            return None
        # What workers hold, before and after what waits: a message that moves in between is seen at least once.
        held = _unacknowledged(channel, client)
        for key in keys:
            held |= {_task_id(entry) for entry in client.lrange(key, 0, -1)}
        return held | _unacknowledged(channel, client)


def _task_id(entry, *path):
    """Return the ID of the task in a message as Redis holds it; `None` of what is none."""
    try:
        message = json.loads(entry)
        for step in path:
            message = message[step]
        task_id = message['headers']['id']
    except (LookupError, RecursionError, TypeError, ValueError):
        return None
    return canonical(task_id) if isinstance(task_id, str) else None
