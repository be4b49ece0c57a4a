"""How runs end, each way of the table: what the row says then, and which statement has written it.

And the log comes first, an end that cannot be written now is written later, and it is written once.
"""
import asyncio
from contextlib import suppress
from types import SimpleNamespace
from uuid import uuid4

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery import signature, states
from celery.app.task import Context
from celery.exceptions import (
    ChordError,
    Ignore,
    MaxRetriesExceededError,
    NotRegistered,
    Reject,
    Retry,
    TaskRevokedError,
)
from django.db import DataError
from django.db import OperationalError as DatabaseAway
from django.utils import timezone
from kombu.exceptions import EncodeError, OperationalError

from netbox_celery.celery import app
from netbox_celery.choices import ResultStatusChoices
from netbox_celery.config import get_config
from netbox_celery.engine.calls.call import Call
from netbox_celery.engine.calls.policies import window_key
from netbox_celery.engine.calls.run import Run, get_run
from netbox_celery.engine.exceptions import (
    BranchNotReady,
    IgnoredByWindow,
    NotHandedOver,
    TaskFailed,
)
from netbox_celery.engine.results import closing
from netbox_celery.engine.runs import claim, ending, reports
from netbox_celery.engine.runs.ending import ENDS, describe, failure_of
from netbox_celery.engine.runs.tracked import TrackedResult
from netbox_celery.engine.sending import admission
from netbox_celery.engine.sending.publish import note_refusal
from netbox_celery.engine.sending.rows import INSERT, build_row
from netbox_celery.engine.store import database, lifecycle
from netbox_celery.engine.store.database import EngineConnection, get_connection
from netbox_celery.engine.store.headers import HEADER
from netbox_celery.engine.store.recorder import recorder
from netbox_celery.engine.worker import messages, signals, sweep
from netbox_celery.engine.workflows.family import insert_child
from netbox_celery.models import CeleryLogEntry, CeleryResult, IgnoreWindow
from tests.factories import HELLO_WORLD, make_result

pytestmark = pytest.mark.django_db(transaction=True)

LIMIT = get_config().log_message_length


def row():
    return CeleryResult.objects.get()


def test_log_comes_first(run, monkeypatch):
    """Who sees the end sees the whole log."""
    for number in range(500):
        recorder.log(run, str(number))
    finish = ending.lifecycle.finish

    def look_first(*args, **kwargs):
        assert CeleryLogEntry.objects.count() == 500
        return finish(*args, **kwargs)
    monkeypatch.setattr(ending.lifecycle, 'finish', look_first)
    assert ending.end_claimed(run, ENDS['returned'])[1] == row().status == 'completed'


def test_lost_claim(run):
    """Nothing was ended, which the run keeps in mind."""
    CeleryResult.objects.update(claims=2)
    assert ending.end_claimed(run, ENDS['returned']) is None
    assert not run.ended
    assert row().status == 'running'


class Away:
    """A database that is unavailable for the engine's connection of this thread."""

    def __init__(self, monkeypatch):
        self.is_away = True
        execute = EngineConnection.execute

        def failing(connection, sql, params=None, patience=0):
            if self.is_away and 'UPDATE' in sql:
                raise DatabaseAway('away')
            return execute(connection, sql, params, patience)
        monkeypatch.setattr(EngineConnection, 'execute', failing)


@pytest.mark.parametrize('end, status', [
    (lambda run: ending.end_claimed(run, ENDS['raised'], error='no'), 'errored'),
    (lambda run: ending.record_retry(run, 'no', ''), 'retrying'),
], ids=['end', 'retry'])
def test_database_unavailable(run, monkeypatch, end, status):
    """The caller continues as if the end was written; it is written as soon as the database accepts it."""
    away = Away(monkeypatch)
    assert end(run)[1] == status
    assert row().status == 'running'
    away.is_away = False
    assert recorder.flush(timeout=10)
    assert (row().status, row().error) == (status, 'no')


def test_cancelled_while_the_end_waited(run, monkeypatch):
    """An end that comes late finds the row as it is by then."""
    away = Away(monkeypatch)
    ending.end_claimed(run, ENDS['returned'], result='5')
    row().cancel()
    away.is_away = False
    assert recorder.flush(timeout=10)
    assert row().status == 'revoked'


# Another process

