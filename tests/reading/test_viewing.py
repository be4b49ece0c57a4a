"""Related objects beside a row, and what a row repeats of another one: names are only for those who may view them."""
import json
from unittest.mock import patch
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from core.models import ObjectChange
from dcim.models import Region, Site
from netbox_celery.models import CeleryLogEntry, CeleryResult, CelerySchedule, CeleryTask
from netbox_celery.services import runs as actions
from tests.factories import HELLO_WORLD, grant, make_log, make_result, make_schedule, make_task
from tests.test_permission_matrix import Actor
from users.models import User

pytestmark = pytest.mark.django_db

RESULTS, SCHEDULES = '/plugins/celery/results/', '/plugins/celery/schedules/'
ALL_COLUMNS = '?include_columns=user,schedule,object,error,task,owner'
NAMES = {
    User: 'Wilhelmina', CelerySchedule: 'Nightmarish', Site: 'Atlantis', CeleryTask: 'covertoperation',
}


@pytest.fixture
def actor():
    return Actor()


@pytest.fixture
def rows():
    """A schedule and one of its runs, with all related objects."""
    user = User.objects.create_user(NAMES[User])
    site = Site.objects.create(name=NAMES[Site], slug='atlantis')
    schedule = make_schedule(
        NAMES[CelerySchedule], make_task(NAMES[CeleryTask]), owner=user, object=site, enabled=False
    )
    result = make_result('failed', user=user, schedule=schedule, object=site, started='2026-01-02T03:04:05Z', error='x')
    make_log(result, 'A line', object=site)
    make_result('failed', user=user, schedule=schedule, object=site, root_id=result.task_id, parent_id=result.task_id)
    return result, schedule


def look(actor, result, schedule):
    """Return the text of everything that shows runs, and of everything that shows schedules."""
    browse = lambda url: actor.browser.get(url)  # noqa: E731
    rest = lambda url: actor.api.get(f'/api/plugins/celery/{url}')  # noqa: E731
    ask = lambda query: actor.api.post(reverse('graphql'), {'query': query}, format='json')  # noqa: E731
    run, plan = result.get_absolute_url(), schedule.get_absolute_url()
    runs = {
        'list': browse(f'{RESULTS}{ALL_COLUMNS}'), 'export': browse(f'{RESULTS}{ALL_COLUMNS}&export=table'),
        'export of all': browse(f'{RESULTS}?export'), 'page': browse(run), 'log': browse(f'{run}log/'),
        'poll': browse(f'{run}log/lines/?after=0'), 'download': browse(f'{run}log/download/?format=json'),
        'workflow': browse(f'{run}workflow/'), 'cancel': browse(f'{run}cancel/'), 'delete': browse(f'{run}delete/'),
        'bulk rerun': actor.browser.post(f'{RESULTS}rerun/', {'pk': [result.pk]}),
        'bulk delete': actor.browser.post(f'{RESULTS}delete/', {'pk': [result.pk]}),
        'rest': rest(f'results/{result.pk}/'), 'rest list': rest('results/'),
        'rest fields': rest('results/?fields=id,user,schedule,object'), 'rest brief': rest('results/?brief=1'),
        'rest logs': rest(f'results/{result.pk}/logs/'), 'rest entries': rest('log-entries/'),
        'rest workflow': rest(f'results/{result.pk}/workflow/'),
        'rest write': actor.api.patch(f'/api{run}', {'tags': []}, format='json'),
        'graphql': ask('{ celery_result_list { id user { username } schedule { name task { name } } object_id } }'),
    }
    plans = {
        'list': browse(f'{SCHEDULES}{ALL_COLUMNS}'), 'export': browse(f'{SCHEDULES}{ALL_COLUMNS}&export=table'),
        'page': browse(plan), 'runs': browse(f'{plan}runs/'), 'changes': browse(f'{plan}changelog/'),
        'delete': browse(f'{plan}delete/'), 'bulk delete': actor.browser.post(f'{SCHEDULES}delete/', {
            'pk': [schedule.pk]
        }), 'edit': browse(f'{plan}edit/'),
        'rest': rest(f'schedules/{schedule.pk}/'), 'rest list': rest('schedules/'),
        'graphql': ask('{ celery_schedule_list { id owner { username } task { name } object_id } }'),
    }
    return {
        kind: {way: (
            b''.join(response) if response.streaming else response.content
        ).decode() for way, response in shown.items()} for kind, shown in (('runs', runs), ('schedules', plans))
    }


