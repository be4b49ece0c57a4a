"""Who may do what: each action, in each way there is to it, with each kind of right, from both sides.

To act on something one needs the right to it and must be allowed to view it. `run` is enough for a task. What is
NetBox's own (to edit and to delete, but not to edit many) follows NetBox for who may view nothing of that kind at all.
"""
from collections.abc import Callable
from dataclasses import dataclass, field
from unittest.mock import patch
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from netbox_celery.models import CeleryResult, CelerySchedule, CeleryTask
from tests.factories import HELLO_WORLD, grant, make_log, make_result, make_schedule, make_task
from users.constants import TOKEN_PREFIX
from users.models import Token, User
from utilities.testing.utils import disable_warnings

pytestmark = pytest.mark.django_db

ROOT = '/plugins/celery'
SECRET = 'top-secret'

#: Each kind of right, as what is granted of the action and of `view`: constraints, or `None` for no permission.
HITS, MISSES, ALL = {'pk': 'the object'}, {'pk': 0}, {}
RIGHTS = {
    'nothing': (None, None),
    'view only': (None, ALL),
    'another right': (None, ALL),
    'without view': (ALL, None),
    'view of others': (ALL, MISSES),
    'right to others': (MISSES, ALL),
    'right and view of it': (HITS, HITS),
    'right and view of all': (ALL, ALL),
    'superuser': (None, None),
}
SUFFICIENT = ('right and view of it', 'right and view of all', 'superuser')
#: What is enough where NetBox does not ask for view.
AS_IN_NETBOX = (*SUFFICIENT, 'without view')
#: And where `view` does not matter at all.
BLIND = (*AS_IN_NETBOX, 'view of others')


class Actor:
    """A user with a browser and a token."""

    def __init__(self):
        self.user = User.objects.create_user(f'actor-{uuid4()}')
        self.browser = Client()
        self.browser.force_login(self.user)
        token = Token.objects.create(user=self.user)
        self.api = APIClient(HTTP_AUTHORIZATION=f'Bearer {TOKEN_PREFIX}{token.key}.{token.token}')

    def allow(self, model, action, constraints, obj):
        if constraints is not None:
            constraints = {'pk': obj.pk} if constraints is HITS else constraints
            grant(self.user, model, actions=[action], constraints=constraints)

    def give(self, right, model, action, obj):
        """Give a permission of some kind for an action on an object."""
        if right == 'superuser':
            User.objects.filter(pk=self.user.pk).update(is_superuser=True)
        own, view = RIGHTS[right]
        if action == 'view':
            view = None if own is None and right != 'view only' else view
        else:
            self.allow(model, action, own, obj)
        if right == 'another right':
            others = {'cancel', 'rerun', 'add', 'change', 'delete', 'run'} - {action}
            grant(self.user, model, actions=sorted(others))
        self.allow(model, 'view', view, obj)


@pytest.fixture
def actor():
    return Actor()


# Ways. Each is called with an actor and an object

def page(name, **data):
    return lambda actor, obj: actor.browser.post(f'{obj.get_absolute_url()}{name}/', {'confirm': 'true', **data})


def selected(name, **data):
    """Buttons of a list, with the object selected."""
    return lambda actor, obj: actor.browser.post(reverse(f'plugins:netbox_celery:{obj._meta.model_name}_{name}'), {
        'pk': [obj.pk], '_confirm': '1', 'confirm': 'true', '_apply': '1', **data
    })


def matching(name, **data):
    """Likewise, with all that match a filter."""
    return lambda actor, obj: actor.browser.post(
        reverse(f'plugins:netbox_celery:{obj._meta.model_name}_{name}') + f'?id={obj.pk}',
        {'_all': 'on', 'pk': [obj.pk], '_confirm': '1', 'confirm': 'true', '_apply': '1', **data}
    )


def rest(suffix='', /, method='post', **data):
    def call(actor, obj):
        path = f'/api{obj.get_absolute_url()}{suffix}'
        return getattr(actor.api, method)(path, data, format='json')
    return call


def rest_list(method, **data):
    def call(actor, obj):
        path = f'/api{obj.get_absolute_url()}'.removesuffix(f'{obj.pk}/')
        return getattr(actor.api, method)(path, [{'id': obj.pk, **data}], format='json')
    return call


# What has been done

def is_cancelled(obj):
    obj.refresh_from_db()
    return obj.cancelled is not None or obj.status == 'revoked'


def has_run(obj):
    return CeleryResult.objects.exclude(pk=obj.pk if isinstance(obj, CeleryResult) else 0).exists()


def is_deleted(obj):
    return not type(obj).objects.filter(pk=obj.pk).exists()


def is_changed(name, value):
    return lambda obj: getattr(type(obj).objects.get(pk=obj.pk), name) == value


