"""What tasks have beyond Celery's: waiting for a result, sending on commit, delays between attempts."""
from datetime import datetime
from uuid import uuid4

import pytest
from celery.exceptions import TimeoutError
from django.db import transaction
from netbox_test_plugin import tasks
from netbox_test_plugin.side import notes
from netbox_test_plugin.tasks import delays

from netbox_celery.models import CeleryResult

from .support import ended


def gaps(result):
    """Return the seconds between the end of each attempt and the start of the next."""
    attempts = [
        {key: datetime.fromisoformat(attempt[key]) for key in ('started', 'ended')} for attempt in result.attempts
    ]
    return [(after['started'] - before['ended']).total_seconds() for before, after in zip(attempts, attempts[1:])]


def test_delays_between_attempts(worker):
    """Three delays make three gaps and four attempts."""
    result = worker.run(delays.delays)

    assert (result.status, result.error, result.attempt) == ('errored', 'ValueError: wrong', 4)
    assert len(notes(result.task_id)) == 4
    assert all(delay - 0.05 < gap < delay + 1.5 for gap, delay in zip(gaps(result), (0.2, 0.4, 0.6), strict=True))


def test_delays_between_automatic_attempts(worker):
    result = worker.run(delays.delays_automatic)

    assert (result.status, result.attempt) == ('errored', 3)


@pytest.mark.parametrize('options,attempts', [
    ({'default_retry_delays': [0.1]}, 2),
    ({'max_retries': 1}, 2),
    ({'countdown': 0}, 4),
])
def test_delays_of_a_retry(worker, options, attempts):
    """Arguments of `retry()` beat the task's delays; a `countdown` replaces the gap, not the number."""
    result = worker.run(delays.delays, kwargs=options)

    assert (result.status, result.attempt) == ('errored', attempts)


def test_wait_for_the_result(worker):
    """The value is returned; an error is raised or returned."""
    assert tasks.echo.apply_async_and_get_result(('hello',), timeout=20, queue=worker.queue) == [['hello'], {}]
    with pytest.raises(ValueError, match='wrong value'):
        tasks.fail.apply_async_and_get_result(('value',), timeout=20, queue=worker.queue)
    error = tasks.fail.apply_async_and_get_result(('value',), timeout=20, propagate=False, queue=worker.queue)
    assert isinstance(error, ValueError)


@pytest.mark.parametrize('timeout', [0, 0.2])
def test_wait_too_long(worker, timeout):
    """The caller gets a `TimeoutError`, and the run continues."""
    with pytest.raises(TimeoutError):
        tasks.echo.apply_async_and_get_result(('late',), timeout=timeout, countdown=3, queue=worker.queue)
    assert ended(CeleryResult.objects.get().task_id).status == 'completed'


def test_ignore_result_of_a_call(threads):
    """`delay(ignore_result=True)` is an option, as in a signature; the row is complete all the same."""
    run = tasks.retry.delay(0, ignore_result=True)
    row = CeleryResult.objects.get()
    assert (row.args, row.kwargs, row.options['ignore_result']) == ([0], {}, True)
    assert run.ignored
    run.revoke()


@pytest.mark.parametrize('pool', ['prefork', 'threads'])
def test_wait_without_end_is_refused(make_worker, pool):
    """Inside a task and inside a transaction, nothing is sent and the call does not wait.

    On a worker of its own: Celery has one flag for all threads, which chords that finish concurrently may leave wrong.
    """
    worker = make_worker(f'waiting-{pool}', pool=pool).start().ready()
    result = worker.run(delays.waits)
    assert 'Never call result.get() within a task' in result.result
    with transaction.atomic(), pytest.raises(RuntimeError, match='sent on commit'):
        tasks.echo.apply_async_and_get_result(('never',), queue=worker.queue)
    assert CeleryResult.objects.count() == 1


def test_on_commit_keeps_the_id(worker):
    """Not before the commit, never after a rollback, and with the ID of the call."""
    ids = [str(uuid4()) for __ in range(3)]
    with transaction.atomic():
        tasks.echo.apply_async_on_commit(('sent',), using='default', task_id=ids[0], queue=worker.queue)
        try:
            with transaction.atomic():
                tasks.echo.apply_async_on_commit(('rolled back',), task_id=ids[1], queue=worker.queue)
                raise KeyError
        except KeyError:
            pass
        assert not CeleryResult.objects.exists()
    tasks.echo.apply_async_on_commit(('at once',), task_id=ids[2], queue=worker.queue)

    assert [ended(id).result for id in (ids[0], ids[2])] == [[['sent'], {}], [['at once'], {}]]
    assert not CeleryResult.objects.filter(task_id=ids[1]).exists()
