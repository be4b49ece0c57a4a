"""The sweep finds lost runs: each of its steps on rows of its own."""
import contextlib
import ssl
import struct
from datetime import timedelta
from types import SimpleNamespace
from unittest import mock
from uuid import uuid4

import amqp
import pytest
from amqp.exceptions import AccessRefused, AMQPError, MessageNacked, PreconditionFailed, ResourceLocked
from billiard.exceptions import WorkerLostError
from celery import Celery, signals
from celery.worker import state
from django.db import DatabaseError
from django.utils import timezone
from kombu.exceptions import OperationalError
from redis.exceptions import OutOfMemoryError, ResponseError

from netbox_celery.celery import app
from netbox_celery.engine.exceptions import QueueRefused
from netbox_celery.engine.worker import sweep
from netbox_celery.models import CeleryResult
from tests.factories import make_result, make_worker
from tests.support import ago, nested, now

pytestmark = pytest.mark.django_db

ME = uuid4()


@pytest.fixture(autouse=True)
def registered(make_task):
    make_task(lambda self, task_id: None, name='tests:early')
    make_task(lambda self, task_id: None, name='tests:late', acks_late=True)


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    monkeypatch.setattr(sweep, 'identity', SimpleNamespace(
        key=ME, name='me', may_declare_lost=True, steady_for=float('inf')
    ))


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    told = mock.Mock()
    monkeypatch.setattr(app.backend, 'report_end', lambda task_id, exc, state: told(str(task_id), state))
    return told


@pytest.fixture
def sent(monkeypatch):
    sent = []

    def send(app, name, args, kwargs, **options):
        sent.append((options['task_id'], name, args, kwargs, options))
    monkeypatch.setattr(Celery, 'send_task', send)
    return sent


def caused(error, cause):
    error.__cause__ = cause
    return error


def running(name='tests:early', holder=None, **columns):
    return make_result(**{
        'status': 'running', 'celery_name': name, 'holder': holder, 'claims': 1, 'attempt': 1, 'attempts': [{}],
        'sent': ago(50), 'worker': 'w', **columns,
    })


def test_runs_of_dead_workers(shared, backend):
    """Runs of silent, stopped or unknown workers end, or are requeued if they are acknowledged late."""
    alive, silent, stopped = uuid4(), uuid4(), uuid4()
    make_worker(key=alive)
    make_worker(key=silent, heartbeat=ago(100))
    make_worker(key=stopped, stopped=ago(1))
    stays = [running(holder=alive), running('tests:late', holder=alive), make_result('pending')]
    ends = [running(holder=key) for key in (silent, stopped, uuid4(), None)] + [running('tests:unknown', silent)]
    waits = [running('tests:late', holder=key) for key in (silent, stopped)]
    sweep.close_lost(shared, app)

    assert [now(run).status for run in stays] == ['running', 'running', 'pending']
    assert {(now(run).status, run.reason) for run in ends} == {('errored', 'worker_lost')}
    assert {(now(run).status, run.sent) for run in waits} == {('pending', None)}
    assert {call.args for call in backend.call_args_list} == {(str(run.task_id), 'FAILURE') for run in ends}


@pytest.mark.parametrize('silent, steady, is_lost', [(60, 1_000, False), (160, 1_000, True), (160, 50, False)])
def test_worker_with_settings_of_its_own(shared, monkeypatch, silent, steady, is_lost):
    """A worker with a long heartbeat interval is not declared lost by one with a short interval."""
    monkeypatch.setattr(sweep.identity, 'steady_for', steady)
    slow = make_worker(
        versions={'@worker': {'lost_after': 100}}, heartbeat=timezone.now() - timedelta(seconds=silent)
    )
    run = make_result('running', celery_name='tests:early', holder=slow.key, claims=1, attempts=[{}])
    sweep.close_lost(shared, app)
    run.refresh_from_db()
    assert (run.status == 'errored', slow.is_alive) == (is_lost, silent < 100)


@pytest.mark.parametrize('message, status', [
    (None, 'errored'),
    ('[[], {}, "tests:early", {}]', 'errored'),
    ('[[1], {}, "tests:late", {"queue": "q"}]', 'pending'),
])
def test_replacements_of_dead_workers(shared, sent, message, status):
    """Whether it is run again depends on what replaced the task, if the row remembers that."""
    run = running('tests:late', nesting=1, message=message)
    sweep.close_lost(shared, app)
    sweep.resend(shared, app)

    assert now(run).status == status
    assert [entry[1:4] for entry in sent] == ([('tests:late', [1], {})] if status == 'pending' else [])