def is_owned_by_actor(obj):
    owner = CelerySchedule.objects.get(pk=obj.pk).owner
    return owner is not None and owner.username.startswith('actor-')


@dataclass
class Action:
    model: type
    permission: str
    make: Callable
    ways: dict
    done: Callable
    enough: tuple = SUFFICIENT
    #: Whether it takes the right to run the task as well.
    with_run: bool = False
    #: Ways for which other rights are enough.
    extra: dict = field(default_factory=dict)


def waiting():
    return make_result('pending')


def ended():
    make_task()
    return make_result('failed', args=[], kwargs={})


def absent():
    return make_task('plugin:gone', present=False)


def disabled():
    return make_schedule(enabled=False, owner=User.objects.create_superuser('boss'))


ACTIONS = {
    'cancel': Action(CeleryResult, 'cancel', waiting, {
        'page': page('cancel'), 'selected': selected('bulk_cancel'), 'matching': matching('bulk_cancel'),
        'rest': rest('cancel/'),
    }, is_cancelled),
    'cancel the workflow': Action(CeleryResult, 'cancel', waiting, {
        'page': page('cancel-workflow'), 'rest': rest('cancel/', workflow=True),
    }, is_cancelled),
    'rerun': Action(CeleryResult, 'rerun', ended, {
        'page': page('rerun'), 'selected': selected('bulk_rerun'), 'matching': matching('bulk_rerun'),
        'rest': rest('rerun/'),
    }, has_run, with_run=True),
    'delete a run': Action(CeleryResult, 'delete', ended, {
        'page': page('delete'), 'selected': selected('bulk_delete'), 'matching': matching('bulk_delete'),
        'rest': rest(method='delete'), 'rest list': rest_list('delete'),
    }, is_deleted, AS_IN_NETBOX),
    'run a task': Action(CeleryTask, 'run', make_task, {'page': page('run'), 'rest': rest('run/')}, has_run, BLIND),
    'disable a task': Action(CeleryTask, 'change', make_task, {
        'page': page('edit'), 'selected': selected('bulk_edit', enabled='False'),
        'rest': rest(method='patch', enabled=False), 'rest list': rest_list('patch', enabled=False),
    }, is_changed('enabled', False), AS_IN_NETBOX, extra={'selected': SUFFICIENT}),
    'delete a task': Action(CeleryTask, 'delete', absent, {
        'page': page('delete'), 'selected': selected('bulk_delete'), 'matching': matching('bulk_delete'),
        'rest': rest(method='delete'), 'rest list': rest_list('delete'),
    }, is_deleted, AS_IN_NETBOX),
    'run a schedule': Action(CelerySchedule, 'view', make_schedule, {
        'page': page('run'), 'rest': rest('run/'),
    }, has_run, with_run=True),
    'enable a schedule': Action(CelerySchedule, 'change', disabled, {
        'page': page('enable'), 'rest': rest(method='patch', enabled=True),
        'selected': selected('bulk_edit', enabled='True'),
    }, is_changed('enabled', True), with_run=True, extra={'rest': AS_IN_NETBOX}),
    'disable a schedule': Action(CelerySchedule, 'change', make_schedule, {
        'page': page('disable'), 'rest': rest(method='patch', enabled=False),
        'rest list': rest_list('patch', enabled=False), 'selected': selected('bulk_edit', enabled='False'),
    }, is_changed('enabled', False), with_run=True, extra={'rest': AS_IN_NETBOX, 'rest list': AS_IN_NETBOX}),
    'take a schedule over': Action(CelerySchedule, 'change', make_schedule, {
        'page': page('take-over'), 'rest': rest('take-over/'),
    }, is_owned_by_actor, with_run=True),
    'rename a schedule': Action(CelerySchedule, 'change', make_schedule, {
        'rest': rest(method='patch', name='Hullo'),
        'selected': selected('bulk_rename', find='Hello', replace='Hullo', field_names=['name']),
    }, is_changed('name', 'Hullo'), AS_IN_NETBOX, with_run=True),
    'delete a schedule': Action(CelerySchedule, 'delete', make_schedule, {
        'page': page('delete'), 'selected': selected('bulk_delete'), 'matching': matching('bulk_delete'),
        'rest': rest(method='delete'), 'rest list': rest_list('delete'),
    }, is_deleted, AS_IN_NETBOX),
}


@pytest.mark.parametrize('right', RIGHTS)
@pytest.mark.parametrize(('name', 'way'), [(name, way) for name, action in ACTIONS.items() for way in action.ways])
def test_action(actor, name, way, right):
    action = ACTIONS[name]
    obj = action.make()
    if action.with_run:
        grant(actor.user, CeleryTask, actions=['run'])
    actor.give(right, action.model, action.permission, obj)
    with disable_warnings('django.request'):
        response = action.ways[way](actor, obj)
    enough = action.extra.get(way, action.enough)
    if action.permission == 'view':
        # To view it is the right itself
        enough = ('view only', 'right to others', *SUFFICIENT)
    assert action.done(obj) == (right in enough), response.content[:500]
    assert response.status_code < 500
    if right not in enough and '/api/' in response.request['PATH_INFO']:
        assert response.status_code in (400, 403, 404)


