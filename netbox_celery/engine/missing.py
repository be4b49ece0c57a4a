"""Messages that the broker lost: a Redis that was restarted without persistence, or flushed, forgets its queues.

Rows know what was sent. A row that waits, was sent a while ago, and whose message is neither in a queue nor in the
hands of a worker, has none. It is sent again; should the message turn up after all, the claim refuses the second copy.
Looked for in Redis, where a queue can be read without taking from it. RabbitMQ keeps Celery's messages on disk.
"""
import json
import logging

from redis import Redis

from . import lifecycle

__all__ = (
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
        logger.error('The broker has lost the messages of %s runs, they will be sent again', len(found))
    return len(found)


def _held_by_broker(app, queues):
    """Return the IDs of the tasks whose messages the broker holds, or `None` if that cannot be told."""
    with app.connection_for_write() as broker:
        if broker.transport.driver_type != 'redis':
            return None
        channel = broker.default_channel
        client = Redis(connection_pool=channel.client.connection_pool)
        prefix = channel.global_keyprefix
        keys = [
            prefix + channel._q_for_pri(queue, priority) for queue in queues for priority in channel.priority_steps
        ]
        if sum(client.llen(key) for key in keys) > MOST_MESSAGES:
            return None
        # What workers hold, before and after what waits: a message that moves in between is seen at least once.
        held = {_task_id(json.loads(entry)[0]) for entry in client.hvals(prefix + channel.unacked_key)}
        for key in keys:
            held |= {_task_id(json.loads(entry)) for entry in client.lrange(key, 0, -1)}
        held |= {_task_id(json.loads(entry)[0]) for entry in client.hvals(prefix + channel.unacked_key)}
    return held


def _task_id(message):
    return message.get('headers', {}).get('id')