@pytest.mark.parametrize('message, expected', [
    # It is not remembered, so it cannot be sent
    (None, ('errored', 'worker_lost')),
    ('[[1], {}, "tests:early", {"queue": "q"}]', ('pending', 'replaced')),
])
def test_replacement_on_its_way(shared, sent, backend, message, expected):
    """If a worker dies while it sends a replacement, the row is sent, or ended."""
    columns = {'claims': 1, 'attempts': [{}], 'nesting': 1, 'reason': 'replaced', 'message': message}
    alive = make_worker(key=uuid4())
    lost = make_result('pending', holder=uuid4(), **columns)
    others = [
        make_result('pending', holder=alive.key, **columns), make_result('pending', **columns, sent=ago(1)),
        make_result('pending', sent=ago(1)),
    ]
    sweep.close_lost(shared, app)
    assert [now(run).status for run in others] == ['pending'] * 3
    assert (now(lost).status, lost.reason) == expected
    CeleryResult.objects.update(last_updated=ago(60))
    sweep.resend(shared, app)
    found = {task_id for task_id, *__ in sent}
    assert (str(lost.task_id) in found) == (message is not None)
    assert [call.args for call in backend.call_args_list] == (
        [] if message else [(str(lost.task_id), 'FAILURE')]
    )


@pytest.mark.parametrize('message', [None, '[[5], {}]', '[[5], {}, "tests:late", {}]'])
def test_message_of_any_length(shared, message):
    """Whatever a row with a nesting remembers is read, and does not block the rows behind it."""
    first, second = running('tests:late', nesting=1, message=message), running()
    sweep.close_lost(shared, app)
    assert now(first).status == ('pending' if message and 'late' in message else 'errored')
    assert now(second).status == 'errored'


@pytest.mark.parametrize('columns', [
    {'args': [5], 'kwargs': {'a': 1}},
    {'args': ['what is shown'], 'message': '[[5], {"a": 1}]'},
])
def test_failure_signal(shared, columns):
    """Celery's signal reports a run that is lost for good, with the arguments of its message, and no other."""
    heard = []

    def hear(sender, task_id, exception, args, kwargs, einfo, **others):
        heard.append((sender.name, task_id, type(exception), args, kwargs, einfo.type))
    signals.task_failure.connect(hear)
    lost = running(**columns)
    running('tests:late'), running('tests:unknown'), running(cancelled=ago(1))
    sweep.close_lost(shared, app)
    signals.task_failure.disconnect(hear)
    assert heard == [('tests:early', str(lost.task_id), WorkerLostError, [5], {'a': 1}, WorkerLostError)]


def test_cancelled_run_of_a_dead_worker(shared, backend):
    """It is revoked, whether or not it would be run again."""
    runs = [running(name, cancelled=ago(1)) for name in ('tests:early', 'tests:late')]
    sweep.close_lost(shared, app)

    assert {now(run).status for run in runs} == {'revoked'}
    assert {call.args[1] for call in backend.call_args_list} == {'REVOKED'}


def test_abandoned(shared, monkeypatch):
    """A run that this living worker holds but does not execute is released when two looks have found it."""
    executed, reserved, lost = (running(holder=ME) for __ in range(3))
    others = running(holder=uuid4())
    requests = [SimpleNamespace(id=str(run.task_id)) for run in (executed, reserved)]
    odd = SimpleNamespace(id='not-a-uuid')
    monkeypatch.setattr(state, 'active_requests', {Hashable(requests[0]), Hashable(odd)})
    monkeypatch.setattr(state, 'reserved_requests', {Hashable(requests[1])})
    suspects = set()

    sweep.close_abandoned(shared, app, suspects)
    assert now(lost).status == 'running'
    sweep.close_abandoned(shared, app, suspects)
    assert [now(run).status for run in (executed, reserved, lost, others)] == [
        'running', 'running', 'errored', 'running'
    ]


class Hashable:
    def __init__(self, request):
        self.id = request.id


