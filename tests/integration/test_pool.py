"""Workers and their database connections, with a small connection pool of Django, and without."""
import os
import signal

import pytest
from django.db import connection
from netbox_test_plugin import tasks
from netbox_test_plugin.side import notes, open_gate

from netbox_celery.celery import app
from netbox_celery.engine.store.database import KEPT

from .support import ended, lines, until

POOL = {'CONN_MAX_AGE': 0, 'OPTIONS': {'pool': {'min_size': 1, 'max_size': 2, 'timeout': 5}}}


@pytest.fixture(scope='module')
def pooled(make_instance):
    return make_instance('pooled', database_settings=POOL)


def test_threads(make_worker, pooled, gate):
    """Eight threads run, write and query with a pool of two connections: the engine uses none of them."""
    worker = make_worker('pool-threads', instance=pooled, pool='threads', concurrency=8)
    held = [worker.send(tasks.hold, gate, 3) for __ in range(7)]
    worker.start().ready()
    until(lambda: all(notes(run.id) for run in held))
    # All the others hold what they need: there is one thread left, and it gets its connections
    assert [worker.run(tasks.query).status for __ in range(3)] == ['completed'] * 3
    open_gate(gate)
    assert {ended(run).status for run in held} == {'completed'}
    assert all(len(lines(run)) >= 3 for run in held)
    runs = [worker.send(tasks.query) for __ in range(40)]
    assert {ended(run, 60).status for run in runs} == {'completed'}
    assert 'PoolTimeout' not in worker.output


def test_processes(make_worker, pooled, gate):
    """Processes have their own pools, also those that replace a killed one."""
    worker = make_worker('pool-prefork', instance=pooled, concurrency=2).start().ready()
    assert {worker.run(tasks.query).status for __ in range(6)} == {'completed'}
    for __ in range(2):
        held = worker.send(tasks.hold, gate)
        until(lambda held=held: notes(held.id))
        os.kill(notes(held.id)[0][0], signal.SIGKILL)
        assert ended(held).reason == 'worker_lost'
        runs = [worker.send(tasks.query) for __ in range(10)]
        assert {ended(run).status for run in runs} == {'completed'}
    assert app.control.inspect([worker.row.name], timeout=5).ping()
    assert 'PoolTimeout' not in worker.output
    assert worker.tracebacks() == []


def test_many_threads(make_worker, make_instance, gate):
    """Threads share a few connections, and an idle thread keeps none for longer than allowed."""
    instance = make_instance('many-threads', database_settings={
        'CONN_MAX_AGE': 0, 'OPTIONS': {'application_name': 'many-threads'}
    })

    def connections():
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'many-threads'")
            return cursor.fetchone()[0]

    worker = make_worker('many-threads', instance=instance, pool='threads', concurrency=40).start().ready()
    held = [worker.send(tasks.hold, gate, 3) for __ in range(40)]
    until(lambda: all(notes(run.id) for run in held))
    # Those of the heartbeat, the sweep, the recorder and what hooks do
    assert connections() <= KEPT + 6
    open_gate(gate)
    assert {ended(run).status for run in held} == {'completed'}
    assert all(len(lines(run)) == 4 for run in held)
    runs = [worker.send(tasks.query) for __ in range(120)]
    assert {ended(run, 60).status for run in runs} == {'completed'}
    until(lambda: connections() <= KEPT + 6, 10, connections)
    assert worker.tracebacks() == []
