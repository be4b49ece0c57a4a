"""A call with a used ID: a repetition of the same call, a new run, or an error."""
from uuid import uuid4

import pytest
from celery import chain, chord, signature
from celery._state import _task_stack
from django.utils import timezone
from kombu.exceptions import OperationalError as KombuError

from netbox_celery.celery import app
from netbox_celery.engine.calls.run import get_run
from netbox_celery.engine.runs import claim
from netbox_celery.engine.sending import used
from netbox_celery.engine.store import lifecycle
from netbox_celery.engine.store.recorder import recorder
from netbox_celery.models import CeleryResult
from netbox_celery.tasks import TaskConflict
from netbox_celery.testing import run_task
from tests.factories import make_result

pytestmark = pytest.mark.django_db(transaction=True)

NAME = 'tests:used'


@pytest.fixture
def task(make_task):
    return make_task(lambda self, task_id, *args: None, name=NAME)


def end(task_id, **values):
    CeleryResult.objects.filter(task_id=task_id).update(
        **{'status': 'completed', 'completed': timezone.now(), 'result': 'old', 'claims': 1, **values}
    )


def test_row_and_message(task, queue):
    """The row and the message are those of the new call, and the message names the start that it belongs to."""
    task_id = task.apply_async((1,), queue=str(queue)).id
    end(task_id, error='old', traceback='old', exact_result='"old"', in_backend=True, value=3, step='old',
        cancelled=timezone.now(), attempts=[{'number': 1}], attempt=1, started=timezone.now(), holder=uuid4())
    task.apply_async((2,), queue=str(queue), task_id=task_id, netbox_name='new')
    row = CeleryResult.objects.get()
    assert (row.status, row.name, row.args, row.claims, row.attempts) == ('pending', 'new', [2], 1, [{'number': 1}])
    for name in ('result', 'exact_result', 'value', 'completed', 'cancelled', 'started', 'holder'):
        assert getattr(row, name) is None, name
    assert (row.error, row.traceback, row.step, row.attempt, row.in_backend) == ('', '', '', 0, False)
    first, second = queue()
    assert (first['headers']['netbox_celery'], second['headers']['netbox_celery']) == (True, {'begun': 1, 'before': 1})
    assert row.options['headers'] == {'netbox_celery': second['headers']['netbox_celery']}

    end(task_id, claims=2)
    task.apply_async((3,), queue=str(queue), task_id=task_id)
    assert queue()[-1]['headers']['netbox_celery'] == {'begun': 2, 'before': 2}


@pytest.mark.parametrize('begun', ['x', None, [1], 1.5])
def test_row_with_an_odd_header(task, queue, begun):
    task_id = task.apply_async((1,), queue=str(queue)).id
    end(task_id, options={'headers': {'netbox_celery': {'begun': begun}}})
    task.apply_async((2,), queue=str(queue), task_id=task_id)
    assert queue()[-1]['headers']['netbox_celery'] == {'begun': 1, 'before': 1}


@pytest.mark.parametrize('begun, granted', [(0, False), (1, True), (2, False)])
def test_claim(shared, task, queue, begun, granted):
    """A message claims the row if it belongs to the row's latest start."""
    task_id = task.apply_async((1,), queue=str(queue)).id
    end(task_id)
    task.apply_async((1,), queue=str(queue), task_id=task_id)
    claimed = lifecycle.claim(
        shared, task_id=task_id, attempt=1, nesting=0, worker='w', holder=uuid4(), name=NAME, call='[[1], {}]',
        begun=begun
    )
    assert bool(claimed) == granted
    if granted:
        assert claimed[1] == 2  # what the worker of the first call holds can end nothing


def test_losses(shared, task, queue):
    """Claims of earlier calls do not count as losses of this one."""
    task_id, holder = task.apply_async((1,), queue=str(queue)).id, uuid4()
    end(task_id, claims=20)
    task.apply_async((1,), queue=str(queue), task_id=task_id)
    for number in range(1, lifecycle.MOST_LOSSES + 1):
        assert lifecycle.claim(shared, task_id=task_id, attempt=1, nesting=0, worker='w', holder=holder, begun=1)
        given_back = lifecycle.requeue(shared, task_id, by='holder', holder=holder, attempt=1)
        assert bool(given_back) == (number < lifecycle.MOST_LOSSES)


@pytest.mark.parametrize('status', ['pending', 'scheduled', 'running', 'retrying'])
def test_active(task, queue, status):
    """A call with the ID of an unfinished run is refused; a retry's message is not a new call."""
    task_id = task.apply_async((1,), queue=str(queue)).id
    CeleryResult.objects.update(status=status)
    with pytest.raises(TaskConflict, match=f'the ID {task_id} is that of a run that is {status}') as caught:
        task.apply_async((2,), queue=str(queue), task_id=task_id)
    assert caught.value.task_id == task_id
    with pytest.raises(TaskConflict):
        signature(NAME, app=app).set(task_id=task_id).delay()
    assert (len(queue()), CeleryResult.objects.get().args) == (1, [1])
    task.apply_async((1,), queue=str(queue), task_id=task_id, retries=1)
    assert len(queue()) == 2