def test_end_from_outside(identity, shared, monkeypatch):
    """A parent ends what waits, and with the attempt also what its own child held."""
    monkeypatch.setattr(reports, 'get_connection', lambda: shared)
    waiting = make_result('pending')
    mine = make_result('running', claims=1, attempt=1, holder=identity.key, attempts=[{}])
    others = make_result('running', claims=1, attempt=1, holder=uuid4(), attempts=[{}])

    for run in (waiting, mine, others):
        ending.end_from_outside(run.task_id, ENDS['revoked'])
        run.refresh_from_db()
    assert [run.status for run in (waiting, mine, others)] == ['revoked', 'running', 'running']
    for run in (mine, others):
        ending.end_from_outside(run.task_id, ENDS['process_lost'], attempt=1)
        run.refresh_from_db()
    assert [run.status for run in (mine, others)] == ['errored', 'running']
    assert (reports.status_of(others.task_id), reports.status_of(mine.task_id)) == ('running', 'errored')


@pytest.mark.parametrize('columns, status, ended', [
    ({}, 'pending', None),
    ({'claims': 5}, 'errored', 'errored'),
    ({'cancelled': '2030-01-01T00:00:00Z'}, 'revoked', 'revoked'),
    ({'status': 'pending'}, 'pending', None),
], ids=str)
def test_give_back(identity, shared, monkeypatch, columns, status, ended):
    """A message goes back unless its run was cancelled, or has lost its process too often."""
    monkeypatch.setattr(reports, 'get_connection', lambda: shared)
    run = make_result(**{
        'status': 'running', 'claims': 1, 'attempt': 1, 'holder': identity.key, 'attempts': [{}], **columns
    })

    ends = ENDS['process_lost_given_back'], ENDS['process_lost_too_often']
    assert ending.give_back(run.task_id, *ends, attempt=1, error='lost') == ended
    run.refresh_from_db()
    assert run.status == status


# What an exception says

class Odd(Exception):
    def __str__(self):
        raise RuntimeError('no text')


class Textless(Exception):
    def __str__(self):
        return None


class Failed(TaskFailed):
    pass


@pytest.mark.parametrize('exc, expected', [
    (TaskFailed('The device is away'), ('failed', '', 'The device is away')),
    (Failed('no'), ('failed', '', 'no')),
    (TaskFailed(), ('failed', '', '')),
    (ValueError('x'), ('errored', '', 'ValueError: x')),
    (ValueError(), ('errored', '', 'ValueError')),
    (KeyError('k'), ('errored', '', "KeyError: 'k'")),
    (SoftTimeLimitExceeded(), ('errored', 'soft_time_limit', 'SoftTimeLimitExceeded')),
    (TimeLimitExceeded(5), ('errored', 'time_limit', 'TimeLimitExceeded(5,)')),
    (WorkerLostError('gone'), ('errored', 'worker_lost', 'WorkerLostError: gone')),
    (MaxRetriesExceededError('3'), ('errored', 'max_retries', 'MaxRetriesExceededError: 3')),
    (NotRegistered('tests:x'), ('errored', 'unregistered', "NotRegistered: 'tests:x'")),
    (ChordError('a part'), ('errored', 'upstream_failed', 'ChordError: a part')),
    (Reject('no use'), ('failed', 'rejected', 'Reject: no use')),
    (Reject(OperationalError('away')), ('errored', 'publish_failed', 'Reject: away')),
    (Reject(EncodeError('deep')), ('errored', 'publish_failed', 'Reject: deep')),
    (TaskRevokedError('revoked'), ('revoked', 'cancelled', 'TaskRevokedError: revoked')),
    (Odd(), ('errored', '', 'Odd: <its text could not be made>')),
    (Textless(), ('errored', '', 'Textless: <its text could not be made>')),
    (SystemExit(3), ('errored', '', 'SystemExit: 3')),
], ids=lambda value: type(value).__name__)
def test_failures(exc, expected):
    """Each way to fail has its status and reason, and a line that says what happened, whatever the exception is."""
    end, error = failure_of(exc)
    assert (end.status, end.reason, error) == expected


@pytest.mark.parametrize('exc, expected', [
    (TaskFailed('no'), ('failed', '')), (Reject('no'), ('failed', 'rejected')),
    (SoftTimeLimitExceeded(), ('errored', 'soft_time_limit')), (MaxRetriesExceededError(), ('errored', 'max_retries')),
    (TimeLimitExceeded(5), ('errored', '')), (WorkerLostError('gone'), ('errored', '')),
    (NotRegistered('tests:x'), ('errored', '')), (ChordError('a part'), ('errored', '')),
    (TaskRevokedError('revoked'), ('errored', '')),
], ids=lambda value: type(value).__name__)
def test_failures_of_a_body(exc, expected):
    """An exception with which Celery reports one run does not end another one, whose body has raised it."""
    end, __ = failure_of(exc, by_body=True)
    assert (end.status, end.reason) == expected


