"""The handle that an author gets as `self.celery_result`."""
import copy
import pickle

import pytest
from celery._state import _task_stack
from django.db import connection
from kombu.exceptions import EncodeError

from netbox_celery.commands import _Diverted
from netbox_celery.engine.calls.run import Run, get_run
from netbox_celery.engine.runs import ending
from netbox_celery.engine.runs.claim import begin
from netbox_celery.engine.runs.ending import ENDS
from netbox_celery.engine.runs.tracked import TrackedResult
from netbox_celery.engine.store.recorder import recorder
from netbox_celery.models import CeleryResult
from tests.factories import make_result

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def tracked():
    run = make_result('running', step='one')
    return TrackedResult(Run(str(run.task_id), id=run.pk))


@pytest.mark.parametrize('make', [copy.copy, copy.deepcopy])
def test_copied(tracked, make):
    """A copy is a handle of the same run."""
    other = make(tracked)
    assert (other.pk, other.step, other.task_id) == (tracked.pk, 'one', tracked.task_id)
    assert copy.deepcopy({'result': tracked})['result'].step == 'one'


def test_pickled(tracked):
    """In another process, for example one that the body starts, it is the row."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        other = pickle.loads(pickle.dumps(tracked, protocol))
        assert isinstance(other, CeleryResult)
        assert (other.pk, other.step) == (tracked.pk, 'one')


def test_without_attributes():
    """An object that is being copied or unpickled has no attributes at first: nothing recurses."""
    for cls in (TrackedResult, _Diverted):
        empty = cls.__new__(cls)
        for name in ('__deepcopy__x', '__setstate__x', '_run', 'row', 'status'):
            with pytest.raises(AttributeError):
                getattr(empty, name)
        assert not hasattr(empty, 'whatever')


def test_no_such_attribute(tracked):
    with pytest.raises(AttributeError):
        tracked.whatever
    assert not hasattr(tracked, '__array__')


def row():
    return CeleryResult.objects.get()


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
    """`update_value` writes by steps and by time, the first value always."""
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
    lambda run: ending.end_claimed(run, ENDS['returned']), lambda run: ending.record_retry(run, 'no', ''),
    lambda run: TrackedResult(run).success(), lambda run: TrackedResult(run).value,
], ids=['end', 'retry', 'own end', 'read'])
@pytest.mark.parametrize('pace', [{'value_step': 30}, {'rate_limit': 1000}], ids=str)
def test_progress_at_the_end_of_a_loop(run, end, pace):
    """What `update_value` has left out last is not left out for good."""
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
def test_progress_left_out_and_overtaken(run, newer, value):
    """A later one counts."""
    tracked = TrackedResult(run)
    tracked.update_value(1)
    tracked.update_value(3, value_step=10)
    newer(run)
    ending.end_claimed(run, ENDS['returned'])
    assert row().value == value


@pytest.mark.parametrize('end', [
    lambda it, text: it.error(text, text), lambda it, text: it.canceled(text),
], ids=['error', 'canceled'])
def test_own_end_of_any_length(run, end):
    """What an author says of an end is cut as what Celery says of it is."""
    end(TrackedResult(run), 'x' * 1_000_000)
    assert len(row().error) < 10_100
    assert len(row().traceback) < 65_700
    assert row().error.endswith('characters left out]')


def test_own_end_without_a_text(run):
    """An exception whose text cannot be made ends the run as any other."""
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError('no text')
    TrackedResult(run).error(Mute())
    assert row().status == 'failed'
    assert 'Mute' in row().error


def test_reads(run):
    """What the task reads of its row has what it has written, whether it read before or not."""
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
    """A restart of PostgreSQL has broken the connection of the body: its row can be read all the same."""
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
    assert caplog.text.count('progress is ignored') == 1


@pytest.mark.parametrize('data', [object(), {1, 2}, lambda: None])
def test_data_that_json_cannot_hold(run, data):
    """The task gets the error immediately, and nothing is written."""
    with pytest.raises(TypeError):
        TrackedResult(run).update(value=1, data=data)
    with pytest.raises(TypeError):
        TrackedResult(run).success(object())
    recorder.flush(run)
    assert (row().value, row().status) == (None, 'running')


def deep(depth):
    value = None
    for __ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize('data', [deep(150), deep(5000), 10 ** 5000, {(1,): 2}], ids=['150', '5000', 'digits', 'key'])
def test_data_that_is_refused(run, data):
    """As at a call; and nothing is written."""
    with pytest.raises(EncodeError):
        TrackedResult(run).update(value=1, data=data)
    recorder.flush(run)
    assert (row().value, row().status) == (None, 'running')


def test_end_with_a_result_that_a_row_does_not_hold(run):
    """A result that Celery can store is an end like others."""
    TrackedResult(run).success(deep(150))
    assert (row().status, row().exact_result) == ('completed', '')
    assert run.own_end == ('completed', deep(150))


def test_end_with_a_result_that_is_not_stored(deliver):
    """It cannot be written and need not be: the row shows a text."""
    task = deliver(task_options={'ignore_result': True}, netbox_celery=None)
    begin(task)
    _task_stack.push(task)
    try:
        get_run(task.request).row = TrackedResult(get_run(task.request))
        get_run(task.request).row.success({1, 2})
    finally:
        _task_stack.pop()
    assert (row().status, row().result) == ('completed', '{1, 2}')
