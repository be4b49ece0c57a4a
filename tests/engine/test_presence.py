"""Heartbeats, who may judge others, and what a worker's parent writes."""
import threading
from types import SimpleNamespace
from unittest import mock
from uuid import uuid4

import pytest
from django.db import DataError, OperationalError, ProgrammingError, connection

from development.stack.processes import wait_until
from netbox_celery.celery import app
from netbox_celery.engine import discovery, presence
from netbox_celery.engine.presence import Identity, Presence
from netbox_celery.models import CeleryWorker
from tests.factories import make_result

RUN = str(uuid4())


@pytest.fixture(autouse=True)
def nothing_deferred():
    yield
    presence._deferred.clear()


@pytest.fixture
def identity(monkeypatch):
    identity = Identity()
    identity.take('w@host')
    monkeypatch.setattr(presence, 'identity', identity)
    return identity


@pytest.fixture
def config(monkeypatch):
    config = SimpleNamespace(heartbeat_interval=0.05, worker_lost_after=0.4, sweep_interval=0.05)
    monkeypatch.setattr(presence, 'get_config', lambda: config)
    return config


class Clock:
    """A clock that a test sets by hand."""

    now = 1_000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(presence, 'time', clock)
    return clock


def test_nobody_judges_at_once(identity, config, clock):
    """A worker judges others when it has been heard for as long as they may be silent, and no longer than that."""
    assert not identity.can_judge
    beat(identity, clock, 0.5)
    assert identity.can_judge
    clock.now += 0.25
    assert not identity.can_judge


def test_nobody_judges_after_an_outage(identity, config, clock):
    """After a gap in its own heartbeats a worker waits anew: others had the same outage."""
    beat(identity, clock, 0.5)
    clock.now += 0.25
    identity.note_beat()
    assert not identity.can_judge
    beat(identity, clock, 0.5)
    assert identity.can_judge


def beat(identity, clock, seconds):
    end = clock.now + seconds
    while clock.now < end:
        identity.note_beat()
        clock.now += 0.02


def test_new_key_at_each_start(identity):
    before = identity.key
    identity.take('w@host')
    assert identity.key != before
    assert not identity.is_child


@pytest.mark.django_db(transaction=True)
def test_heartbeat_and_duties(identity, config, monkeypatch):
    """The heart beats while a duty hangs; a duty that fails stops neither the others nor itself."""
    monkeypatch.setattr(presence, 'describe_worker', lambda worker: {
        'key': identity.key, 'name': 'w@host', 'host': 'h', 'pid': 1, 'pool': 'solo', 'concurrency': 1,
        'queues': '[]', 'versions': '{}',
    })
    done = {'failing': 0, 'hanging': 0}
    released = threading.Event()

    def failing(connection):
        done['failing'] += 1
        raise RuntimeError

    def hanging(connection):
        done['hanging'] += 1
        released.wait(60)

    def beats_after(time):
        return wait_until(lambda: (now := CeleryWorker.objects.get().heartbeat) > time and now, 20, 0.01)

    worker = Presence(None, [(0.01, failing), (0.01, failing), (0.01, hanging)])
    worker.register()
    worker.start()
    assert wait_until(lambda: done['hanging'], 20, 0.01)
    hung = CeleryWorker.objects.get().heartbeat
    assert beats_after(beats_after(hung))
    assert done == {'failing': 2, 'hanging': 1}

    # Somebody deletes the row
    CeleryWorker.objects.all().delete()
    assert wait_until(CeleryWorker.objects.exists, 20, 0.01)
    released.set()
    worker.stop()
    row = CeleryWorker.objects.get()
    assert (row.key, row.stopped is not None, row.is_alive) == (identity.key, True, False)
    connection.close()


@pytest.mark.parametrize('unusable', [OperationalError, ProgrammingError])
def test_writes_wait_for_the_database(identity, monkeypatch, unusable):
    """What a parent cannot write at once is written later, in order, and what cannot be written at all is left out."""
    away, written = True, []
    connection = object()

    def write(name, error=None):
        def function(given):
            if away:
                raise unusable('away')
            if error:
                raise error
            written.append(name)
        return function
    monkeypatch.setattr(presence, 'get_connection', lambda: connection)

    assert presence._write(RUN, write('first')) is None
    away = False
    # The database is back, but what waits goes first
    presence._write(RUN, write('hopeless', DataError('odd')))
    presence._write(RUN, write('third'))
    assert written == []
    Presence.write_deferred(SimpleNamespace(connection=connection))
    assert written == ['first', 'third']
    presence._write(RUN, write('at once'))
    assert written == ['first', 'third', 'at once']


