"""Hooks of a task, called for its calls and for its runs."""
from uuid import UUID

import pytest
from celery.exceptions import TimeoutError
from django.db import transaction
from kombu.exceptions import OperationalError
from netbox_test_plugin.side import noted, open_gate
from netbox_test_plugin.tasks import policies

from netbox_celery.celery import app
from netbox_celery.models import CeleryResult

from .support import ended, until, waiting

telling = policies.telling


@pytest.fixture(autouse=True)
def heard():
    policies.Telling.heard.clear()
    return policies.Telling.heard


def whole(run, *last):
    """Return which hooks a run has called once the last of them was."""
    return until(lambda: (found := noted(run.id)) and found[-1].startswith(last) and found, 20, lambda: noted(run.id))


def test_run(worker, heard):
    run = worker.send(telling, 'x', kwargs={'y': 1})
    ended(run)
    assert whole(run, 'success') == ["start ['x'] {'y': 1}", "success ['x'] {'y': 1} x"]
    (apply, *first), (trigger, *second) = heard
    assert (apply, trigger) == ('apply', 'trigger')
    assert first == second
    invocation_id, args, kwargs, task_id = first
    assert UUID(invocation_id)
    assert (args, kwargs, task_id) == (('x',), {'y': 1}, run.id)


def test_invocations_differ(threads, heard):
    threads.run(telling)
    threads.run(telling)
    assert len({entry[1] for entry in heard}) == 2


def test_retry_and_failure(worker):
    run = worker.send(telling, 'retry')
    ended(run)
    assert whole(run, 'success') == [
        "start ['retry'] {}", "retry ['retry'] {} ValueError('once more') True", "start ['retry'] {}",
        "success ['retry'] {} retry",
    ]
    run = worker.send(telling, 'fail')
    ended(run)
    assert whole(run, 'failure') == ["start ['fail'] {}", "failure ['fail'] {} ValueError ExceptionInfo"]


@pytest.mark.parametrize('how,options,error', [
    ('kill', {}, 'WorkerLostError'), ('long', {'time_limit': 1}, 'TimeLimitExceeded'),
])
def test_failure_that_the_parent_tells(prefork, how, options, error):
    """The hook is called once, also where Celery reports the failure twice."""
    run = prefork.send(telling, how, **options)
    ended(run, 30)
    prefork.run(telling)
    assert [line for line in whole(run, 'failure') if line.startswith('failure')] == [
        f"failure ['{how}'] {{}} {error} ExceptionInfo"
    ]


def test_failure_after_the_last_redelivery(prefork):
    """The hook is not called for a loss with redelivery, but for the one that ends the run."""
    run = prefork.send(app.tasks['netbox_test_plugin:telling_late'], 'kill', countdown=1)
    CeleryResult.objects.filter(task_id=run.id).update(claims=3, attempts=[{}] * 3)
    ended(run, 40)
    assert whole(run, 'failure') == [
        "start ['kill'] {}", "start ['kill'] {}", "failure ['kill'] {} WorkerLostError ExceptionInfo",
    ]


def test_failure_that_another_worker_tells(make_worker, prefork):
    """If the whole worker is killed, another worker calls the hook."""
    victim = make_worker('victim').start().ready()
    run = victim.send(telling, 'long', kwargs={'y': 1})
    until(lambda: noted(run.id))
    victim.kill()
    ended(run, 60)
    assert whole(run, 'failure') == [
        "start ['long'] {'y': 1}", "failure ['long'] {'y': 1} WorkerLostError ExceptionInfo",
    ]


def test_commit(threads, heard):
    """One hook is called in the transaction, the other after the commit, or never."""
    with transaction.atomic():
        run = threads.send(telling)
        assert [entry[0] for entry in heard] == ['apply']
    assert [entry[0] for entry in heard] == ['apply', 'trigger']
    ended(run)
    with transaction.atomic():
        threads.send(telling)
        transaction.set_rollback(True)
    assert [entry[0] for entry in heard] == ['apply', 'trigger', 'apply']


def test_broker_refuses(heard):
    with pytest.raises(OperationalError):
        telling.apply_async(queue='x', connection=app.connection('redis://127.0.0.1:1/'), retry=False)
    assert [entry[0] for entry in heard] == ['apply']


def test_unique_and_ignored(threads, gate, heard):
    task = app.tasks['netbox_test_plugin:telling_twice']
    first = threads.send(task, gate)
    second = threads.send(task, gate)
    open_gate(gate)
    waiting(first, 'completed')
    third = threads.send(task, gate)
    assert [(what, task_id) for what, __, __, __, task_id in heard] == [
        ('apply', first.id), ('trigger', first.id), ('apply', first.id), ('unique', first.id), ('apply', third.id),
        ('ignored', third.id),
    ]
    assert second.id == first.id


def test_timeout(threads, heard):
    with pytest.raises(TimeoutError):
        telling.apply_async_and_get_result(timeout=0, countdown=2, queue=threads.queue)
    assert [entry[0] for entry in heard] == ['apply', 'trigger', 'timeout']
    assert heard[2][1] == heard[0][1]
    assert heard[2][-1] == 'TimeoutError'
    ended(heard[0][4])


def test_eager(heard):
    result = telling.apply(('x',))
    assert [entry[0] for entry in heard] == ['apply', 'trigger']
    assert noted(result.id) == ["start ['x'] {}", "success ['x'] {} x"]
    failed = telling.apply(('fail',))
    assert noted(failed.id)[-1] == "failure ['fail'] {} ValueError ExceptionInfo"


def test_eager_retry(heard):
    """All attempts are one call, as in a worker."""
    result = telling.apply(('retry',))
    assert result.get() == 'retry'
    assert [what.split()[0] for what in noted(result.id)] == ['start', 'retry', 'start', 'success']
    assert [(entry[0], entry[4]) for entry in heard] == [('apply', result.id), ('trigger', result.id)]


def test_many_calls(threads, heard):
    """Each call has its hooks, though there is one statement for all."""
    runs = list(CeleryResult.enqueue_many(telling, [('a',), {'how': 'b'}], queue=threads.queue))
    assert [(what, args, kwargs, task_id) for what, __, args, kwargs, task_id in heard] == [
        (what, args, kwargs, str(run.task_id))
        for run, args, kwargs in zip(runs, [('a',), ()], [{}, {'how': 'b'}]) for what in ('apply', 'trigger')
    ]
    assert len({entry[1] for entry in heard}) == 2
    assert [ended(run).result for run in runs] == ['a', 'b']


def test_hook_that_raises(worker, heard):
    """It affects neither the call, nor the run, nor the next run."""
    raising = app.tasks['netbox_test_plugin:raising']
    for __ in range(2):
        result = worker.run(raising)
        assert (result.status, result.result) == ('completed', 'done')
    assert worker.run(raising, 'wrong').error == 'ValueError: wrong'
    assert not raising.is_processing(('wrong',))
