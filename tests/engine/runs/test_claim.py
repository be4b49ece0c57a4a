"""The claim before the body, with the requests that Celery makes."""
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial, wraps
from types import SimpleNamespace
from uuid import uuid4

import pytest
from celery import Celery, signals, states
from celery._state import _task_stack
from celery.app.task import Context
from celery.exceptions import Ignore, NotRegistered, Retry
from django.db import DatabaseError, OperationalError, ProgrammingError
from kombu.exceptions import EncodeError
from kombu.utils import json
from kombu.utils.json import register_type

from netbox_celery.celery import app
from netbox_celery.engine.calls.run import get_run
from netbox_celery.engine.exceptions import IgnoredByWindow
from netbox_celery.engine.runs import claim
from netbox_celery.engine.runs.claim import begin
from netbox_celery.engine.sending.admission import open_window
from netbox_celery.engine.store import lifecycle
from netbox_celery.engine.store.database import get_connection
from netbox_celery.engine.worker.signals import on_postrun
from netbox_celery.models import CeleryLogEntry, CeleryResult
from netbox_celery.tasks import CeleryBaseTask
from tests.factories import make_result
from tests.support import nested

pytestmark = pytest.mark.django_db(transaction=True)


def row():
    return CeleryResult.objects.get()


def test_claim(deliver, worker):
    task = deliver(make_result('pending').task_id)
    begin(task)
    run = get_run(task.request)
    assert (row().status, row().holder, row().worker, row().claims) == ('running', worker.key, 'celery@me', 1)
    assert (run.id, run.claims, run.attempt) == (row().pk, 1, 1)
    begin(task)  # an author may call `before_start` again
    assert row().claims == 1


@pytest.mark.parametrize('columns, request_, why', [
    ({'status': 'completed'}, {}, 'it is completed'),
    ({'status': 'revoked', 'reason': 'expired'}, {}, r'it is revoked \(expired\)'),
    ({'status': 'running', 'attempt': 1, 'claims': 1, 'worker': 'w2'}, {}, 'w2 is running it'),
    ({'status': 'retrying', 'attempt': 2, 'claims': 2}, {'retries': 1}, 'it is retrying'),
    (None, {}, 'its row was deleted'),
])
def test_refused(deliver, caplog, columns, request_, why):
    """The body does not run, the row stays as it is, and the log says why."""
    run = make_result(**columns) if columns else None
    task = deliver(run and run.task_id, **request_)
    with pytest.raises(Ignore, match=why):
        begin(task)
    assert get_run(task.request) is None
    assert 'is not run: ' in caplog.text
    on_postrun(sender=task, state=states.IGNORED, retval=Ignore())
    if run:
        assert (row().status, row().claims) == (run.status, run.claims)


def test_refused_without_a_row(deliver):
    """Those who wait for a deleted run, or for what follows it, learn that it will not run."""
    following = str(uuid4())
    task = deliver(chain=[{'task': 'tests:delivered', 'options': {'task_id': following}, 'args': [], 'kwargs': {}}])
    with pytest.raises(Ignore):
        begin(task)
    assert app.AsyncResult(task.request.id).state == 'REVOKED'
    assert (row().status, row().reason, str(row().task_id)) == ('errored', 'upstream_failed', following)
    assert app.AsyncResult(following).state == 'FAILURE'


@pytest.mark.parametrize('options, header, tracked', [
    ({}, None, True), ({}, True, True), ({}, {'window': None}, True), ({}, False, False),
    ({'netbox_track': False}, None, False), ({'netbox_track': False}, True, True),
])
def test_message_without_a_row(deliver, options, header, tracked):
    """The header says whether there is a row; without the header, the run gets one if its task is tracked."""
    task = deliver(task_options=options, netbox_celery=header)
    if header:
        with pytest.raises(Ignore, match='its row was deleted'):
            begin(task)
    else:
        begin(task)
        assert (get_run(task.request) is not None) is tracked
    assert CeleryResult.objects.count() == (1 if tracked and not header else 0)


