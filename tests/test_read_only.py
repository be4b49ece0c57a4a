"""A database that is read-only: a standby, a read-only session, NetBox's maintenance mode."""
import json
from contextlib import contextmanager
from datetime import timedelta

import pytest
from celery import chain, chord, group
from celery.exceptions import CeleryError
from celery.signals import before_task_publish
from django.db import InternalError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext, override_settings
from django.urls import get_resolver, reverse

from dcim.models import Site
from netbox.config import clear_config
from netbox_celery.celery import app
from netbox_celery.engine.exceptions import DatabaseReadOnly
from netbox_celery.engine.store.database import close_connections
from netbox_celery.engine.store.recorder import recorder
from netbox_celery.models import CeleryResult
from tests.factories import make_log, make_result, make_schedule, make_worker
from tests.factories import make_task as make_task_row
from users.models import User

pytestmark = pytest.mark.django_db(transaction=True)


def renew_connections():
    recorder.flush()
    connection.close()
    close_connections()


@contextmanager
def read_only_session():
    """As if the role, the database or the server had `default_transaction_read_only`; a standby answers alike."""
    options = connection.settings_dict['OPTIONS']
    connection.settings_dict['OPTIONS'] = {**options, 'options': '-c default_transaction_read_only=on'}
    try:
        renew_connections()
        yield
    finally:
        connection.settings_dict['OPTIONS'] = options
        renew_connections()


@contextmanager
def read_only_transaction():
    """As a caller may request it."""
    with transaction.atomic():
        connection.cursor().execute('SET TRANSACTION READ ONLY')
        yield


@contextmanager
def maintenance_mode():
    """NetBox makes the session of each request read-only, as intended: it exempts `/` and so all URLs."""
    clear_config()
    with override_settings(MAINTENANCE_MODE=True, MAINTENANCE_EXEMPT_PATHS=('/login/',)):
        try:
            yield
        finally:
            clear_config()
            renew_connections()


@contextmanager
def maintenance_mode_with_writes():
    """NetBox 4.7 with its own settings: the database would accept writes."""
    clear_config()
    with override_settings(MAINTENANCE_MODE=True):
        yield
    clear_config()


@pytest.fixture
def sent():
    """The names of the tasks whose messages were sent."""
    names = []

    def note(sender, **kwargs):
        names.append(sender)
    before_task_publish.connect(note)
    yield names
    before_task_publish.disconnect(note)


@pytest.fixture
def task(make_task):
    return make_task(lambda self, task_id, a=None: a, name='tests:read_only')


@pytest.fixture
def unique(make_task):
    return make_task(
        lambda self, task_id, a=None: a, name='tests:read_only_unique', unique=True, stale_time_limit=600,
        ignore_task_after_success=True, ignore_task_timedelta=timedelta(seconds=60),
    )


#: Each way to call a task. `unique` is one with policies, `result` a run that there is already.
CALLS = {
    'delay': lambda task, **other: task.delay(1),
    'apply_async': lambda task, **other: task.apply_async((1,), countdown=60, link=task.si(2)),
    'send_task': lambda task, **other: app.send_task(task.name, (1,)),
    'send_task, unknown': lambda **other: app.send_task('elsewhere:task', (1,)),
    'chain': lambda task, **other: chain(task.si(1), task.si(2)).delay(),
    'group': lambda task, **other: group(task.si(1), task.si(2)).delay(),
    'chord': lambda task, **other: chord([task.si(1), task.si(2)], task.si(3)).delay(),
    'map': lambda task, **other: task.map([1, 2]).delay(),
    'unique': lambda unique, **other: unique.delay(1),
    'queued': lambda unique, **other: unique.apply_async((1,), on_conflict='queue'),
    'enqueue': lambda task, **other: CeleryResult.enqueue(task, args=(1,)),
    'enqueue_job': lambda task, **other: CeleryResult.enqueue_job(task.name, None),
    'enqueue_many': lambda task, **other: CeleryResult.enqueue_many(task, [(1,), (2,)]),
    'enqueue_many, unique': lambda unique, **other: CeleryResult.enqueue_many(unique, [(1,), (2,)]),
    'rerun': lambda result, **other: result.rerun(),
    'run_now': lambda schedule, **other: schedule.run_now(schedule.owner),
    'cancel': lambda result, **other: CeleryResult.objects.get(pk=result.pk).cancel(),
}


