"""Many runs of one task equal as many single calls, in their rows and in their messages."""
import json
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.db import transaction
from kombu.exceptions import EncodeError, OperationalError
from kombu.messaging import Producer

from dcim.models import Site
from extras.models import Tag
from netbox_celery.celery import app
from netbox_celery.engine.sending import bulk
from netbox_celery.engine.store.recorder import recorder
from netbox_celery.models import CeleryResult
from tests.factories import make_result
from tests.integration.support import speaking_to
from users.models import User

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def task(make_task):
    return make_task(lambda self, task_id, a, b=2: None, name='tests:many')


@pytest.mark.parametrize('call, expected', [
    ((1, 2), ((1, 2), {})), ([1, 2], ((1, 2), {})), ({'a': 1}, ((), {'a': 1})), ((), ((), {})), ({}, ((), {})),
    (([1], {'b': 2}), ((1,), {'b': 2})), (((1, 2), {}), ((1, 2), {})), ([(1,), {'b': 2}], ((1,), {'b': 2})),
    ((1, {'b': 2}), ((1, {'b': 2}), {})), (({'a': 1}, {'b': 2}), (({'a': 1}, {'b': 2}), {})),
    (([1], [2]), (([1], [2]), {})), (([1], {'b': 2}, 3), (([1], {'b': 2}, 3), {})), ('ab', (('a', 'b'), {})),
], ids=repr)
def test_calls(call, expected):
    ((args, kwargs),) = bulk.checked(None, [call])
    assert (tuple(args), kwargs) == expected


LATER = datetime(2040, 1, 1, tzinfo=UTC)
LINK = {'task': 'tests:link', 'args': [], 'kwargs': {}, 'options': {}}
ROW = (
    'celery_name', 'name', 'args', 'kwargs', 'options', 'queue', 'user_id', 'object_id', 'object_type_id', 'status',
    'scheduled', 'expires', 'value_max', 'data', 'parent_id', 'group_id', 'message', 'schedule_id', 'claims',
    'attempts', 'concurrency_key', 'custom_field_data',
)


@pytest.mark.parametrize('options', [
    {}, {'schedule_at': LATER}, {'expires': LATER.isoformat()}, {'ignore_result': True},
    {'expires': LATER, 'time_limit': 5, 'soft_time_limit': 3},
    {'headers': {'mine': 'x'}}, {'shadow': 'Shadow'}, {'netbox_name': 'Own', 'netbox_value_max': 7, 'netbox_data': [1]},
    {'compression': 'zlib'}, {'group_id': '6b0d3dbb-9a43-4a45-a4d2-2f0f1f1f1f1f', 'netbox_tags': ['Tag']},
    {'retry': False, 'delivery_mode': 1}, {'link': LINK}, {'link_error': [LINK]}, {'chain': [LINK]}, {'chord': LINK},
], ids=str)
def test_as_single_calls(task, queue, options):
    """Except for what is new in every call, rows and messages are the same, whatever the options."""
    Tag.objects.create(name='Tag', slug='tag')
    given = {
        'user': User.objects.create_user('alice'), 'instance': Site.objects.create(name='s', slug='s'), **options,
    }
    single = CeleryResult.enqueue(task, args=(1,), kwargs={'b': 'x'}, queue=str(queue), **given)
    many, = CeleryResult.enqueue_many(task, [((1,), {'b': 'x'})], queue=str(queue), **given)
    recorder.flush()

    single.refresh_from_db()
    for name in ROW:
        assert getattr(many, name) == getattr(single, name), name
    assert (many.root_id == many.task_id) == (single.root_id == single.task_id)
    assert many.request_id == many.task_id
    assert set(many.tags.all()) == set(single.tags.all())
    assert CeleryResult.objects.filter(sent=None).count() == 0

    messages = [json.dumps(message) for message in queue()]
    assert len(messages) == 2
    first, second = (
        json.loads(text.replace(str(it.task_id), 'ID')) for text, it in zip(messages, (single, many), strict=True)
    )
    for message in (first, second):
        message['properties'].pop('delivery_tag')
        message['headers'].pop('stamped_headers', None), message['headers'].pop('stamps', None)
    expire = [int(message['properties'].pop('expiration', 0)) for message in (first, second)]
    assert expire[0] == pytest.approx(expire[1], abs=60_000)
    assert second == first