@pytest.fixture
def calling(deliver):
    """Let a task be the one that makes calls; returns its run, if it has one."""
    pushed = []

    def calling(**request):
        parent = deliver(**request)
        _task_stack.push(parent)
        pushed.append(parent)
        claim.begin(parent)
        return get_run(parent.request_stack.top)
    yield calling
    for __ in pushed:
        _task_stack.pop()


def test_called_again_by_the_same_run(calling, task, queue):
    """A later attempt's call with the same ID is that same call; two calls in one attempt are two."""
    make_result('pending', task_id=(parent_id := str(uuid4())), celery_name='tests:delivered')
    run = calling(task_id=parent_id)
    child = str(uuid4())
    options = {'queue': str(queue), 'task_id': child, 'parent_id': parent_id}
    task.apply_async((1,), **options)
    end(child)
    # Twice in the same attempt
    task.apply_async((1,), **options)
    assert CeleryResult.objects.get(task_id=child).status == 'pending'
    end(child)

    run.claimed_at += 3600  # another attempt
    task.apply_async((1,), **options)
    assert CeleryResult.objects.get(task_id=child).status == 'completed'
    task.apply_async((2,), **options)  # with other arguments it is another call
    assert CeleryResult.objects.get(task_id=child).status == 'pending'
    end(child)

    # The next step of a chain, whatever the step before has returned this time
    run.claimed_at += 3600
    run.returned = True
    task.apply_async((3,), **options)
    assert CeleryResult.objects.get(task_id=child).status == 'completed'
    # The step before is itself that of a new call
    run.begun = 1
    task.apply_async((3,), **options)
    row = CeleryResult.objects.get(task_id=child)
    assert (row.status, row.options['headers']['netbox_celery']['caller']) == ('pending', 1)
    end(child)
    run.claimed_at -= 7200  # once more in the same attempt: members of a group each send all of the next one
    task.apply_async((3,), **options)
    assert CeleryResult.objects.get(task_id=child).status == 'completed'


def test_closed_meanwhile(calling, task, queue):
    """A worker that was considered dead cannot start a step that was closed because of that."""
    make_result('pending', task_id=(parent_id := str(uuid4())), celery_name='tests:delivered')
    calling(task_id=parent_id)
    make_result('errored', task_id=(step := str(uuid4())), reason='upstream_failed', parent_id=parent_id)
    task.apply_async((1,), queue=str(queue), task_id=step, parent_id=parent_id)
    row = CeleryResult.objects.get(task_id=step)
    assert (row.status, row.reason) == ('errored', 'upstream_failed')


@pytest.mark.parametrize('request_, status', [
    ({}, 'pending'), ({'retries': 1}, 'completed'), ({'delivery_info': {'redelivered': True}}, 'completed'),
])
def test_called_by_an_untracked_task(calling, task, queue, request_, status):
    """For a task without a row, its message says whether it ran before."""
    assert calling(netbox_celery=False, task_id=(parent_id := str(uuid4())), **request_) is None
    options = {'queue': str(queue), 'task_id': str(uuid4()), 'parent_id': parent_id}
    task.apply_async((1,), **options)
    end(options['task_id'])
    task.apply_async((1,), **options)
    assert CeleryResult.objects.get(task_id=options['task_id']).status == status


def test_chord_that_is_counted_again(task, queue):
    """Parts that may have been sent before are not sent again."""
    task_id = task.apply_async((1,), queue=str(queue)).id
    with used.repeating():
        task.apply_async((1,), queue=str(queue), task_id=task_id)
        end(task_id)
        task.apply_async((1,), queue=str(queue), task_id=task_id)
    assert CeleryResult.objects.get().status == 'completed'


def test_chord_that_is_counted_again_after_it_was_applied_again(task, queue):
    """Parts that had finished before are sent again."""
    task_id = task.apply_async((1,), queue=str(queue)).id
    end(task_id)
    with used.repeating(timezone.now()):
        task.apply_async((1,), queue=str(queue), task_id=task_id)
        assert CeleryResult.objects.get().status == 'pending'
        end(task_id)
        task.apply_async((1,), queue=str(queue), task_id=task_id)
    assert CeleryResult.objects.get().status == 'completed'


