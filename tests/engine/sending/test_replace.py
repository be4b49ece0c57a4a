"""The row of a task that replaces itself waits for the replacement, continues if that is not sent, or is closed."""
import json
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from celery.exceptions import Ignore, Retry
from django.db import DEFAULT_DB_ALIAS, DataError, InternalError, connections, transaction

from netbox_celery.celery import app
from netbox_celery.engine.calls.run import get_run
from netbox_celery.engine.exceptions import DatabaseReadOnly
from netbox_celery.engine.runs import claim
from netbox_celery.engine.sending import replace
from netbox_celery.engine.store import lifecycle
from netbox_celery.engine.store.database import get_connection
from netbox_celery.models import CeleryResult
from tests.factories import make_result

pytestmark = pytest.mark.django_db(transaction=True)

REPLACED = {'status': 'pending', 'reason': 'replaced', 'nesting': 1, 'claims': 1, 'attempt': 0, 'attempts': [{}]}
WAITS = {'status': 'pending', 'reason': 'replaced', 'nesting': 1, 'attempt': 0}


def now(run):
    return CeleryResult.objects.get(pk=run.pk)


def columns(run, *names):
    return {name: getattr(now(run), name) for name in names}


@pytest.fixture
def begun(deliver):
    """A run that is executed here: the task, and its row."""
    row = make_result('pending', args=[1], expires='2030-01-01T00:00:00Z')
    task = deliver(row.task_id, args=[1])
    claim.begin(task)
    CeleryResult.objects.filter(pk=row.pk).update(message='[[1], {}]')
    return task, row


def hand_over(task, act):
    """Replace a task, with an `on_replace` of its author."""
    ends = []
    replace.making_way(lambda self, sig: act(), lambda *args, **kwargs: ends.append((args, kwargs)))(task, None)
    return ends


def raising(exc):
    def act():
        raise exc
    return act


# The task that replaces itself

def test_row_waits(begun, worker):
    """While the replacement is sent the worker holds the row, then no one does; the first message is forgotten."""
    task, row = begun
    run, seen = get_run(task.request_stack.top), []

    def send():
        seen.append(now(row))
        run.continued = True
        raise Ignore('replaced')
    with pytest.raises(Ignore):
        hand_over(task, send)
    during, after = seen[0], now(row)
    assert (during.holder, after.holder) == (worker.key, None)
    for found in (during, after):
        assert {name: getattr(found, name) for name in WAITS} == WAITS
        assert (found.message, found.sent, found.expires, found.completed) == (None, None, None, None)
    assert run.replaced


@pytest.mark.parametrize('exc', [ConnectionError('away'), Ignore('nothing was sent'), KeyboardInterrupt()], ids=repr)
def test_what_cannot_be_sent(begun, exc):
    """The run continues as if no replacement had been tried."""
    task, row = begun
    before = vars(now(row)).copy()
    with pytest.raises(type(exc)):
        hand_over(task, raising(exc))
    after = vars(now(row))
    changed = {name for name in after if after[name] != before[name]} - {'_state', 'last_updated', 'attempts'}
    assert changed == set()
    assert after['status'] == 'running'
    assert not get_run(task.request_stack.top).replaced


def test_cancelled_meanwhile(begun):
    """The run is revoked as cancelled, and the row is not taken back."""
    task, row = begun
    assert now(row).cancel()
    CeleryResult.objects.filter(pk=row.pk).update(status='running', completed=None)
    with pytest.raises(Ignore):
        hand_over(task, raising(Ignore()))
    assert columns(row, 'status', 'reason') == {'status': 'revoked', 'reason': 'cancelled'}


def test_held_by_another(begun):
    """A worker that has lost its claim changes nothing."""
    task, row = begun
    CeleryResult.objects.filter(pk=row.pk).update(claims=2)
    with pytest.raises(Ignore):
        hand_over(task, raising(Ignore()))
    assert columns(row, 'status', 'nesting', 'reason') == {'status': 'running', 'nesting': 0, 'reason': ''}


def test_not_tracked(make_task):
    task = make_task(lambda self, task_id: None, name='tests:untracked')
    task.push_request(id=str(uuid4()))
    with pytest.raises(Retry):
        hand_over(task, raising(Retry()))
    task.pop_request()


def test_read_only(begun, monkeypatch):
    """Nothing is sent, and the error says why."""
    task, row = begun
    error, sent = InternalError('read-only'), []
    error.__cause__ = type('Cause', (Exception,), {'sqlstate': '25006'})()

    def refuse(*args, **kwargs):
        raise error
    monkeypatch.setattr(lifecycle, 'replace', refuse)
    with pytest.raises(DatabaseReadOnly, match=f'Task {row.task_id} was not replaced'):
        hand_over(task, lambda: sent.append(1))
    assert (sent, now(row).status) == ([], 'running')


def test_row_that_cannot_wait(begun, monkeypatch):
    """The replacement matters more than the row, which is ended."""
    task, row = begun
    sent = []

    def refuse(*args, **kwargs):
        raise DataError('odd')
    monkeypatch.setattr(lifecycle, 'replace', refuse)
    ends = hand_over(task, lambda: sent.append(1))
    ((run, status), options), = ends
    assert (run, status, options) == (
        get_run(task.request_stack.top), 'ignored', {'error': 'Replaced by a task that is not tracked'}
    )
    assert sent == [1]