def test_names_that_may_not_be_viewed(actor, rows):
    """They are shown nowhere, whatever else the reader may do; that there is an object is shown."""
    result, schedule = rows
    grant(actor.user, CeleryResult, actions=['view', 'change', 'delete', 'cancel', 'rerun'])
    grant(actor.user, CeleryLogEntry)
    grant(actor.user, CeleryTask, actions=['run'])
    for way, text in look(actor, result, schedule)['runs'].items():
        for name in NAMES.values():
            assert name not in text, way
        if way in ('list', 'export', 'page', 'bulk rerun'):
            assert '(hidden)' in text, way
    grant(actor.user, CelerySchedule, actions=['view', 'change', 'delete'])
    for way, text in look(actor, result, schedule)['schedules'].items():
        for model, name in NAMES.items():
            assert model is CelerySchedule or name not in text, (way, name)


def test_names_that_may_be_viewed(actor, rows):
    result, schedule = rows
    grant(actor.user, CeleryResult, actions=['view', 'change', 'delete', 'cancel', 'rerun'])
    grant(actor.user, CelerySchedule, actions=['view', 'change', 'delete'])
    grant(actor.user, CeleryTask, actions=['view', 'run'])
    grant(actor.user, CeleryLogEntry, User, Site)
    shown = look(actor, result, schedule)
    for way in ('list', 'export', 'page', 'rest', 'rest list'):
        for model in (User, CelerySchedule, Site):
            assert NAMES[model] in shown['runs'][way], way
        for model in (User, CeleryTask, Site):
            assert NAMES[model] in shown['schedules'][way], way
        assert '(hidden)' not in shown['runs'][way] + shown['schedules'][way]
    for way in ('log', 'poll', 'rest logs', 'rest entries'):
        assert NAMES[Site] in shown['runs'][way], way


def test_hidden_names_in_rest(actor, rows):
    """Their IDs are shown, and a client can write back what it has read."""
    result, schedule = rows
    grant(actor.user, CeleryResult, CelerySchedule)
    run = actor.api.get(f'/api{result.get_absolute_url()}').json()
    assert (run['user'], run['object']) == ({'id': result.user_id}, None)
    assert run['schedule']['name'] == NAMES[CelerySchedule]
    assert (run['object_type'], run['object_id']) == ('dcim.site', result.object_id)
    plan = actor.api.get(f'/api{schedule.get_absolute_url()}').json()
    assert (plan['owner'], plan['task']) == ({'id': schedule.owner_id}, {'id': schedule.task_id})


def test_own_name_is_shown(actor):
    grant(actor.user, CeleryResult)
    result = make_result(user=actor.user)
    assert actor.api.get(f'/api{result.get_absolute_url()}').json()['user']['username'] == actor.user.username
    assert actor.user.username in actor.browser.get(f'{RESULTS}?export=table&include_columns=user').content.decode()


def test_constraints(actor):
    """Each row shows what its reader may view of it."""
    sites = [Site.objects.create(name=f'Place {number}', slug=f's{number}') for number in range(2)]
    results = [make_result(object=site, name=f'R{number}') for number, site in enumerate(sites)]
    make_result(object=Region.objects.create(name='Somewhere', slug='somewhere'))
    grant(actor.user, CeleryResult)
    grant(actor.user, Site, constraints={'name': 'Place 1'})
    for text in (
        actor.browser.get(f'{RESULTS}?include_columns=object').content.decode(),
        actor.browser.get(f'{RESULTS}?export=table').content.decode(),
        json.dumps(actor.api.get('/api/plugins/celery/results/').json()),
    ):
        assert 'Place 1' in text
        assert 'Place 0' not in text and 'Somewhere' not in text
    assert actor.api.get(f'/api{results[1].get_absolute_url()}').json()['object']['name'] == 'Place 1'


@pytest.mark.parametrize('address', [
    f'{RESULTS}{ALL_COLUMNS}', '/api/plugins/celery/results/', '/api/plugins/celery/log-entries/',
    f'{RESULTS}?export=table&per_page=1', f'{SCHEDULES}?export=table&per_page=1',
    f'{SCHEDULES}{ALL_COLUMNS}', '/api/plugins/celery/schedules/', '/api/plugins/celery/results/PK/logs/',
    '/api/plugins/celery/results/PK/workflow/', f'{RESULTS}PK/workflow/', f'{RESULTS}PK/log/lines/?after=0',
])
def test_constraints_cost_no_query_a_row(actor, address):
    for model in (User, Site, CelerySchedule, CeleryTask, CeleryResult, CeleryLogEntry):
        grant(actor.user, model, constraints={'pk__gt': 0})
    run = make_result('failed', started='2026-01-02T03:04:05Z')

    def make(number):
        user = User.objects.create_user(f'user {number}')
        site = Site.objects.create(name=f'Site {number}', slug=f's{number}')
        schedule = make_schedule(f'S{number}', make_task(f'plugin:{number}'), owner=user, object=site)
        result = make_result(
            'errored', user=user, schedule=schedule, object=site, reason='upstream_failed', root_id=run.task_id,
            parent_id=run.task_id, error=f'Not run, because Hello [{make_result("failed").task_id}] is failed: no'
        )
        make_log(result, 'x', object=site)
        make_log(run, 'x', object=site)

    def count():
        client = actor.api if address.startswith('/api') else actor.browser
        with CaptureQueriesContext(connection) as queries:
            assert client.get(address.replace('PK', str(run.pk))).status_code in (200, 286)
        return len(queries)

    for number in range(2):
        make(number)
    count()  # fills caches
    few = count()
    for number in range(2, 6):
        make(number)
    assert count() == few


