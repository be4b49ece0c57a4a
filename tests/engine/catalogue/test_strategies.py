"""Tasks with a `Strategy` of their own are not claimed, so they have no rows, and asking for one is an error."""
from types import SimpleNamespace
from unittest import mock
from uuid import uuid4

import pytest
from celery import Task, chain
from celery.exceptions import CeleryError
from celery.worker import strategy as celery_strategy

from netbox_celery.celery import app
from netbox_celery.engine.catalogue.registry import describe_task
from netbox_celery.engine.catalogue.strategies import has_own_strategy, strategy_of
from netbox_celery.engine.sending.describe import is_tracked
from netbox_celery.engine.worker import messages as worker
from netbox_celery.engine.worker.signals import on_rejected
from netbox_celery.models import CeleryResult, CeleryTask
from netbox_celery.services import runs as actions
from netbox_celery.tasks import CeleryBaseTask
from tests.factories import make_result, make_schedule
from tests.factories import make_task as make_task_row

pytestmark = pytest.mark.django_db(transaction=True)


def function(task, app, consumer):
    """A strategy."""


class Batches(Task):
    def Strategy(self, task, app, consumer):
        """As `celery-batches` has it."""


class Ours(Batches, CeleryBaseTask):
    pass


OWN = [
    (Batches, {}), (Ours, {}), (CeleryBaseTask, {'Strategy': 'tests.engine.catalogue.test_strategies:function'}),
    (CeleryBaseTask, {'Strategy': staticmethod(function)}), (CeleryBaseTask, {'Strategy': 'nowhere:nothing'}),
]


@pytest.fixture(params=OWN, ids=['batches', 'ours', 'by-name', 'function', 'unknown'])
def task(request, make_task):
    base, options = request.param
    return make_task(lambda self, *args: None, name='tests:batch', base=base, **options)


def test_strategy_that_claims(make_task):
    """Its author declares that the strategy passes on each message."""
    options = {'Strategy': 'tests.engine.catalogue.test_strategies:function', 'strategy_claims': True}
    task = make_task(lambda self, task_id: None, name='tests:claims', **options)
    assert is_tracked(task) and not has_own_strategy(task)


@pytest.fixture
def broker(monkeypatch):
    """What is sent, without a broker."""
    sent = []
    monkeypatch.setitem(
        vars(app.amqp), 'send_task_message', lambda producer, name, message, **options: sent.append(message)
    )
    return sent


@pytest.mark.parametrize('own, strategy', [
    (False, 'celery.worker.strategy:default'), (False, 'celery.worker.strategy.default'),
    (False, celery_strategy.default), (True, function), (True, 'tests.engine.catalogue.test_strategies.function'),
])
def test_own_strategy(own, strategy):
    task = SimpleNamespace(Strategy=strategy)
    assert has_own_strategy(task) is own
    assert (strategy_of(task) == 'tests.engine.catalogue.test_strategies.function') is own


def test_no_task():
    assert not has_own_strategy(None)


@pytest.mark.parametrize('call', [
    lambda task: task.delay(1), lambda task: task.apply_async((1,)), lambda task: app.send_task(task.name, (1,)),
    lambda task: task.s(1).apply_async(),
])
def test_no_row(task, call, broker):
    """The task is called as with plain Celery, without a row that would never be updated."""
    assert not is_tracked(task)
    call(task)
    assert len(broker) == 1
    assert not CeleryResult.objects.exists()


@pytest.mark.parametrize('call', [
    lambda task: CeleryResult.enqueue(task, args=[1]), lambda task: CeleryResult.enqueue(task.name, args=[1]),
    lambda task: CeleryResult.enqueue_many(task, [(1,), (2,)]),
    lambda task: task.apply_async((1,), netbox_track=True),
    lambda task: task.apply_async((1,), netbox_kwargs={'netbox_track': True}),
    lambda task: CeleryResult.enqueue_job(task.name, None, args=[1]),
])
def test_refused(task, call, broker):
    """A call that asks for a row is refused, and nothing is sent."""
    with pytest.raises(CeleryError, match='tests:batch has a custom Strategy'):
        call(task)
    assert not broker
    assert not CeleryResult.objects.exists()


def test_refused_by_decorator(make_task, broker):
    """So is every call of a task whose own code asks for rows."""
    task = make_task(lambda self, *args: None, name='tests:batch', base=Batches, netbox_track=True)
    with pytest.raises(CeleryError, match='has a custom Strategy'):
        task.delay()
    del type(task).netbox_track
    task.netbox_track = True
    with pytest.raises(CeleryError, match='has a custom Strategy'):
        task.delay()


def test_replacement(task, broker):
    """It cannot replace a task with a row, which would never finish."""
    run = make_result('running')
    with pytest.raises(CeleryError, match='cannot replace a task that has a row'):
        task.apply_async(task_id=str(run.task_id), replaced_task_nesting=1)
    assert not broker


def test_chain(task, make_task, broker):
    """As a step of a workflow it runs as with plain Celery."""
    first = make_task(lambda self, task_id: None, name='tests:first')
    chain(first.si(), task.si(), first.si()).apply_async()
    assert [run.celery_name for run in CeleryResult.objects.all()] == ['tests:first']


