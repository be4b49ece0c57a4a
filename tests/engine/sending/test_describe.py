"""What the caller gave becomes one description, and stays as it is, however a task is called."""
import copy
from contextlib import nullcontext
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from celery import chain, chord, group
from celery._state import _task_stack
from django.db import transaction

from dcim.models import Site
from extras.models import Tag
from netbox_celery.celery import app
from netbox_celery.engine.calls.run import Run
from netbox_celery.engine.sending.describe import complete, describe, is_tracked
from netbox_celery.models import CeleryResult
from users.models import User

pytestmark = pytest.mark.django_db(transaction=True)

NAME = 'tests:described'
LATER = datetime(2040, 1, 1, tzinfo=UTC)


@pytest.fixture
def task(make_task):
    return make_task(lambda self, task_id, *args, **kwargs: None, name=NAME)


# Nothing of the caller's is changed

def step(*args, **options):
    return app.signature(NAME, args, options={'task_id': uuid4().hex.upper(), 'queue': 'nobody', **options})


def everything():
    """Return arguments and options of each kind, nested, with everything that has to be written differently."""
    user = User.objects.create_user('alice')
    site, tag = Site.objects.create(name='s', slug='s'), Tag.objects.create(name='T', slug='t')
    own = {'netbox_user': user, 'netbox_object': site, 'netbox_tags': [tag, 't'], 'netbox_kwargs': {'name': 'n'}}
    last = step('last', **own, headers={'deep': [1]})
    options = {
        'queue': 'nobody', 'task_id': uuid4().hex.upper(), 'parent_id': uuid4().hex, 'root_id': uuid4().hex,
        'countdown': 1000, 'expires': 2000, 'priority': 3,
        'headers': {'mine': {'nested': ['x']}, 'traceparent': '00-1', 'headers': {'sentry-trace': '1'}},
        'link': [step('link', **own), chain(step('a', **own), last, app=app)],
        'link_error': [step('errback', link=[step('deep', **own)])],
        'chain': [step('rest', **own, link_error=[step('its own', **own)])],
        'chord': chord([step('part', **own)], chain(step('b'), last, app=app), app=app),
        **own, 'netbox_data': {'mine': [1]},
    }
    return ([1, {'deep': ['x']}, LATER], {'keyword': {'deep': ['x']}, 'other': (1, 2)}), options


def on_commit(task, arguments, options):
    with transaction.atomic():
        task.apply_async_on_commit(*arguments, **options)


def canvas(task, arguments, options):
    signature = task.signature(*arguments, options=without_id(options))
    part = task.signature(*arguments, options={'headers': options['headers'], 'netbox_user': options['netbox_user']})
    held = chain(group(part, task.signature((1,))), chord([part, part], task.signature((2,))), signature, app=app)
    before = copy.deepcopy(held)
    held.apply_async(queue='nobody', headers=options['headers'])
    assert held == before
    group(part, signature).apply_async()
    chord([part], signature).delay()


def without_id(options):
    return {name: value for name, value in options.items() if name != 'task_id'}


def simple(options):
    """Return the options that `enqueue_many` takes of all calls."""
    return {name: value for name, value in without_id(options).items() if not name.startswith('netbox_')}


WAYS = {
    'delay': lambda task, arguments, options: task.delay(
        *arguments[0], **arguments[1], **{name: value for name, value in options.items() if name[:6] == 'netbox'}
    ),
    'apply_async': lambda task, arguments, options: task.apply_async(*arguments, **options),
    'send_task': lambda task, arguments, options: app.send_task(NAME, *arguments, **options),
    'unknown task': lambda task, arguments, options: app.send_task('tests:unknown', *arguments, **options),
    'untracked': lambda task, arguments, options: task.apply_async(*arguments, **{**options, 'netbox_track': False}),
    'with a key': lambda task, arguments, options: task.apply_async(
        *arguments, **options, concurrency_key='k', on_conflict='queue'
    ),
    'with a window': lambda task, arguments, options: task.apply_async(
        *arguments, **options, ignore_task_after_success=True, ignore_task_timedelta=60
    ),
    'signature': lambda task, arguments, options: task.signature(*arguments, options=options).apply_async(),
    'canvas': canvas,
    'on commit': on_commit,
    'enqueue': lambda task, arguments, options: CeleryResult.enqueue(
        task, args=arguments[0], kwargs=arguments[1], user=options['netbox_user'], **simple(options)
    ),
    'enqueue_many': lambda task, arguments, options: CeleryResult.enqueue_many(
        task, [arguments, arguments], user=options['netbox_user'], instance=options['netbox_object'], **simple(options)
    ),
    'enqueue_many, each by itself': lambda task, arguments, options: CeleryResult.enqueue_many(
        task, [arguments, arguments], concurrency_key='k', on_conflict='queue', **simple(options)
    ),
}


@pytest.mark.parametrize('in_transaction', [False, True])
@pytest.mark.parametrize('way', WAYS)
def test_untouched(task, way, in_transaction):
    """Neither arguments nor options, nor what is nested in them."""
    arguments, options = everything()
    before = copy.deepcopy((arguments, options))
    with transaction.atomic() if in_transaction else nullcontext():
        WAYS[way](task, arguments, options)
    assert (arguments, options) == before
    assert CeleryResult.objects.exists() == (way != 'untracked')