def test_describe():
    assert describe(None) == ''
    line = describe(ValueError('x' * (LIMIT + 500)))
    assert line.startswith('ValueError: xxx') and len(line) < LIMIT + 100 and 'characters left out' in line


# The table: each way by its name, and how it comes about. Each returns the ID of the run

class Stage:
    """A worker: its processes, its parent, its sweep, and those who call."""

    def __init__(self, deliver, make_task, identity, monkeypatch):
        self.deliver, self.make_task, self.identity, self.patch = deliver, make_task, identity, monkeypatch
        # What the parent of a worker is in a test of its own, the sweep of another worker is here
        other = SimpleNamespace(key=uuid4(), name='me', can_judge=True, steady_for=float('inf'))
        monkeypatch.setattr(sweep, 'identity', other)

    def body(self, **options):
        """Claim a run as the process of its body does; returns the task, and its request."""
        task = self.deliver(make_result('pending').task_id, task_options=options)
        claim.begin(task)
        return task, task.request_stack.top

    def held(self, status='running', **columns):
        """Make a run that a process of this worker holds, or that waits; returns what its parent knows of it."""
        columns = {'claims': 1, 'attempt': 1, 'attempts': [{}], **columns} if status == 'running' else columns
        holder = {'holder': self.identity.key} if status == 'running' else {}
        run = make_result(status, **{**holder, **columns})
        return SimpleNamespace(
            id=str(run.task_id), task=run.celery_name, retries=0, errbacks=None, chord=None, chain=None, group=None,
            parent_id=None, root_id=None, delivery_info={}, is_eager=False, args=[], kwargs={}, ignore_result=False,
        )


def raises(exc):
    def way(stage):
        __, request = stage.body()
        app.backend.mark_as_failure(request.id, exc, None, request)
        return request.id
    return way


def leaves(state, retval, **options):
    def way(stage):
        task, request = stage.body(**options)
        signals.on_postrun(sender=task, state=state, retval=retval)
        return request.id
    return way


def interrupted(stage):
    task, request = stage.body()
    try:
        raise asyncio.CancelledError
    except asyncio.CancelledError:
        signals.on_postrun(sender=task)
    return request.id


def sets(end):
    def way(stage):
        __, request = stage.body()
        end(TrackedResult(get_run(request)))
        return request.id
    return way


def returned(stage, is_cancelled=False):
    __, request = stage.body()
    if is_cancelled:
        CeleryResult.objects.get().cancel()
    app.backend.mark_as_done(request.id, 5, request)
    return request.id


def retried(stage, is_sent=True):
    __, request = stage.body()
    get_run(request).continued = is_sent
    app.backend.mark_as_retry(request.id, Retry(exc=ValueError()), None, request)
    return request.id


def replaced(stage, is_tracked=True):
    task, request = stage.body()

    def refuse(*args, **kwargs):
        raise DataError('odd')
    if not is_tracked:
        stage.patch.setattr(lifecycle, 'replace', refuse)

    def on_replace(self, sig):
        get_run(request).continued = True
        raise Ignore('replaced')
    with suppress(Ignore):
        claim._handing_over_row(on_replace)(task, None)
    return request.id


def unclaimed(tell):
    def way(stage):
        request = stage.held('pending')
        request.netbox_unclaimed = True
        tell(request)
        recorder.flush(timeout=10)
        return request.id
    return way


def parent_hears(exc, status='running', **columns):
    def way(stage):
        request = stage.held(status, **columns)
        app.backend.mark_as_failure(request.id, exc, request=request)
        return request.id
    return way


def parent_retries(exc):
    def way(stage):
        request = stage.held()
        app.backend.mark_as_retry(request.id, exc, request=request)
        return request.id
    return way


def parent_revokes(reason, status='pending'):
    def way(stage):
        request = stage.held(status)
        app.backend.mark_as_revoked(request.id, reason, request)
        return request.id
    return way


def time_limit_given_back(stage):
    task = stage.make_task(lambda self, task_id: None, name='tests:late', acks_late=True, acks_on_timeout=False)
    request = stage.held(celery_name=task.name)
    app.backend.mark_as_failure(request.id, TimeLimitExceeded(5), request=request)
    return request.id


def process_lost(claims):
    def way(stage):
        request = stage.held(claims=claims)
        request.task, request.request_dict = stage.deliver(task_options={'acks_late': True}), {'retries': 0}
        request.on_reject = lambda log, errors, requeue: None
        signals.on_received(request=request)
        request.on_reject(None, None, True)
        return request.id
    return way