def test_not_runnable_by_people(task):
    """The catalogue says so, and the task cannot be run from there, or run again."""
    row = make_task_row(task.name)
    CeleryTask.objects.filter(pk=row.pk).update(**describe_task(task))
    row.refresh_from_db()
    assert row.defaults['strategy'] == strategy_of(task)
    assert f'it has a custom strategy ({strategy_of(task)})' in actions.why_not_runnable(row)


def test_schedule(make_task, broker):
    """A schedule's run fails with an error that says why."""
    from netbox_celery.engine.schedules import firing as schedules

    task = make_task(lambda self, *args: None, name='tests:batch', base=Ours)
    schedule = make_schedule('A', make_task_row(task.name))
    with mock.patch.object(schedule, 'now', schedule.created, create=True):
        schedules.start_run(schedule, schedule.created)
    run = CeleryResult.objects.get()
    assert (run.status, run.reason) == ('failed', 'invalid_call')
    assert 'has a custom Strategy' in run.error


def message_of(task_id, header, name='tests:batch', **headers):
    return SimpleNamespace(
        body='[[], {}, {}]', payload=([], {}, {}), acknowledged=False, ack_log_error=mock.Mock(),
        headers={'id': str(task_id), 'task': name, 'netbox_celery': header, **headers},
    )


def deliver(task_id, header=True, name='tests:batch'):
    """Let a worker take a message; returns what its strategy gets, and whether the message was discarded."""
    message = message_of(task_id, header, name)
    handle = mock.Mock()
    consumer = SimpleNamespace(connection_errors=(), channel_errors=(), app=app)
    worker._rejecting(consumer, handle, {'tests:batch'})(message)
    return handle.called and message.headers['netbox_celery'], message.ack_log_error.called


def test_caller_that_does_not_know(make_task, monkeypatch, shared):
    """A row from a process without the task finishes with an error; its message is passed on as one without a row."""
    monkeypatch.setattr('netbox_celery.engine.runs.reports.get_connection', lambda: shared)
    make_task(lambda self, *args: None, name='tests:batch', base=Batches)
    run = make_result('pending', celery_name='tests:batch')
    assert deliver(run.task_id) == (False, False)
    run.refresh_from_db()
    assert run.status == 'ignored'
    assert run.error.startswith('Not tracked: tests:batch has a custom Strategy (')
    # Once more
    assert deliver(run.task_id) == (False, False)
    assert deliver('not a UUID') == deliver(uuid4()) == (False, False)


def test_in_a_branch(task, broker):
    """A call in a branch, or one that names a branch, is refused: the body would run in main. Main can be named."""
    for call in (
        lambda: task.delay(1), lambda: app.send_task(task.name, (1,)), lambda: task.s(1).apply_async(),
    ):
        with mock.patch('netbox_celery.engine.workflows.canvas.current', lambda: 'b1'), \
                pytest.raises(CeleryError, match='cannot run in the branch b1'):
            call()
    with pytest.raises(CeleryError, match='cannot run in the branch b1'):
        task.apply_async((1,), headers={'netbox_branch': 'b1'})
    assert not broker
    task.apply_async((1,), headers={'netbox_branch': ''})
    assert len(broker) == 1


def test_caller_in_a_branch_that_does_not_know(make_task, monkeypatch, shared):
    """The message of a call in a branch is not given to the strategy, and its run fails with an error."""
    monkeypatch.setattr('netbox_celery.engine.runs.reports.get_connection', lambda: shared)
    make_task(lambda self, *args: None, name='tests:batch', base=Batches)
    run = make_result('pending', celery_name='tests:batch', branch='b1')
    for header in (True, False, None):
        refused = []
        message = message_of(run.task_id, header, netbox_branch='b1')
        handle = mock.Mock()
        consumer = SimpleNamespace(
            connection_errors=(), channel_errors=(), app=app,
            on_invalid_task=lambda body, message, exc, refused=refused: refused.append(exc),
        )
        worker._rejecting(consumer, handle, {'tests:batch'})(message)
        assert 'cannot run in the branch b1' in str(refused[0])
        assert not handle.called
    on_rejected(sender=consumer, message=message, exc=refused[0])
    run.refresh_from_db()
    assert (run.status, run.reason) == ('failed', 'branch_not_ready')
    assert 'cannot run in the branch b1' in run.error


def test_cancelled_meanwhile(make_task, monkeypatch, shared):
    """A message whose run was cancelled is not passed on."""
    monkeypatch.setattr('netbox_celery.engine.runs.reports.get_connection', lambda: shared)
    make_task(lambda self, *args: None, name='tests:batch', base=Batches)
    assert deliver(make_result('revoked', celery_name='tests:batch').task_id) == (False, True)


@pytest.mark.parametrize('header, name', [(True, 'tests:other'), (False, 'tests:batch'), (None, 'tests:batch')])
def test_other_messages(header, name):
    """Messages of other tasks, and those without a row, are left as they are."""
    run = make_result('pending')
    assert deliver(run.task_id, header, name) == (header, False)
    run.refresh_from_db()
    assert run.status == 'pending'