# Filters do not tell what is not shown

def test_names_are_not_to_be_guessed(actor, rows):
    grant(actor.user, CeleryResult)
    for query in (f'user={NAMES[User]}', f'schedule={NAMES[CelerySchedule]}'):
        known = actor.api.get(f'/api/plugins/celery/results/?{query}')
        unknown = actor.api.get(f'/api/plugins/celery/results/?{query}x')
        assert known.status_code == unknown.status_code == 400
    for filters in ('user: {username: {starts_with: "Wil"}}', 'schedule: {name: {starts_with: "Nig"}}'):
        query = f'{{ celery_result_list(filters: {{{filters}}}) {{ id }} }}'
        ask = lambda: actor.api.post(reverse('graphql'), {'query': query}, format='json').json()  # noqa: E731, B023
        assert ask()['data']['celery_result_list'] == []
        permission = grant(actor.user, User, CelerySchedule)
        assert len(ask()['data']['celery_result_list']) == 2
        permission.delete()
    grant(actor.user, CelerySchedule)
    for query in ('q=covert', f'task={NAMES[CeleryTask]}', f'owner={NAMES[User]}'):
        answer = actor.api.get(f'/api/plugins/celery/schedules/?{query}').json()
        assert not answer.get('results')
    query = '{ celery_schedule_list(filters: {task: {name: {starts_with: "covert"}}}) { id } }'
    assert actor.api.post(reverse('graphql'), {'query': query}, format='json').json()['data'] == {
        'celery_schedule_list': []
    }
    grant(actor.user, CeleryTask)
    assert len(actor.api.get('/api/plugins/celery/schedules/?q=covert').json()['results']) == 1


# What an error repeats of another run

@pytest.mark.parametrize('sentence', [
    'Not run, because Clandestine [ID] is errored: the password is hunter2',
    "Not run, because [ID] did not succeed: ValueError('hunter2 for Clandestine')",
    "Not run: ChordError: Dependency ID raised ValueError('hunter2 for Clandestine')",
])
def test_error_of_another_run(actor, sentence):
    culprit = make_result('errored', name='Clandestine', error='the password is hunter2')
    step = make_result(
        'errored', reason='upstream_failed', error=sentence.replace('ID', str(culprit.task_id)),
        root_id=culprit.task_id, parent_id=culprit.task_id,
        attempts=[{'number': number, 'started': '2026-01-02T03:04:05+00:00', 'ended': None, 'worker': '',
                   'error': sentence.replace('ID', str(culprit.task_id))} for number in (1, 2)],
    )
    permission = grant(actor.user, CeleryResult, actions=['view', 'delete'], constraints={'pk': step.pk})
    ask = '{ celery_result_list { error attempts } }'

    def texts():
        return {
            'page': actor.browser.get(step.get_absolute_url()).content,
            'list': actor.browser.get(f'{RESULTS}?include_columns=error').content,
            'export': actor.browser.get(f'{RESULTS}?export=table&include_columns=error').content,
            'workflow': actor.browser.get(f'{step.get_absolute_url()}workflow/').content,
            'rest': actor.api.get(f'/api{step.get_absolute_url()}').content,
            'rest list': actor.api.get('/api/plugins/celery/results/?fields=id,error,attempts').content,
            'rest workflow': actor.api.get(f'/api{step.get_absolute_url()}workflow/').content,
            'graphql': actor.api.post(reverse('graphql'), {'query': ask}, format='json').content,
        }

    def found():
        query = '{ celery_result_list(filters: {error: {contains: "hunter2"}}) { id } }'
        return [
            *(actor.api.get(f'/api/plugins/celery/results/?id={step.pk}&{by}').json()['count'] for by in (
                'q=hunter2', 'error__ic=hunter2', f'error={sentence}'.replace('ID', str(culprit.task_id)),
            )),
            len([row for row in actor.api.post(reverse('graphql'), {'query': query}, format='json').json()['data'][
                'celery_result_list'
            ] if row['id'] == str(step.pk)]),
        ]

    for way, text in texts().items():
        assert b'hunter2' not in text and b'Clandestine' not in text, way
        assert str(culprit.task_id).encode() in text, way
    assert found() == [0, 0, 0, 0]
    permission.constraints = None
    permission.save()
    for way, text in texts().items():
        assert b'hunter2' in text, way
    assert found() == [1, 1, 1, 1]
    actor.browser.post(f'{step.get_absolute_url()}delete/', {'confirm': 'true'})
    assert 'hunter2' not in json.dumps(ObjectChange.objects.get().prechange_data)