def test_chain_that_fails_when_it_is_sent_again(make_task):
    """Its later steps end as those of any failing chain, and not as the first time."""
    outcomes = iter((1, ValueError('no'), ValueError('no'), 1))

    def first(self, task_id):
        if isinstance(outcome := next(outcomes), Exception):
            raise outcome
        return outcome
    add = make_task(lambda self, task_id, a, b: a + b, name=f'{NAME}_add')
    steps = chain(make_task(first, name=f'{NAME}_first').s(), add.s(5), add.s(7))
    last = steps.freeze().id
    for begun, results in enumerate(([6, 13], [], [], [6, 13])):
        assert [run.result for run in run_task(steps).run_calls()] == results
        row = CeleryResult.objects.get(task_id=last)
        assert (row.reason, row.result) == (('', 13) if results else ('upstream_failed', None))
        header = row.options['headers']['netbox_celery'] if begun else {}
        assert header.get('begun', 0) == header.get('caller', 0) == begun


@pytest.mark.parametrize('failing', [{0}, {2}, {0, 1, 2}])
def test_chord_that_fails_when_it_is_applied_again(make_task, failing):
    """So does its body; the part that fails first is named."""
    fails = False

    def part(self, task_id, index):
        if fails and index in failing:
            raise ValueError('no')
        return index
    part = make_task(part, name=f'{NAME}_part')
    applied = chord([part.s(index) for index in range(3)], make_task(
        lambda self, task_id, numbers: sum(numbers), name=f'{NAME}_sum'
    ).s())
    body = applied.freeze().id
    caller = make_task(lambda self, task_id: str(applied()), name=f'{NAME}_caller')
    for fails in (False, True, False, True, True, False):
        assert run_task(caller).raise_for_error().run_calls()
        row = CeleryResult.objects.get(task_id=body)
        assert (row.status, row.result) == (('errored', None) if fails else ('completed', 3))
        assert row.reason == ('upstream_failed' if fails else '')


# What the sender writes into a row that was started again

def test_sent(task, queue):
    """The row records that its new message was sent, so it is not sent again later."""
    task_id = task.apply_async((1,), queue=str(queue)).id
    recorder.flush()
    end(task_id)
    task.apply_async((2,), queue=str(queue), task_id=task_id)
    recorder.flush()
    assert CeleryResult.objects.get().sent


@pytest.mark.parametrize('before', [1e99, 1.5, -1, 'x', [1], None])
def test_sent_beside_odd_headers(task, queue, before):
    """A call's odd headers do not affect the rows of other calls."""
    task.apply_async((1,), queue=str(queue), headers={'netbox_celery': {'before': before}})
    task.apply_async((2,), queue=str(queue))
    recorder.flush()
    assert CeleryResult.objects.get(args=[2]).sent


def test_refused_by_the_broker(task, queue, monkeypatch):
    """The row of a call that was not sent is ended, as for any call."""
    task_id = task.apply_async((1,), queue=str(queue)).id
    recorder.flush()
    end(task_id)

    def refuse(*args, **kwargs):
        raise KombuError('away')
    monkeypatch.setattr(app.amqp, 'send_task_message', refuse)
    with pytest.raises(KombuError):
        task.apply_async((2,), queue=str(queue), task_id=task_id)
    row = CeleryResult.objects.get()
    assert (row.status, row.reason) == ('errored', 'publish_failed')


@pytest.mark.parametrize('was_used', [False, True])
def test_answer_was_lost(task, queue, losing, was_used):
    """A call that finds its own row does not mistake it for another call's."""
    task_id = str(uuid4())
    if was_used:
        task.apply_async((1,), queue=str(queue), task_id=task_id)
        recorder.flush()
        end(task_id)
    lost = losing('DO UPDATE' if was_used else 'INSERT INTO')
    assert not task.apply_async((2,), queue=str(queue), task_id=task_id).netbox_joined
    recorder.flush()
    row = CeleryResult.objects.get()
    assert lost and (row.status, row.args, bool(row.sent)) == ('pending', [2], True)
    assert len(queue()) == 1 + was_used


@pytest.mark.parametrize('on_conflict, slot', [('queue', 0), ('join', 1)])
@pytest.mark.parametrize('task_id', [None, '671df65f-64e2-412a-b3f8-caf7c80d9014'])
def test_answer_was_lost_with_a_policy(make_task, queue, losing, on_conflict, slot, task_id):
    """A run in the waiting line does not start before its turn."""
    task = make_task(lambda self, task_id, *args: None, name=NAME, concurrency_key=NAME, on_conflict=on_conflict)
    if slot == 0:
        task.apply_async((1,), queue=str(queue))
    before = len(queue())
    lost = losing('INSERT INTO')
    result = task.apply_async((2,), queue=str(queue), task_id=task_id)
    row = CeleryResult.objects.get(task_id=result.id)
    assert lost and (row.status, row.args, row.concurrency_slot) == ('pending', [2], slot)
    assert len(queue()) - before == slot