@pytest.mark.parametrize('request_', [{'called_directly': True}, {'is_eager': True}, {'id': 'not-a-uuid'}], ids=str)
def test_not_tracked(deliver, request_):
    task = deliver(**request_)
    begin(task)
    assert get_run(task.request) is None
    assert CeleryResult.objects.count() == 0


def test_later_attempt(deliver):
    """An attempt continues where the earlier ones stopped, for example with the limit of the log."""
    run = make_result('retrying', attempt=1, claims=1)
    for number in range(3):
        CeleryLogEntry.objects.create(result=run, message=str(number))
    task = deliver(run.task_id, retries=1)
    begin(task)
    assert (get_run(task.request).lines, row().attempt, row().claims) == (3, 2, 2)


@pytest.mark.parametrize('error', [ProgrammingError('no such table'), OperationalError('x'), DatabaseError('x')])
def test_claim_that_cannot_be_taken(deliver, monkeypatch, caplog, error):
    """The task matters more than its row: it runs without one."""
    def fail(*args, **kwargs):
        raise error
    monkeypatch.setattr(claim, 'PATIENCE', 0)
    monkeypatch.setattr(lifecycle, 'claim', fail)
    task = deliver(make_result('pending').task_id)
    begin(task)
    assert task.request.netbox_unclaimed
    assert get_run(task.request) is None
    assert 'run without being tracked' in caplog.text


def test_ignore_window(deliver):
    """A run that waited while another one succeeded is ignored; the one that opened the window is not."""
    header = {'window': 'w', 'length': 60}
    opener, other = make_result('pending'), make_result('pending')
    open_window(get_connection().execute, 'w', 60, opener.task_id)
    task = deliver(opener.task_id, netbox_celery=header)
    begin(task)
    assert get_run(task.request).opens == {'w': 60}
    with pytest.raises(IgnoredByWindow) as caught:
        begin(deliver(other.task_id, netbox_celery=header))
    on_postrun(sender=app.tasks['tests:delivered'], state=states.IGNORED, retval=caught.value)
    other.refresh_from_db()
    assert (other.status, other.reason) == ('ignored', 'ignore_window')


@pytest.mark.parametrize('request_', [{'args': [nested(150)]}, {'kwargs': {'x': nested(800)}}], ids=['args', 'kwargs'])
def test_foreign_message_that_no_call_could_send(deliver, request_):
    """It gets a row that shows its arguments as text, and does not run."""
    task = deliver(netbox_celery=None, **request_)
    with pytest.raises(EncodeError, match='nested too deeply'):
        begin(task)
    assert row().status == 'running'
    assert '[[' in (row().args if 'args' in request_ else row().kwargs)
    assert not row().is_rerunnable
    app.backend.mark_as_failure(task.request.id, EncodeError('nested too deeply'), None, task.request)
    assert (row().status, row().error) == ('errored', 'EncodeError: nested too deeply')


# A message with the ID of another call's row

class Point:
    """A class that an author has registered with Kombu."""

    def __init__(self, x):
        self.x = x


@pytest.fixture
def point():
    register_type(Point, 'point', lambda point: {'x': point.x, 'salt': uuid4().hex}, lambda value: Point(value['x']))
    Point.__eq__ = lambda self, other: self.x == other.x
    yield Point
    json._encoders.pop(Point, None)
    json._decoders.pop('point', None)