def rejected_message(exc):
    def way(stage):
        request = stage.held('pending')
        message = SimpleNamespace(headers={'id': request.id, 'task': HELLO_WORLD})
        signals.on_rejected(sender=SimpleNamespace(app=app), message=message, exc=exc)
        return request.id
    return way


def not_followed(stage):
    task = stage.make_task(lambda self, task_id: None, name='tests:own')
    request = stage.held('pending', celery_name=task.name)
    headers = {'id': request.id, 'task': task.name, HEADER: True}
    assert messages._let_go(app, SimpleNamespace(headers=headers), {task.name})
    return request.id


def swept(duty, **columns):
    def way(stage):
        stage.make_task(lambda self, task_id: None, name='tests:early')
        stage.make_task(lambda self, task_id: None, name='tests:late', acks_late=True)
        run = make_result(**{
            'status': 'running', 'celery_name': 'tests:early', 'holder': uuid4(), 'claims': 1, 'attempt': 1,
            'attempts': [{}], **columns,
        })
        CeleryResult.objects.update(last_updated=timezone.now() - timezone.timedelta(seconds=60))
        duty(get_connection(), app)
        return run.task_id
    return way


ON_ITS_WAY = {'status': 'pending', 'attempt': 0, 'nesting': 1, 'reason': 'replaced'}


def unsendable(stage):
    def refuse(*args):
        raise ValueError('nobody can send that')
    stage.patch.setattr(sweep, 'send_row', refuse)
    return swept(sweep.resend, status='pending', claims=0, attempt=0)(stage)


def cancelled(stage):
    run = make_result('pending')
    run.cancel()
    return run.task_id


def cancelled_with_parent(stage):
    parent = make_result('running')
    parent.cancel()
    call = Call(app, 'tests:child', (), {}, {'task_id': str(uuid4()), 'parent_id': str(parent.task_id)})
    insert_child(INSERT, build_row(call))
    return call.task_id


def not_published(stage):
    run = make_result('pending')
    note_refusal([run.pk], OperationalError('no'))
    return run.task_id


def called_again(on_conflict):
    def way(stage):
        task = stage.make_task(lambda self, task_id: None, name='tests:keyed')
        for __ in range(2):
            result = task.apply_async(
                queue='nobody', concurrency_key='k', on_conflict=on_conflict, link=signature('tests:after')
            )
        return result.id
    return way


def ignored_by_window(stage):
    task = stage.make_task(lambda self, task_id: None, name='tests:windowed')
    IgnoreWindow.objects.create(
        key=window_key(task, (), {}), until=timezone.now() + timezone.timedelta(seconds=60), task_id=uuid4()
    )
    return task.apply_async(queue='nobody', ignore_task_after_success=True, ignore_task_timedelta=60).id


def upstream_failed(stage, step_id=None):
    step_id = str(step_id or uuid4())
    step = {'task': 'tests:step', 'args': [], 'kwargs': {}, 'options': {'task_id': step_id}}
    run = make_result('running', claims=1, attempt=1, attempts=[{}])
    request = Context(
        id=str(run.task_id), task='tests:x', chain=[step], netbox_run=Run(str(run.task_id), id=run.pk, claims=1),
        children=[], is_eager=False,
    )
    app.backend.mark_as_failure(request.id, ValueError(), None, request)
    return step_id


def replacement_failed(stage):
    # Of a step without a row of its own, it is the row of the task which that replaces in part
    return upstream_failed(stage, make_result(**ON_ITS_WAY, claims=1, attempts=[{}]).task_id)


