"""Concurrency keys limit how many runs are active at a time; and calls beyond the limit."""
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from celery import chain
from django.db import connection, transaction
from netbox_test_plugin import tasks
from netbox_test_plugin.side import noted, notes, open_gate
from netbox_test_plugin.tasks import policies

from netbox_celery.engine.sending.admission import advance_all
from netbox_celery.engine.store.database import EngineConnection
from netbox_celery.engine.worker.sweep import resend
from netbox_celery.models import CeleryResult
from netbox_celery.tasks import TaskConflict

from .support import ended, row, until, waiting

keyed = policies.keyed


def test_waiting_line(worker, gate):
    """One runs, the others wait unsent; each end starts the next one, in the order of the calls."""
    runs = [worker.send(keyed, 'sw1', gate) for __ in range(4)]
    until(lambda: notes(runs[0].id))
    other = worker.send(keyed, 'sw2')
    assert ended(other).status == 'completed'
    for run in runs[1:]:
        assert (row(run).status, row(run).reason, row(run).sent) == ('pending', 'queued', None)

    open_gate(gate)
    rows = [ended(run) for run in runs]
    assert [found.status for found in rows] == ['completed'] * 4
    for before, after in zip(rows, rows[1:]):
        assert after.started >= before.completed
    assert [len(notes(run.id)) for run in runs] == [2] * 4
    assert runs[3].get(timeout=10) == 'sw1'


def test_limit(threads, gate):
    """With a limit of three there are three at a time, of any task."""
    runs = [threads.send(tasks.hold, gate, concurrency_key='site', limit=3, on_conflict='queue') for __ in range(3)]
    runs += [threads.send(tasks.echo, concurrency_key='site', limit=3, on_conflict='queue') for __ in range(3)]
    for run in runs[:3]:
        until(lambda: notes(run.id))
    assert [row(run).reason for run in runs] == [''] * 3 + ['queued'] * 3
    open_gate(gate)
    assert {ended(run).status for run in runs} == {'completed'}


@pytest.mark.parametrize('device, other', [('a\x00b', 'a\ufffdb'), ('\ud800', '\udfff')], ids=['nul', 'surrogates'])
def test_odd_keys(threads, gate, device, other):
    """A key of characters that PostgreSQL cannot hold works, and differs from other keys."""
    runs = [threads.send(keyed, device, gate) for __ in range(2)]
    assert ended(threads.send(keyed, other)).status == 'completed'
    assert row(runs[1]).reason == 'queued'
    open_gate(gate)
    assert [ended(run).status for run in runs] == ['completed'] * 2


def test_skip(threads, gate):
    """The call has a row that says so, and its result is not awaited."""
    first = threads.send(keyed, 'sw1', gate, on_conflict='skip')
    second = threads.send(keyed, 'sw1', gate, on_conflict='skip')
    assert (second.state, second.get(timeout=5)) == ('IGNORED', None)
    assert (row(second).status, row(second).reason) == ('ignored', 'skipped')
    assert first.id in row(second).error
    open_gate(gate)
    assert ended(first).status == 'completed'
    assert notes(second.id) == []


def test_join(threads, gate):
    first = threads.send(keyed, 'sw1', gate, on_conflict='join')
    assert threads.send(keyed, 'sw1', 'whatever', on_conflict='join').id == first.id
    open_gate(gate)


def test_fail(threads, gate):
    first = threads.send(keyed, 'sw1', gate, on_conflict='fail')
    with pytest.raises(TaskConflict, match='already active') as caught:
        threads.send(keyed, 'sw1', on_conflict='fail')
    assert caught.value.task_id == first.id
    assert CeleryResult.objects.count() == 1
    open_gate(gate)
    ended(first)
    assert threads.run(keyed, 'sw1', on_conflict='fail').status == 'completed'


def test_fail_does_not_spoil_a_transaction(threads, gate):
    first = threads.send(keyed, 'sw1', gate, on_conflict='fail')
    with transaction.atomic():
        with pytest.raises(TaskConflict):
            threads.send(keyed, 'sw1', on_conflict='fail')
        assert threads.send(keyed, 'sw1', on_conflict='join').id == first.id
    open_gate(gate)


def test_replace(prefork, gate):
    """The newest call takes over: the active run is terminated, waiting ones never start."""
    first = prefork.send(keyed, 'sw1', 'never', on_conflict='replace')
    until(lambda: notes(first.id))
    second = keyed.apply_async(('sw1', 'never'), queue='nobody', on_conflict='replace')
    third = prefork.send(keyed, 'sw1', on_conflict='replace')

    assert ended(third, 30).status == 'completed'
    for run in (first, second):
        assert ended(run).status == 'revoked'
    assert third.id in row(second).error
    assert noted(first.id) == ['started']
    assert notes(second.id) == []
    assert row(third).started >= row(first).completed


@pytest.mark.parametrize('on_conflict', ['join', 'queue', 'skip', 'replace', 'fail'])
def test_steps_of_a_chain(worker, on_conflict):
    """A step is sent before the step before it has finished, so it takes over its slot."""
    step = keyed.si('sw1').set(queue=worker.queue, on_conflict=on_conflict)
    result = chain(step, step.clone(), tasks.echo.si('end').set(queue=worker.queue)).apply_async()

    assert result.get(timeout=30) == [['end'], {}]
    rows = [row(result.parent.parent), row(result.parent), ended(result)]
    assert [found.status for found in rows] == ['completed'] * 3
    assert noted(rows[0].task_id) == noted(rows[1].task_id)


