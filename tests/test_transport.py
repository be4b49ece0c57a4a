"""The transports that replace Kombu's."""
import kombu
import pytest

from netbox_celery import transport
from netbox_celery.celery import app


@pytest.mark.parametrize('scheme', transport.TRANSPORTS)
def test_schemes(scheme):
    assert app.connection_for_write(f'{scheme}://').get_transport_cls() is transport.TRANSPORTS[scheme]
    assert app.connection_for_write('memory://').get_transport_cls() is kombu.Connection('memory://').get_transport_cls()


@pytest.mark.parametrize('scheme', transport.TRANSPORTS)
def test_other_users_of_kombu_keep_its_transports(scheme):
    assert kombu.Connection(f'{scheme}://').get_transport_cls().__module__ == 'kombu.transport.redis'


def test_pools_are_not_shared_with_other_users_of_kombu():
    ours = app.connection_for_write('redis://localhost:1/')
    plain = kombu.Connection('redis://localhost:1/', transport_options=ours.transport_options)
    assert kombu.pools.connections[ours] is kombu.pools.connections[ours.clone()]
    assert kombu.pools.connections[ours] is not kombu.pools.connections[plain]


def test_failover_and_copies():
    connection = app.connection_for_write('memory://;redis://localhost:1/')
    connection.maybe_switch_next()
    for one in (connection, connection.clone()):
        assert one.get_transport_cls() is transport.Transport


def test_client_is_kept(services):
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first is second
            assert first.ping()


def test_fork_makes_a_new_client(services):
    """A child gets its own pool from Kombu, so its client must not use the parent's connections."""
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        with channel.conn_or_acquire() as ours:
            pass
        channel._after_fork()
        with channel.conn_or_acquire() as childs:
            assert childs is not ours
            assert childs.connection_pool is not ours.connection_pool
            assert childs.ping()


def test_client_outlives_a_lost_connection(services):
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        with channel.conn_or_acquire() as client:
            client.ping()
            client.connection_pool.disconnect()
        with channel.conn_or_acquire() as client:
            assert client.ping()


@pytest.mark.parametrize('queue', [
    'unacked', 'unacked_index', '_kombu.binding.x', 'celery\x06\x163', 'celery-task-meta-1', '',
])
def test_keys_that_are_not_lists_are_left_alone(services, queue):
    """Nothing is sent there, consumed or purged, even if the call's own check was bypassed."""
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        for do in (
            lambda: channel.basic_publish({'body': '', 'properties': {'delivery_info': {}}}, '', queue),
            lambda: channel.basic_consume(queue, True, print, 'tag'), lambda: channel.queue_purge(queue),
            lambda: channel._put(queue, {'properties': {}}), lambda: channel._size(queue),
        ):
            with pytest.raises(ValueError, match='A queue cannot be named'):
                do()
        with channel.conn_or_acquire() as client:
            assert client.type(queue) in (b'none', b'hash', b'zset', 'none', 'hash', 'zset')
