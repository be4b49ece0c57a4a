"""The writer of logs loses only lines that cannot be written, and no caller waits for the database."""
import os
import threading
import time
from types import SimpleNamespace
from unittest import mock

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from django.db import OperationalError, connection

from development.stack.processes import wait_until
from netbox_celery.engine.calls.run import Run
from netbox_celery.engine.store.recorder import BACKLOG_UNAVAILABLE, BATCH, Recorder
from netbox_celery.models import CeleryLogEntry, CeleryResult
from tests.factories import make_result
from tests.support import is_true_in_a_child

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def recorder():
    recorder = Recorder()
    yield recorder
    recorder.flush()
    recorder._connection.close()


@pytest.fixture
def run():
    result = make_result('running', claims=1, attempt=1)
    return Run(str(result.task_id), id=result.pk, claims=1)


def messages():
    return list(CeleryLogEntry.objects.order_by('pk').values_list('message', flat=True))


def test_lines_are_written_soon(recorder, run):
    """A line is written without a flush. The benchmark measures how soon."""
    recorder.log(run, 'soon')
    assert wait_until(lambda: messages() == ['soon'], 20, 0.01)


def test_a_hundred_thousand_lines(recorder, run):
    """All lines up to the limit are written in order; more are counted, and the log says so."""
    for number in range(100_123):
        recorder.log(run, f'line {number}')
    assert recorder.flush(run)

    written = messages()
    assert len(written) == 100_001
    assert written[:-1] == [f'line {number}' for number in range(100_000)]
    assert written[-1] == 'The log is limited to 100,000 lines: 123 more were left out.'


