"""The end of a run through the result backend: the row is written first, and Celery then reports the same."""
import json
import pickle
from types import SimpleNamespace
from uuid import uuid4

import pytest
from billiard.exceptions import WorkerLostError
from celery import states
from celery.app.task import Context
from celery.backends.redis import RedisBackend
from celery.exceptions import Retry
from django.utils import timezone
from kombu.exceptions import EncodeError

from netbox_celery.celery import app
from netbox_celery.config import get_config
from netbox_celery.engine.calls.run import Run
from netbox_celery.engine.exceptions import TaskFailed
from netbox_celery.engine.store.recorder import recorder
from tests.factories import make_result
from tests.support import nested, now


def test_pickled():
    """A backend that was pickled is the app's own again, though its class is made at run time."""
    assert pickle.loads(pickle.dumps(app.backend)) is app.backend


# Ends

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def started():
    """A claimed run, and the request that its worker has of it."""
    def started(status='running', **columns):
        row = make_result(status, claims=1, attempt=1, attempts=[{'number': 1}], **columns)
        run = Run(str(row.task_id), id=row.pk, claims=1)
        return row, Context(id=run.task_id, task='tests:x', netbox_run=run, children=[], is_eager=False), run
    yield started
    recorder.flush()


def told(row):
    """What Celery returns to a caller that asks for the result, after everything has been written."""
    app.backend._cache.clear()
    return app.AsyncResult(str(row.task_id)).state


@pytest.fixture
def listening():
    """Subscribe to a run's result in Redis; returns a function for the states that were published."""
    def listen(row):
        listener = app.backend.client.pubsub(ignore_subscribe_messages=True)
        listener.subscribe(app.backend.get_key_for_task(str(row.task_id)))
        listener.get_message(timeout=5)
        listeners.append(listener)

        def heard():
            listener.ping()  # its answer comes after all that was published before
            states = []
            while (message := listener.get_message(timeout=5)) and message['type'] == 'message':
                states.append(json.loads(message['data'])['status'])
            return states
        return heard
    listeners = []
    yield listen
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize('end, expected', [
    (lambda *it: app.backend.mark_as_done(it[0], 5, it[1]), ('completed', '', 'SUCCESS')),
    (lambda *it: app.backend.mark_as_failure(it[0], ValueError('no'), None, it[1]), ('errored', '', 'FAILURE')),
    (lambda *it: app.backend.mark_as_failure(it[0], TaskFailed('no'), None, it[1]), ('failed', '', 'FAILURE')),
    (lambda *it: app.backend.mark_as_retry(it[0], Retry(exc=ValueError()), None, it[1]),
     ('errored', '', 'FAILURE')),
], ids=['done', 'errored', 'failed', 'retry that is not sent'])
def test_ends(started, listening, end, expected):
    """The row has the end, Celery reports it, also to those who wait, and a second end does not change the row."""
    row, request, __ = started()
    heard = listening(row)
    end(str(row.task_id), request)
    assert (now(row).status, row.reason, told(row)) == expected
    assert heard() == [expected[2]]
    before = row.completed

    app.backend.mark_as_failure(str(row.task_id), KeyError('second'), None, request)
    app.backend.mark_as_done(str(row.task_id), 'second', request)
    assert (now(row).status, row.reason, row.completed) == (*expected[:2], before)


@pytest.mark.parametrize('end', ['done', 'failure', 'retry'])
def test_cancel_wins(started, listening, end):
    """A cancelled run is revoked however its body finishes, and Celery reports that too."""
    row, request, run = started()
    heard = listening(row)
    row.cancel()
    run.continued = True
    if end == 'done':
        app.backend.mark_as_done(run.task_id, 5, request)
    elif end == 'failure':
        app.backend.mark_as_failure(run.task_id, ValueError(), None, request)
    else:
        app.backend.mark_as_retry(run.task_id, ValueError(), None, request)
    assert (now(row).status, row.reason, told(row)) == ('revoked', 'cancelled', 'REVOKED')
    assert heard() == ['REVOKED']


@pytest.mark.parametrize('status', ['running', 'completed', 'pending'])
def test_end_of_a_lost_claim(started, listening, status):
    """Such an end changes neither the row, nor what Celery reports."""
    row, request, run = started(status)
    heard = listening(row)
    type(row).objects.update(claims=2)
    app.backend.mark_as_failure(run.task_id, ValueError('late'), None, request)
    app.backend.mark_as_done(run.task_id, 'late', request)
    assert (now(row).status, row.error) == (status, '')
    assert app.backend.client.get(app.backend.get_key_for_task(run.task_id)) is None
    assert heard() == []


