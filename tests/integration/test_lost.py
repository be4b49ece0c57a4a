"""Workers are killed or shut down while they run tasks: no run stays `running`, none runs twice without need."""
import os
import signal

import pytest
from netbox_test_plugin import tasks
from netbox_test_plugin.side import noted, notes, open_gate

from netbox_celery.celery import app
from netbox_celery.engine.store import lifecycle
from netbox_celery.engine.worker.sweep import LOCK
from netbox_celery.models import CeleryResult, CeleryWorker

from .support import ended, lines, row, until, waiting


def started(*runs):
    """Wait until the bodies of runs have started."""
    for run in runs:
        until(lambda: notes(run.id))


def test_worker_killed(make_worker, prefork, gate):
    """SIGKILL of a worker's main process: other workers find its runs within the time that is set.

    An early-acknowledged run ends as errored; a late-acknowledged one is run again, on the next worker of its queue.
    The killed worker's processes die with it, so that nothing runs twice at the same time.
    """
    victim = make_worker('victim', concurrency=3).start().ready()
    early, late = victim.send(tasks.hold, gate, 5), victim.send(tasks.hold_late, gate)
    retried = victim.send(tasks.hold_retrying, gate)
    started(early, late)
    until(lambda: len(notes(retried.id)) == 2)
    until(lambda: len(lines(early)) == 5)
    children = victim.children
    assert len(children) == 3
    # These it has fetched, but not started
    waits = [victim.send(tasks.echo, number) for number in range(3)]
    until(lambda: all(f'{run.id}] received' in victim.output for run in waits))

    victim.kill()

    result = ended(early)
    assert (result.status, result.reason) == ('errored', 'worker_lost')
    assert victim.name in result.error
    assert lines(early) == [f'line {number}' for number in range(5)]
    assert early.state == 'FAILURE'
    for run in (late, retried):
        result = waiting(run, 'pending')
        assert result.reason == 'worker_lost'
    assert not any(os.path.exists(f'/proc/{pid}/exe') for pid in children)

    # The gate is still shut: the bodies are dead
    assert noted(early.id) == ['started']
    open_gate(gate)
    open_gate(f'{gate}-second')
    successor = victim.start().ready()
    assert ended(late).status == 'completed'
    assert noted(late.id) == ['started', 'started', 'ended']
    # The second attempt is run again, with its own arguments
    result = ended(retried)
    assert (result.status, result.result) == ('completed', f'{gate}-second')
    assert [a['number'] for a in result.attempts] == [1, 2, 2]
    assert {ended(run).status for run in waits} == {'completed'}
    assert noted(early.id) == ['started']
    assert successor.run(tasks.echo).status == 'completed'


def test_replacement_on_a_killed_worker(make_worker, prefork, gate):
    """The replacement of a task is run again with its own arguments, which the row remembers."""
    victim = make_worker('victim-replace', concurrency=1).start().ready()
    run = victim.send(tasks.replace_late, gate, kwargs={'queue': victim.queue})
    started(run)

    victim.kill()

    assert waiting(run, 'pending').reason == 'worker_lost'
    open_gate(gate)
    victim.start().ready()
    result = ended(run)
    assert (result.status, result.result) == ('completed', gate)
    assert result.celery_name == tasks.replace_late.name
    assert noted(run.id) == ['started', 'started', 'ended']


@pytest.mark.parametrize('pool', ['prefork', 'threads'])
def test_cold_shutdown(make_worker, prefork, pool, gate):
    """SIGQUIT ends tasks in processes. Acknowledged runs fail; the others are run again, once.

    Threads cannot be taken from their bodies: those are waited for.
    """
    worker = make_worker(f'cold-{pool}', pool=pool, concurrency=2).start().ready()
    early, late = worker.send(tasks.hold, gate), worker.send(tasks.hold_late, gate)
    started(early, late)

    worker.signal(signal.SIGQUIT)

    if pool == 'threads':
        until(lambda: 'Hitting Ctrl+C again' in worker.output)
        open_gate(gate)
        worker.wait()
        assert [row(run).status for run in (early, late)] == ['completed', 'completed']
        return
    worker.wait()
    result = row(early)
    assert (result.status, result.reason) == ('errored', 'worker_lost')
    assert 'shut down' in result.error or 'stopped' in result.error
    assert row(late).status == 'pending'

    open_gate(gate)
    worker.start().ready()
    assert ended(late).status == 'completed'
    assert worker.run(tasks.echo).status == 'completed'
    assert noted(late.id) == ['started', 'started', 'ended']
    assert noted(early.id) == ['started']