@pytest.mark.parametrize('args, kwargs', [
    ([], {}), ([1, 'a', None, True, 2.5, 1e23, 10 ** 20], {'b': {'c': [1]}}), (['a\x00b', '\ud800'], {}),
    ([float('inf')], {}), ([datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 5), uuid4(), Decimal('1.10')], {}),
    ([b'x', date(2026, 1, 1), ('a', 'b'), {1: 'x'}], {'z': 1, 'a': {'z': 1, 'a': 2}}),
    (['x' * 100_000], {}), (['é', '"\\'], {'é': ''}),
    ([[1.0, 100, 1e2, -0.0]], {}),
], ids=lambda value: repr(value)[:40])
@pytest.mark.parametrize('options', [{}, {'argsrepr': '(...)'}], ids=str)
def test_same_call(make_task, deliver, args, kwargs, options):
    """Every call that can be sent is claimed by its own message, as Kombu decodes it."""
    task = make_task(lambda self, task_id, *args, **kwargs: None, name='tests:delivered')
    result = task.apply_async(args, kwargs, **options)
    received = json.loads(json.dumps([args, kwargs]))
    begin(deliver(result.id, args=received[0], kwargs=received[1]))
    assert row().status == 'running'


def test_same_call_encoded_differently(point, make_task, deliver):
    """Equal calls need not be encoded alike, as with a set."""
    task = make_task(lambda self, task_id, *args, **kwargs: None, name='tests:delivered')
    result = task.delay(Point(5))
    with pytest.raises(Ignore):
        begin(deliver(result.id, args=[Point(6)]))
    begin(deliver(result.id, args=[Point(5)]))
    assert row().status == 'running'


@pytest.mark.parametrize('number', [1, 1e23, -0.0, 1e16, float('nan')])
@pytest.mark.parametrize('length', [0, 243, 300])
def test_same_call_encoded_and_stored_differently(point, make_task, deliver, number, length):
    """With numbers that `jsonb` changes, and a task name that is cut in the row."""
    name = 'tests:' + 'x' * length
    result = make_task(lambda self, task_id, *args, **kwargs: None, name=name).delay(Point(5), number)
    begin(deliver(result.id, task=name, args=[Point(5), number]))
    assert row().status == 'running'


@pytest.mark.parametrize('args', [['\x00'], ['\ud800'], [float('nan')], ['\\u0000'], ['\\ud800 NaN']], ids=ascii)
def test_another_call_that_no_row_could_hold(make_task, deliver, args):
    """The row of an ordinary call is not that of a call with such arguments."""
    task = make_task(lambda self, task_id, *args, **kwargs: None, name='tests:delivered')
    result = task.delay(1)
    with pytest.raises(Ignore, match='another call'):
        begin(deliver(result.id, args=args))
    own = task.apply_async(args)
    begin(deliver(own.id, args=args))
    assert CeleryResult.objects.get(task_id=own.id).status == 'running'


