"""A call writes its row and its message together or not at all, and changes nothing of the caller's."""
import copy
import json
from base64 import b64decode
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import CeleryError
from django.db import connection, transaction
from kombu import Queue
from kombu.exceptions import EncodeError

from netbox_celery.celery import app
from netbox_celery.engine.store.recorder import recorder
from netbox_celery.models import CeleryResult
from tests.support import nested, published

pytestmark = pytest.mark.django_db(transaction=True)

NAME = 'tests:call'
LATER = datetime(2040, 1, 1, tzinfo=UTC)


@pytest.fixture
def task(make_task):
    return make_task(lambda self, task_id, *args, **kwargs: None, name=NAME)


OPTIONS = [
    {}, {'eta': LATER}, {'countdown': 1000.5}, {'expires': 60}, {'expires': 0.5}, {'expires': LATER.isoformat()},
    {'time_limit': 5, 'soft_time_limit': 3.5}, {'headers': {'mine': 'x'}}, {'shadow': 'S'}, {'ignore_result': True},
    {'link': [{'task': 'tests:x', 'args': [], 'kwargs': {}, 'options': {}}]}, {'compression': 'zlib'},
    {'parent_id': '9df05662-6c24-4e23-ab2e-2b2b775043bc', 'root_id': 'd85c7910-a6be-4de9-af45-a6bed8f27e72'},
    {'retries': 3},
    {'argsrepr': '***'}, {'delivery_mode': 1}, {'priority': 0},
]


@pytest.mark.parametrize('awaited', ['chain', 'chord', 'link', 'group_id'])
def test_call_on_which_something_depends(make_task, queue, awaited):
    """A call with a policy cannot become another run if its own ID is awaited."""
    task = make_task(lambda self, task_id: None, name=NAME, concurrency_key='x')
    first = task.apply_async(queue=queue)
    assert task.apply_async(queue=queue).id == first.id

    step = task.si().set(task_id=str(uuid4()), queue=queue)
    second = task.apply_async(queue=queue, **{
        awaited: {'chain': [step], 'chord': step, 'link': [step], 'group_id': str(uuid4())}[awaited]
    })
    assert (second.id != first.id, second.state) == (True, 'IGNORED')
    row = CeleryResult.objects.get(task_id=second.id)
    assert (row.status, row.reason) == ('ignored', 'joined')
    closed = CeleryResult.objects.filter(task_id=step.id).values_list('reason', flat=True)
    assert list(closed) == (['upstream_failed'] if awaited == 'chain' else [])


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_message(task, queue, options):
    """The message is Celery's own with one more header: a worker without the plugin can run it."""
    task_id = str(uuid4())
    given = {'queue': str(queue), 'task_id': task_id, **options}
    before = copy.deepcopy(given)
    result = task.apply_async((1, 'x'), {'a': LATER}, **given)
    Celery.send_task(app, NAME, (1, 'x'), {'a': LATER}, **{'ignore_result': False, **given})
    recorder.flush()

    assert given == before
    assert result.id == task_id
    ours, theirs = queue()
    headers = ours['headers']
    assert headers.pop('netbox_celery') is True
    for message in (ours, theirs):
        message['properties'].pop('delivery_tag'), message['properties'].pop('reply_to')
        expiration = message['properties'].pop('expiration', None)
        assert (expiration is not None) == ('expires' in options)
    for name in ('eta', 'expires'):
        mine, others = headers.pop(name), theirs['headers'].pop(name)
        assert (mine is None) == (others is None)
        if mine:
            assert abs(datetime.fromisoformat(mine) - datetime.fromisoformat(others)) < timedelta(seconds=5)
    assert ours == theirs
    row = CeleryResult.objects.get()
    assert (str(row.task_id), row.args, row.queue, row.sent is not None) == (
        task_id, None if 'argsrepr' in options else [1, 'x'], queue, True
    )


def test_ways_to_call(task, queue):
    """However a task is called there is one row and one message, with the same ID."""
    ids = {
        task.apply_async((1,), queue=str(queue)).id, task.s(1).apply_async(queue=str(queue)).id,
        app.send_task(NAME, (1,), queue=Queue(str(queue))).id, app.signature(NAME, (1,)).apply_async(queue=queue).id,
        CeleryResult.enqueue(NAME, args=(1,), queue=str(queue)).task_id,
    }
    assert len(ids) == 5
    assert {str(run.task_id) for run in CeleryResult.objects.all()} == {str(id) for id in ids}
    assert {message['headers']['id'] for message in queue()} == {str(id) for id in ids}