def test_claimed_again_between_two_looks(shared, monkeypatch):
    """A run that was claimed again since the first look is not suspected yet."""
    monkeypatch.setattr(state, 'active_requests', set())
    monkeypatch.setattr(state, 'reserved_requests', set())
    run, suspects = running(holder=ME), set()
    sweep.close_abandoned(shared, app, suspects)
    CeleryResult.objects.update(claims=2, attempts=[{}, {}])
    sweep.close_abandoned(shared, app, suspects)
    assert now(run).status == 'running'


def test_release(shared):
    """A worker that stops releases its own runs, and no others."""
    mine, late_one, others = running(holder=ME), running('tests:late', holder=ME), running(holder=uuid4())
    sweep.release(shared, app)
    assert [now(run).status for run in (mine, late_one, others)] == ['errored', 'pending', 'running']


def test_expire(shared, backend):
    """Waiting runs expire; active and finished runs do not."""
    expires = ago(1)
    waits = [make_result(status, expires=expires) for status in ('pending', 'scheduled', 'retrying')]
    stays = [running(expires=expires), make_result('completed', expires=expires),
             make_result('pending', expires=timezone.now() + timedelta(hours=1)), make_result('pending')]
    before = [run.status for run in stays]
    sweep.expire(shared, app)

    assert {(now(run).status, run.reason) for run in waits} == {('revoked', 'expired')}
    assert [now(run).status for run in stays] == before
    assert {call.args for call in backend.call_args_list} == {(str(run.task_id), 'REVOKED') for run in waits}


def test_resend(shared, sent):
    """An unsent run is sent once, for the attempt that is due."""
    long_ago = ago(60)

    def make(status, **columns):
        run = make_result(status, celery_name='tests:early', args=[1], kwargs={'a': 2},
                          options={'queue': 'q', 'priority': 3}, **columns)
        CeleryResult.objects.filter(pk=run.pk).update(last_updated=long_ago)
        return run

    due = [
        (make('pending'), 0), (make('scheduled', scheduled=timezone.now() + timedelta(hours=1)), 0),
        (make('pending', claims=1, attempt=1), 0), (make('pending', claims=3, attempt=3), 2),
        (make('retrying', claims=2, attempt=2), 2),
    ]
    make('pending', sent=long_ago)
    make('running', claims=1, attempt=1)
    make('completed')
    fresh = make_result('pending', celery_name='tests:early')
    sweep.resend(shared, app)

    assert [(entry[0], entry[4]['retries']) for entry in sent] == [(str(run.task_id), n) for run, n in due]
    for __, name, args, kwargs, options in sent:
        assert (name, args, kwargs) == ('tests:early', [1], {'a': 2})
        assert (options['queue'], options['priority'], options['headers']) == ('q', 3, {'netbox_celery': True})
    assert sent[1][4]['eta'] == due[1][0].scheduled
    assert now(fresh).sent is None
    sweep.resend(shared, app)
    assert len(sent) == 5


@pytest.mark.parametrize('error, others_sent, status', [
    (OperationalError('away'), False, 'pending'),
    (ConnectionError('away'), False, 'pending'),
    (TypeError('cannot be sent at all'), True, 'errored'),
    (OperationalError("'no such compression'"), True, 'errored'),
    # An error about one queue, or about one message
    (PreconditionFailed('inequivalent arg'), True, 'errored'), (AccessRefused('amq.x'), True, 'errored'),
    (ResourceLocked('exclusive'), True, 'errored'),
    (caused(OperationalError('x'), ResourceLocked('x')), True, 'errored'),
    (caused(OperationalError('x'), ResponseError('WRONGTYPE Operation against a key')), True, 'errored'),
    (QueueRefused('A queue cannot be named'), True, 'errored'), (RuntimeError("an author's router"), True, 'errored'),
    (struct.error('too long'), True, 'errored'), (MessageNacked(), True, 'pending'),
    # What it has against all
    (caused(OperationalError('x'), ResponseError('MISCONF')), False, 'pending'),
    (AMQPError('closed'), False, 'pending'),
    (caused(OperationalError('x'), OutOfMemoryError('x')), False, 'pending'), (TimeoutError(), False, 'pending'),
    (ssl.SSLCertVerificationError('expired'), False, 'pending'), (DatabaseError('away'), False, 'pending'),
], ids=repr)
def test_broker_refuses(shared, monkeypatch, error, others_sent, status):
    """A broker that is down is tried again next time; a run that can never be sent is closed."""
    if 'compression' in str(error):
        error.__cause__ = KeyError('no such compression')
    first, second = (make_result('pending', celery_name=f'tests:{n}') for n in ('first', 'second'))
    CeleryResult.objects.update(last_updated=ago(60))
    sent = []

    def send(app, name, *args, **options):
        if name == 'tests:first':
            raise error
        sent.append(name)
    monkeypatch.setattr(Celery, 'send_task', send)
    sweep.resend(shared, app)

    assert now(first).status == status
    assert bool(sent) == others_sent == (now(second).sent is not None)