@pytest.mark.parametrize('options', [{}, {'argsrepr': '(...)', 'kwargsrepr': '{...}'}], ids=str)
@pytest.mark.parametrize('args', [[5], ['x' * 100_000], ['\x00']], ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize('header', [True, None, {'window': None}], ids=str)
@pytest.mark.parametrize('message', [
    {'task': 'tests:other'}, {'args': []}, {'args': [6]}, {'kwargs': {}}, {'kwargs': {'a': '1'}},
    {'args': [5, 5]}, {'task': 'tests:other', 'args': [], 'kwargs': {}}, {'retries': 1, 'args': [6]},
], ids=str)
def test_another_call(make_task, deliver, caplog, options, args, header, message):
    """A message of another call does not run, the log says why, and the row stays available for its own message."""
    task = make_task(lambda self, task_id, *args, **kwargs: None, name='tests:delivered')
    result = task.apply_async(args, {'a': 1}, **options)
    own = {'args': args, 'kwargs': {'a': 1}}
    with pytest.raises(Ignore, match='its row is that of another call'):
        begin(deliver(result.id, netbox_celery=header, **own | message))
    assert 'of tests:delivered' in caplog.text
    assert (row().status, row().claims, row().celery_name) == ('pending', 0, 'tests:delivered')
    begin(deliver(result.id, netbox_celery=header, **own))
    assert row().status == 'running'


def test_retry_with_other_arguments(make_task, deliver):
    """The row knows the message of the retry; one with the first arguments is a copy, or foreign."""
    run = make_result('retrying', attempt=1, claims=1, args=[1], kwargs={}, celery_name='tests:delivered',
                      message='[[2], {}, "tests:delivered", {}]')
    for args in ([1], [3]):
        with pytest.raises(Ignore):
            begin(deliver(run.task_id, retries=1, args=args))
    begin(deliver(run.task_id, retries=1, args=[2]))
    assert (row().status, row().attempt) == ('running', 2)


@pytest.mark.parametrize('columns', [
    {'message': 'garbage'}, {'message': '5'}, {'message': '[1]'}, {'message': '[' * 5000}, {'message': '""'},
    {'args': {'no': 'list'}, 'exact_call': 'garbage'}, {'args': [2], 'exact_call': '7'},
], ids=lambda columns: str(columns)[:40])
def test_row_that_holds_no_call(deliver, columns):
    """Such a row cannot tell a message of another call."""
    run = make_result('pending', celery_name='tests:delivered', **{'args': [1], 'kwargs': {}} | columns)
    begin(deliver(run.task_id, args=[1]))
    assert row().status == 'running'


def test_retry_that_could_not_be_remembered(deliver):
    run = make_result('retrying', attempt=1, claims=1, args=[1], kwargs={})
    begin(deliver(run.task_id, retries=1, args=[2], netbox_celery={'differs': True}))
    assert row().status == 'running'


@pytest.mark.parametrize('message, task, is_claimed', [
    ('[[2], {}, "tests:delivered", {}]', 'tests:delivered', True), (None, 'tests:delivered', True),
    ('[[2], {}, "tests:third", {}]', 'tests:delivered', False), ('[[2], {}, "tests:x", {}]', 'tests:x', True),
    ('[[3], {}, "tests:delivered", {}]', 'tests:delivered', False),
])
def test_replacement(deliver, message, task, is_claimed):
    """Its task has another name, which the row knows once it is sent."""
    run = make_result('pending', reason='replaced', nesting=1, claims=1, args=[1], kwargs={}, message=message,
                      celery_name='tests:first')
    message = deliver(run.task_id, task=task, replaced_task_nesting=1, args=[2])
    if is_claimed:
        begin(message)
        assert row().status == 'running'
    else:
        with pytest.raises(Ignore, match='another call'):
            begin(message)
        assert row().status == 'pending'


@pytest.mark.parametrize('name, status', [
    ('tests:another', 'pending'), ('tests:far', 'errored'), ('tests:far' + 'x' * 300, 'errored')
], ids=lambda value: value[:20])
def test_unregistered(name, status):
    """A message of an unregistered task does not end the run of another task."""
    run = make_result('pending', celery_name=name[:255] if name.startswith('tests:far') else 'tests:far')
    request = SimpleNamespace(name=name, chord=None, root_id=None, correlation_id=None, reply_to=None, errbacks=None)
    app.backend.mark_as_failure(str(run.task_id), NotRegistered(name), request=request)
    assert row().status == status


@pytest.mark.parametrize('name, status', [('tests:another', 'pending'), ('tests:far', 'revoked'), (None, 'revoked')])
def test_expired(name, status):
    """Nor does an expired message of another task."""
    run = make_result('pending', celery_name='tests:far')
    app.backend.mark_as_revoked(str(run.task_id), 'expired', request=Context({'id': str(run.task_id), 'task': name}))
    assert row().status == status


# Arguments changed in place, after the call or before the claim

@pytest.fixture
def published(make_task, deliver, monkeypatch):
    """What Celery was given to publish; called, it delivers the last message and returns the task that executes it."""
    calls, executing = [], []
    publish = Celery.send_task

    def send_task(self, name, args=None, kwargs=None, **options):
        calls.append((name, *json.loads(json.dumps([args or (), kwargs or {}])), options))
        return publish(self, name, args, kwargs, **options)

    def deliver_last():
        name, args, kwargs, options = calls[-1]
        task = deliver(
            options['task_id'], task=name, args=args, kwargs=kwargs, retries=options.get('retries', 0),
            netbox_celery=options['headers']['netbox_celery'],
            delivery_info={'exchange': '', 'routing_key': app.conf.task_default_queue}
        )
        begin(task)
        _task_stack.push(task)
        executing.append(task)
        return task
    monkeypatch.setattr(Celery, 'send_task', send_task)
    deliver_last.task = make_task(
        lambda self, task_id, *args, **kwargs: None, name='tests:delivered', max_retries=5
    )
    yield deliver_last
    for __ in executing:
        _task_stack.pop()


@pytest.mark.parametrize('options', [{}, {'argsrepr': '(...)', 'kwargsrepr': '{...}'}], ids=str)
def test_retry_after_a_change_in_place(published, options):
    """The retry gets the arguments as the body changed them, and they are what would be sent again."""
    published.task.apply_async(([1],), {'d': {}}, **options)
    for number in (2, 3, 4):
        task = published()
        task.request.args[0].append(number)
        task.request.kwargs['d'][str(number)] = [1e23]
        with pytest.raises(Retry):
            task.retry(countdown=0)
        assert json.loads(row().message)[:2] == [task.request.args[:], task.request.kwargs]
    assert published().request.args == [[1, 2, 3, 4]]
    assert row().attempt == 4


def test_retry_after_one_that_was_not_sent(published, monkeypatch):
    """The row holds the call of the last retry that was tried."""
    published.task.delay(1)
    task = published()
    publish = Celery.send_task

    def fail(*args, **kwargs):
        raise OSError('no broker')
    monkeypatch.setattr(Celery, 'send_task', fail)
    with pytest.raises(Exception, match='no broker'):
        task.retry(args=(2,))
    monkeypatch.setattr(Celery, 'send_task', publish)
    with pytest.raises(Retry):
        task.retry()
    assert published().request.args == [1]
    assert row().attempt == 2


@contextmanager
def connected(signal, handler):
    signal.connect(handler)
    try:
        yield
    finally:
        signal.disconnect(handler)


@pytest.mark.parametrize('many', [False, True])
def test_handler_of_before_task_publish(make_task, deliver, monkeypatch, many):
    """Such a handler may add arguments to each message: the message says so, and is claimed."""
    task = make_task(lambda self, task_id, *args, **kwargs: None, name='tests:delivered')
    sent = []

    def give_along(body=None, **others):
        body[1]['tenant'] = 'x'
        body[0][0].append(2)
    with connected(signals.before_task_publish, give_along):
        with monkeypatch.context() as patch:
            patch.setattr(
                'kombu.messaging.Producer.publish', lambda self, body, headers, **o: sent.append((body, headers))
            )
            if many:
                CeleryResult.enqueue_many(task, [(([1],), {'a': 1})])
            else:
                task.delay([1], a=1)
    (args, kwargs, __), headers = sent[0]
    assert (list(args), kwargs) == ([[1, 2]], {'a': 1, 'tenant': 'x'})
    assert row().args == [[1]]
    begin(deliver(
        row().task_id, args=args, kwargs=kwargs, netbox_celery=headers['netbox_celery']
    ))
    assert row().status == 'running'


def test_handler_of_before_task_publish_that_changes_no_arguments(make_task, deliver):
    """The message is compared like any other."""
    task = make_task(lambda self, task_id, *args, **kwargs: None, name='tests:delivered')
    heard = []
    with connected(signals.before_task_publish, lambda headers=None, **others: heard.append(headers)):
        task.delay(b'x', date(2026, 1, 1))
    assert heard[0]['netbox_celery'] is True


def test_handler_of_task_prerun(make_task, deliver):
    """Such a handler may remove what was added; the claim compares the message as it was received."""
    task = make_task(lambda self, task_id, *args, **kwargs: None, name='tests:delivered')
    result = task.delay([1], context=5)

    def take_out(args=None, kwargs=None, **others):
        kwargs.pop('context')
        args[0].append(2)
    for args, is_same in (([[2]], False), ([[1]], True)):
        delivered = deliver(result.id, args=args, kwargs={'context': 5})
        request = delivered.request
        with connected(signals.task_prerun, take_out):
            signals.task_prerun.send(
                sender=delivered, task_id=result.id, task=delivered, args=request.args, kwargs=request.kwargs
            )
        assert request.kwargs == {}
        if is_same:
            begin(delivered)
        else:
            with pytest.raises(Ignore, match='another call'):
                begin(delivered)
    assert row().status == 'running'


# Handlers of authors

@pytest.fixture
def track():
    """Let all tasks claim their runs, as in a worker: those of the app, and those that are registered later."""
    yield lambda: claim.track_all_tasks(app)
    app.tasks.on_register = None


def test_decorated_handlers(make_task, deliver, track):
    """An author's decorators of handlers stay, and each handler is wrapped once."""
    heard = []

    def decorated(function):
        @wraps(function)
        def wrapper(*args):
            heard.append('decorator')
            return function(*args)
        return wrapper

    class Base(CeleryBaseTask):
        abstract = True

        @decorated
        def before_start(self, task_id, args, kwargs):
            heard.append('base')

        @decorated
        def on_replace(self, sig):
            heard.append('replace')

    class Child(Base):
        abstract = True

        def before_start(self, task_id, args, kwargs):
            heard.append('child')
            super().before_start(task_id, args, kwargs)

    tasks = [make_task(lambda self, task_id: None, name=f'tests:{base.__name__}', base=base) for base in (Base, Child)]
    for __ in range(3):
        track()
    for task, expected in zip(tasks, (['decorator', 'base'], ['child', 'decorator', 'base'])):
        run = make_result('pending', celery_name=task.name)
        task.request_stack.push(deliver(run.task_id, task=task.name).request_stack.top)
        heard.clear()
        task.before_start(str(run.task_id), (), {})
        assert heard == expected
        run.refresh_from_db()
        assert run.claims == 1
        heard.clear()
        task.on_replace(None)
        assert heard == ['decorator', 'replace']
        run.refresh_from_db()
        assert (run.status, run.reason) == ('pending', 'replaced')
        task.pop_request()


@pytest.mark.parametrize('make', [
    lambda heard: staticmethod(lambda task_id, args, kwargs: heard.append(task_id)),
    lambda heard: classmethod(lambda cls, task_id, args, kwargs: heard.append(task_id)),
    lambda heard: partial(lambda heard, task_id, args, kwargs: heard.append(task_id), heard),
    lambda heard: lambda self, task_id, args, kwargs: heard.append(task_id),
], ids=['static', 'class', 'partial', 'function'])
def test_handlers_of_any_kind(make_task, track, make):
    heard = []
    task = make_task(lambda self, task_id: None, name='tests:kind', before_start=make(heard))
    track()
    task.before_start('x', (), {})
    assert heard == ['x']


def test_handler_of_an_instance(make_task, deliver, track):
    heard = []
    task = make_task(lambda self, task_id: None, name='tests:delivered')
    task.before_start = lambda task_id, args, kwargs: heard.append(task_id)
    track()
    run = make_result('pending')
    deliver(run.task_id)
    task.before_start(str(run.task_id), (), {})
    assert (heard, row().claims) == ([str(run.task_id)], 1)


def test_registered_later(make_task, deliver, track):
    """A task that is registered later claims its runs: one made by a decorator, and one made as a class."""
    track()
    try:
        class Later(CeleryBaseTask):
            name = 'tests:later'

            def run(self, task_id):
                pass
        tasks = [
            make_task(lambda self, task_id: None, name='tests:decorated'), app.register_task(Later()),
        ]
        for task in tasks:
            run = make_result('pending', celery_name=task.name)
            task.request_stack.push(deliver(run.task_id, task=task.name).request_stack.top)
            task.before_start(str(run.task_id), (), {})
            task.pop_request()
            run.refresh_from_db()
            assert run.claims == 1
    finally:
        app.tasks.pop('tests:later', None)