def test_defaults_of_the_task(make_task, queue):
    """The decorator's options and names apply, and those of the call beat them."""
    task = make_task(lambda self, task_id, a: None, name='tests:many', priority=4, netbox_name='Decorated')
    plain, = CeleryResult.enqueue_many(task, [(1,)], queue=str(queue))
    own, = CeleryResult.enqueue_many(task, [(1,)], queue=str(queue), priority=9, netbox_name='Own')
    assert [(it.name, it.options['priority']) for it in (plain, own)] == [('Decorated', 4), ('Own', 9)]


@pytest.mark.parametrize('number', [0, 1, 2, 3, 7])
def test_batches(monkeypatch, task, queue, number):
    """Rows and messages have the order of the calls, whatever their number."""
    monkeypatch.setattr(bulk, 'BATCH', 3)
    runs = CeleryResult.enqueue_many(task, ((n,) for n in range(number)), queue=str(queue))
    recorder.flush()
    assert [run.args for run in runs] == [[n] for n in range(number)]
    assert [message['headers']['id'] for message in queue()] == [str(run.task_id) for run in runs]
    assert all(run.sent for run in runs.all())


def test_arguments_of_their_own(task, queue):
    """Each row has its own arguments, and its own message if it cannot show them."""
    runs = CeleryResult.enqueue_many(
        task, [('x',), ('nul \x00',), ('y' * 70_000,), {'a': uuid4()}], queue=str(queue)
    )
    assert [run.message is not None for run in runs] == [False, True, True, False]
    assert runs[0].args == ['x'] and runs[1].args == ['nul \ufffd'] and 'characters left out' in runs[2].args
    assert runs[3].kwargs == {'a': runs[3].kwargs['a']}


@pytest.mark.parametrize('calls, error', [
    ([(1,), (1, 2, 3)], TypeError), ([(1,), {}], TypeError), ([(1,), {'c': 1}], TypeError), ([(1,), 5], TypeError),
    ([(1,), (object(),)], EncodeError),
])
@pytest.mark.parametrize('batch', [1, 1000])
def test_all_or_nothing(monkeypatch, task, queue, calls, error, batch):
    """If one call cannot be made, none is."""
    monkeypatch.setattr(bulk, 'BATCH', batch)
    with pytest.raises(error):
        CeleryResult.enqueue_many(task, calls, queue=str(queue))
    assert (CeleryResult.objects.count(), queue()) == (0, [])


def test_all_or_nothing_with_a_policy(make_task, queue):
    """Calls that are made one by one are checked before the first is made."""
    task = make_task(lambda self, task_id, a: None, name='tests:policy', concurrency_key='x', on_conflict='queue')
    with pytest.raises(TypeError):
        CeleryResult.enqueue_many(task, [(1,), (1, 2)], queue=str(queue))
    assert (CeleryResult.objects.count(), queue()) == (0, [])


def test_in_a_transaction(task, queue):
    """The rows are part of it; the messages are sent on commit."""
    with transaction.atomic():
        CeleryResult.enqueue_many(task, [(1,), (2,)], queue=str(queue))
        assert (CeleryResult.objects.count(), queue()) == (2, [])
    assert len(queue()) == 2
    with transaction.atomic():
        with transaction.atomic():
            CeleryResult.enqueue_many(task, [(3,)], queue=str(queue))
            transaction.set_rollback(True)
        CeleryResult.enqueue_many(task, [(4,)], queue=str(queue))
    assert [run.args for run in CeleryResult.objects.order_by('pk')] == [[1], [2], [4]]
    assert len(queue()) == 3


@pytest.mark.parametrize('in_transaction', [False, True])
def test_broker_unavailable(task, in_transaction, caplog):
    """Outside a transaction the caller gets the error, and the rows record it; after a commit the sweep sends them."""
    with speaking_to('redis://127.0.0.1:1/', broker_transport_options={'max_retries': 0}):
        if in_transaction:
            with transaction.atomic():
                CeleryResult.enqueue_many(task, [(1,), (2,)], queue='x')
        else:
            with pytest.raises(OperationalError):
                CeleryResult.enqueue_many(task, [(1,), (2,)], queue='x')
    expected = ('pending', '') if in_transaction else ('errored', 'publish_failed')
    assert {(run.status, run.reason) for run in CeleryResult.objects.all()} == {expected}
    assert ('will be sent again' in caplog.text) is in_transaction