def test_lost_answer(started, listening):
    """An end that was written before the connection broke is reported like any other."""
    row, request, run = started()
    heard = listening(row)
    type(row).objects.update(status='completed', completed=timezone.now(), result=5)
    app.backend.mark_as_done(run.task_id, 5, request)
    assert heard() == ['SUCCESS']


def test_retry_written_after_the_next_attempt_started(started):
    """The message of a retry is sent first; what the next attempt has written stays."""
    row, request, run = started()
    run.continued = True
    type(row).objects.update(claims=2, attempt=2, attempts=[{'number': 1}, {'number': 2}])
    app.backend.mark_as_retry(run.task_id, ValueError('first'), None, request)
    assert (now(row).status, row.error) == ('running', '')
    assert row.attempts[0]['error'] == 'ValueError: first'


@pytest.mark.parametrize('result, shown', [
    ({'a': [1, None]}, {'a': [1, None]}),
    (uuid4(), None),
    ('nul \x00', 'nul \ufffd'),
    (float('inf'), 'inf'),
    ('x' * (get_config().payload_length + 1), 'cut'),
], ids=['plain', 'uuid', 'nul', 'inf', 'large'])
def test_result(started, result, shown):
    """Celery returns what the task returned, also where the row cannot show all of it."""
    row, request, run = started()
    app.backend.mark_as_done(run.task_id, result, request)
    if shown == 'cut':
        assert 'characters left out' in now(row).result
    else:
        assert now(row).result == (result if shown is None else shown)
    assert app.AsyncResult(run.task_id).get(timeout=5) == result


def test_ignored_result(started):
    """With `ignore_result` only the row has the result, as text if it is not JSON."""
    row, request, run = started()
    app.backend.mark_as_done(run.task_id, SimpleNamespace(a=1), request, store_result=False)
    assert (now(row).status, row.result) == ('completed', 'namespace(a=1)')
    assert app.backend.client.get(app.backend.get_key_for_task(run.task_id)) is None


class OddResult:
    """A result whose methods raise."""

    def __init__(self, exc):
        self.exc = exc

    def __json__(self):
        raise self.exc

    __repr__ = __json__


ODD = {
    'deep': lambda: nested(750), 'endless': lambda: nested(100_000), 'digits': lambda: 10 ** 5000,
    'set': lambda: {1, 2},
    'key error': lambda: OddResult(KeyError('x')), 'recursion': lambda: OddResult(RecursionError()),
    'keys': lambda: {(1,): 2}, 'type error': lambda: [OddResult(TypeError())], 'huge set': lambda: set(range(100_000)),
    'bytes': lambda: {b'\xff': 1}, 'negative digits': lambda: {'x': -10 ** 5000},
    'unicode': lambda: OddResult(UnicodeError('\ud800')),
}


@pytest.mark.parametrize('what', ODD)
def test_ignored_result_never_fails_its_task(started, what):
    """Whatever a task returns, its run succeeds and its row shows a text if the result is ignored."""
    row, request, run = started()
    app.backend.mark_as_done(run.task_id, ODD[what](), request, store_result=False)
    assert now(row).status == 'completed'
    assert isinstance(row.result, str)
    assert row.exact_result == ''


@pytest.mark.parametrize('what', ODD)
def test_result_is_stored_as_celery_would(started, what):
    """A result that plain Celery stores completes the run; one that it refuses fails it, and nothing is written."""
    row, request, run = started()
    plain = RedisBackend(app=app, url=app.conf.result_backend)
    try:
        plain.encode(ODD[what]())
    except EncodeError:
        with pytest.raises(EncodeError):
            app.backend.mark_as_done(run.task_id, ODD[what](), request)
        assert now(row).status == 'running'
    else:
        app.backend.mark_as_done(run.task_id, ODD[what](), request)
        assert now(row).status == 'completed'
        assert app.AsyncResult(run.task_id).get(timeout=5) == ODD[what]()


def test_part_of_a_chord_counts_once(started, monkeypatch):
    """A result that the row does not hold is counted in the chord as well."""
    row, request, run = started()
    request.chord = {'task': 'tests:x'}
    told = []
    monkeypatch.setattr(RedisBackend, 'on_chord_part_return', lambda *args, **kwargs: told.append(args[2:]))
    app.backend.mark_as_done(run.task_id, nested(150), request)
    assert told == [('SUCCESS', nested(150))]
    with pytest.raises(EncodeError):  # the chord is to have it
        app.backend.mark_as_done(run.task_id, {1}, request, store_result=False)


@pytest.mark.parametrize('value', [[1e23], {'b': 1, 'a': -0.0}, float('nan'), 'nul \x00', 1e16], ids=repr)
def test_result_comes_back_exactly(started, listening, value):
    """A result that only the row holds is returned exactly, now and later."""
    row, request, run = started()
    heard = listening(row)
    app.backend.mark_as_done(run.task_id, value, request)
    assert heard() == ['SUCCESS']
    assert repr(app.AsyncResult(run.task_id).get(timeout=5)) == repr(value)
    assert app.backend.client.get(app.backend.get_key_for_task(run.task_id)) is None


