"""Kombu's transports for Redis, with one client object a channel.

Kombu makes a new client of redis-py whenever it sends something: 50 microseconds, for each message that is published,
taken and acknowledged, and a fifth of what a worker's main process does. Clients of redis-py take their connections
from the channel's pool and hold nothing else, so one can be used again.
"""
from kombu.transport import redis

__all__ = (
    'SentinelTransport',
    'Transport',
)


class OneClientMixin:
    """Keeps a channel's client as long as its pool of connections: a fork, or a broken connection, makes a new one."""
    _kept_client = None

    def _create_client(self, asynchronous=False):
        if asynchronous:
            # These hold a connection of their own
            return super()._create_client(asynchronous)
        if self._kept_client is None or self._kept_client.connection_pool is not self.pool:
            self._kept_client = super()._create_client()
        return self._kept_client


class Channel(OneClientMixin, redis.Channel):
    pass


class SentinelChannel(OneClientMixin, redis.SentinelChannel):
    pass


class Transport(redis.Transport):
    Channel = Channel


class SentinelTransport(redis.SentinelTransport):
    Channel = SentinelChannel