def test_other_errors_are_shown(actor):
    """The run's own errors, and those with no more of another run than its ID."""
    hidden = make_result('running')
    texts = ['ValueError: [x] is wrong', f'Not run: [{hidden.task_id}] with the same key was active',
             f'Superseded by [{hidden.task_id}]', f'It said: [{uuid4()}] is wrong']
    reasons = ['', 'skipped', 'cancelled', '']
    results = [make_result('errored', reason=reason, error=text) for reason, text in zip(reasons, texts)]
    grant(actor.user, CeleryResult, constraints={'pk__in': [result.pk for result in results]})
    rows = actor.api.get('/api/plugins/celery/results/?ordering=id').json()['results']
    assert [row['error'] for row in rows] == texts
    assert actor.api.get('/api/plugins/celery/results/?q=wrong').json()['count'] == 2


# A call that joins a run which its caller may not view

@pytest.mark.parametrize('way', ['run', 'rerun', 'schedule', 'page', 'rerun page', 'schedule page'])
@pytest.mark.parametrize('is_visible', [True, False])
def test_joined(actor, way, is_visible):
    task = make_task()
    schedule = make_schedule(task=task)
    done = make_result('failed', args=[], kwargs={}, name='Before')
    other = make_result('running', name='Clandestine', kwargs={'password': 'hunter2'}, result='hunter2')
    other.joined = True
    grant(actor.user, CeleryTask, actions=['run'])
    grant(actor.user, CelerySchedule)
    seen = [done.pk, other.pk] if is_visible else [done.pk]
    grant(actor.user, CeleryResult, actions=['view', 'rerun'], constraints={'pk__in': seen})
    calls = {
        'run': lambda: actor.api.post(f'/api{task.get_absolute_url()}run/', {}, format='json'),
        'rerun': lambda: actor.api.post(f'/api{done.get_absolute_url()}rerun/', {}, format='json'),
        'schedule': lambda: actor.api.post(f'/api{schedule.get_absolute_url()}run/', {}, format='json'),
        'page': lambda: actor.browser.post(f'{task.get_absolute_url()}run/', {}, follow=True),
        'rerun page': lambda: actor.browser.post(f'{done.get_absolute_url()}rerun/', {}, follow=True),
        'schedule page': lambda: actor.browser.post(f'{schedule.get_absolute_url()}run/', {}, follow=True),
    }
    with (
        patch.object(CeleryResult, 'enqueue', return_value=other),
        patch('netbox_celery.engine.sending.control.rerun', return_value=other),
    ):
        response = calls[way]()
    assert response.status_code == 200
    text = response.content.decode()
    if is_visible:
        assert 'Clandestine' in text
    else:
        assert 'Clandestine' not in text and 'hunter2' not in text
        assert 'no permission to view it' in text
    if 'page' not in way and not is_visible:
        assert set(response.json()) == {'id', 'task_id', 'detail'}


def test_run_now_of_one_of_celerys_own(actor):
    """The settings can schedule `celery.map`; one must be allowed to run what it calls."""
    task = make_task('celery.map')
    make_task('plugin:forbidden')
    schedule = make_schedule(
        task=task, origin='settings', kwargs={'task': {'task': 'plugin:forbidden', 'options': {}}, 'it': [1]}
    )
    grant(actor.user, CelerySchedule, actions=['view', 'change'])
    permission = grant(actor.user, CeleryTask, actions=['run'], constraints={'name__in': ['celery.map', HELLO_WORLD]})
    urls = [f'/api{schedule.get_absolute_url()}{name}/' for name in ('run', 'take-over')]
    assert [actor.api.post(url, {}, format='json').status_code for url in urls] == [403, 403]
    data = {'kwargs': {'task': 'plugin:forbidden', 'it': [1]}}
    assert actor.api.post(f'/api{task.get_absolute_url()}run/', data, format='json').status_code in (400, 403)
    assert not CeleryResult.objects.exists()
    permission.constraints = {'name__in': ['celery.map', 'plugin:forbidden']}
    permission.save()
    with patch.object(actions.CeleryResult, 'enqueue', return_value=make_result('pending')):
        assert actor.api.post(urls[0], {}, format='json').status_code == 201