@pytest.mark.parametrize('meta', [
    {'x': nested(750)}, {'x': 5, 'y': 10 ** 30}, {'current': nested(3), 'step': nested(600)},
])
def test_odd_states(started, meta):
    """Any custom state that Celery can store is harmless for the row."""
    row, request, run = started()
    app.backend.store_result(run.task_id, meta, 'MINE', request=request)
    recorder.flush(run)
    assert now(row).data is not None
    assert row.status == 'running'


def test_error_after_a_success(held):
    """An error in a worker's child after it reported success changes neither the row nor Celery's state."""
    row = held()
    request = parents_request(row)
    type(row).objects.filter(pk=row.pk).update(status='completed', completed=timezone.now(), result=5)
    app.backend.mark_as_failure(str(row.task_id), ValueError('no text'), request=request, call_errbacks=False)
    assert (now(row).status, told(row)) == ('completed', 'SUCCESS')


# What a worker's parent tells, which has no claim

@pytest.fixture
def held(worker, started):
    return lambda **columns: started(**{'holder': worker.key, **columns})[0]


def parents_request(row, retries=0):
    return SimpleNamespace(id=str(row.task_id), task=row.celery_name, retries=retries, errbacks=None, chord=None,
                           chain=None, group=None, parent_id=None, root_id=None, delivery_info={}, is_eager=False)


@pytest.mark.parametrize('columns, retries, status', [
    ({}, 0, 'errored'), ({'holder': uuid4()}, 0, 'running'), ({}, 1, 'running'), ({'attempt': 2}, 1, 'running'),
], ids=['own', "another worker's", 'later attempt', 'earlier claim'])
def test_parent(held, columns, retries, status):
    """A parent ends only what its own child held, in that attempt."""
    row = held()
    type(row).objects.update(**columns)
    if 'attempt' in columns:
        retries = 0
    app.backend.mark_as_failure(
        str(row.task_id), WorkerLostError('gone'), request=parents_request(row, retries), call_errbacks=False
    )
    assert (now(row).status, row.reason) == (status, 'worker_lost' if status == 'errored' else '')


@pytest.mark.parametrize('reason, expected', [
    ('terminated', ('revoked', 'terminated')), ('expired', ('running', '')), ('revoked', ('running', '')),
])
def test_parent_revokes(held, reason, expected):
    """Only what was terminated was running: a copy of its message that expires or is revoked does not end it."""
    row = held()
    app.backend.mark_as_revoked(str(row.task_id), reason, parents_request(row))
    assert (now(row).status, row.reason) == expected
    assert told(row) == ('REVOKED' if expected[0] == 'revoked' else 'PENDING')


@pytest.mark.parametrize('reason, expected, error', [
    ('expired', 'expired', ''), ('revoked', 'cancelled', ''), ('by hand', 'cancelled', 'by hand'),
])
def test_revoked_while_it_waits(held, reason, expected, error):
    row = make_result('pending')
    app.backend.mark_as_revoked(str(row.task_id), reason, parents_request(row))
    assert (now(row).status, row.reason, row.error, told(row)) == ('revoked', expected, error, 'REVOKED')


@pytest.mark.parametrize('state, meta, expected', [
    ('PROGRESS', {'current': 3, 'total': 10, 'step': 's'}, (3, 10, 's')),
    ('PROGRESS', {'percent': 12.7}, (12, 100, '')),
    ('PROGRESS', {'status': 'doing'}, (None, None, 'doing')),
    ('UPLOADING', {}, (None, None, 'UPLOADING')),
    ('PROGRESS', {'current': 'three', 'total': None, 'step': 5}, (None, None, '5')),
    ('PROGRESS', {'percent': float('nan')}, (None, None, '')),
    ('PROGRESS', {'percent': '40'}, (None, None, '')),
    ('PROGRESS', {'current': float('inf'), 'total': 1}, (None, 1, '')),
    ('PROGRESS', {'current': 10 ** 30, 'total': [10], 'step': ['s']}, (None, None, "['s']")),
    ('PROGRESS', {'current': True, 'total': 10 ** 400}, (None, None, '')),
    ('PROGRESS', 'text', (None, None, '')),
    (states.STARTED, {'current': 3}, (None, None, '')),
], ids=lambda value: type(value).__name__)
def test_custom_states(started, state, meta, expected):
    """A custom state of the task moves the row's progress and leaves its status."""
    row, request, run = started()
    app.backend.store_result(run.task_id, meta, state, request=request)
    recorder.flush(run)
    assert (now(row).value, row.value_max, row.step, row.status) == (*expected, 'running')
    assert told(row) == state
