"""Connections to the broker. For Redis: one client per channel, and channels that survive the loss of Redis.

`Connection` alone uses these transports: other users of Kombu in the same process keep Kombu's own.

Kombu makes a new client of redis-py whenever it sends something: 50 microseconds, for each message that is published,
taken and acknowledged, and a fifth of what a worker's main process does. Clients of redis-py take their connections
from the channel's pool and hold nothing else, so one can be used again.

Anyone who can reach Redis can push anything to a list that is a queue. An entry that is not a message stops a worker
with Kombu's transport. Here the entry is dropped and logged: there is no sender to whom it could be returned.
"""
import logging

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

#: What Kombu raises for an entry of a queue that is no message.
UNREADABLE = (AttributeError, LookupError, RecursionError, TypeError, ValueError)

#: Tags of messages that a lost connection left in the hands of this process.
_left = set()


class ChannelMixin:
    """Keeps a channel's client as long as its pool of connections: a fork, or a broken connection, makes a new one.

    A channel that is closed gives back what was not acknowledged. Where that is not possible, since Redis is gone, the
    next channel does it, instead of Redis after the visibility timeout of an hour. And a channel that is closed has
    nothing left to reach Redis by, when Celery closes it once more, or acknowledges a message that came by it. To
    Kombu that is an error which ends the worker; here it is one of the connection, which Celery expects.
    """
    _kept_client = None

    def _create_client(self, asynchronous=False):
        if asynchronous:
            # These hold a connection of their own
            return super()._create_client(asynchronous)
        if self._kept_client is None or self._kept_client.connection_pool is not self.pool:
            self._kept_client = super()._create_client()
        return self._kept_client

    def _q_for_pri(self, queue, pri):
        """Return the key of the list that a queue is: the last place where what is no list can be kept from harm.

        Raises:
            ValueError: It is a key of Kombu's own, or of a result backend.
        """
        own = (self.unacked_key, self.unacked_index_key, self.unacked_mutex_key)
        if not queue or self.sep in queue or queue in own or is_key_of_redis(queue):
            raise ValueError(f'There can be no queue {queue!r}: Celery keeps other things in Redis under that name')
        return super()._q_for_pri(queue, pri)

    def _get_pool(self, *args, **kwargs):
        if getattr(self.connection, 'client', None) is None:
            raise ConnectionError('The channel is closed')
        return super()._get_pool(*args, **kwargs)

    def _brpop_read(self, **options):
        try:
            return super()._brpop_read(**options)
        except (RecursionError, ValueError) as exc:
            logger.error('An entry of a queue is left out, which is not JSON: %r', exc)
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


class TransportMixin:
    """Leaves out what is no message."""

    def _deliver(self, message, queue):
        try:
            super()._deliver(message, queue)
        except UNREADABLE:
            logger.exception('An entry of the queue %s is left out, which is no message: %.1000r', queue, message)


class Transport(TransportMixin, redis.Transport):
    Channel = Channel


class SentinelTransport(TransportMixin, redis.SentinelTransport):
    Channel = SentinelChannel


#: Transports that take the place of Kombu's, by the scheme of the broker's URL.
TRANSPORTS = {'redis': Transport, 'rediss': Transport, 'sentinel': SentinelTransport}


class Connection(kombu.Connection):
    """A connection of our app to its broker, whatever the URL, and also after a failover to another URL."""

    def get_transport_cls(self):
        """Return the class of the transport: ours for Redis, else Kombu's."""
        return TRANSPORTS.get(self.transport_cls) or super().get_transport_cls()

    def __eqhash__(self):
        # Kombu keeps its pools by connection, for the whole process: one of plain Kombu is not shared
        return Connection, super().__eqhash__()