@pytest.mark.django_db(transaction=True)
def test_one_sweeps_at_a_time():
    """While one worker sweeps, others do not."""
    from netbox_celery.engine.store.database import EngineConnection

    one, other = EngineConnection(), EngineConnection()
    with mock.patch.object(sweep, 'expire') as expire, mock.patch.object(sweep, 'close_lost'):
        with one.advisory_lock(sweep.LOCK, 60):
            sweep.sweep(other, app, set())
            assert not expire.called
        sweep.sweep(other, app, set())
        assert expire.called
    one.close()
    other.close()


def test_no_worker_is_declared_lost_after_an_outage(monkeypatch):
    """A worker that must not declare others lost does not; it does its other duties."""
    from contextlib import contextmanager

    @contextmanager
    def lock(key, hung_after):
        yield True
    connection = SimpleNamespace(advisory_lock=lock, execute=lambda *args, **kwargs: [])
    monkeypatch.setattr(sweep.identity, 'may_declare_lost', False)
    with (mock.patch.object(sweep, 'close_lost') as close_lost, mock.patch.object(sweep, 'find_fetched') as fetched,
          mock.patch.object(sweep, 'expire') as expire):
        sweep.sweep(connection, app, set())
    assert (close_lost.called, fetched.called, expire.called) == (False, False, True)


def test_forgotten_workers(shared):
    """Rows of workers that died days ago are deleted."""
    make_worker('old@h', heartbeat=ago(90_000))
    kept = make_worker('new@h', heartbeat=ago(100))
    shared.execute(sweep.FORGET_WORKERS)
    assert list(type(kept).objects.all()) == [kept]


def test_exact_calls(shared, sent):
    """What is sent again, or reported of a lost run, is the exact call, not what PostgreSQL makes of it."""
    call = {
        'args': [10 ** 23], 'kwargs': {'a': 1, 'b': 'nan'}, 'options': {'headers': {'x': 0}},
        'exact_call': '[[1e+23], {"b": NaN, "a": 1}, {"headers": {"x": -0.0}}]',
    }
    run = make_result('pending', celery_name='tests:early', **call)
    CeleryResult.objects.filter(pk=run.pk).update(last_updated=ago(60))
    heard = []
    signals.task_failure.connect(hear := lambda args, kwargs, **others: heard.append((args, kwargs)))
    running(**call)
    sweep.resend(shared, app)
    sweep.close_lost(shared, app)
    signals.task_failure.disconnect(hear)

    assert repr(sent[0][2:4]) == repr(([1e23], {'b': float('nan'), 'a': 1}))
    assert repr(sent[0][4]['headers']['x']) == '-0.0'
    assert repr(heard) == repr([([1e23], {'b': float('nan'), 'a': 1})])


def test_what_an_earlier_version_took(shared, sent):
    """A row that no worker could pass to its processes is closed, and those behind it are sent."""
    value = nested(750, [])
    poisoned = [make_result('pending', celery_name='tests:early', **columns) for columns in (
        {'args': [value]}, {'kwargs': {'x': value}}, {'options': {'headers': {'x': value}}},
    )]
    fine = make_result('pending', celery_name='tests:early', args=[1])
    CeleryResult.objects.update(last_updated=ago(60))
    sweep.resend(shared, app)
    assert [(now(run).status, run.reason) for run in poisoned] == 3 * [('errored', 'publish_failed')]
    assert 'nested too deeply' in now(poisoned[0]).error
    assert [entry[0] for entry in sent] == [str(fine.task_id)]

# Rows that cannot be read