# To run a task again one has to be allowed to run it

RUN = {
    'nothing': None,
    'run of others': {'name': 'plugin:other'},
    'run of it': {'name': HELLO_WORLD},
    'run of its plugin': {'plugin': 'netbox_example_plugin'},
    'run of all': {},
}


def signature(task, **kwargs):
    return {'task': task, 'args': [], 'kwargs': kwargs, 'options': {}, 'subtask_type': None, 'immutable': False}


def canvas(kind, **kwargs):
    return signature(f'celery.{kind}', **kwargs) | {'subtask_type': kind}


FORBIDDEN = signature('plugin:forbidden')
ALLOWED = signature(HELLO_WORLD)
#: What a run called, and whether it is only what the user is allowed to run by name.
CALLS = {
    'the task': (HELLO_WORLD, [], {}, True),
    'map': ('celery.map', [], {'task': ALLOWED, 'it': ['Bob']}, True),
    'map by position': ('celery.map', [ALLOWED, ['Bob']], {}, True),
    'map by name': ('celery.map', [], {'task': HELLO_WORLD, 'it': ['Bob']}, True),
    'map of data like a signature': ('celery.map', [], {'task': ALLOWED, 'it': [FORBIDDEN]}, True),
    'starmap': ('celery.starmap', [], {'task': ALLOWED, 'it': [['Bob']]}, True),
    'chunks': ('celery.chunks', [], {'task': ALLOWED, 'it': [['Bob']], 'n': 1}, True),
    'group': ('celery.group', [], {'tasks': [ALLOWED, ALLOWED], 'result': [], 'group_id': 'x'}, True),
    'chord': ('celery.chord', [], {'header': [ALLOWED], 'body': ALLOWED}, True),
    'group of chains': ('celery.group', [], {'tasks': [canvas('chain', tasks=[ALLOWED, ALLOWED])]}, True),
    'map of another': ('celery.map', [], {'task': FORBIDDEN, 'it': ['Bob']}, False),
    'map of another by name': ('celery.map', [], {'task': 'plugin:forbidden', 'it': ['Bob']}, False),
    'map of another by position': ('celery.map', [FORBIDDEN, ['Bob']], {}, False),
    'chunks of another': ('celery.chunks', [], {'task': FORBIDDEN, 'it': [['Bob']], 'n': 1}, False),
    'starmap of map': ('celery.starmap', [], {'task': signature('celery.map'), 'it': [[FORBIDDEN, ['Bob']]]}, False),
    'map that names nothing': ('celery.map', [], {}, False),
    'chord with another body': ('celery.chord', [], {'header': [ALLOWED], 'body': FORBIDDEN}, False),
    'another in a chain in a group': (
        'celery.group', [], {'tasks': [canvas('chain', tasks=[ALLOWED, FORBIDDEN])]}, False
    ),
    'a canvas under a good name': (
        'celery.group', [], {'tasks': [signature(HELLO_WORLD, tasks=[FORBIDDEN]) | {'subtask_type': 'chain'}]}, False
    ),
    'a callback': (
        'celery.group', [], {'tasks': [ALLOWED | {'options': {'link': [FORBIDDEN]}}]}, False
    ),
    'chord_unlock': ('celery.chord_unlock', ['x', FORBIDDEN], {'result': []}, False),
    'accumulate': ('celery.accumulate', [1], {}, False),
    'backend_cleanup': ('celery.backend_cleanup', [], {}, False),
    'what the catalogue has not': ('plugin:unknown', [], {}, False),
}
AGAIN = {'page': page('rerun'), 'selected': selected('bulk_rerun'), 'rest': rest('rerun/')}


@pytest.mark.parametrize('right', [*RUN, 'superuser'])
@pytest.mark.parametrize('way', AGAIN)
@pytest.mark.parametrize('call', CALLS)
def test_rerun_needs_run_on_what_is_called(actor, call, way, right):
    make_task()
    make_task('plugin:forbidden')
    name, args, kwargs, is_ours = CALLS[call]
    result = make_result('failed', celery_name=name, args=args, kwargs=kwargs)
    grant(actor.user, CeleryResult, actions=['view', 'rerun'])
    if right == 'superuser':
        User.objects.filter(pk=actor.user.pk).update(is_superuser=True)
    elif RUN[right] is not None:
        grant(actor.user, CeleryTask, actions=['run'], constraints=RUN[right])
    is_enough = right in ('superuser', 'run of all') or is_ours and right in ('run of it', 'run of its plugin')
    started = []
    rerun = patch('netbox_celery.services.runs.rerun', side_effect=lambda request, result: (
        started.append(result) or make_result('pending')
    ))
    with disable_warnings('django.request'), rerun:
        AGAIN[way](actor, result)
    assert bool(started) == is_enough


