"""Pools whose processes change while they work: autoscaled ones, and those that recycle their processes."""
import os
from collections import Counter

import pytest
from netbox_test_plugin import tasks
from netbox_test_plugin.side import noted, notes, open_gate

from netbox_celery.models import CeleryLogEntry, CeleryResult

from .support import lines, until


def all_ended(runs, timeout=60):
    """Wait until each of the runs has finished, and return how many have which status."""
    found = CeleryResult.objects.filter(task_id__in=[run.id for run in runs])
    until(lambda: not found.filter(completed=None).exists(), timeout, lambda: counted(found))
    return counted(found)


def counted(runs):
    return dict(Counter(runs.values_list('status', flat=True)))


def files(worker):
    return len(os.listdir(f'/proc/{worker.pid}/fd'))


@pytest.fixture
def connections(services):
    """Count PostgreSQL's connections."""
    with services.cluster.connect('netbox') as connection:
        def count():
            return connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = 'netbox' AND backend_type = 'client backend'"
            ).fetchone()[0]

        yield count


@pytest.mark.parametrize('option, number', [
    # A run needs more memory than that in any case: each has a process of its own
    ('--max-tasks-per-child=3', 120), ('--max-memory-per-child=20000', 40),
], ids=['tasks', 'memory'])
def test_recycled_processes(make_worker, connections, option, number):
    """Processes are replaced by new ones: each run has run once, with its whole log, and nothing is left behind."""
    worker = make_worker('recycled', options=[option]).start().ready()
    assert all_ended([worker.send(tasks.say, 'x', 3) for __ in range(12)]) == {'completed': 12}
    before = files(worker), connections()

    runs = [worker.send(tasks.say, f'line of {number}', 3) for number in range(number)]
    echoes = [worker.send(tasks.echo, number) for number in range(number)]
    assert all_ended(runs + echoes) == {'completed': 2 * number}
    assert CeleryLogEntry.objects.filter(result__task_id__in=[run.id for run in runs]).count() == 3 * number
    ran = [notes(run.id) for run in echoes]
    assert {len(each) for each in ran} == {1}
    used = Counter(pid for (pid, __), in ran)
    assert len(used) > number / 4
    # One process may be about to make room
    until(lambda: worker.row.concurrency == len(worker.children) == 2)
    assert files(worker) <= before[0] + 8
    until(lambda: connections() <= before[1] + 2, what=lambda: f'{before[1]} connections, and now {connections()}')
    assert worker.tracebacks() == []


def test_autoscale(make_worker, connections, gate):
    """Processes are added under load and stopped afterwards, with nothing lost."""
    worker = make_worker(
        'scaled', options=['--autoscale=4,1'], env={'AUTOSCALE_KEEPALIVE': '1'}
    ).start().ready()
    before = None
    for __ in range(2):
        until(lambda: len(worker.children) == 1, 40)
        held = [worker.send(tasks.hold, gate, 1) for __ in range(4)]
        until(lambda held=held: all(notes(run.id) for run in held), 40)
        assert len(worker.children) == 4
        open_gate(gate)
        quick = [worker.send(tasks.say, 'x', 2) for __ in range(40)]
        assert all_ended(held + quick) == {'completed': 44}
        assert {len(lines(run)) for run in quick} == {2}
        assert [noted(run.id) for run in held] == [['started', 'ended']] * 4
        until(lambda: len(worker.children) == 1, 40)
        before = before or connections()
        gate = f'{gate}-again'
    until(lambda: connections() <= before + 1, what=lambda: f'{before} connections, and now {connections()}')
    assert worker.tracebacks() == []
