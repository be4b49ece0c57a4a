"""Retries: one row for all attempts, which end where the author says."""
from datetime import datetime

from netbox_test_plugin import tasks
from netbox_test_plugin.side import notes

from dcim.models import Site
from netbox_celery.models import CeleryResult

from .support import ended, lines, row, settled, until, waiting


def test_one_row_over_all_attempts(worker):
    """A retried run keeps its row, ID and queue; the history has each attempt and its error."""
    result = settled(worker.run(tasks.retry, 2))

    assert (result.status, result.result, result.attempt) == ('completed', 3, 3)
    assert CeleryResult.objects.count() == 1
    assert result.queue == worker.queue
    assert [(a['number'], a['error'], a['worker']) for a in result.attempts] == [
        (1, 'ValueError: attempt 1 failed', worker.row.name),
        (2, 'ValueError: attempt 2 failed', worker.row.name),
        (3, '', worker.row.name),
    ]
    assert all(a['started'] for a in result.attempts)
    assert (result.error, result.traceback, result.reason) == ('', '', '')
    assert lines(result) == ['attempt 1', 'attempt 2', 'attempt 3']
    assert list(result.log_entries.order_by('pk').values_list('attempt', flat=True)) == [1, 2, 3]


def test_waiting_for_the_next_attempt(worker):
    """Between two attempts the row says that the run is retried, when, and what failed."""
    run = worker.send(tasks.retry, 1, 2)

    result = waiting(run, 'retrying')
    assert result.error == 'ValueError: attempt 1 failed'
    assert 'in retry\n' in result.traceback
    failed = datetime.fromisoformat(result.attempts[0]['ended'])
    assert 1.5 < (result.scheduled - failed).total_seconds() < 2.5
    assert result.completed is None
    assert run.state == 'RETRY'

    result = ended(run)
    assert (result.status, result.attempt) == ('completed', 2)
    started = datetime.fromisoformat(result.attempts[1]['started'])
    assert 1.8 < (started - failed).total_seconds() < 5


def test_automatic_retries(worker):
    """`autoretry_for` looks the same."""
    result = settled(worker.run(tasks.autoretry, 2))

    assert (result.status, result.result) == ('completed', 3)
    assert [a['error'] for a in result.attempts] == ['ValueError: wrong', 'ValueError: wrong', '']


def test_automatic_retries_without_self(worker):
    """A task without `self` can be retried automatically."""
    result = worker.run(tasks.autoretry_unbound, 1)

    assert (result.status, result.result, result.attempt) == ('completed', 2, 2)


def test_retries_exhausted(worker):
    """The last attempt's own error ends the run."""
    run = worker.send(tasks.autoretry, 99)

    result = ended(run)
    assert (result.status, result.error) == ('errored', 'ValueError: wrong')
    assert (result.attempt, len(result.attempts)) == (3, 3)
    assert len(notes(run.id)) == 3
    assert until(lambda: run.state == 'FAILURE')


def test_limit_of_a_call_does_not_leak(worker):
    """`retry(max_retries=n)` applies to that run only: Celery keeps it on the task, for the next runs."""
    limited = [worker.send(tasks.retry, 99, kwargs={'limit': 1}) for __ in range(4)]
    for run in limited:
        result = ended(run)
        assert (result.status, result.error, result.attempt) == ('errored', 'ValueError: attempt 2 failed', 2)

    free = [worker.send(tasks.retry, 4) for __ in range(4)]
    assert [(ended(run).status, row(run).attempt) for run in free] == [('completed', 5)] * 4


def test_limit_of_a_call_stops_automatic_retries(worker):
    """As in Celery: at the body's own limit, `autoretry_for` does not retry further."""
    run = worker.send(tasks.limits)

    assert ended(run).status == 'errored'
    assert len(notes(run.id)) == 2


def test_ignored_result(worker):
    """With `ignore_result` Celery reports no retry to the backend; the row is complete all the same."""
    result = settled(worker.run(tasks.retry_ignored))

    assert (result.status, result.result) == ('completed', 'second')
    assert [a['error'] for a in result.attempts] == ['ValueError: once', '']


def test_immediate_retries_race(worker):
    """The next attempt is sent before the end of the one before is written: the row never goes back."""
    runs = [worker.send(tasks.autoretry, number % 4) for number in range(60)]

    for number, run in enumerate(runs):
        result = settled(run, 60)
        expected = number % 4 + 1
        assert (result.status, result.attempt) == ('completed' if expected < 4 else 'errored', min(expected, 3))
        assert [a['number'] for a in result.attempts] == list(range(1, min(expected, 3) + 1))
    assert CeleryResult.objects.filter(completed=None).count() == 0


def test_retry_in_a_transaction(worker):
    """A retry rolls the body's transaction back, but not itself: its message is sent and its row says so."""
    result = worker.run(tasks.retry_in_transaction, 'racy')

    assert (result.status, result.result) == ('completed', 1)
    assert [site.name for site in Site.objects.all()] == ['racy-1']
    assert [a['number'] for a in result.attempts] == [1, 2]


def test_untracked_run_stays_untracked(worker):
    """A run without a row gets none by being retried."""
    run = worker.send(tasks.autoretry, 1, netbox_track=False)

    assert run.get(timeout=20) == 2
    assert len(notes(run.id)) == 2
    assert not CeleryResult.objects.exists()


def test_cancel_while_waiting_for_the_next_attempt(worker):
    """A cancelled run is not retried, and those who wait for it learn that."""
    run = worker.send(tasks.retry, 9, 1)
    assert waiting(run, 'retrying').cancel()

    result = row(run)
    assert (result.status, result.reason) == ('revoked', 'cancelled')
    # What was sent after the next attempt's time has come
    assert worker.run(tasks.echo, countdown=1.5).status == 'completed'
    assert len(notes(run.id)) == 1
    assert run.state == 'REVOKED'