@pytest.fixture
def rows():
    task = make_task_row()
    schedule = make_schedule(task=task, owner=User.objects.create_superuser('olga'))
    result = make_result('pending', args=[], kwargs={}, options={}, completed=None)
    make_log(result, 'A line')
    make_worker()
    return {'celerytask': task, 'celeryschedule': schedule, 'celeryresult': result}


@pytest.mark.parametrize('call', CALLS)
def test_calls_are_refused(task, unique, rows, sent, call):
    """With a message and PostgreSQL's code, and nothing is sent; later the same call works."""
    others = {'task': task, 'unique': unique, 'result': rows['celeryresult'], 'schedule': rows['celeryschedule']}
    for state in (read_only_session, read_only_transaction):
        with state():
            with pytest.raises(DatabaseReadOnly, match='read-only .SQLSTATE 25006.') as caught:
                CALLS[call](**others)
            assert isinstance(caught.value, CeleryError) and isinstance(caught.value, InternalError)
            assert caught.value.sqlstate == caught.value.__cause__.__cause__.sqlstate == '25006'
            # The caller's transaction continues
            assert CeleryResult.objects.count() == 1
    assert sent == []
    CALLS[call](**others)
    assert sent or call == 'cancel'


def test_on_commit_is_refused(task, sent):
    with read_only_session(), pytest.raises(DatabaseReadOnly), transaction.atomic():
        task.delay_on_commit(1)
    assert sent == []


def test_untracked_calls_are_sent(task, sent):
    """They have no row by choice, and need none."""
    with read_only_session():
        task.delay(1, netbox_track=False)
        assert task.apply((1,)).result == 1
    assert sent == [task.name]


def test_other_errors(task, sent):
    """If a row cannot be made for another reason, the task matters more than its row."""
    with connection.cursor() as cursor:
        cursor.execute('ALTER TABLE netbox_celery_celeryresult RENAME TO away')
        try:
            task.delay(1)
        finally:
            cursor.execute('ALTER TABLE away RENAME TO netbox_celery_celeryresult')
    assert sent == [task.name]


# Pages and interfaces

@pytest.fixture
def browser(rows):
    browser = Client()
    browser.force_login(rows['celeryschedule'].owner)
    return browser


def addresses(rows):
    """Return the URL of each page and each part of REST, by its name."""
    found = {}
    for namespace in ('plugins:netbox_celery', 'plugins-api:netbox_celery-api'):
        resolver = get_resolver()
        for part in namespace.split(':'):
            resolver = resolver.namespace_dict[part][1]
        for name in {name for name in resolver.reverse_dict if isinstance(name, str)}:
            row = rows.get(name.partition('_')[0].partition('-')[0])
            for kwargs in ({}, {'pk': row.pk if row else 0}):
                try:
                    found[f'{namespace}:{name}'] = reverse(f'{namespace}:{name}', kwargs=kwargs)
                except Exception:  # noqa: BLE001 - it is of one object, or of none
                    continue
    return found


ACTIONS_ONLY = (301, 302, 405)


@pytest.mark.parametrize('state', [read_only_session, maintenance_mode])
def test_nothing_is_written_by_a_get(rows, browser, state):
    """Each page and each list is shown without a write, also on a writable database."""
    Site.objects.create(name='Ams', slug='ams')
    urls = addresses(rows)
    assert {'plugins:netbox_celery:celerytask_list', 'plugins:netbox_celery:celeryschedule_add',
            'plugins-api:netbox_celery-api:celerytask-list'} <= urls.keys()
    urls['home'] = '/'
    run = rows['celeryresult'].get_absolute_url()
    urls |= {url: url for url in (f'/api{run}logs/', f'{run}log/lines/?after=0', '/plugins/celery/results/?export')}
    browser.get('/')  # NetBox itself makes the user's dashboard
    with state():
        for name, url in urls.items():
            with CaptureQueriesContext(connection) as queries:
                response = browser.get(url)
                if response.streaming:
                    b''.join(response.streaming_content)
            assert response.status_code in ((404, 200, *ACTIONS_ONLY) if '/0/' in url else (200, *ACTIONS_ONLY)), name
            written = [query['sql'] for query in queries if query['sql'].startswith(('INSERT', 'UPDATE', 'DELETE'))]
            assert not written, name
        for url in ('list', 'add'):
            assert browser.get(reverse(f'plugins:netbox_celery:celeryschedule_{url}')).status_code == 200
        for query in (
            'celery_result_list { id status task_id }', 'celery_task_list { id name }', 'celery_worker_list { id }',
            'celery_schedule_list { id name }', 'celery_log_entry_list { id message }',
        ):
            answer = browser.post(reverse('graphql'), json.dumps({'query': f'{{ {query} }}'}), 'application/json')
            assert 'errors' not in answer.json(), answer.json()
    with CaptureQueriesContext(connection) as queries:
        for name in ('celerytask_list', 'celeryschedule_add'):
            assert browser.get(reverse(f'plugins:netbox_celery:{name}')).status_code == 200
    assert not [query for query in queries if 'celery_celery' in query['sql'] and 'SELECT' not in query['sql']]


