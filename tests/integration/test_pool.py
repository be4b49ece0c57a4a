"""Workers whose NetBox keeps a pool of connections, smaller than what they have to do at a time."""
import os
import signal

import pytest
from netbox_test_plugin import tasks
from netbox_test_plugin.side import notes, open_gate

from netbox_celery.celery import app

from .support import ended, lines, until

POOL = {'CONN_MAX_AGE': 0, 'OPTIONS': {'pool': {'min_size': 1, 'max_size': 2, 'timeout': 5}}}


@pytest.fixture(scope='module')
def pooled(make_instance):
    return make_instance('pooled', database_settings=POOL)


def test_threads(make_worker, pooled, gate):
    """Eight threads that run, write and query end, though the pool has two connections: the engine takes none."""
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
    """Processes make pools of their own, also those that follow on one that was killed."""
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