@pytest.mark.parametrize('way', AGAIN)
@pytest.mark.parametrize('columns', [{'enabled': False}, {'present': False}])
def test_inner_task_that_may_not_be_run_at_all(actor, columns, way):
    make_task(**columns)
    result = make_result('failed', celery_name='celery.map', args=[], kwargs={'task': ALLOWED, 'it': ['Bob']})
    User.objects.filter(pk=actor.user.pk).update(is_superuser=True)
    with disable_warnings('django.request'):
        response = AGAIN[way](actor, result)
    assert not has_run(result)
    if way == 'rest':
        assert response.status_code == 400


def test_links_of_a_run_are_not_repeated(actor):
    """Its callbacks are not called again, so the right to run them is not needed."""
    make_task()
    result = make_result('failed', args=[], kwargs={}, options={'link': [FORBIDDEN], 'chain': [FORBIDDEN]})
    grant(actor.user, CeleryResult, actions=['view', 'rerun'])
    grant(actor.user, CeleryTask, actions=['run'], constraints={'name': HELLO_WORLD})
    assert rest('rerun/')(actor, result).status_code == 201
    new = CeleryResult.objects.exclude(pk=result.pk).get()
    assert not {'link', 'chain'} & new.options.keys()


# Reading

def address(suffix):
    return lambda actor, obj: actor.browser.get(f'{obj.get_absolute_url()}{suffix}')


def listed(suffix=''):
    return lambda actor, obj: actor.browser.get(reverse('plugins:netbox_celery:celeryresult_list') + suffix)


def graphql(query):
    return lambda actor, obj: actor.api.post(
        reverse('graphql'), {'query': query.replace('PK', str(obj.pk))}, format='json'
    )


READING = {
    'page': address(''), 'log': address('log/'), 'log lines': address('log/lines/'),
    'log poll': address('log/lines/?after=0'), 'log groups': address('log/groups/'),
    'log download': address('log/download/?format=text'), 'log as JSON': address('log/download/?format=json'),
    'workflow': address('workflow/'), 'list': listed(), 'export': listed('?export'), 'table': listed('?export=table'),
    'question before a cancel': address('cancel/'), 'question before a rerun': address('rerun/'),
    'question before a workflow is cancelled': address('cancel-workflow/'),
    'question about many': lambda actor, obj: actor.browser.post(
        reverse('plugins:netbox_celery:celeryresult_bulk_rerun'), {'pk': [obj.pk]}
    ),
    'rest': rest(method='get'), 'rest list': lambda actor, obj: actor.api.get('/api/plugins/celery/results/'),
    'rest brief': lambda actor, obj: actor.api.get('/api/plugins/celery/results/?brief=1'),
    'rest log': rest('logs/', 'get'), 'rest workflow': rest('workflow/', 'get'),
    'rest lines': lambda actor, obj: actor.api.get('/api/plugins/celery/log-entries/'),
    'graphql': graphql('{ celery_result(id: PK) { name display } }'),
    'graphql list': graphql('{ celery_result_list { name display } }'),
    'graphql lines': graphql('{ celery_log_entry_list { message result { name } } }'),
}


@pytest.mark.parametrize('right', ['nothing', 'another right', 'view of others', 'view of it', 'superuser'])
@pytest.mark.parametrize('way', READING)
def test_reading(actor, way, right):
    from netbox_celery.models import CeleryLogEntry

    make_task()
    obj = make_result('failed', name=SECRET, args=[], kwargs={}, started='2026-01-02T03:04:05Z')
    make_log(obj, SECRET, grouping=SECRET)
    make_result('failed', name='other', root_id=obj.task_id, parent_id=obj.task_id)
    if right != 'nothing':
        grant(actor.user, CeleryLogEntry)
        grant(actor.user, CeleryTask, actions=['run'])
        grant(actor.user, CeleryResult, actions=['cancel', 'rerun', 'change', 'delete'])
    if right == 'superuser':
        User.objects.filter(pk=actor.user.pk).update(is_superuser=True)
    elif right.startswith('view'):
        grant(actor.user, CeleryResult, constraints={'pk': obj.pk if right == 'view of it' else 0})
    with disable_warnings('django.request'):
        response = READING[way](actor, obj)
    content = b''.join(response) if response.streaming else response.content
    shows = SECRET in content.decode()
    if way == 'question before a cancel' or way == 'question before a workflow is cancelled':
        assert not shows or right in ('view of it', 'superuser')
    else:
        assert shows == (right in ('view of it', 'superuser'))
