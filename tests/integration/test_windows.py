"""Ignore windows: a task that has succeeded does not run again for some time."""
from datetime import UTC, datetime, timedelta

import pytest
from celery import chain
from celery.exceptions import CeleryError
from netbox_test_plugin import tasks
from netbox_test_plugin.side import notes, open_gate
from netbox_test_plugin.tasks import policies

from netbox_celery.models import CeleryResult, IgnoreWindow

from .support import ended, row, until

fresh = policies.fresh


def over():
    IgnoreWindow.objects.update(until=datetime.now(UTC) - timedelta(seconds=1))


def test_ignored_after_success(worker):
    """The window is open when the result is visible, and closes in time."""
    first = worker.send(fresh, 'a')
    assert first.get(timeout=20) == 'a'
    second = worker.send(fresh, kwargs={'what': 'a'})
    assert (second.state, second.get(timeout=5)) == ('IGNORED', None)
    assert (row(second).status, row(second).reason) == ('ignored', 'ignore_window')
    other = worker.send(fresh, 'b')
    assert ended(other).status == 'completed'

    until(lambda: not IgnoreWindow.objects.filter(until__gt=datetime.now(UTC)).exists())
    assert worker.run(fresh, 'a').status == 'completed'
    assert notes(second.id) == []


def test_call_bypasses(threads):
    threads.run(fresh)
    assert threads.run(fresh, ignore_task_after_success=False).status == 'completed'
    assert row(fresh.delay()).status == 'ignored'
    assert row(fresh.delay(ignore_task_after_success=False)).status == 'pending'


def test_call_says_for_how_long(threads):
    threads.run(fresh, ignore_task_timedelta=3600)
    assert IgnoreWindow.objects.get().until > datetime.now(UTC) + timedelta(minutes=50)


def test_failure_opens_none(threads):
    assert threads.run(fresh, 'fail').status == 'failed'
    assert not IgnoreWindow.objects.exists()
    assert threads.run(fresh, 'fail').status == 'failed'


def test_copies_in_the_queue(threads, gate):
    """Runs that were called before the success, and would start after it, are ignored as well."""
    first = threads.send(fresh, 'a', gate)
    until(lambda: notes(first.id))
    copies = [threads.send(fresh, 'a', gate, countdown=1) for __ in range(3)]
    open_gate(gate)
    assert ended(first).status == 'completed'
    for copy in copies:
        assert copy.get(timeout=20) is None
        assert (ended(copy).status, row(copy).reason) == ('ignored', 'ignore_window')
        assert notes(copy.id) == []


def test_set_by_the_task(threads):
    assert threads.run(policies.manual).status == 'completed'
    assert IgnoreWindow.objects.get().until > datetime.now(UTC) + timedelta(seconds=50)
    assert threads.send(policies.manual).state == 'IGNORED'
    over()
    assert threads.run(policies.manual, 3600).status == 'completed'
    # Its success alone opens none
    assert threads.run(policies.manual, 0, kwargs={'fail': False}).status == 'completed'
    assert threads.run(policies.manual, 0).status == 'completed'


def test_set_by_a_task_that_fails(threads):
    assert threads.run(policies.manual, kwargs={'fail': True}).status == 'failed'
    assert threads.send(policies.manual, kwargs={'fail': True}).state == 'IGNORED'


def test_missing_length():
    with pytest.raises(CeleryError, match='ignore_task_timedelta'):
        tasks.echo.apply_async(ignore_task_after_success=True)
    assert not CeleryResult.objects.exists()


def test_head_of_a_chain(threads):
    """What depends on an ignored call ends with it."""
    threads.run(fresh)
    result = chain(fresh.s().set(queue=threads.queue), tasks.echo.s().set(queue=threads.queue)).apply_async()
    with pytest.raises(Exception, match=r'(?s).*'):
        result.get(timeout=20)
    assert ended(result.id).reason == 'upstream_failed'


def test_eager():
    assert fresh.apply(('eager',)).state == 'SUCCESS'
    assert fresh.apply(('eager',)).state == 'IGNORED'
    assert not CeleryResult.objects.exists()


def test_sent_again_with_its_window(threads, gate):
    """The sweep, which sends from rows, sends the window along."""
    run = fresh.apply_async(('again',), queue='nobody')
    until(lambda: row(run).sent)
    CeleryResult.objects.update(sent=None, last_updated='2026-01-01T00:00Z', options={
        **row(run).options, 'queue': threads.queue
    })
    assert ended(run, 60).status == 'completed'
    assert until(IgnoreWindow.objects.exists)
