"""Results from rows: what Redis does not hold, or no longer holds, is read from the row as Celery would report it."""
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from celery import states
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult, GroupResult
from django.db import OperationalError
from django.utils import timezone

from netbox_celery.celery import app
from netbox_celery.choices import ResultStatusChoices
from netbox_celery.engine.identity import identity
from netbox_celery.engine.results import rowresults
from netbox_celery.engine.store.payload import result_columns
from netbox_celery.models import CeleryResult
from tests.factories import make_result

pytestmark = pytest.mark.django_db(transaction=True)


def told(run):
    app.backend._cache.clear()
    return app.AsyncResult(str(run.task_id))


def stored(state=states.SUCCESS, result='of Redis', status=None):
    """Make a run with a result in Redis, whose row has since got a final status, if one is given."""
    run = make_result('running')
    app.backend.store_result(str(run.task_id), result, state)
    if status:
        CeleryResult.objects.filter(pk=run.pk).update(status=status, completed=timezone.now())
    return run


STATES = {
    'pending': 'PENDING', 'scheduled': 'PENDING', 'running': 'PENDING', 'retrying': 'RETRY', 'completed': 'SUCCESS',
    'failed': 'FAILURE', 'errored': 'FAILURE', 'revoked': 'REVOKED', 'ignored': 'IGNORED',
}


@pytest.mark.parametrize('status', ResultStatusChoices.values())
def test_states(status):
    """Each status maps to a state of Celery; only final statuses are ready."""
    result = told(make_result(status))
    assert result.state == STATES[status]
    assert result.ready() is (status in ResultStatusChoices.FINISHED)
    assert result.successful() is (status == 'completed')
    assert result.failed() is (status in ('failed', 'errored'))


@pytest.mark.parametrize('value', [
    5, None, 'text', [1, {'a': None}], UUID(int=5), date(2026, 1, 2), datetime(2026, 1, 2, tzinfo=UTC), Decimal('1.5'),
    b'bytes', 'characters left out',
], ids=str)
def test_results(value):
    assert told(make_result(result=value)).get(timeout=5) == value


def test_failures():
    """The error and the traceback come from the row; waiting for the result raises an exception."""
    result = told(make_result('failed', error='The device is away', traceback='File x'))
    with pytest.raises(Exception, match='The device is away'):
        result.get(timeout=5)
    assert result.traceback == 'File x'
    with pytest.raises(TaskRevokedError, match='By alice'):
        told(make_result('revoked', error='By alice')).get(timeout=5)
    assert told(make_result('ignored')).get(timeout=5) is None


def test_date_done():
    run = make_result()
    assert abs(told(run).date_done - run.last_updated) < timedelta(seconds=1)


@pytest.mark.parametrize('status, in_backend, age, told_by_row', [
    ('completed', False, 0, True), ('completed', True, 0, False), ('completed', True, 3600, True),
    ('retrying', False, 0, True), ('running', False, 0, False),
])
def test_results_in_redis_and_in_the_row(status, in_backend, age, told_by_row):
    """If Redis will hold more, the row is used only when Redis should have it by now, and has not."""
    run = make_result(status, result='of the row', in_backend=in_backend)
    if age:
        CeleryResult.objects.update(completed=timezone.now() - timedelta(seconds=age))
    assert (told(run).state == STATES[status] and status != 'running') is told_by_row


def test_redis_beats_the_row():
    """A final state in Redis is returned as it is: only Redis has exceptions, children and large results."""
    run = stored(status='completed')
    CeleryResult.objects.update(result='of the row')
    assert told(run).get(timeout=5) == 'of Redis'


@pytest.mark.parametrize('state', ['STARTED', 'RETRY', 'PROGRESS', 'ABORTED', 'MINE'])
def test_final_status_beats_an_earlier_state(state):
    """A non-final state in Redis, whoever stored it, does not hide the final status of the row."""
    run, open_run = (stored(state, ValueError() if state == 'RETRY' else {}) for __ in range(2))
    CeleryResult.objects.filter(pk=run.pk).update(status='completed', result=5, completed=timezone.now())
    assert (told(run).state, told(run).result) == ('SUCCESS', 5)
    assert told(open_run).state == state


def test_cut_result():
    """The beginning of a result is not returned as the result."""
    run = make_result(result='xxx… [cut: 5 of 9 characters left out]')
    assert told(run).state == 'PENDING'


def test_several_results():
    """Several results are read in one query: from Redis, from rows, or from neither."""
    of_row, of_redis, runs = make_result(result=1), stored(result=2, status='completed'), make_result('running')
    ids = [str(it.task_id) for it in (of_row, of_redis, runs)] + ['not-a-uuid', str(uuid4())]
    found = dict(zip(ids, app.backend.mget([app.backend.get_key_for_task(id) for id in ids])))
    assert [value is not None for value in found.values()] == [True, True, False, False, False]
    group = GroupResult('g', [AsyncResult(id, app=app) for id in ids[:2]], app=app)
    assert group.get(timeout=5) == [1, 2]
    assert app.backend.mget([]) == []


