"""Processes that inherit nothing from their worker: they know its settings, its claims and who it is all the same."""
import os
import signal

import pytest
from netbox_test_plugin import tasks
from netbox_test_plugin.side import notes, open_gate

from core.models import ObjectChange

from .support import ended, lines, row, settled, until


@pytest.fixture(scope='module', params=['spawn', 'forkserver'])
def worker(request, make_instance, make_module_worker, django_db_blocker):
    """A worker whose processes are made by Celery's `spawn`, or by billiard's `forkserver`, that a plugin has set."""
    method = request.param
    instance = make_instance(method, celery={'worker_pool_start_method': 'spawn'} if method == 'spawn' else {})
    with django_db_blocker.unblock():
        yield make_module_worker(
            method, instance=instance, env={'NETBOX_TEST_START_METHOD': '' if method == 'spawn' else method}
        ).start().ready(180)


def test_tracked(worker, user):
    """Bodies run once, in the name of their user, with their log, progress, retries and result."""
    assert worker.run(tasks.say_all, timeout=120).status == 'completed'
    result = settled(worker.run(tasks.retry, 2, timeout=60))
    assert (result.status, result.result, result.attempt) == ('completed', 3, 3)
    assert [attempt['worker'] for attempt in result.attempts] == [worker.row.name] * 3
    assert lines(result) == ['attempt 1', 'attempt 2', 'attempt 3']
    logged = worker.run(tasks.use_logging)
    assert [line for line in lines(logged) if 'logger' in line][:2] == ['task logger 1', 'plugin logger']
    changed = worker.run(tasks.change, f'site-{worker.name}', netbox_user=user)
    assert changed.status == 'completed'
    assert set(ObjectChange.objects.values_list('user_name', flat=True)) == {'alice'}
    for __ in range(20):
        run = worker.send(tasks.echo)
        assert ended(run).status == 'completed'
        assert [what for __, what in notes(run.id)] == ['ran']
    assert row(run).worker == worker.row.name
    assert run.get(timeout=5) == [[], {}]
    assert worker.tracebacks() == []


def test_ends(worker, gate):
    """Cancel, time limits and killed processes end their runs, and others follow."""
    held = worker.send(tasks.hold, gate)
    until(lambda: notes(held.id))
    assert row(held).cancel()
    assert ended(held).status == 'revoked'
    assert worker.run(tasks.hard, timeout=90).reason == 'time_limit'
    lost = worker.send(tasks.hold, gate)
    until(lambda: notes(lost.id), 90)
    os.kill(notes(lost.id)[0][0], signal.SIGKILL)
    assert ended(lost).reason == 'worker_lost'
    assert worker.run(tasks.echo, timeout=90).status == 'completed'


def test_worker_killed(worker, gate):
    """Its processes end with it, and its row is told from that of its next start."""
    early = worker.send(tasks.hold, gate)
    until(lambda: notes(early.id), 90)
    pid = notes(early.id)[0][0]
    worker.kill()
    until(lambda: not os.path.exists(f'/proc/{pid}/exe'), 20)
    worker.start().ready(180)
    open_gate(gate)
    assert ended(early, 60).reason == 'worker_lost'
    assert [what for __, what in notes(early.id)] == ['started']
