"""A message that RabbitMQ delays reaches the right queue, not too early; one that a worker delays is unchanged."""
from datetime import UTC, datetime, timedelta

import pytest
from celery import Celery
from kombu import Exchange, Queue

from netbox_celery.engine.sending.publish import SHORTEST, is_delayed, publish

HOUR = timedelta(hours=1)
#: What Celery puts before the routing key of a message that is held back.
BITS = '.'.join('01' * 14) + '.'


def make_app(broker='amqp://', kind='quorum'):
    app = Celery('tests', broker=broker, set_as_current=False)
    app.conf.task_queues = [
        Queue(name, Exchange('tests', type='topic'), routing_key=key, queue_arguments={'x-queue-type': kind})
        for name, key in (('fast', 'key.of.fast'), ('0.slow', '0.slow'))
    ]
    return app


@pytest.fixture
def sent(monkeypatch):
    """The options of what would be sent to the broker."""
    sent = []
    monkeypatch.setattr(Celery, 'send_task', lambda app, name, args, kwargs, **options: sent.append(options))
    return sent


@pytest.mark.parametrize('broker, kind, options, expected', [
    ('amqp://', 'quorum', {'countdown': 5}, True),
    ('amqp://', 'quorum', {'eta': datetime.now(UTC) + HOUR}, True),
    ('amqp://', 'quorum', {'countdown': 0}, False),
    ('amqp://', 'quorum', {'eta': None, 'countdown': None}, False),
    ('amqp://', 'quorum', {}, False),
    ('amqp://', 'classic', {'countdown': 5}, False),
    ('redis://', 'quorum', {'countdown': 5}, False),
])
def test_who_delays_it(broker, kind, options, expected):
    assert is_delayed(make_app(broker, kind), options) is expected


@pytest.mark.parametrize('options, seconds', [
    ({'countdown': 0.001}, 1.1),
    ({'countdown': 1.05}, 1.1),
    ({'countdown': 1.2}, 1.2),
    ({'countdown': 3600}, 3600),
    ({'countdown': -5}, -5),
    ({'countdown': 30, 'eta': datetime.now(UTC) + HOUR}, 30),
])
def test_shortest_delay(sent, options, seconds):
    """For less than a second Celery raises a `ValueError`; past times and longer ones stay."""
    before = datetime.now(UTC)
    publish(make_app(), 'tests:x', **options)
    after = datetime.now(UTC)
    assert 'countdown' not in sent[0]
    assert before <= sent[0]['eta'] - timedelta(seconds=seconds) <= after


@pytest.mark.parametrize('eta', [
    datetime.now(UTC) + HOUR, datetime.now(UTC) - HOUR, datetime(2040, 1, 1), '2040-01-01T00:00:00+00:00',
], ids=['later', 'past', 'naive', 'text'])
def test_other_times_are_kept(sent, eta):
    publish(make_app(), 'tests:x', eta=eta)
    assert sent == [{'eta': eta}]


def test_eta_of_the_next_moment(sent):
    before = datetime.now(UTC)
    publish(make_app(), 'tests:x', eta=before + timedelta(seconds=0.9))
    assert sent[0]['eta'] >= before + SHORTEST


@pytest.mark.parametrize('options, expected', [
    ({'routing_key': 'key.of.fast', 'exchange': 'tests'}, {'queue': 'fast'}),
    ({'routing_key': f'{BITS}key.of.fast', 'exchange': 'celery_delayed_27'}, {'queue': 'fast'}),
    ({'routing_key': '0.slow'}, {'queue': '0.slow'}),
    ({'routing_key': 'nobody', 'exchange': 'tests'}, {'routing_key': 'nobody', 'exchange': 'tests'}),
    ({'routing_key': 'key.of.fast', 'queue': 'other'}, {'routing_key': 'key.of.fast', 'queue': 'other'}),
    ({'routing_key': None}, {'routing_key': None}),
    ({}, {}),
])
def test_queue_of_a_retry(sent, options, expected):
    """A retry names no queue, but the routing key of the message that it repeats, which may have been delayed."""
    publish(make_app(), 'tests:x', countdown=60, **options)
    sent[0].pop('eta')
    assert sent == [expected]


def test_sent_as_it_is_without_delay(sent):
    options = {'countdown': 0, 'routing_key': 'key.of.fast', 'exchange': 'tests', 'priority': 3}
    publish(make_app(), 'tests:x', **options)
    publish(make_app('redis://'), 'tests:x', **{**options, 'countdown': 60})
    assert sent == [options, {**options, 'countdown': 60}]