@pytest.mark.parametrize('key', ['celery-taskset-meta-x', 'something else', str(UUID(int=5))])
def test_other_keys(key):
    """Keys that are not a task's are left to Celery."""
    app.backend.delete(key)  # which another round of this test may have left
    assert app.backend.get(key) is None
    app.backend.set(key, b'value')
    assert app.backend.get(key) == b'value'


@pytest.mark.parametrize('is_worker', [False, True])
def test_database_unavailable(monkeypatch, caplog, is_worker):
    """Results that cannot be read count as unknown: only those in Redis are returned."""
    def away(*args, **kwargs):
        raise OperationalError('away')
    run = make_result()
    if is_worker:
        monkeypatch.setattr(identity, 'key', uuid4())
        monkeypatch.setattr(rowresults, 'get_connection', lambda: SimpleNamespace(execute=away))
    else:
        monkeypatch.setattr(rowresults, 'execute', away)
    assert told(run).state == 'PENDING'
    assert 'cannot be read from rows: away' in caplog.text


@pytest.mark.parametrize('request_, expected', [
    ({}, {}), ({'group': 'g', 'parent_id': 'p'}, {'group_id': 'g', 'parent_id': 'p'}),
])
def test_published(request_, expected):
    """The published message is Celery's own: those who wait need not know about rows."""
    task_id = str(uuid4())
    request = SimpleNamespace(**{'group': None, 'parent_id': None, **request_})
    listener = app.backend.client.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(app.backend.get_key_for_task(task_id))
    listener.get_message(timeout=5)
    app.backend.publish_result(task_id, '{"a": [1, "é"]}', request)
    meta = app.backend.decode(listener.get_message(timeout=5)['data'])
    listener.close()

    datetime.fromisoformat(meta.pop('date_done'))
    assert meta == {
        'status': 'SUCCESS', 'result': {'a': [1, 'é']}, 'traceback': None, 'children': [], 'task_id': task_id,
        **expected
    }
    assert app.backend.client.get(app.backend.get_key_for_task(task_id)) is None


@pytest.mark.parametrize('value', [
    [1e23], 1e16, {'x': -0.0}, {'b': 1, 'a': 2}, {'z': [{'y': 1, 'x': 2}]}, float('inf'), 'nul \x00', {'1': 1, '0': 0},
], ids=repr)
def test_result_comes_back_exactly(value):
    """Numbers and key orders that PostgreSQL changes come back as the task returned them."""
    run = make_result(**as_stored(value))
    result = told(run).get(timeout=5)
    assert (result, repr(result)) == (value, repr(value))
    assert repr(GroupResult('g', [told(run)], app=app).get(timeout=5)) == repr([value])


@pytest.mark.parametrize('value', [{1}, object(), 10 ** 5000], ids=type)
def test_text_in_the_place_of_a_result(value):
    """A text that is shown to people instead of the result is not what the task returned."""
    assert told(make_result(**as_stored(value))).state == 'PENDING'


def as_stored(value):
    """Return the columns of a result as they are read from the database."""
    columns, __ = result_columns(value, 1000)
    return columns | {'result': json.loads(columns['result'])}


MARKERS = [
    {'__type__': 'nothing', '__value__': 1}, {'__type__': 'decimal', '__value__': 'no number'},
    {'__type__': 'uuid', '__value__': 'x'}, {'__type__': 'time', '__value__': '25:00'},
    {'__type__': ['x'], '__value__': None}, [{'__type__': 'datetime', '__value__': 5}, UUID(int=1)],
]


@pytest.mark.parametrize('value', MARKERS, ids=repr)
@pytest.mark.parametrize('of_row', [True, False])
def test_value_like_a_type_marker(value, of_row):
    """A value that only looks like one of Kombu's type markers comes back as it is, from Redis and from the row."""
    run = make_result(result=value) if of_row else stored(result=value, status='completed')
    assert told(run).get(timeout=5) == value


def test_wait_beside_a_value_like_a_type_marker():
    """Such a result does not interrupt the wait for another one."""
    odd, other = make_result('running'), make_result('running')
    first, second = told(odd), app.AsyncResult(str(other.task_id))
    consumer = app.backend.result_consumer
    consumer.start(first.id)
    consumer.consume_from(second.id)
    for id, text in ((first.id, json.dumps(MARKERS[0])), (second.id, '5')):
        app.backend.publish_result(id, text, SimpleNamespace(group=None, parent_id=None))
    assert second.get(timeout=5) == 5
    assert first.get(timeout=5) == MARKERS[0]
