"""Heartbeats, and the content of a worker's row."""
import threading
from types import SimpleNamespace

import pytest
from django.db import connection

from development.stack.processes import wait_until
from netbox_celery.celery import app
from netbox_celery.engine.catalogue import discovery
from netbox_celery.engine.worker import presence
from netbox_celery.engine.worker.presence import Presence
from netbox_celery.models import CeleryWorker


@pytest.fixture
def config(monkeypatch):
    config = SimpleNamespace(heartbeat_interval=0.05, worker_lost_after=0.4, sweep_interval=0.05)
    monkeypatch.setattr(presence, 'get_config', lambda: config)
    return config


@pytest.mark.django_db(transaction=True)
def test_heartbeat_and_duties(identity, config, monkeypatch):
    """Heartbeats continue while a duty hangs; a failing duty stops neither the others nor itself."""
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

    # A user deletes the row
    CeleryWorker.objects.all().delete()
    assert wait_until(CeleryWorker.objects.exists, 20, 0.01)
    released.set()
    worker.stop()
    row = CeleryWorker.objects.get()
    assert (row.key, row.stopped is not None, row.is_alive) == (identity.key, True, False)
    connection.close()


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
    """A worker's row has how many tasks it can really run at a time."""
    assert presence.concurrency_of(SimpleNamespace(**{'pool': None, 'concurrency': 2, **options}), pool) == expected


@pytest.mark.django_db(transaction=True)
def test_row_is_kept_current(identity, config, monkeypatch):
    """A change in a running worker is in its row after the next heartbeat."""
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