def test_transactions(task, queue):
    """A rollback leaves nothing, also of a savepoint; a commit sends in the order of the calls."""
    def call(number):
        return task.apply_async((number,), queue=str(queue)).id
    with transaction.atomic():
        call(1)
        with transaction.atomic():
            call(2)
            transaction.set_rollback(True)
        with transaction.atomic():
            call(3)
        assert queue() == []
        call(4)
    recorder.flush()
    assert [message['headers']['argsrepr'] for message in queue()] == ['(1,)', '(3,)', '(4,)']
    runs = CeleryResult.objects.order_by('pk')
    assert [(run.args, run.sent is not None) for run in runs] == [([1], True), ([3], True), ([4], True)]
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        call(5)
        1 / 0
    assert (len(queue()), CeleryResult.objects.count()) == (3, 3)


@pytest.mark.parametrize('policy', [{}, {'concurrency_key': 'k', 'limit': 9, 'on_conflict': 'queue'}], ids=str)
def test_arguments_used_again(task, queue, policy):
    """A message has the arguments as they were at the call, like its row, whatever is done to the dict later."""
    kwargs, args = {}, [[]]
    with transaction.atomic():
        for number in range(3):
            kwargs['number'] = number
            args[0].append(number)
            task.apply_async(args, kwargs, queue=str(queue), **policy)
    with transaction.atomic():
        CeleryResult.enqueue_many(task, [(args, kwargs)], queue=str(queue))
        args[0].append('later')
        kwargs.clear()
    bodies = sorted((json.loads(b64decode(message['body']))[:2] for message in queue()), key=lambda it: it[1]['number'])
    assert bodies == [[[[*range(n + 1)]], {'number': n}] for n in (0, 1, 2, 2)]
    assert bodies == [[run.args, run.kwargs] for run in CeleryResult.objects.order_by('pk')]


def test_options_used_again(task, queue):
    """The same holds for the options, and for what they hold."""
    link = task.si('linked')
    options = {'headers': {'number': 0, 'more': [0]}, 'link': [link], 'queue': str(queue)}

    def change():
        options['headers']['number'] += 1
        options['headers']['more'].append(1)
        link.set(countdown=5)
        options['link'].append('no signature')
    with transaction.atomic():
        task.apply_async((), {}, **options)
        CeleryResult.enqueue_many(task, [()], **options)
        change()
    assert [
        (message['headers']['number'], message['headers']['more'], [
            (step['args'], step['options']) for step in json.loads(b64decode(message['body']))[2]['callbacks']
        ]) for message in queue()
    ] == [(0, [0], [(['linked'], {})])] * 2


@pytest.mark.parametrize('options, header', [
    ({'task_id': 'not-a-uuid'}, None), ({'netbox_track': False}, False),
])
def test_without_a_row(task, queue, options, header):
    """Such a call is Celery's alone, sent immediately, also in a transaction; no policy applies to it."""
    with transaction.atomic():
        task.apply_async((1,), queue=str(queue), **options)
        message, = queue()
        assert message['headers'].get('netbox_celery') is header
    assert CeleryResult.objects.count() == 0
    with pytest.raises(CeleryError, match='need a row'):
        task.apply_async((1,), queue=str(queue), concurrency_key='k', **options)
    assert len(queue()) == 1


def test_connection_of_the_caller(task, queue):
    """A call is part of the caller's transaction, on a connection that it leaves as it was."""
    with transaction.atomic():
        task.apply_async((1,), queue=str(queue))
        assert connection.in_atomic_block and not connection.needs_rollback
        assert CeleryResult.objects.filter(sent=None).count() == 1
        recorder.flush()
        assert CeleryResult.objects.filter(sent=None).count() == 1


# What no worker could hand on to its processes

class Encoded:
    def __json__(self):
        raise KeyError('no key')


class Textless(Encoded):
    __repr__ = Encoded.__json__

    def __json__(self):
        return 1


