"""Publishing without waiting: what may have been lost is said, and what was said is heard."""
import time

import pytest
from redis import Redis

from netbox_celery.engine.publisher import ALIVE, Publisher


@pytest.fixture
def client(services):
    with Redis.from_url(services.redis.url(0)) as client:
        yield client


@pytest.fixture
def heard(client):
    """Return what a listener heard so far."""
    with client.pubsub() as listener:
        listener.subscribe('news')
        listener.get_message(timeout=5)

        def get(number):
            messages, deadline = [], time.monotonic() + 5
            while len(messages) < number and time.monotonic() < deadline:
                if message := listener.get_message(ignore_subscribe_messages=True, timeout=0.1):
                    messages.append(int(message['data']))
            return messages
        yield get


def test_all_are_heard_in_order(client, heard):
    publisher = Publisher()
    for number in range(100):
        assert publisher.publish(client, 'news', str(number)) == []
    assert heard(100) == list(range(100))


def test_lost_connection(client, heard):
    """What Redis may not have got is told with the next message at the latest, and then it goes on."""
    publisher = Publisher()
    for number in '12':
        assert publisher.publish(client, 'news', number) == []
    client.client_kill_filter(_type='normal', skipme=True)
    again = [message for number in '345' for message in publisher.publish(client, 'news', number)]
    assert ('news', '3') in again
    for channel, message in again:
        client.publish(channel, message)
    assert {1, 2, 3, 4, 5} <= set(heard(5))


def test_connection_that_died_in_a_pause(client, heard, monkeypatch):
    """After a pause the answer is waited for, so that the loss is noticed at once."""
    publisher = Publisher()
    assert publisher.publish(client, 'news', '1') == []
    publisher.used -= ALIVE
    publisher.connection._sock.close()
    assert publisher.publish(client, 'news', '2') == [('news', '2')]
    assert publisher.publish(client, 'news', '3') == []
    assert heard(2) == [1, 3]


def test_fork(client, monkeypatch):
    """A child has a connection of its own."""
    publisher = Publisher()
    publisher.publish(client, 'news', '1')
    ours = publisher.connection
    monkeypatch.setattr('os.getpid', lambda: 1)
    assert publisher.publish(client, 'news', '2') == []
    assert publisher.connection is not ours