def test_started_by_a_cancelled_run(task, queue):
    """Runs that a cancelled run starts in bulk are created as revoked, and not sent."""
    parent = make_result('running')
    parent.cancel()
    runs = CeleryResult.enqueue_many(task, [(1,), (2,)], queue=str(queue), parent_id=str(parent.task_id))
    assert {run.status for run in runs} == {'revoked'}
    assert queue() == []


def test_objects_in_callbacks(task, queue):
    """Our options in a callback are written so that a message can hold them."""
    alice = User.objects.create_user('alice')
    link = app.signature('tests:link', options={'netbox_user': alice})
    CeleryResult.enqueue_many(task, [(1,), (2,)], queue=str(queue), link=link)
    for message in queue():
        __, __, embedded = json.loads(b64decode(message['body']))
        assert embedded['callbacks'][0]['options']['netbox_user'] == alice.pk
    assert link['options']['netbox_user'] == alice


def test_expired_already(task, queue):
    """It is sent all the same, as a single call is: a worker revokes it."""
    past = datetime.now(UTC) - timedelta(hours=1)
    run, = CeleryResult.enqueue_many(task, [(1,)], queue=str(queue), expires=past)
    assert (run.status, run.expires) == ('pending', past)
    assert queue()[0]['properties']['expiration'] == '0'


@pytest.mark.parametrize('in_transaction', [False, True])
@pytest.mark.parametrize(
    'options', [{}, {'chain': [LINK | {'options': {'task_id': str(uuid4())}}]}], ids=['alone', 'chain']
)
def test_broker_that_refuses_one(monkeypatch, task, queue, options, in_transaction):
    """Messages that the broker took before stay sent; the others are refused, or sent by the sweep."""
    sent = []

    def fail_at_the_third(send):
        def send_task(*args, **kwargs):
            if len(sent) == 2:
                raise OperationalError('no more')
            sent.append(args)
            return send(*args, **kwargs)
        return send_task
    monkeypatch.setattr(Producer, 'supports_batch_publish', False)
    monkeypatch.setattr(app.amqp, 'send_task_message', fail_at_the_third(app.amqp.send_task_message))
    with transaction.atomic() if in_transaction else pytest.raises(OperationalError):
        CeleryResult.enqueue_many(task, [(number,) for number in range(4)], queue=str(queue), **options)
    recorder.flush()
    runs = CeleryResult.objects.filter(celery_name='tests:many').order_by('pk')
    rest = ('pending', '') if in_transaction else ('errored', 'publish_failed')
    assert [(run.status, run.reason) for run in runs] == [('pending', '')] * 2 + [rest] * 2
    assert [run.sent is not None for run in runs] == [True, True, False, False]
    if options and not in_transaction:
        assert CeleryResult.objects.get(celery_name='tests:link').reason == 'upstream_failed'


def test_batch_without_a_message_sent(monkeypatch, task, queue):
    """Redis sends a batch when it is complete: one message that cannot be made prevents it."""
    make, made = app.amqp.create_task_message, []

    def create_task_message(*args, **kwargs):
        made.append(args)
        if len(made) == 3:
            raise ValueError('no')
        return make(*args, **kwargs)
    monkeypatch.setattr(app.amqp, 'create_task_message', create_task_message)
    with pytest.raises(ValueError, match='no'):
        CeleryResult.enqueue_many(task, [(number,) for number in range(4)], queue=str(queue))
    assert queue() == []
    assert {run.reason for run in CeleryResult.objects.all()} == {'publish_failed'}


def test_answer_was_lost(task, queue, losing):
    """Rows exist once, in order, if the connection breaks before the answer arrives."""
    lost = losing('INSERT INTO')
    runs = CeleryResult.enqueue_many(task, [(n,) for n in range(3)], queue=str(queue))
    recorder.flush()
    rows = CeleryResult.objects.order_by('pk')
    assert lost and [(row.pk, row.args, bool(row.sent)) for row in rows] == [
        (run.pk, [n], True) for n, run in enumerate(runs)
    ]
    assert [message['headers']['id'] for message in queue()] == [str(row.task_id) for row in rows]