@pytest.mark.parametrize('on_conflict, status, reason', [
    ('join', 'ignored', 'joined'), ('skip', 'ignored', 'skipped'), ('fail', 'errored', ''), ('queue', 'completed', ''),
    ('replace', 'completed', ''),
])
def test_replacement(worker, gate, on_conflict, status, reason):
    """The task that replaces another one gets a slot under its key, or does not run."""
    first = worker.send(keyed, 'sw1', gate, on_conflict='skip')
    until(lambda: notes(first.id))
    second = worker.send(policies.become_keyed, kwargs={
        'device': 'sw1', 'queue': worker.queue, 'on_conflict': on_conflict,
    })
    if status == 'completed':
        until(lambda: row(second).reason == 'queued' if on_conflict == 'queue' else row(first).cancelled)
        open_gate(gate)

    result = ended(second)
    assert (result.status, result.reason) == (status, reason)
    assert noted(second.id) == (['started', 'ended'] if status == 'completed' else [])
    if status == 'ignored':
        assert second.get(timeout=10) is None
    open_gate(gate)
    assert ended(first).status == ('revoked' if on_conflict == 'replace' else 'completed')
    if status == 'completed':
        assert datetime.fromisoformat(result.attempts[-1]['started']) >= row(first).completed


def test_replacement_by_its_like(worker):
    """The run has the key already."""
    run = worker.send(policies.become_keyed, concurrency_key='device-sw1', kwargs={
        'device': 'sw1', 'queue': worker.queue, 'on_conflict': 'skip',
    })
    assert ended(run).status == 'completed'
    assert noted(run.id) == ['started', 'ended']


def test_cancel_in_line(threads, gate):
    """A cancelled run in line is skipped; a cancelled holder that has not started gives its slot to the next."""
    holder = keyed.apply_async(('sw1',), queue='nobody')
    leaves = threads.send(keyed, 'sw1')
    last = threads.send(keyed, 'sw1')
    row(leaves).cancel()
    assert row(last).reason == 'queued'
    row(holder).cancel()
    assert ended(last).status == 'completed'
    assert notes(leaves.id) == []


@pytest.mark.parametrize('how', ['child', 'worker'])
def test_death_of_the_holder(make_worker, threads, how):
    """The line advances after the holder was lost, and after its worker died."""
    victim = make_worker('victim-line').start().ready()
    first = victim.send(keyed, 'sw1', 'never')
    second = threads.send(keyed, 'sw1')
    pid = until(lambda: notes(first.id))[0][0]
    os.kill(victim.process.pid if how == 'worker' else pid, signal.SIGKILL)
    assert ended(first, 90).reason == 'worker_lost'
    assert ended(second, 60).status == 'completed'


def test_transaction(threads, gate):
    """Runs wait in line from the commit on; a rollback leaves none."""
    with transaction.atomic():
        first = threads.send(keyed, 'sw1')
        second = threads.send(keyed, 'sw1')
        assert (row(first).reason, row(second).reason) == ('queued', 'queued')
    assert ended(first).status == ended(second).status == 'completed'
    with transaction.atomic():
        threads.send(keyed, 'sw1', 'never')
        transaction.set_rollback(True)
    assert threads.run(keyed, 'sw1').status == 'completed'


def test_many_in_line(threads):
    """Many simultaneous calls and ends: never two at a time, none is forgotten, and each runs once."""
    def call(number):
        try:
            return threads.send(keyed, f'sw{number % 3}')
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(call, range(90)))
    rows = [ended(run, 60) for run in runs]
    assert {found.status for found in rows} == {'completed'}
    assert [len(notes(run.id)) for run in runs] == [2] * 90
    for number in range(3):
        times = CeleryResult.objects.filter(concurrency_key=f'device-sw{number}').order_by('started').values_list(
            'started', 'completed'
        )
        assert all(after[0] >= before[1] for before, after in zip(times, times[1:]))


def test_line_is_found_by_the_sweep():
    """If the process died that should have started the next run, before or after giving the slot, the sweep does it."""
    holder = keyed.apply_async(('sw1',), queue='nobody')
    following = keyed.apply_async(('sw1',), queue='nobody-either')
    CeleryResult.objects.filter(task_id=holder.id).update(status='completed', completed='2026-01-01T00:00Z')
    own = EngineConnection()
    from netbox_celery.celery import app
    advance_all(app, own.execute)
    assert (row(following).reason, row(following).concurrency_slot) == ('', 1)
    assert row(following).sent
    # As if it had died in between
    CeleryResult.objects.filter(task_id=following.id).update(sent=None, last_updated='2026-01-01T00:00Z')
    resend(own, app)
    assert row(following).sent
    own.close()


def test_unsent_line_is_not_sent(threads):
    """The sweep sends unsent runs, but not those that wait in line."""
    keyed.apply_async(('sw1',), queue='nobody')
    following = threads.send(keyed, 'sw1')
    CeleryResult.objects.update(last_updated='2026-01-01T00:00Z')
    own = EngineConnection()
    from netbox_celery.celery import app
    resend(own, app)
    own.close()
    assert (row(following).sent, row(following).reason) == (None, 'queued')


def test_key_from_a_function(threads, gate):
    first = threads.send(tasks.hold, gate, concurrency_key=lambda task, args, kwargs: f'{task.name} {len(args)}')
    assert row(first).concurrency_key == 'netbox_test_plugin:hold 1'
    open_gate(gate)


def test_key_that_lacks_an_argument():
    with pytest.raises(Exception, match='names an argument'):
        tasks.echo.apply_async(concurrency_key='{device}')


def test_long_key(threads):
    keys = {waiting(threads.send(tasks.echo, concurrency_key='x' * 300 + end), 'completed').concurrency_key
            for end in 'ab'}
    assert len(keys) == 2
