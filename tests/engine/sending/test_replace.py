"""The row of a task that replaces itself waits for the replacement, continues if that is not sent, or is closed."""
import json
from contextlib import suppress
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from celery.app.task import Context
from celery.exceptions import Ignore, Retry
from django.db import DEFAULT_DB_ALIAS, DataError, InternalError, connections, transaction

from netbox_celery.celery import app
from netbox_celery.engine.calls.call import Call
from netbox_celery.engine.calls.run import Run, get_run
from netbox_celery.engine.exceptions import DatabaseReadOnly
from netbox_celery.engine.runs import claim
from netbox_celery.engine.sending import admission, replace
from netbox_celery.engine.store import database, lifecycle
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
    replace.handing_over_row(lambda self, sig: act(), lambda *args, **kwargs: ends.append((args, kwargs)))(task, None)
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
    ((run,), options), = ends
    assert (run, options) == (get_run(task.request_stack.top), {'error': 'Replaced by a task that is not tracked'})
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
        assert replace.find_replaced(str(row.task_id), 1) == (True, {'opens': {'key': 60.0}})
    hand_over(task, send)
    assert replace.find_replaced(str(row.task_id), 1) == (True, {'opens': {'key': 60.0}})


@pytest.mark.parametrize('reason', ['replaced', ''])
def test_remember(begun, reason):
    """The replacement's message can be sent again, and its time is the row's if the row waits for it."""
    task, row = begun
    run = get_run(task.request_stack.top)
    if reason:
        CeleryResult.objects.filter(pk=row.pk).update(**WAITS)
    options = {'queue': 'q', 'priority': 3, 'expires': datetime(2031, 1, 1, tzinfo=UTC)}
    assert replace.remember(Call(app, 'tests:next', (2,), {'a': 1}, options, queue='q', run=run), True)
    found = now(row)
    args, kwargs, its_name, its_options = json.loads(found.message)
    assert (args, kwargs, its_name, its_options['priority']) == ([2], {'a': 1}, 'tests:next', 3)
    assert found.queue == 'q'
    assert found.expires.year == (2031 if reason else 2030)
    assert its_options['headers'] == {'netbox_celery': True} and 'headers' not in options


def test_what_cannot_be_remembered(begun):
    """Its message has to say that it differs from what the row was made for, and the row stays as it is."""
    task, row = begun
    call = Call(app, 'tests:next', (object(),), {}, {}, queue='q', run=get_run(task.request_stack.top))
    assert not replace.remember(call, {'window': 'a'})
    assert now(row).message == '[[1], {}]'


# The call that takes the row over

@pytest.mark.parametrize('nesting, has_row, expected', [(1, True, True), (0, True, False), (1, False, False)])
def test_takes_over(nesting, has_row, expected):
    """Tracked itself or not, as one of Celery's own tasks, it ends the row of what it replaced, if there is one."""
    task_id = make_result('pending').task_id if has_row else uuid4()
    assert replace.takes_over({'task_id': task_id, 'replaced_task_nesting': nesting}) is expected


@pytest.mark.parametrize('changed, nesting, expected', [
    ({}, 1, True), ({}, 2, False), ({'attempt': 1}, 1, False), ({'completed': '2030-01-01T00:00:00Z'}, 1, False),
], ids=str)
def test_find(changed, nesting, expected):
    """Only a row that waits for a call of that nesting, and is not started, is found."""
    run = make_result(**{**REPLACED, **changed})
    assert replace.find_replaced(str(run.task_id), nesting) == (expected, None)


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
    """The windows of the run, and the beginning that its row belongs to."""
    assert replace.inherited(own, header) == (expected if expected else own)


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


# The table: each way by its name, and how it comes about