@pytest.mark.parametrize('message', [
    'x', '5', '[]', '[[1]]', '{}', '[[], {}, []]', '[' * 3000 + ']' * 3000
])
@pytest.mark.parametrize('nesting', [0, 1])
def test_unreadable_call_of_a_lost_run(shared, backend, message, nesting):
    """A run with unreadable arguments is ended as lost, and so are those behind it."""
    runs = [running(message=message, nesting=nesting), running(), running('tests:late')]
    sweep.close_lost(shared, app)
    assert [now(run).status for run in runs] == ['errored', 'errored', 'pending']


@pytest.fixture
def poison(monkeypatch):
    """Let transitions of some rows raise an error."""
    for name in ('_lost', '_abandoned', '_expired', '_unsent'):
        monkeypatch.setattr(sweep, name, sweep.LeftOut())
    poisoned = set()
    finish = sweep.lifecycle.finish

    def raising(connection, task_id, *args, **kwargs):
        if task_id in poisoned:
            raise RecursionError('poison')
        return finish(connection, task_id, *args, **kwargs)
    monkeypatch.setattr(sweep.lifecycle, 'finish', raising)
    return poisoned


@pytest.mark.parametrize('make, settle', [
    (lambda: running(), lambda shared: sweep.close_lost(shared, app)),
    (lambda: running(holder=ME), lambda shared: sweep.release(shared, app)),
    (lambda: make_result('pending', expires=ago(5), sent=ago(6)), lambda shared: sweep.expire(shared, app)),
], ids=['lost', 'released', 'expired'])
def test_poisoned_rows_hold_up_no_others(shared, poison, monkeypatch, caplog, make, settle):
    """They do not use up the batch either; each is logged once."""
    for name in ('LOST', 'EXPIRED'):
        monkeypatch.setattr(sweep, name, getattr(sweep, name).replace(f'LIMIT {sweep.BATCH}', 'LIMIT 3'))
    bad, good = [make() for __ in range(3)], make()
    poison.update(run.task_id for run in bad)
    for __ in range(3):
        settle(shared)
    assert now(good).completed
    assert not any(now(run).completed for run in bad)
    assert [record.message for record in caplog.records if 'cannot be settled' in record.message] == [
        f'Task {run.task_id} cannot be settled, and is skipped: RecursionError(\'poison\')' for run in bad
    ]
    poison.clear()


def test_refused_rows_hold_up_no_others(shared, poison, monkeypatch):
    """A row that the broker refuses, also by an error of the channel, does not block the others."""
    monkeypatch.setattr(sweep, 'UNSENT', sweep.UNSENT.replace(f'LIMIT {sweep.BATCH}', 'LIMIT 3'))
    bad, good = [make_result('pending', last_updated=ago(60)) for __ in range(3)], make_result('pending')
    CeleryResult.objects.update(last_updated=ago(60), sent=None)
    causes = dict(zip((run.task_id for run in bad), (
        ResponseError('WRONGTYPE'), amqp.NotFound('no exchange'), RuntimeError('odd')
    )))
    sent = []

    def send(app, task_id, *row):
        if cause := causes.get(task_id):
            if isinstance(cause, RuntimeError):
                raise cause
            raise OperationalError(str(cause)) from cause
        sent.append(task_id)
    monkeypatch.setattr(sweep, 'send_row', send)
    for __ in range(2):
        sweep.resend(shared, app)
    assert sent == [good.task_id]
    assert {now(run).reason for run in bad} == {'publish_failed'}


def test_row_that_cannot_be_read_is_not_sent(shared, poison):
    """It ends, with the reason."""
    deep = make_result('pending', message='[' * 3000 + ']' * 3000)
    CeleryResult.objects.update(last_updated=ago(60), sent=None)
    sweep.resend(shared, app)
    assert (now(deep).status, deep.reason) == ('errored', 'publish_failed')


def test_each_step_by_itself(shared, monkeypatch):
    """A step of the sweep that fails does not prevent the others."""
    done = []
    for name in ('close_lost', 'find_fetched', 'expire', 'advance_all', 'resend'):
        def fail(*args, name=name):
            done.append(name)
            raise ValueError(name)
        monkeypatch.setattr(sweep, name, fail)
    lock = SimpleNamespace(advisory_lock=lambda *args: contextlib.nullcontext(True), execute=shared.execute)
    sweep.sweep(lock, app, set())
    assert done == ['close_lost', 'find_fetched', 'expire', 'advance_all', 'resend']