def test_no_error_reaches_the_parent(monkeypatch):
    """An error in a worker's main process would end the worker."""
    monkeypatch.setattr(presence, 'get_connection', mock.Mock(side_effect=RuntimeError))
    assert presence._write(RUN, lambda connection: None) is None


@pytest.mark.django_db
def test_close_run(identity, shared, monkeypatch):
    """A parent ends what waits, and with the attempt also what its own child held."""
    monkeypatch.setattr(presence, 'get_connection', lambda: shared)
    waiting = make_result('pending')
    mine = make_result('running', claims=1, attempt=1, holder=identity.key, attempts=[{}])
    others = make_result('running', claims=1, attempt=1, holder=uuid4(), attempts=[{}])

    for run in (waiting, mine, others):
        presence.close_run(run.task_id, 'revoked')
        run.refresh_from_db()
    assert [run.status for run in (waiting, mine, others)] == ['revoked', 'running', 'running']
    for run in (mine, others):
        presence.close_run(run.task_id, 'errored', attempt=1)
        run.refresh_from_db()
    assert [run.status for run in (mine, others)] == ['errored', 'running']
    assert (presence.status_of(others.task_id), presence.status_of(mine.task_id)) == ('running', 'errored')


@pytest.mark.django_db
@pytest.mark.parametrize('columns, status, ended', [
    ({}, 'pending', None),
    ({'claims': 5}, 'errored', 'errored'),
    ({'cancelled': '2030-01-01T00:00:00Z'}, 'revoked', 'revoked'),
    ({'status': 'pending'}, 'pending', None),
], ids=str)
def test_requeue_run(identity, shared, monkeypatch, columns, status, ended):
    """A message goes back unless its run was cancelled, or has lost its process too often."""
    monkeypatch.setattr(presence, 'get_connection', lambda: shared)
    run = make_result(**{
        'status': 'running', 'claims': 1, 'attempt': 1, 'holder': identity.key, 'attempts': [{}], **columns
    })

    assert presence.requeue_run(run.task_id, attempt=1, reason='worker_lost', error='lost') == ended
    run.refresh_from_db()
    assert run.status == status


@pytest.mark.parametrize('pool, options, expected', [
    ('solo', {'concurrency': 2}, (1, None)),
    ('solo', {'concurrency': 2, 'autoscale': [4, 1]}, (1, None)),
    ('prefork', {'concurrency': 2}, (2, None)),
    ('threads', {'concurrency': None}, (1, None)),
    # The pool has grown, or shrunk, since
    ('prefork', {'concurrency': 2, 'pool': SimpleNamespace(num_processes=5)}, (5, None)),
    ('prefork', {'concurrency': 2, 'autoscale': [4, 1]}, (4, {'min': 1, 'max': 4})),
    ('prefork', {'concurrency': 2, 'autoscale': [10, 0]}, (10, {'min': 0, 'max': 10})),
    # `celery control autoscale`
    ('prefork', {
        'autoscale': [4, 1], 'autoscaler': SimpleNamespace(max_concurrency=6, min_concurrency=3),
    }, (6, {'min': 3, 'max': 6})),
])
def test_concurrency(pool, options, expected):
    """A worker says how many tasks it can run at a time, and not what it was asked for."""
    assert presence.concurrency_of(SimpleNamespace(**{'pool': None, 'concurrency': 2, **options}), pool) == expected


@pytest.mark.django_db(transaction=True)
def test_row_is_kept_current(identity, config, monkeypatch):
    """What changes while a worker runs is in its row at its next heartbeat."""
    worker = SimpleNamespace(
        pool_cls='prefork', concurrency=2, autoscale=None, pool=SimpleNamespace(num_processes=2), app=app
    )
    alive = Presence(worker)
    alive.register()
    alive.start()
    try:
        assert CeleryWorker.objects.get().concurrency == 2
        worker.pool.num_processes = 5
        assert wait_until(lambda: CeleryWorker.objects.get().concurrency == 5, 20, 0.01)
        failure = discovery.Failure('broken', 'broken.tasks', 'ImportError: no', 'broken/tasks.py:1')
        monkeypatch.setitem(discovery._failures, 'broken.tasks', failure)
        assert wait_until(lambda: CeleryWorker.objects.get().not_loaded == [failure.as_dict()], 20, 0.01)
        assert set(CeleryWorker.objects.get().package_versions) == {
            'celery', 'kombu', 'netbox', 'netbox-celery', 'python'
        }
    finally:
        alive.stop()
    connection.close()
