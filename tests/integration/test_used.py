"""Calls with a used ID: each runs, or its caller gets an error immediately; copies of messages do not run."""
import json
from base64 import b64encode
from uuid import uuid4

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError
from django.db import transaction
from netbox_test_plugin import tasks
from netbox_test_plugin.side import noted, notes, open_gate
from netbox_test_plugin.tasks import canvas, policies

from netbox_celery.celery import app
from netbox_celery.models import CeleryResult
from netbox_celery.tasks import TaskConflict

from .support import ended, row, until, waiting
from .test_delivery import message_of, push


def frozen(worker, task, *args):
    signature = task.si(*args).set(queue=worker.queue)
    signature.freeze()
    return signature


def in_a_transaction(worker, task, task_id, *args):
    with transaction.atomic():
        return task.apply_async(args, task_id=task_id, queue=worker.queue)


WAYS = {
    'apply_async': lambda worker, task, task_id, *args: worker.send(task, *args, task_id=task_id),
    'another_spelling': lambda worker, task, task_id, *args: worker.send(task, *args, task_id=task_id.upper()),
    'signature': lambda worker, task, task_id, *args: task.s(*args).set(queue=worker.queue, task_id=task_id).delay(),
    'send_task': lambda worker, task, task_id, *args: app.send_task(
        task.name, args, task_id=task_id, queue=worker.queue
    ),
    'enqueue': lambda worker, task, task_id, *args: CeleryResult.enqueue(
        task, args=args, task_id=task_id, queue=worker.queue
    ),
    'transaction': in_a_transaction,
}


@pytest.mark.parametrize('way', WAYS)
def test_finished(prefork, way):
    """A call with the ID of a finished run is run: its row starts again, and keeps the history."""
    call, task_id = WAYS[way], str(uuid4())
    assert ended(call(prefork, tasks.echo, task_id, 'first')).result == [['first'], {}]
    before = row(task_id)
    call(prefork, tasks.echo, task_id, 'second')
    # The first result is not returned
    assert app.AsyncResult(task_id).get(timeout=20) == [['second'], {}]
    after = ended(task_id)
    assert (after.pk, after.args, after.result, after.attempt) == (before.pk, ['second'], [['second'], {}], 1)
    assert (after.status, after.started > before.completed) == ('completed', True)
    assert (len(after.attempts), after.attempts[0]) == (2, before.attempts[0])
    assert len(notes(task_id)) == 2


@pytest.mark.parametrize('how', ['error', 'failed', 'ignored'])
def test_finished_otherwise(prefork, how):
    """However the first run finished."""
    first = ended(prefork.send(canvas.break_, kwargs={'how': how}))
    again = prefork.send(canvas.add, 1, 2, task_id=str(first.task_id))
    assert again.get(timeout=20) == 3
    after = ended(again)
    assert (after.status, after.reason, after.error, after.traceback) == ('completed', '', '', '')


def test_cancelled(prefork):
    """Celery's workers refuse a revoked ID for some hours. The run does not wait for that."""
    first = prefork.send(tasks.echo, countdown=600)
    row(first).cancel()
    again = prefork.send(tasks.echo, task_id=first.id)
    assert ended(again).status in ('completed', 'revoked')


@pytest.mark.parametrize('way', WAYS)
def test_active(prefork, gate, way):
    """A call with the ID of an unfinished run is refused with an error."""
    first = prefork.send(tasks.hold, gate)
    waiting(first, 'running')
    with pytest.raises(TaskConflict, match=f'the ID {first.id} is that of a run that is running'):
        WAYS[way](prefork, tasks.hold, first.id, gate)
    open_gate(gate)
    assert first.get(timeout=20) == gate
    assert noted(first.id) == ['started', 'ended']


def test_frozen_signature(prefork):
    """A signature that was frozen once is sent twice, also in workflows."""
    signature = frozen(prefork, canvas.add, 1, 2)
    for __ in range(2):
        assert signature.apply_async().get(timeout=20) == 3
        ended(signature.id)
    assert len(notes(signature.id)) == 2

    add = canvas.add.s(1).set(queue=prefork.queue)
    for workflow, outcome in (
        (chain(add.clone(), add.clone(), add.clone()), 3), (group(add.clone(), add.clone()), [1, 1]),
        (chord([add.clone(), add.clone()], add.clone()), 3),
        (chain(add.clone(), group(add.clone(), add.clone())), [2, 2]),
        (chain(add.clone(), chord([add.clone(), add.clone()], add.clone()), add.clone()), 6),
    ):
        workflow.freeze()
        for __ in range(2):
            assert workflow.apply_async().get(timeout=20) == outcome
            until(lambda: not CeleryResult.objects.filter(completed=None).exists())