def test_threads_keep_the_order_of_each(recorder):
    """Lines of several threads mix, but those of one run stay in order and complete."""
    runs = [Run('x', id=make_result('running').pk, claims=1) for __ in range(8)]

    def log(run):
        for number in range(2_000):
            recorder.log(run, str(number))

    threads = [threading.Thread(target=log, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.flush()

    for run in runs:
        found = CeleryLogEntry.objects.filter(result_id=run.id).order_by('pk').values_list('message', flat=True)
        assert list(found) == [str(number) for number in range(2_000)]


def test_memory_is_bounded(recorder, run):
    """A task that logs faster than PostgreSQL writes has to write itself, so that memory does not fill up."""
    longest = 0
    for number in range(20_000):
        recorder.log(run, 'x')
        longest = max(longest, len(recorder._lines))
    assert longest <= 11 * BATCH


def away(recorder, times, error=OperationalError('away')):
    """Let the database be down for so many writes."""
    failures = iter([error] * times)
    copy, execute = recorder._connection.copy, recorder._connection.execute

    def failing(function):
        def call(*args):
            if (failure := next(failures, None)) is not None:
                raise failure
            return function(*args)
        return call
    recorder._connection = SimpleNamespace(
        copy=failing(copy), execute=failing(execute), close=recorder._connection.close
    )


def test_database_unavailable(recorder, run):
    """Lines that could not be written are written when the database is back, once and in order."""
    away(recorder, 3)
    for number in range(2 * BATCH):
        recorder.log(run, str(number))
    recorder.progress(run, value=5, step='first')
    assert recorder.flush(run)

    assert messages() == [str(number) for number in range(2 * BATCH)]
    result = CeleryResult.objects.get()
    assert (result.value, result.step) == (5, 'first')


@pytest.mark.parametrize('committed', [True, False])
@pytest.mark.parametrize('count', [3, 2 * BATCH + 7])
def test_answer_lost(recorder, run, committed, count):
    """If the answer was lost, it is looked up whether lines were written: none is missing or doubled."""
    copy, losses = recorder._connection.copy, iter([True])

    def lose(sql, rows):
        rows = list(rows)
        if next(losses, False):
            if committed:
                copy(sql, rows)
            raise OperationalError('the connection is lost')
        copy(sql, rows)
    with mock.patch.object(recorder, '_notify'), mock.patch.object(recorder._connection, 'copy', lose):
        for number in range(count):
            recorder.log(run, f'{number} \x1b[31m\x00' * (number % 2) or 'the same')
        expected = [f'{number} \ufffd' * (number % 2) or 'the same' for number in range(count)]
        assert not recorder._write_pending()
        recorder.log(run, 'later')
        assert recorder.flush()
    assert messages() == [*expected, 'later']


def test_database_fails_among_odd_lines(recorder, run):
    """The rest of a batch that is written line by line is kept."""
    copy, calls = recorder._connection.copy, []

    def fail(sql, rows):
        rows = list(rows)
        calls.append(len(rows))
        if len(calls) == 4:
            raise OperationalError('away')
        copy(sql, rows)
    with mock.patch.object(recorder, '_notify'), mock.patch.object(recorder._connection, 'copy', fail):
        for number in range(5):
            recorder.log(run, str(number))
        recorder.log(Run('x', id=run.id + 1_000, claims=1), 'gone')
        assert not recorder._write_pending()
        assert recorder.flush()
    assert calls == [6, 1, 1, 1, 4, 1, 1, 1, 1]
    assert messages() == [str(number) for number in range(5)]


def test_database_unavailable_for_long(recorder, run, caplog):
    """While the database is down memory stays bounded: the oldest lines are dropped, and counted."""
    with mock.patch.object(recorder, '_notify'):
        recorder._lines.extend([(run.id, 1, 20, 'main', str(n), None, None, 0.0) for n in range(BACKLOG_UNAVAILABLE)])
        recorder._lines.extend([(run.id, 1, 20, 'main', 'latest', None, None, 0.0)] * 7)
        away(recorder, 1)
        assert not recorder._write_pending()
        assert len(recorder._lines) == BACKLOG_UNAVAILABLE
        assert recorder._lines[0][4] == '7'
        recorder._lines.clear()
    assert '7 log line(s) could not be written' in caplog.text


def test_soft_time_limit_while_lines_are_written(recorder, run):
    """A task that floods its log writes itself: a soft time limit in its body then loses no line."""
    with mock.patch.object(recorder, '_notify'):
        away(recorder, 1, SoftTimeLimitExceeded())
        with pytest.raises(SoftTimeLimitExceeded):
            for number in range(20_000):
                recorder.log(run, str(number))
        assert number < 19_999
        assert recorder.flush(run)
    assert messages() == [str(logged) for logged in range(number + 1)]


def test_flush_gives_up(recorder, run):
    """A flush stops after its timeout, and returns whether everything is written."""
    with mock.patch.object(recorder, '_notify'):
        recorder.log(run, 'x')
        away(recorder, 1_000)
        started = time.monotonic()
        assert not recorder.flush(run, timeout=0.5)
        assert 0.5 <= time.monotonic() - started < 20
        recorder._lines.clear()


def test_odd_lines_of_a_batch(recorder, run, caplog):
    """Lines of a run without a row are dropped, a line that cannot be written is counted, and the rest is written."""
    with mock.patch.object(recorder, '_notify'):
        gone = Run('x', id=run.id + 1_000, claims=1)
        for number in range(5):
            recorder.log(run, f'kept {number}')
            recorder.log(gone, 'gone')
        recorder._lines.append((run.id, 'no number', 20, 'main', 'odd', None, None, 0.0))
        recorder._lines.append((run.id, 1, 20, None, 'odder', None, None, 'no time'))
        recorder.log(run, 'the last')
        assert recorder.flush()
    assert messages() == [*(f'kept {number}' for number in range(5)), 'the last']
    assert '2 log line(s) could not be written' in caplog.text


def test_sent(recorder):
    """The time of sending is written, unless a worker has claimed the run and requeued it since."""
    waiting, given_back = make_result('pending'), make_result('pending', claims=1)
    recorder.sent(waiting.pk)
    recorder.sent(given_back.pk)
    recorder.flush()
    waiting.refresh_from_db()
    given_back.refresh_from_db()

    assert waiting.sent is not None
    assert given_back.sent is None


def test_fork(recorder, run):
    """A child does not write its parent's lines again, nor on its connection."""
    with mock.patch.object(recorder, '_notify'):
        recorder.log(run, 'mine')
    recorder._connection.execute('SELECT 1')

    def write():
        # As `os.register_at_fork` does for the recorder of the process
        recorder._reset()
        recorder.log(run, 'child')
        return recorder.flush() and recorder._connection._pid == os.getpid()
    assert is_true_in_a_child(write)
    assert recorder.flush()
    assert sorted(messages()) == ['child', 'mine']


def test_caller_does_not_wait(recorder, run):
    """A line does not wait for the database, which is locked here."""
    recorder.log(run, 'first')
    caller = threading.Thread(target=lambda: [recorder.log(run, 'x') for __ in range(1_000)])
    with connection.cursor() as cursor:
        cursor.execute('BEGIN; LOCK TABLE netbox_celery_celerylogentry IN EXCLUSIVE MODE')
        caller.start()
        caller.join(20)
        has_waited = caller.is_alive()
        cursor.execute('COMMIT')
    assert not has_waited
    assert recorder.flush()
    assert len(messages()) == 1_001