WAYS = {
    'returned': returned,
    'raised': raises(ValueError()),
    'failed': raises(TaskFailed()),
    'branch_not_ready': raises(BranchNotReady()),
    'soft_time_limit': raises(SoftTimeLimitExceeded()),
    'max_retries': raises(MaxRetriesExceededError()),
    'interrupted': interrupted,
    'rejected': leaves(states.REJECTED, Reject('why')),
    'ignored': leaves(states.IGNORED, Ignore('why')),
    'ignored_at_start': leaves(states.IGNORED, IgnoredByWindow('why')),
    'set_success': sets(lambda it: it.success(5)),
    'set_error': sets(lambda it: it.error('why')),
    'set_canceled': sets(lambda it: it.canceled('why')),
    'cancelled_while_running': lambda stage: returned(stage, is_cancelled=True),
    'retried': retried,
    'retry_not_sent': lambda stage: retried(stage, is_sent=False),
    'retry_refused': leaves(states.REJECTED, Reject(OperationalError('away'))),
    'rejected_for_requeue': leaves(states.REJECTED, Reject('why', requeue=True), acks_late=True),
    'replaced': replaced,
    'replaced_untracked': lambda stage: replaced(stage, is_tracked=False),
    'returned_unclaimed': unclaimed(lambda request: app.backend.mark_as_done(request.id, 5, request)),
    'raised_unclaimed': unclaimed(lambda it: app.backend.mark_as_failure(it.id, ValueError(), None, it)),
    'time_limit': parent_hears(TimeLimitExceeded(5)),
    'time_limit_given_back': time_limit_given_back,
    'process_lost': parent_hears(WorkerLostError('gone')),
    'process_lost_retried': parent_retries(WorkerLostError('gone')),
    'process_lost_given_back': process_lost(claims=1),
    'process_lost_too_often': process_lost(claims=lifecycle.MOST_LOSSES),
    'process_failed': parent_hears(ValueError('cannot be pickled')),
    'shut_down': parent_retries(Retry('cancelled by Celery')),
    'terminated': parent_revokes('terminated', 'running'),
    'revoked': parent_revokes('revoked'),
    'expired': parent_revokes('expired'),
    'unregistered': parent_hears(NotRegistered(HELLO_WORLD), 'pending'),
    'unreadable': rejected_message(ValueError('bad JSON')),
    'refused_in_branch': rejected_message(BranchNotReady('archived')),
    'not_handed_over': parent_hears(NotHandedOver('deep'), 'pending'),
    'not_followed': not_followed,
    'chord_failed': parent_hears(ChordError('a part'), 'pending'),
    'worker_lost': swept(sweep.close_lost),
    'worker_lost_given_back': swept(sweep.close_lost, celery_name='tests:late'),
    'replacement_lost': swept(sweep.close_lost, **ON_ITS_WAY),
    'replacement_resent': swept(sweep.close_lost, **ON_ITS_WAY, message='[[], {}, "tests:early", {}]'),
    'expired_in_queue': swept(
        sweep.expire, status='pending', claims=0, attempt=0, expires=timezone.now() - timezone.timedelta(seconds=1)
    ),
    'unsendable': unsendable,
    'cancelled': cancelled,
    'cancelled_with_parent': cancelled_with_parent,
    'not_published': not_published,
    'skipped': called_again('skip'),
    'joined': called_again('join'),
    'ignored_by_window': ignored_by_window,
    'upstream_failed': upstream_failed,
    'replacement_failed': replacement_failed,
}


def statements_of(end):
    """Return the SQL that may write an end, by what the table says."""
    name, __, by = end.statement.partition(' ')
    if name == 'FINISH_BY':
        return [lifecycle.FINISH_BY[by], lifecycle.FINISH_AND_OPEN_BY[by]]
    if name == 'admission.CLOSED':
        return list(admission.CLOSED)
    if name == 'closing.CLOSE':
        return [closing.CLOSE]
    statement = getattr(lifecycle, name)
    return [statement[by] if by else statement]


@pytest.fixture
def executed(monkeypatch):
    """The statements that are executed, in order."""
    statements, execute = [], database._execute

    def note(wrapper, sql, params):
        statements.append(sql)
        return execute(wrapper, sql, params)
    monkeypatch.setattr(database, '_execute', note)
    return statements


def test_table():
    """Each way is tested below, and each exception leads to one of them."""
    assert WAYS.keys() == ENDS.keys()
    assert {name for __, name in ending.FAILURES} <= ENDS.keys()
    assert {end.writer for end in ENDS.values()} == {'body', 'parent', 'sweep', 'caller'}


@pytest.mark.parametrize('name', ENDS)
def test_way(deliver, make_task, identity, monkeypatch, executed, name):
    """The row is as in the table, written by the statement in the table, and a finished run stays finished."""
    end = ENDS[name]
    task_id = WAYS[name](Stage(deliver, make_task, identity, monkeypatch))
    recorder.flush()
    row = CeleryResult.objects.get(task_id=task_id)
    assert (row.status, row.reason) == (end.status, end.reason)
    assert any(sql.startswith(statement.rstrip()) for sql in executed for statement in statements_of(end))
    is_end = end.status in ResultStatusChoices.FINISHED
    assert (row.completed is not None) == is_end
    if is_end:
        assert lifecycle.finish(get_connection(), row.task_id, 'completed') is None
        assert not row.cancel() and CeleryResult.objects.get(pk=row.pk).status == end.status