def test_chain_that_is_cancelled_when_it_is_sent_again(prefork):
    """Those who wait for its last step learn that, and do not get the earlier result."""
    add = canvas.add.s(1).set(queue=prefork.queue)
    steps = chain(add.clone(), add.clone())
    last = steps.freeze()
    assert steps.apply_async().get(timeout=20) == 2
    until(lambda: not CeleryResult.objects.filter(completed=None).exists())
    steps.apply_async(countdown=60)
    assert CeleryResult.objects.get(task_id=last.parent.id).cancel()
    with pytest.raises(TaskRevokedError):
        app.AsyncResult(last.id).get(timeout=5)
    assert row(last.id).reason == 'upstream_failed'


def test_chord_with_an_id(prefork):
    """The body of a chord has a used ID."""
    add, task_id = canvas.add.s(1).set(queue=prefork.queue), str(uuid4())
    for __ in range(2):
        assert chord([add.clone(), add.clone()], add.clone()).apply_async(task_id=task_id).get(timeout=20) == 3
    # Until it is sent again, the earlier result is there
    until(lambda: len(notes(task_id)) == 2)
    assert ended(task_id).claims == 2


def test_copies(prefork, gate):
    """No message of an earlier call claims a row that was started again, neither before nor after the new run."""
    first = prefork.send(tasks.echo, 'x')
    ended(first)
    copy = message_of(first, tasks.echo, 'x')
    second = prefork.send(tasks.echo, 'x', task_id=first.id, countdown=2)
    push(prefork.queue, copy)
    assert prefork.run(tasks.echo).status == 'completed'
    assert row(second).claims == 1
    assert ended(second).claims == 2
    push(prefork.queue, copy)
    assert prefork.run(tasks.echo).status == 'completed'
    assert (row(second).claims, len(notes(second.id))) == (2, 2)


def test_retried(prefork):
    """A run that was started again is retried, replaced and limited in its losses like any other."""
    first = prefork.send(tasks.echo)
    for number in range(6):
        ended(first)
        prefork.send(tasks.echo, number, task_id=first.id)
    ended(first)
    prefork.send(tasks.retry, 2, task_id=first.id)
    assert app.AsyncResult(first.id).get(timeout=20) == 3
    assert ended(first).attempt == 3
    prefork.send(tasks.kill_once, task_id=first.id)
    assert ended(first).status == 'completed'
    prefork.send(tasks.replace, 'chain', task_id=first.id, kwargs={'queue': prefork.queue})
    assert app.AsyncResult(first.id).get(timeout=20) == [['last'], {}]
    assert ended(first).status == 'completed'
    prefork.send(tasks.replace, 'task', task_id=first.id, kwargs={'queue': prefork.queue})
    assert app.AsyncResult(first.id).get(timeout=20) == [['replacement'], {}]
    assert ended(first).status == 'completed'


def test_unique(prefork, gate):
    """A task with a policy is started again under its key, or refused because of it."""
    first = prefork.send(policies.unique)
    ended(first)
    holder = prefork.send(policies.unique, kwargs={'gate': gate})
    waiting(holder, 'running')
    # Another key: the arguments are other ones
    second = prefork.send(policies.unique, 'x', task_id=first.id)
    assert second.get(timeout=20) == 'x'
    with pytest.raises(TaskConflict):
        prefork.send(policies.unique, 'y', task_id=holder.id)
    joined = prefork.send(policies.unique, task_id=first.id, kwargs={'gate': gate})
    assert joined.id == holder.id
    open_gate(gate)
    assert ended(holder).status == 'completed'
    assert (ended(first).result, len(notes(first.id))) == ('x', 2)


def test_foreign_message(prefork):
    """A foreign message with a used ID counts as a copy; its further steps are closed."""
    first = prefork.send(canvas.add, 1)
    ended(first)
    step = str(uuid4())
    link = {
        'task': canvas.add.name, 'args': [1], 'kwargs': {}, 'options': {'task_id': step, 'queue': prefork.queue},
        'subtask_type': None, 'immutable': False,
    }
    message = message_of(first, canvas.add, 1)
    del message['headers']['netbox_celery']
    message['body'] = b64encode(json.dumps([[1], {}, {'chain': [link]}]).encode()).decode()
    push(prefork.queue, message)
    until(lambda: CeleryResult.objects.filter(task_id=step).exists())
    closed = ended(step)
    assert (closed.status, closed.reason) == ('errored', 'upstream_failed')
    with pytest.raises(Exception, match='its ID is that of a run that is completed'):
        app.AsyncResult(step).get(timeout=20)
    assert len(notes(first.id)) == 1