@pytest.mark.parametrize('method, kind, suffix', [
    ('post', 'celerytask', 'run/'), ('post', 'celeryresult', 'rerun/'), ('post', 'celeryresult', 'cancel/'),
    ('post', 'celeryschedule', 'run/'), ('post', 'celeryschedule', 'take-over/'), ('patch', 'celeryschedule', ''),
    ('patch', 'celerytask', ''), ('delete', 'celeryresult', ''), ('delete', 'celeryschedule', ''),
])
def test_rest_answers_503(rows, browser, sent, method, kind, suffix):
    url = f'/api{rows[kind].get_absolute_url()}{suffix}'
    body = json.dumps({'enabled': False} if method == 'patch' else {})
    for state in (read_only_session, maintenance_mode):
        with state():
            response = getattr(browser, method)(url, body, 'application/json')
        assert response.status_code == 503, response.content
        assert 'SQLSTATE 25006' in response.json()['detail']
    assert sent == []
    assert CeleryResult.objects.get().status == 'pending'


@pytest.mark.parametrize('kind, suffix', [
    ('celerytask', 'run/'), ('celeryresult', 'rerun/'), ('celeryresult', 'cancel/'), ('celeryschedule', 'run/'),
    ('celeryresult', 'delete/'), ('celeryschedule', 'disable/'),
])
def test_pages_say_so(rows, browser, sent, kind, suffix):
    for state in (read_only_session, maintenance_mode):
        with state():
            response = browser.post(f'{rows[kind].get_absolute_url()}{suffix}', {'confirm': 'true'}, follow=True)
        assert response.status_code == 200
        assert 'read-only' in response.content.decode()
    assert sent == []
    assert CeleryResult.objects.get().status == 'pending'


@pytest.mark.parametrize('kind, suffix', [
    ('celerytask', 'run/'), ('celeryresult', 'rerun/'), ('celeryschedule', 'run/'),
])
def test_calls_in_maintenance_mode(rows, browser, sent, kind, suffix):
    """Calls are refused though the session is writable; workers and beat, which serve no requests, continue."""
    url = f'{rows[kind].get_absolute_url()}{suffix}'
    with maintenance_mode_with_writes():
        answer = browser.post(f'/api{url}', '{}', 'application/json')
        page = browser.post(url, {'confirm': 'true'}, follow=True)
        assert sent == []
        assert (answer.status_code, page.status_code) == (503, 200)
        assert 'read-only' in page.content.decode()
        CeleryResult.enqueue('netbox_example_plugin:hello_world')
    assert sent


def test_selected_runs_are_not_cancelled(rows, browser):
    with read_only_session():
        response = browser.post(reverse('plugins:netbox_celery:celeryresult_bulk_cancel'), {
            'pk': [rows['celeryresult'].pk], '_confirm': '1', 'confirm': 'true',
        }, follow=True)
    assert 'read-only' in response.content.decode()
    assert CeleryResult.objects.get().cancelled is None


def test_page_without_a_form(rows, browser):
    """Schedules are renamed from their list only."""
    with read_only_session():
        response = browser.post(reverse('plugins:netbox_celery:celeryschedule_bulk_rename'), {
            'pk': [rows['celeryschedule'].pk], '_apply': '1', 'find': 'Hello', 'replace': 'Bye',
        }, follow=True)
    assert response.status_code == 200
    assert 'read-only' in response.content.decode()
    assert type(rows['celeryschedule']).objects.get().name == 'Hello'
