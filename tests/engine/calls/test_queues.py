"""Which queue a call goes to, and which queue names are reserved."""
from uuid import uuid4

import pytest
from celery.exceptions import QueueNotFound
from django.db import transaction
from kombu import Exchange, Queue
from kombu import binding as Binding

from netbox_celery.celery import app
from netbox_celery.engine.calls.queues import check_call, delivered_to, destination
from netbox_celery.engine.exceptions import QueueRefused
from netbox_celery.models import CeleryResult

pytestmark = pytest.mark.django_db

ORDERS = Exchange('orders', 'direct')
EVENTS = Exchange('events', 'topic')


def route(name, args, kwargs, options, task=None, **kw):
    return {'exchange': 'orders', 'routing_key': 'big'}


QUEUES = [
    Queue('celery', Exchange('celery'), 'celery'), Queue('large', ORDERS, 'big'), Queue('small', ORDERS, 'little'),
    Queue('north', EVENTS, 'n.#'), Queue('south', EVENTS, 's.*'),
    Queue('two', bindings=[Binding(ORDERS, 'b1'), Binding(ORDERS, 'b2')]),
]


@pytest.mark.parametrize('options, queue', [
    ({}, 'celery'), ({'queue': 'x'}, 'x'), ({'queue': Queue('x')}, 'x'), ({'queue': ''}, 'celery'),
    ({'exchange': 'orders', 'routing_key': 'big'}, 'large'), ({'exchange': ORDERS, 'routing_key': 'little'}, 'small'),
    ({'exchange': 'orders', 'routing_key': 'none'}, ''), ({'exchange': 'unknown', 'routing_key': 'x'}, ''),
    ({'exchange': 'events', 'routing_key': 'n.a.b'}, 'north'), ({'exchange': 'events', 'routing_key': 'n'}, 'north'),
    ({'exchange': 'events', 'routing_key': 's.a'}, 'south'), ({'exchange': 'events', 'routing_key': 's.a.b'}, ''),
    ({'exchange': 'orders', 'routing_key': 'b2'}, 'two'), ({'exchange': 'orders'}, 'celery'),
    ({'routing_key': 'big'}, 'celery'), ({'exchange': '', 'routing_key': 'x'}, 'celery'),
    ({'exchange': Exchange(''), 'routing_key': 'x'}, 'x'), ({'queue': 'large', 'routing_key': 'x'}, 'large'),
], ids=str)
def test_destination(configured, options, queue):
    configured(task_queues=QUEUES)
    assert destination(app, 'tests:x', (), {}, options, None) == queue


@pytest.mark.parametrize('routes, queue', [
    (route, 'large'), ([route], 'large'), ({'tests:*': 'small'}, 'small'), ({'tests:x': {'queue': 'small'}}, 'small'),
    ({'tests:x': {'exchange': 'orders', 'routing_key': 'little'}}, 'small'),
    ({'tests:x': {'exchange': 'elsewhere', 'routing_key': 'k'}}, ''), ({'other': 'small'}, 'celery'),
], ids=['function', 'functions', 'pattern', 'name', 'key', 'elsewhere', 'other'])
def test_routes(configured, routes, queue):
    configured(task_queues=QUEUES, task_routes=routes)
    assert destination(app, 'tests:x', (), {}, {}, None) == queue


def test_delivered_to(configured):
    configured(task_queues=QUEUES)
    assert delivered_to(app, {'exchange': '', 'routing_key': 'x'}) == 'x'
    assert delivered_to(app, {'exchange': 'orders', 'routing_key': 'big'}) == 'large'
    assert delivered_to(app, {'exchange': 'who', 'routing_key': 'knows'}) == delivered_to(app, None) == ''
    held_back = f'{"0." * 27}1.big'
    assert delivered_to(app, {'exchange': 'celery_delayed_27', 'routing_key': held_back}) == 'large'


@pytest.mark.parametrize('options', [
    {'queue': 'unacked'}, {'queue': Queue('unacked')}, {'queue': 'unacked_index'}, {'queue': '_kombu.binding.x'},
    {'queue': 'a\x06\x163'}, {'queue': ' '}, {'queue': 'amq.x'}, {'queue': 'celery-task-meta-1'},
    {'exchange': Exchange(''), 'routing_key': 'unacked'}, {'exchange': Exchange(''), 'routing_key': 'a\x00'},
    {'declare': [Queue('unacked')]}, {'queue': ['a']}, {'queue': 5},
    {'link': [{'task': 'tests:x', 'args': [], 'kwargs': {}, 'options': {'queue': 'unacked'}}]},
    {'chain': [{'task': 'celery.group', 'args': [], 'options': {}, 'kwargs': {
        'tasks': [{'task': 'tests:x', 'args': [], 'kwargs': {}, 'options': {'queue': 'unacked_mutex'}}]}}]},
], ids=str)
def test_reserved_queue_of_a_call(make_task, options):
    """Code gets the error, also in a transaction, and there is no row, however the task is called."""
    task = make_task(lambda self, task_id: None, name='tests:x')
    for call in (
        lambda: task.apply_async((), **options), lambda: app.send_task('tests:x', **options),
        lambda: app.send_task('unknown:x', **options), lambda: CeleryResult.enqueue('tests:x', **options),
        lambda: CeleryResult.enqueue_many(task, [()], **options), lambda: task.s().set(**options).delay(),
        lambda: task.apply_async((), netbox_track=False, **options),
    ):
        with pytest.raises(QueueRefused), transaction.atomic():
            call()
    assert not CeleryResult.objects.exists()


def test_reserved_queue_of_a_task(make_task):
    task = make_task(lambda self, task_id: None, name='tests:x', queue='unacked')
    with pytest.raises(QueueRefused):
        task.delay()


def test_reserved_queue_of_a_router(configured, make_task):
    configured(task_routes=lambda *args, **kwargs: {'queue': 'unacked'})
    with pytest.raises(QueueRefused):
        make_task(lambda self, task_id: None, name='tests:x').delay()


def test_code_names_any_queue(make_task):
    task = make_task(lambda self, task_id: None, name='tests:x', queue=f'backup-{uuid4().hex}')
    result = CeleryResult.enqueue(task)
    assert (result.status, result.queue) == ('pending', task.queue)
    assert CeleryResult.enqueue(task, queue='another').queue == 'another'


@pytest.mark.parametrize('name', ['unacked', 'celeryev', 'a\x00'])
def test_reserved_queue_of_a_worker(name):
    """As `celery worker -Q` and `celery control add_consumer` select them."""
    with pytest.raises(QueueRefused):
        app.amqp.Queues(()).select([name])
    with pytest.raises(QueueRefused):
        app.amqp.Queues(()).select_add(name, exchange='x', routing_key='x')
    with pytest.raises(QueueRefused):
        app.amqp.Queues(()).select_add('x', exchange='x', routing_key=f'{name}\x06')


def test_missing_queue_that_is_not_to_be_created(configured):
    configured(task_queues=[Queue('celery')])
    app.conf.task_create_missing_queues = False
    try:
        with pytest.raises(QueueNotFound):
            check_call(app, 'tests:x', (), {}, {'queue': 'x', 'routing_key': 'y'}, None)
    finally:
        del app.conf.changes['task_create_missing_queues']