class Scene:
    """A run that is executed here, and replaces itself, or one that has; `look` sees its row at the moment in question.
    """

    def __init__(self, begun, make_task, monkeypatch):
        self.task, self.row = begun
        self.run, self.make_task, self.patch = get_run(self.task.request_stack.top), make_task, monkeypatch
        CeleryResult.objects.update(message=None)

    def look(self):
        self.seen = now(self.row)

    def replace(self, act=lambda: None, is_sent=True):
        def on_replace(task, sig):
            act()
            self.run.continued = is_sent
            raise Ignore('replaced')
        with suppress(Ignore):
            claim._handing_over_row(on_replace)(self.task, None)
        return self

    def waiting(self, **columns):
        """Let the row be that of a task that has replaced itself."""
        CeleryResult.objects.filter(pk=self.row.pk).update(**{**REPLACED, 'holder': None, **columns})
        return self

    def call(self, **policy):
        """Send what takes the row over."""
        task = self.make_task(lambda self, task_id: None, name='tests:last')
        task.apply_async(task_id=str(self.row.task_id), replaced_task_nesting=1, queue='nobody', **policy)
        return self


def was_cancelled(scene):
    now(scene.row).cancel()
    scene.replace()


def cannot_wait(scene):
    def refuse(*args, **kwargs):
        raise DataError('odd')
    scene.patch.setattr(lifecycle, 'replace', refuse)
    scene.replace()


def remembers(scene):
    def send():
        call = Call(app, 'tests:next', (), {}, {}, queue='q', run=scene.run)
        assert replace.remember(call, True)
        scene.look()
    scene.replace(send)


def waits_in_line(scene):
    make_result('running', concurrency_key='k', concurrency_slot=1, concurrency_limit=1)
    scene.waiting().call(concurrency_key='k', on_conflict='queue')


def is_closed(scene):
    first, step = make_result('running', claims=1, attempt=1, attempts=[{}]), scene.waiting().row
    request = Context(
        id=str(first.task_id), task='tests:first', children=[], is_eager=False,
        netbox_run=Run(str(first.task_id), id=first.pk, claims=1),
        chain=[{'task': 'tests:last', 'args': [], 'kwargs': {}, 'options': {'task_id': str(step.task_id)}}],
    )
    app.backend.mark_as_failure(request.id, ValueError(), None, request)


def settled(scene, **columns):
    scene.waiting(holder=uuid4(), **columns)
    replace.settle(get_connection(), str(scene.row.task_id), 1, 'its worker was lost')


CASES = {
    'waits': lambda scene: scene.replace(scene.look),
    'was_cancelled': was_cancelled,
    'cannot_wait': cannot_wait,
    'remembers': remembers,
    'continues': lambda scene: scene.replace(is_sent=False),
    'is_released': lambda scene: scene.replace(),
    'is_taken_over': lambda scene: scene.waiting().call(),
    'is_taken_over_with_a_key': lambda scene: scene.waiting().call(concurrency_key='k', on_conflict='fail'),
    'waits_in_line': waits_in_line,
    'is_closed': is_closed,
    'is_cancelled': lambda scene: now(scene.waiting().row).cancel(),
    'is_sent_again': lambda scene: settled(scene, message='[[1], {}, "tests:next", {}]'),
    'is_lost': settled,
}


def statements_of(way):
    if way.statement == 'FINISH_BY':
        return [lifecycle.FINISH_BY['claim']]
    if way.statement in ('TAKE', 'LINE_UP'):
        return [getattr(admission, way.statement)[1]]
    return [getattr(replace if hasattr(replace, way.statement) else lifecycle, way.statement)]


def test_table():
    assert CASES.keys() == replace.WAYS.keys()


@pytest.mark.parametrize('name', replace.WAYS)
def test_way(begun, make_task, monkeypatch, name):
    """The row is as the table says, by the statement that it names."""
    way, executed, execute = replace.WAYS[name], [], database._execute

    def note(wrapper, sql, params):
        executed.append(sql)
        return execute(wrapper, sql, params)
    monkeypatch.setattr(database, '_execute', note)
    scene = Scene(begun, make_task, monkeypatch)
    scene.seen = None
    CASES[name](scene)
    row = scene.seen or now(scene.row)
    assert (row.status, row.reason) == (way.status, way.reason)
    assert (row.holder is not None, row.message is not None) == (way.is_held, way.has_message)
    assert any(sql.startswith(statement.rstrip()) for sql in executed for statement in statements_of(way))