@pytest.mark.parametrize('way', ['delay', 'apply_async', 'signature', 'canvas', 'on commit'])
def test_untouched_by_an_eager_call(task, eager, way):
    arguments, options = everything()
    # Within a task Celery calls nothing here and now that consists of several
    options = {name: value for name, value in options.items() if name not in ('chain', 'chord', 'link')}
    before = copy.deepcopy((arguments, options))
    WAYS[way](task, arguments, options)
    assert (arguments, options) == before


def test_description(task):
    """It has what the caller gave, with one ID, points in time, portable signatures, and no dict of the caller's."""
    arguments, options = everything()
    call = describe(app, NAME, *arguments, options)
    assert (call.name, call.task, call.queue, call.is_tracked) == (NAME, task, 'nobody', True)
    assert (call.args, call.kwargs) == arguments
    assert call.task_id == str(call.task_id).lower() and '-' in call.task_id
    assert call.options['eta'] and 'countdown' not in call.options and not isinstance(call.options['expires'], int)
    assert not [name for name in call.options if name.startswith('netbox_')]
    assert (call.own.name, call.own.user_id) == ('n', options['netbox_user'].pk)
    assert (call.id_is_given, call.id_is_known, call.continues, call.predecessor) == (True, True, False, None)


# What of the one who calls matters

@pytest.fixture
def calling(make_task):
    """A task whose body calls: its request."""
    task = make_task(lambda self, task_id: None, name='tests:calling')
    run = Run(str(uuid4()), id=1, claims=1)
    task.push_request(id=run.task_id, root_id=str(uuid4()), netbox_run=run, called_directly=False)
    _task_stack.push(task)
    yield task.request_stack.top
    _task_stack.pop()
    task.pop_request()


@pytest.mark.parametrize('given, returned, expected', [
    ({}, False, (False, False, None)), ({}, True, (True, False, None)),
    ({'parent_id': 'own'}, False, (True, False, None)), ({'parent_id': 'own'}, True, (True, False, 'own')),
    ({'link': [{'task': 'x'}]}, False, (False, True, None)),
    ({'task_id': '01234567-89ab-4def-8123-456789abcdef'}, False, (False, True, None)),
], ids=str)
def test_call_by_a_task(task, calling, given, returned, expected):
    run = calling.netbox_run
    run.returned = returned
    options = {name: run.task_id if value == 'own' else value for name, value in given.items()}
    call = describe(app, NAME, (), {}, options)
    predecessor = expected[2] and run.task_id
    assert (call.is_next_step, call.id_is_known, call.predecessor) == (*expected[:2], predecessor)
    assert (call.run, call.request, call.parent.name) == (run, calling, 'tests:calling')
    assert (call.options['root_id'], call.options['parent_id']) == (calling.root_id, run.task_id)


@pytest.mark.parametrize('nesting, replaced, continues, replaces, tracked', [
    (0, False, True, False, True), (1, False, True, True, False), (1, True, True, True, True),
])
def test_next_attempt(task, calling, nesting, replaced, continues, replaces, tracked):
    """A call with the ID of the run that makes it continues that run, by a retry or by a replacement."""
    run = calling.netbox_run
    run.replaced = replaced
    options = {'task_id': run.task_id, 'replaced_task_nesting': nesting, 'countdown': 10, 'headers': {'x': 1}}
    call = describe(app, NAME, (), {}, options)
    assert (call.continues, call.replaces, call.is_tracked) == (continues, replaces, tracked)
    assert ('eta' in call.options) == (tracked and replaces)
    assert options['headers'] == {'x': 1}


def test_replacement_with_a_policy(make_task, calling):
    """It has to be admitted, as any call."""
    task = make_task(lambda self, task_id: None, name='tests:keyed', concurrency_key='k')
    calling.netbox_run.replaced = True
    call = describe(app, task.name, (), {}, {'task_id': calling.id, 'replaced_task_nesting': 1})
    assert not call.continues


# Whether it gets a row

@pytest.mark.parametrize('name, track, expected', [
    ('tests:base', {}, True), ('tests:base', {'netbox_track': False}, False), ('celery.backend_cleanup', {}, False),
    (None, {}, True),
])
def test_tracked(make_task, name, track, expected):
    task = None
    if name == 'tests:base':
        task = make_task(lambda self, task_id: None, name=name, **track)
    elif name:
        task = app.tasks[name]
    assert is_tracked(task) is expected


def test_complete():
    """The ID and the parents that Celery would work out later; what is given stays."""
    task_id, given = uuid4(), {'queue': 'q'}
    assert complete(given).keys() == {'queue', 'task_id', 'root_id'} and given == {'queue': 'q'}
    assert complete({'eta': LATER, 'task_id': task_id}) == {'eta': LATER, 'task_id': str(task_id), 'root_id': None}
    assert complete({'group_id': 'g'})['root_id'] == 'g'
