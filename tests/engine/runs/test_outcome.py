"""The end of a run: it follows its log, is written later if it cannot be written now, and only once."""
import pytest
from celery._state import _task_stack
from django.db import OperationalError, connection
from kombu.exceptions import EncodeError

from netbox_celery.engine.calls.run import Run, get_run
from netbox_celery.engine.runs import outcome
from netbox_celery.engine.runs.claim import begin
from netbox_celery.engine.runs.tracked import TrackedResult
from netbox_celery.engine.store.database import EngineConnection
from netbox_celery.engine.store.recorder import recorder
from netbox_celery.models import CeleryLogEntry, CeleryResult
from tests.factories import make_result
from tests.support import Unprintable, nested

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def run():
    row = make_result('running', claims=1, attempt=1, attempts=[{'number': 1}])
    yield Run(str(row.task_id), id=row.pk, claims=1)
    recorder.flush()


def row():
    return CeleryResult.objects.get()


def test_log_comes_first(run, monkeypatch):
    """A reader that sees the end sees the whole log."""
    for number in range(500):
        recorder.log(run, str(number))
    finish = outcome.lifecycle.finish

    def look_first(*args, **kwargs):
        assert CeleryLogEntry.objects.count() == 500
        return finish(*args, **kwargs)
    monkeypatch.setattr(outcome.lifecycle, 'finish', look_first)
    assert outcome.finish_run(run, 'completed')[1] == row().status == 'completed'


def test_lost_claim(run):
    """The run is not ended, and knows it."""
    CeleryResult.objects.update(claims=2)
    assert outcome.finish_run(run, 'completed') is None
    assert not run.ended
    assert row().status == 'running'


class Away:
    """A database that is down, for the engine's connection of this thread."""

    def __init__(self, monkeypatch):
        self.is_away = True
        execute = EngineConnection.execute

        def failing(connection, sql, params=None, patience=0):
            if self.is_away and 'UPDATE' in sql:
                raise OperationalError('away')
            return execute(connection, sql, params, patience)
        monkeypatch.setattr(EngineConnection, 'execute', failing)


@pytest.mark.parametrize('end, status', [
    (lambda run: outcome.finish_run(run, 'errored', error='no'), 'errored'),
    (lambda run: outcome.retry_run(run, 'no', ''), 'retrying'),
], ids=['end', 'retry'])
def test_database_away(run, monkeypatch, end, status):
    """The caller continues as if the end was written, and it is written when the database is back."""
    away = Away(monkeypatch)
    assert end(run)[1] == status
    assert row().status == 'running'
    away.is_away = False
    assert recorder.flush(timeout=10)
    assert (row().status, row().error) == (status, 'no')


def test_cancelled_while_the_end_waited(run, monkeypatch):
    """An end that is written late respects the row as it is by then."""
    away = Away(monkeypatch)
    outcome.finish_run(run, 'completed', result='5')
    row().cancel()
    away.is_away = False
    assert recorder.flush(timeout=10)
    assert row().status == 'revoked'


# Ends that a task sets itself

@pytest.mark.parametrize('first, status', [
    (lambda it: it.success({'a': 1}), 'completed'), (lambda it: it.success(), 'completed'),
    (lambda it: it.error('no', 'there'), 'failed'), (lambda it: it.error(ValueError('no')), 'failed'),
    (lambda it: it.canceled('so be it'), 'revoked'),
])
@pytest.mark.parametrize('second', [
    lambda it: it.success('second'), lambda it: it.error('second'), lambda it: it.canceled('second'),
], ids=['success', 'error', 'canceled'])
def test_first_end_holds(run, first, status, second):
    tracked = TrackedResult(run)
    first(tracked)
    before = row().__dict__
    second(tracked)

    assert run.ended
    assert tracked.status == status
    assert {k: v for k, v in row().__dict__.items() if k != '_state'} == {
        k: v for k, v in before.items() if k != '_state'
    }


def test_progress_of_a_loop(run):
    """`update_value` writes by steps and by time, and always the first value."""
    tracked = TrackedResult(run)
    written = []
    for value in range(100):
        tracked.update_value(value, value_step=30)
        recorder.flush()
        if not written or row().value != written[-1]:
            written.append(row().value)
    assert written == [0, 30, 60, 90]

    tracked = TrackedResult(run)
    for value in (7, 8, 9):
        tracked.update_value(value, rate_limit=1000)
    recorder.flush()
    assert row().value == 7
    tracked.update_value(3)
    recorder.flush()
    assert row().value == 3


@pytest.mark.parametrize('end', [
    lambda run: outcome.finish_run(run, 'completed'), lambda run: outcome.retry_run(run, 'no', ''),
    lambda run: TrackedResult(run).success(), lambda run: TrackedResult(run).value,
], ids=['end', 'retry', 'own end', 'read'])
@pytest.mark.parametrize('pace', [{'value_step': 30}, {'rate_limit': 1000}], ids=str)
def test_progress_at_the_end_of_a_loop(run, end, pace):
    """The last value that `update_value` skipped is written in the end."""
    tracked = TrackedResult(run)
    for value in range(1, 101):
        tracked.update_value(value, **pace)
    recorder.flush()
    assert row().value == (91 if 'value_step' in pace else 1)
    end(run)
    assert row().value == 100


