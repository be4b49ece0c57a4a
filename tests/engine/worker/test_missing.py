"""Messages that the broker lost, or holds for dead workers: which rows have none, and what Redis holds."""
from datetime import timedelta
from uuid import uuid4

import pytest
from celery import Celery
from django.utils import timezone

from netbox_celery.celery import app
from netbox_celery.engine.worker import missing
from netbox_celery.models import CeleryResult
from tests.factories import make_result, make_worker
from tests.support import ago, now

pytestmark = pytest.mark.django_db


def test_missing_messages(shared, monkeypatch):
    """A run that has waited for long, and whose message the broker does not hold, counts as not sent."""
    def make(status='pending', sent=100, **columns):
        run = make_result(status, queue='q', sent=ago(sent), **columns)
        CeleryResult.objects.filter(pk=run.pk).update(last_updated=ago(100))
        return run

    lost, held, fresh = make(), make(), make(sent=10)
    later = make('scheduled', scheduled=timezone.now() + timedelta(hours=1))
    overdue = make('retrying', scheduled=ago(100))
    chain = make(nesting=1)
    monkeypatch.setattr(missing, '_held_by_broker', lambda app, queues: {str(held.task_id)})

    assert missing.find_missing(shared, app) == 2
    assert {run.pk for run in (lost, held, fresh, later, overdue, chain) if now(run).sent is None} == {
        lost.pk, overdue.pk
    }
    monkeypatch.setattr(missing, '_held_by_broker', lambda app, queues: None)
    assert missing.find_missing(shared, app) == 0


def test_messages_fetched_by_dead_workers(shared, monkeypatch):
    """A message that a dead worker had fetched is sent again, once; one in the queue is not."""
    dead = make_worker('dead@h', heartbeat=ago(100), queues=['q'])
    make_worker('alive@h', queues=['q', 'other'])
    fetched, queued = (make_result('pending', queue='q', sent=ago(200)) for __ in range(2))
    elsewhere = make_result('pending', queue='other', sent=ago(200))
    after = make_result('pending', queue='q', sent=ago(50))
    in_hands = {str(run.task_id) for run in (fetched, elsewhere, after)}
    monkeypatch.setattr(missing, '_held_by_workers', lambda app: in_hands)

    settled = set()
    missing.find_fetched(shared, app, settled)
    assert [now(run).sent is None for run in (fetched, queued, elsewhere, after)] == [True, False, False, False]
    assert settled == {dead.key}
    CeleryResult.objects.filter(pk=fetched.pk).update(sent=timezone.now())
    for settled in (settled, set()):
        missing.find_fetched(shared, app, settled)
        assert now(fetched).sent is not None


def test_held_by_broker(services):
    """Messages in queues and those that workers have fetched are found in Redis."""
    name = f'held-{uuid4()}'
    with app.connection_for_write() as connection:
        with connection.SimpleQueue(name) as queue:
            for task_id in ('waits', 'fetched'):
                queue.put({}, headers={'id': task_id})
        assert missing._held_by_broker(app, {name}) >= {'waits', 'fetched'}
        channel = connection.channel()
        queue = connection.SimpleQueue(name, no_ack=False)
        message = queue.get(timeout=5)
        assert missing._held_by_workers(app) >= {message.headers['id']}
        assert missing._held_by_broker(app, {name}) >= {'waits', 'fetched'}
        message.ack()
        queue.get(timeout=5).ack()
        channel.close()
    assert not missing._held_by_broker(app, {name}) & {'waits', 'fetched'}


def test_garbage_in_redis():
    """Entries that are not messages have no ID, and raise nothing."""
    for entry in ('x', '', 'null', '5', '[]', '{}', '{"headers": 5}', '{"headers": {"id": []}}', b'\xff', '[' * 99_999):
        assert missing._task_id(entry) is None
        assert missing._task_id(f'[{entry}]', 0) is None
    assert missing._task_id('{"headers": {"id": "x"}}') == missing._task_id('[{"headers": {"id": "x"}}]', 0) == 'x'


def test_queue_that_is_not_a_list(services, shared):
    """Such a key in Redis has no messages, and does not affect other queues."""
    odd, name = f'odd-{uuid4()}', f'empty-{uuid4()}'
    with missing._redis(app) as (channel, client):
        client.hset(channel.global_keyprefix + odd, 'a', 'b')
        assert missing._held_by_broker(app, {odd, name}) is not None
        client.delete(channel.global_keyprefix + odd)


def test_broker_that_cannot_be_read(shared):
    """With a broker other than Redis no message counts as lost."""
    run = make_result('pending', queue='q', sent=ago(100))
    CeleryResult.objects.update(last_updated=ago(100))
    dead = make_worker('dead@h', heartbeat=ago(100), queues=['q'])
    make_result('pending', queue='q', sent=ago(200))
    other, settled = Celery(broker='memory://', set_as_current=False), set()

    assert missing.find_missing(shared, other) == 0
    missing.find_fetched(shared, other, settled)
    assert settled == {dead.key}
    assert now(run).sent is not None


def test_more_messages_than_are_read(services, monkeypatch):
    """With very many messages in the queues none counts as lost, and only some are read."""
    name = f'many-{uuid4()}'
    monkeypatch.setattr(missing, 'MOST_MESSAGES', 1)
    with app.connection_for_write() as connection, connection.SimpleQueue(name) as queue:
        queue.put({}, headers={'id': 'a'})
        assert 'a' in missing._held_by_broker(app, {name})
        queue.put({}, headers={'id': 'b'})
        assert missing._held_by_broker(app, {name}) is None
        queue.clear()
