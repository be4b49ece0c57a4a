"""Connections to the broker. For Redis: one client per channel, and channels that survive the loss of Redis.

`Connection` alone uses these transports: other users of Kombu in the same process keep Kombu's own.

Kombu makes a new client of redis-py whenever it sends something: 50 microseconds, for each message that is published,
taken and acknowledged, and a fifth of what a worker's main process does. Clients of redis-py take their connections
from the channel's pool and hold nothing else, so one can be used again.

Anyone who can reach Redis can push anything to a list that is a queue. An entry that is not a message stops a worker
with Kombu's transport. Here the entry is dropped and logged: there is no sender to whom it could be returned.
"""
import logging
from typing import TYPE_CHECKING, Any

import kombu
from kombu.transport import redis
from redis.exceptions import ConnectionError

from .queuenames import is_key_of_redis

__all__ = (
    'Connection',
    'SentinelTransport',
    'Transport',
)

logger = logging.getLogger(__name__)

#: What Kombu raises for an entry of a queue that is not a message.
UNREADABLE = (AttributeError, LookupError, RecursionError, TypeError, ValueError)

#: Delivery tags of messages that this process could not return to their queues when their channel was closed.
_left: set[str] = set()


# Each class below combines a mixin with a class of Kombu's
if TYPE_CHECKING:
    from kombu.transport.redis import Channel as _Channel
    from kombu.transport.redis import Transport as _Transport
else:
    _Channel = _Transport = object


class ChannelMixin(_Channel):
    """Keeps one client per channel for as long as the channel keeps its connection pool.

    A fork or a broken connection replaces the pool, and with it the client.

    A channel returns unacknowledged messages to their queues when it is closed. If Redis cannot be reached at that
    time, the next channel returns them; otherwise they would wait for the visibility timeout, an hour by default.

    Celery may close a closed channel again, or acknowledge a message that arrived on it. Kombu then raises an error
    that stops the worker. Here that is a connection error, which Celery handles.
    """
    _kept_client: Any = None

    def _create_client(self, asynchronous=False):
        if asynchronous:
            # An asynchronous client has its own connection
            return super()._create_client(asynchronous)
        if self._kept_client is None or self._kept_client.connection_pool is not self.pool:
            self._kept_client = super()._create_client()
        return self._kept_client

    def _q_for_pri(self, queue, pri):
        """Return the key of the list that holds a queue's messages.

        This is the last check before Redis: every read, write and purge of a queue takes its key from here.

        Raises:
            ValueError: The name is a key of Kombu or of a result backend.
        """
        own = (self.unacked_key, self.unacked_index_key, self.unacked_mutex_key)
        if not queue or self.sep in queue or queue in own or is_key_of_redis(queue):
            raise ValueError(f'A queue cannot be named {queue!r}: Celery uses this key in Redis for other data')
        return super()._q_for_pri(queue, pri)

    def _get_pool(self, *args, **kwargs):
        if getattr(self.connection, 'client', None) is None:
            raise ConnectionError('The channel is closed')
        return super()._get_pool(*args, **kwargs)

    def _brpop_read(self, **options):
        try:
            return super()._brpop_read(**options)
        except (RecursionError, ValueError) as exc:
            logger.error('Dropped an entry of a queue that is not JSON: %r', exc)
            return True

    def close(self):
        try:
            super().close()
        finally:
            if self._qos is not None:
                _left.update(self._qos._delivered)

    def basic_consume(self, queue, *args, **kwargs):
        if queue not in self._fanout_queues:
            self._q_for_pri(queue, 0)
        for tag in tuple(_left):
            self.qos.restore_by_tag(tag)
            _left.discard(tag)
        return super().basic_consume(queue, *args, **kwargs)


class Channel(ChannelMixin, redis.Channel):
    pass


class SentinelChannel(ChannelMixin, redis.SentinelChannel):
    pass


class TransportMixin(_Transport):
    """Drops entries of queues that are not messages."""

    def _deliver(self, message, queue):
        try:
            super()._deliver(message, queue)
        except UNREADABLE:
            logger.exception('Dropped an entry of the queue %s that is not a message: %.1000r', queue, message)


class Transport(TransportMixin, redis.Transport):
    Channel = Channel


class SentinelTransport(TransportMixin, redis.SentinelTransport):
    Channel = SentinelChannel


#: Transports that replace Kombu's, by the scheme of the broker URL.
TRANSPORTS = {'redis': Transport, 'rediss': Transport, 'sentinel': SentinelTransport}


class Connection(kombu.Connection):
    """A connection of our app to its broker. Its current URL decides on the transport, also after a failover."""

    def get_transport_cls(self):
        """Return the class of the transport: ours for Redis, else Kombu's."""
        return TRANSPORTS.get(self.transport_cls) or super().get_transport_cls()

    def __eqhash__(self):
        # Kombu shares pools between equal connections in a process; other users of Kombu must not get this class
        return Connection, super().__eqhash__()