CALLS = {
    'delay': lambda task, value: task.delay(value),
    'keyword': lambda task, value: task.delay(a={'b': value}),
    'apply_async': lambda task, value: task.apply_async([value]),
    'send_task': lambda task, value: app.send_task(NAME, [value]),
    'of an unknown task': lambda task, value: app.send_task('tests:unknown', kwargs={'x': value}),
    'untracked': lambda task, value: task.apply_async([value], netbox_track=False),
    'no UUID': lambda task, value: task.apply_async([value], task_id='mine'),
    'group': lambda task, value: group(task.s(1), task.s(value)).apply_async(),
    'chain': lambda task, value: chain(task.s(1), task.s(value), task.s(2)).apply_async(),
    'chord': lambda task, value: chord([task.s(1)], task.s(value)).apply_async(),
    'link': lambda task, value: task.apply_async(link=task.s(value)),
    'link of an untracked call': lambda task, value: task.apply_async(link=task.s(value), netbox_track=False),
    'link_error': lambda task, value: task.apply_async(link_error=task.s(a=value)),
    'map': lambda task, value: task.map([value]).apply_async(),
    'header': lambda task, value: task.apply_async(headers={'mine': value}),
    'header of an untracked call': lambda task, value: task.apply_async(headers={'mine': value}, netbox_track=False),
    'netbox_data': lambda task, value: task.apply_async(netbox_data=value),
    'enqueue': lambda task, value: CeleryResult.enqueue(task, args=[value]),
    'enqueue_many': lambda task, value: CeleryResult.enqueue_many(task, [(1,), (value,)]),
    'header of enqueue_many': lambda task, value: CeleryResult.enqueue_many(task, [(1,)], headers={'x': value}),
}


@pytest.mark.parametrize('value', [
    nested(101), nested(750), nested(5000), Encoded(), {(1, 2): 3}, 10 ** 5000,
], ids=['101', '750', '5000', 'encoder', 'key', 'digits'])
@pytest.mark.parametrize('how', CALLS)
def test_what_cannot_be_sent(task, how, value):
    """Each way to call a task refuses it with the same error, and nothing is sent or kept."""
    with published() as bodies, pytest.raises(EncodeError):
        CALLS[how](task, value)
    # Of a group, the first part was sent
    assert len(bodies) <= (how == 'group')
    assert CeleryResult.objects.exclude(status='errored').count() <= (how == 'group')


@pytest.mark.parametrize('how', CALLS)
def test_deep_enough(task, how):
    """A value nested as deeply as allowed is sent, in every place."""
    with published() as bodies:
        CALLS[how](task, nested(97))
    assert bodies


def test_long_workflow(task):
    """A long workflow has deeply nested signatures, which do not count as deep arguments."""
    stages = [(group(task.si(number), task.si(number)), task.si()) for number in range(40)]
    with published() as bodies:
        chain(*(step for stage in stages for step in stage)).apply_async()
    assert len(bodies) == 2


@pytest.mark.parametrize('in_transaction', [False, True])
@pytest.mark.parametrize('tracked', [False, True])
def test_argument_without_a_text(task, in_transaction, tracked):
    """Celery makes a text of each argument, which may raise an error: the text then says so."""
    with transaction.atomic() if in_transaction else nullcontext():
        result = task.apply_async([Textless()], netbox_track=tracked)
    assert CeleryResult.objects.filter(task_id=result.id).exists() is tracked


def test_argument_that_cannot_be_copied(task):
    class Uncopied(Textless):
        def __deepcopy__(self, memo):
            raise KeyError('no copy')

    with pytest.raises(EncodeError, match='copied'), transaction.atomic():
        task.delay(Uncopied())
    assert CeleryResult.objects.count() == 0


@pytest.mark.parametrize('key', [1, None, (1,), b'x'], ids=repr)
def test_names_that_are_not_text(task, key):
    """Keyword arguments with such names are refused as by Celery, or as what JSON cannot hold."""
    with pytest.raises(TypeError, match='keywords must be strings'):
        task.apply_async(kwargs={key: 1})
    if key not in (1, None):
        with pytest.raises(EncodeError):
            app.send_task('tests:unknown', kwargs={key: 1})
