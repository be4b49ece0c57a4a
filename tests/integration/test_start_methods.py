"""Processes that inherit nothing from their worker still know its settings, its identity and its claims."""
import os
import signal

import pytest
from netbox_test_plugin import tasks
from netbox_test_plugin.side import noted, notes, open_gate

from core.models import ObjectChange

from .support import ended, lines, row, settled, until

#: A process has to set NetBox up before it runs anything, seconds.
SLOW = 120


def begun(run):
    until(lambda: notes(run.id), SLOW)
    return run


@pytest.fixture(scope='module')
def worker(make_instance, make_module_worker, django_db_blocker):
    # By Celery's own limit no process would live long enough to run anything
    instance = make_instance('spawn', celery={'worker_pool_start_method': 'spawn', 'worker_proc_alive_timeout': 0.5})
    with django_db_blocker.unblock():
        yield make_module_worker('spawn', instance=instance).start().ready()


def test_tracked(worker, user):
    """Bodies run once, as their user, with log, progress, retries and result."""
    assert worker.run(tasks.say_all, timeout=SLOW).status == 'completed'
    result = settled(worker.run(tasks.retry, 2, timeout=SLOW))
    assert (result.status, result.result, result.attempt) == ('completed', 3, 3)
    assert [attempt['worker'] for attempt in result.attempts] == [worker.row.name] * 3
    assert lines(result) == ['attempt 1', 'attempt 2', 'attempt 3']
    logged = worker.run(tasks.use_logging, timeout=SLOW)
    assert [line for line in lines(logged) if 'logger' in line][:2] == ['task logger 1', 'plugin logger']
    changed = worker.run(tasks.change, 'site', netbox_user=user, timeout=SLOW)
    assert changed.status == 'completed'
    assert set(ObjectChange.objects.values_list('user_name', flat=True)) == {'alice'}
    for __ in range(20):
        run = worker.send(tasks.echo)
        assert ended(run, SLOW).status == 'completed'
        assert noted(run.id) == ['ran']
    assert row(run).worker == worker.row.name
    assert run.get(timeout=5) == [[], {}]
    assert worker.tracebacks() == []


def test_ends(worker, gate):
    """Cancel, time limits and killed processes end their runs, and new processes follow."""
    held = begun(worker.send(tasks.hold, gate))
    assert row(held).cancel()
    assert ended(held).status == 'revoked'
    assert worker.run(tasks.hard, timeout=SLOW).reason == 'time_limit'
    lost = begun(worker.send(tasks.hold, gate))
    os.kill(notes(lost.id)[0][0], signal.SIGKILL)
    assert ended(lost).reason == 'worker_lost'
    assert worker.run(tasks.echo, timeout=SLOW).status == 'completed'


def test_worker_killed(worker, gate):
    """Its processes die with it, and its runs are found."""
    early = begun(worker.send(tasks.hold, gate))
    pid = notes(early.id)[0][0]
    worker.kill()
    until(lambda: not os.path.exists(f'/proc/{pid}/exe'))
    worker.start().ready()
    open_gate(gate)
    assert ended(early, SLOW).reason == 'worker_lost'
    assert noted(early.id) == ['started']


@pytest.mark.parametrize('config, environment', [
    ({'worker_pool_start_method': 'forkserver'}, {}),
    ({}, {'NETBOX_TEST_START_METHOD': 'forkserver'}),
], ids=['setting', 'billiard'])
def test_forkserver(make_worker, make_instance, config, environment):
    """A start method that Celery does not support is refused at the start, with a reason."""
    worker = make_worker('forkserver', instance=make_instance('forkserver', celery=config), env=environment).start()
    assert worker.wait(90) != 0
    assert 'worker_pool_start_method' in worker.output and 'forkserver' in worker.output