@pytest.mark.parametrize('pool', ['prefork', 'threads'])
def test_warm_shutdown(make_worker, pool, gate):
    """SIGTERM lets tasks finish, with their logs; the worker signs off. What it had fetched waits for another."""
    worker = make_worker(f'warm-{pool}', pool=pool, concurrency=1).start().ready()
    running, fetched = worker.send(tasks.hold, gate, 3), worker.send(tasks.echo)
    started(running)

    worker.signal(signal.SIGTERM)
    until(lambda: 'Warm shutdown' in worker.output)
    assert row(running).status == 'running'
    open_gate(gate)
    assert worker.wait() == 0

    assert row(running).status == 'completed'
    assert lines(running) == ['line 0', 'line 1', 'line 2', 'after the gate']
    assert row(fetched).status in ('pending', 'completed')
    assert worker.row.stopped is not None
    assert not worker.row.is_alive
    worker.start().ready()
    assert ended(fetched).status == 'completed'


def test_remote_shutdown(make_worker):
    """A worker that is shut down by remote control signs off like one that gets a signal."""
    worker = make_worker('remote', pool='solo', concurrency=1).start().ready()
    assert worker.run(tasks.echo).status == 'completed'

    app.control.shutdown(destination=[worker.row.name])

    assert worker.wait() == 0
    assert worker.row.stopped is not None


def test_solo(make_worker, prefork, gate):
    """A solo worker runs tasks in its main process; if it is killed, its runs are found like others."""
    worker = make_worker('solo-lost', pool='solo', concurrency=1).start().ready()
    assert worker.run(tasks.fail, 'value').status == 'errored'
    heartbeat = worker.row.heartbeat
    run = worker.send(tasks.hold, gate)
    started(run)
    # While busy it cannot answer Celery, but its heartbeat continues
    until(lambda: worker.row.heartbeat > heartbeat)
    assert row(run).status == 'running'

    worker.kill()

    assert (ended(run).status, row(run).reason) == ('errored', 'worker_lost')


def test_worker_of_the_same_name(make_worker, prefork, gate):
    """A worker with a dead worker's name is a new worker: it does not hold the old one's runs."""
    worker = make_worker('twin', concurrency=1).start().ready()
    run = worker.send(tasks.hold, gate)
    started(run)
    worker.kill()
    worker.start().ready()

    result = ended(run)
    assert (result.status, result.reason) == ('errored', 'worker_lost')
    assert CeleryWorker.objects.filter(name=result.worker).count() == 2


def test_process_stopped_for_a_while(make_worker, prefork, gate):
    """A worker that hangs for too long is declared lost; when it continues, it cannot end a run it lost.

    Its run has ended as lost, and stays so, in the row and for those who wait for the result.
    """
    worker = make_worker('sleeper', concurrency=1).start().ready()
    run = worker.send(tasks.hold, gate)
    started(run)
    pids = [worker.pid, *worker.children]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    assert (ended(run).status, row(run).reason) == ('errored', 'worker_lost')
    completed = row(run).completed

    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    open_gate(gate)
    until(lambda: noted(run.id) == ['started', 'ended'])
    assert worker.run(tasks.echo).status == 'completed'

    assert (row(run).status, row(run).completed) == ('errored', completed)
    assert run.state == 'FAILURE'


def test_worker_stopped_while_it_sweeps(services, make_worker, shared_workers, gate):
    """A worker that hangs while it holds the sweep's lock delays others only for a while."""
    shared_workers.stop()
    worker = make_worker('sleeper-sweep', concurrency=1).start().ready()
    run = worker.send(tasks.hold, gate)
    started(run)
    pids = [worker.pid, *worker.children]
    with services.cluster.connect('netbox') as locks, services.cluster.connect('netbox') as admin:
        # Its sweep waits here, in the middle
        locks.execute(f'BEGIN; LOCK TABLE {lifecycle.WINDOWS} IN SHARE MODE')
        held = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND granted"
        waits = 'SELECT 1 FROM pg_locks WHERE relation = %s::regclass AND NOT granted'
        until(lambda: admin.execute(waits, [lifecycle.WINDOWS]).fetchall())
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        locks.execute('ROLLBACK')
        assert admin.execute(held, [LOCK]).fetchall()

    make_worker('heir-sweep', concurrency=1).start().ready()
    assert (ended(run, 60).status, row(run).reason) == ('errored', 'worker_lost')
    worker.kill()


def test_run_that_no_process_executes(prefork):
    """A `running` row whose living worker does not execute it is found: the claim's answer was lost."""
    run = prefork.send(tasks.echo, countdown=3600)
    CeleryResult.objects.filter(task_id=run.id).update(
        status='running', claims=1, attempt=1, holder=prefork.row.key, worker=prefork.row.name,
        attempts=[{'number': 1, 'started': None, 'ended': None, 'worker': '', 'error': ''}],
    )

    result = ended(run)
    assert (result.status, result.reason) == ('errored', 'worker_lost')
    assert prefork.run(tasks.echo).status == 'completed'


def test_long_run_is_not_taken_for_lost(worker, gate):
    """A run that takes longer than all timeouts of the sweep is not touched."""
    run = worker.send(tasks.hold, gate)
    started(run)
    before = worker.row.heartbeat
    until(lambda: (worker.row.heartbeat - before).total_seconds() > 5)

    assert row(run).status == 'running'
    open_gate(gate)
    assert ended(run).status == 'completed'