@pytest.mark.parametrize('newer, value', [
    (lambda run: recorder.progress(run, value=50), 50), (lambda run: TrackedResult(run).update(value=50), 50),
    (lambda run: TrackedResult(run).increment_value(5), 6), (lambda run: TrackedResult(run).update(step='s'), 3),
], ids=['progress', 'update', 'increment', 'step'])
def test_skipped_progress_is_overtaken(run, newer, value):
    """A later value counts."""
    tracked = TrackedResult(run)
    tracked.update_value(1)
    tracked.update_value(3, value_step=10)
    newer(run)
    outcome.finish_run(run, 'completed')
    assert row().value == value


@pytest.mark.parametrize('end', [
    lambda it, text: it.error(text, text), lambda it, text: it.canceled(text),
], ids=['error', 'canceled'])
def test_own_end_of_any_length(run, end):
    """An author's text is cut in the same way as Celery's."""
    end(TrackedResult(run), 'x' * 1_000_000)
    assert len(row().error) < 10_100
    assert len(row().traceback) < 65_700
    assert row().error.endswith('characters left out]')


def test_own_end_without_a_text(run):
    """An exception whose text cannot be made ends the run like any other."""
    TrackedResult(run).error(Unprintable())
    assert row().status == 'failed'
    assert 'Unprintable' in row().error


def test_reads(run):
    """The task reads what it has written, whether or not it read before."""
    tracked = TrackedResult(run)
    tracked.update(value=1, value_max=5, step='s', data={'a': [1]})
    assert (tracked.value, tracked.value_max, tracked.step, tracked.data) == (1, 5, 's', {'a': [1]})
    tracked.increment_value(2)
    tracked.update(step='later')
    assert (tracked.value, tracked.step, tracked.data) == (3, 'later', {'a': [1]})
    recorder.flush(run)
    CeleryResult.objects.update(value=50)
    assert tracked.value == 3
    tracked.refresh_from_db()
    assert (tracked.value, tracked.step) == (50, 'later')
    with pytest.raises(AttributeError):
        tracked.no_such_thing


def test_read_on_a_broken_connection(run):
    """A body whose connection was broken by a restart of PostgreSQL can read its row."""
    connection.ensure_connection()
    connection.connection.close()
    tracked = TrackedResult(run)
    assert (tracked.pk, tracked.id, str(tracked.task_id)) == (run.id, run.id, run.task_id)
    assert tracked.status == 'running'


@pytest.mark.parametrize('odd', [float('nan'), float('inf'), 10 ** 30, '5', [5], True, {}], ids=repr)
@pytest.mark.parametrize('is_read', [True, False])
def test_progress_that_is_not_a_number(run, odd, is_read, caplog):
    """It is left out, and the rest is written; the worker's log says so once, not at each turn of a loop."""
    tracked = TrackedResult(run)
    tracked.update(value=3, value_max=5)
    assert not is_read or tracked.value == 3
    for __ in range(3):
        tracked.update(value=odd, value_max=odd, step='s')
        tracked.increment_value(odd)
        tracked.update_value(odd, value_step=1)
    tracked.update_value(4, value_step=1)
    recorder.flush(run)
    assert (row().value, row().value_max, row().step) == (tracked.value, tracked.value_max, tracked.step) == (4, 5, 's')
    assert caplog.text.count('is left out') == 1


@pytest.mark.parametrize('data', [object(), {1, 2}, lambda: None])
def test_data_that_json_cannot_hold(run, data):
    """The task gets the error immediately, and nothing is written."""
    with pytest.raises(TypeError):
        TrackedResult(run).update(value=1, data=data)
    with pytest.raises(TypeError):
        TrackedResult(run).success(object())
    recorder.flush(run)
    assert (row().value, row().status) == (None, 'running')


@pytest.mark.parametrize('data', [
    nested(150), nested(5000), 10 ** 5000, {(1,): 2},
], ids=['150', '5000', 'digits', 'key'])
def test_data_that_is_refused(run, data):
    """As at a call; and nothing is written."""
    with pytest.raises(EncodeError):
        TrackedResult(run).update(value=1, data=data)
    recorder.flush(run)
    assert (row().value, row().status) == (None, 'running')


def test_end_with_a_result_that_a_row_does_not_hold(run):
    """A result that Celery can store is accepted."""
    TrackedResult(run).success(nested(150))
    assert (row().status, row().exact_result) == ('completed', '')
    assert run.own_end == ('completed', nested(150))


def test_end_with_an_ignored_result(deliver):
    """It need not be stored: the row shows a text."""
    task = deliver(task_options={'ignore_result': True}, netbox_celery=None)
    begin(task)
    _task_stack.push(task)
    try:
        get_run(task.request).row = TrackedResult(get_run(task.request))
        get_run(task.request).row.success({1, 2})
    finally:
        _task_stack.pop()
    assert (row().status, row().result) == ('completed', '{1, 2}')