def test_transaction_of_the_body(begun):
    """It is rolled back when `Ignore` leaves the body, unlike what is sent meanwhile."""
    task, __ = begun
    others = []

    def send():
        others.append(connections[DEFAULT_DB_ALIAS].in_atomic_block)
        make_result('pending', name='sent meanwhile')
    with pytest.raises(ValueError, match='left'), transaction.atomic():
        make_result('pending', name='of the body')
        hand_over(task, send)
        assert connections[DEFAULT_DB_ALIAS].in_atomic_block
        raise ValueError('left')
    assert others == [False]
    names = set(CeleryResult.objects.values_list('name', flat=True))
    assert 'sent meanwhile' in names and 'of the body' not in names


def test_ignore_window(begun):
    """The window that the run's success would open is kept in its row for the replacement."""
    task, row = begun
    get_run(task.request_stack.top).opens = {'key': 60.0}

    def send():
        get_run(task.request_stack.top).continued = True
        assert replace.find(str(row.task_id), 1) == (True, {'opens': {'key': 60.0}})
    hand_over(task, send)
    assert replace.find(str(row.task_id), 1) == (True, {'opens': {'key': 60.0}})


@pytest.mark.parametrize('reason', ['replaced', ''])
def test_remember(begun, reason):
    """The replacement's message can be sent again, and its time is the row's if the row waits for it."""
    task, row = begun
    run = get_run(task.request_stack.top)
    if reason:
        CeleryResult.objects.filter(pk=row.pk).update(**WAITS)
    options = {'queue': 'q', 'priority': 3, 'expires': datetime(2031, 1, 1, tzinfo=UTC)}
    replace.remember(app, run, 'tests:next', (2,), {'a': 1}, options, None, 'q')
    found = now(row)
    args, kwargs, its_name, its_options = json.loads(found.message)
    assert (args, kwargs, its_name, its_options['priority']) == ([2], {'a': 1}, 'tests:next', 3)
    assert found.queue == 'q'
    assert found.expires.year == (2031 if reason else 2030)
    assert 'headers' not in options


def test_what_cannot_be_remembered(begun):
    """The message says that it differs from the row's."""
    task, row = begun
    options = {'headers': {'x': 1, 'netbox_celery': {'window': 'a'}}}
    replace.remember(app, get_run(task.request_stack.top), 'tests:next', (object(),), {}, options, None, 'q')
    assert options['headers'] == {'x': 1, 'netbox_celery': {'window': 'a', 'differs': True}}
    assert now(row).message == '[[1], {}]'


# The call that takes the row over

@pytest.mark.parametrize('changed, nesting, expected', [
    ({}, 1, True), ({}, 2, False), ({'attempt': 1}, 1, False), ({'completed': '2030-01-01T00:00:00Z'}, 1, False),
], ids=str)
def test_find(changed, nesting, expected):
    """Only a row that waits for a call of that nesting, and is not started, is found."""
    run = make_result(**{**REPLACED, **changed})
    assert replace.find(str(run.task_id), nesting) == (expected, None)


@pytest.mark.parametrize('header, own, expected', [
    (None, None, None), (True, None, None), ({}, None, None), ({'differs': True}, None, None),
    ({'opens': {'a': 1.0}}, None, {'opens': {'a': 1.0}}),
    ({'window': 'a', 'length': 1.0}, {'window': 'b', 'length': 2.0}, {
        'window': 'b', 'length': 2.0, 'opens': {'a': 1.0, 'b': 2.0}
    }),
    ({'begun': 1, 'before': 2, 'caller': 'x', 'differs': True}, True, {
        'begun': 1, 'before': 2, 'caller': 'x', 'opens': {}
    }),
], ids=str)
def test_inherit(header, own, expected):
    """The windows of the run, and which call its row belongs to."""
    options = {'headers': {'netbox_celery': own}} if own else {}
    replace.inherit(options, header)
    assert (options.get('headers') or {}).get('netbox_celery') == (expected if expected else own)


@pytest.mark.parametrize('header, expected', [
    ({}, {}), ({'window': 'a'}, {}), ({'length': 1}, {}), ({'window': 'a', 'length': 1.0}, {'a': 1.0}),
    ({'opens': {'b': 2.0}, 'window': 'a', 'length': 1.0}, {'a': 1.0, 'b': 2.0}), ({'opens': 'odd'}, {}),
], ids=str)
def test_opened_by(header, expected):
    before = json.dumps(header)
    assert replace.opened_by(header) == expected
    assert json.dumps(header) == before


# The sweep

@pytest.mark.parametrize('message, status, reason', [
    ('[[1], {}, "tests:next", {}]', 'pending', 'replaced'), (None, 'errored', 'worker_lost'),
])
def test_settle(message, status, reason):
    """A replacement that is remembered is sent again; otherwise the run is ended."""
    run = make_result(**REPLACED, holder=uuid4(), message=message, sent='2020-01-01T00:00:00Z')
    found = replace.settle(get_connection(), str(run.task_id), 1, 'its worker was lost')
    assert columns(run, 'status', 'reason') == {'status': status, 'reason': reason}
    assert found == (None if message else (run.pk, None))
    assert (now(run).holder, now(run).sent) == (None, None) or not message
    assert now(run).error == ('' if message else 'its worker was lost')


def test_settled_by_another():
    """A row that was claimed since is not changed."""
    run = make_result(**{**REPLACED, 'status': 'running', 'attempt': 1}, holder=uuid4())
    assert replace.settle(get_connection(), str(run.task_id), 1, 'lost') is None
    assert columns(run, 'status', 'error') == {'status': 'running', 'error': ''}
