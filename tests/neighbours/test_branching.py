"""NetBox Branching, and what people and programs do in a branch, without a worker."""
import json
import re
from datetime import timedelta

import pytest
from django.apps import apps
from django.contrib.contenttypes.models import ContentType
from django.db import DEFAULT_DB_ALIAS, connection, connections, transaction
from django.db.migrations.loader import MigrationLoader
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from netbox_branching.choices import BranchStatusChoices
from netbox_branching.models import Branch
from netbox_branching.utilities import activate_branch, get_tables_to_replicate, supports_branching
from netbox_test_plugin.tasks import branches as tasks
from rest_framework.test import APIClient

from core.models import ObjectChange, ObjectType
from dcim.models import Site
from extras.models import Tag, TaggedItem
from netbox_celery.celery import app
from netbox_celery.engine.catalogue import discovery
from netbox_celery.engine.exceptions import BranchNotReady
from netbox_celery.engine.schedules import firing as schedules
from netbox_celery.engine.schedules.sync import sync_catalogue
from netbox_celery.engine.store import branches
from netbox_celery.engine.store.database import get_connection
from netbox_celery.engine.worker import sweep
from netbox_celery.engine.worker.retention import prune
from netbox_celery.models import CeleryResult, CelerySchedule, CeleryTask
from netbox_celery.tables import CeleryResultTable
from netbox_celery.testing import run_task
from users.models import User
from utilities.exceptions import AbortRequest

HELLO = 'netbox_example_plugin:hello_world'
#: Runs that were there before.
MANY = 20_000
FILL = '''
    INSERT INTO netbox_celery_celeryresult (
        created, last_updated, custom_field_data, task_id, celery_name, name, args, kwargs, options, queue, status,
        reason, step, worker, attempt, attempts, started, completed, error, traceback, claims, nesting, in_backend
    )
    SELECT now(), now(), '{}', gen_random_uuid(), 'old:task', 'old', '[]', '{}', '{}', '', 'completed', '', '', '', 1,
        '[]', now(), now() - interval '100 days', '', '', 1, 0, false
    FROM generate_series(1, %s)
'''


@pytest.fixture(autouse=True)
def catalogued():
    sync_catalogue()


@pytest.fixture
def admin():
    return User.objects.create_superuser('admin')


@pytest.fixture
def api(admin):
    client = APIClient()
    client.force_authenticate(admin)
    return client


@pytest.fixture
def browser(admin):
    client = Client()
    client.force_login(admin)
    return client


@pytest.fixture
def sent():
    """What was sent: task names by message ID, on a queue of the test that no worker consumes."""
    def read():
        found = {}
        with app.connection_for_read() as broker:
            queue = app.amqp.queues['celery'](broker.default_channel)
            queue.declare()
            while (message := queue.get(no_ack=True)) is not None:
                found[message.headers['id']] = message.headers
        return found
    read()
    return read


def in_header(branch):
    return {'HTTP_X_NETBOX_BRANCH': branch.schema_id}


# Ours are main's

def test_models_are_exempt():
    """None of our tables is copied to a branch, and no model is routed to one, also in migrations."""
    ours = list(apps.get_app_config('netbox_celery').get_models())
    assert ours and not any(map(supports_branching, ours))
    assert not [name for name in get_tables_to_replicate() if name.startswith('netbox_celery')]

    state = MigrationLoader(connection).project_state()
    historic = [model for model in state.apps.get_models() if model._meta.app_label == 'netbox_celery']
    assert len(historic) == len(ours) and not any(map(supports_branching, historic))
    assert not ObjectType.objects.filter(app_label='netbox_celery', features__contains=['branching']).exists()


def test_many_runs(branch, user, api):
    """With 20,000 runs: lists in a branch are live, and a merge ignores what retention has deleted."""
    with connection.cursor() as cursor:
        cursor.execute(FILL, (MANY,))
        cursor.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename LIKE 'netbox_celery%%'",
            (branch.schema_name,)
        )
        assert cursor.fetchall() == []
    url = reverse('plugins-api:netbox_celery-api:celeryresult-list')
    assert api.get(url, **in_header(branch)).json()['count'] > 10_000

    with activate_branch(branch):
        run = CeleryResult.enqueue(HELLO, user=user)
        Site.objects.create(name='new', slug='new')
    for headers in ({}, in_header(branch)):
        assert api.get(url, **headers).json()['results'][0]['id'] == run.pk

    change = Site.objects.using(branch.connection_name).get().to_objectchange('create')
    change.user, change.request_id = user, run.task_id
    with activate_branch(branch):
        change.save()
    assert prune(timezone.now() - timedelta(days=1)).runs == MANY
    other = Site.objects.create(name='other', slug='other').to_objectchange('create')
    other.user, other.request_id = user, run.task_id
    other.save()
    branch.sync(user)
    assert Site.objects.using(branch.connection_name).count() == 2
    branch.merge(user)
    assert set(Site.objects.values_list('name', flat=True)) == {'new', 'other'}
    branch.revert(user)
    assert CeleryResult.objects.get().pk == run.pk


def test_installed_while_a_branch_is_open(branch, user):
    """A branch from before our tables records our migrations, and continues."""
    with connections[branch.connection_name].cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'netbox_celery'")
    assert {app_label for app_label, __ in branch.pending_migrations} == {'netbox_celery'}
    Branch.objects.filter(pk=branch.pk).update(status=BranchStatusChoices.PENDING_MIGRATIONS)

    branch = Branch.objects.get(pk=branch.pk)
    branch.migrate(user)

    branch = Branch.objects.get(pk=branch.pk)
    assert branch.status == BranchStatusChoices.READY
    assert branch.pending_migrations == []
    with activate_branch(branch):
        assert CeleryResult.enqueue(HELLO).branch == branch.schema_id


def test_copies_of_an_earlier_version(branch):
    """A branch's old copies of our tables would hide main's, so the next migration drops them."""
    from django.core.management import call_command

    with connection.cursor() as cursor:
        table = 'netbox_celery_celeryresult'
        cursor.execute(f'CREATE TABLE {branch.schema_name}.{table} (LIKE {table})')
    call_command('migrate', 'netbox_branching', verbosity=0)

    with activate_branch(branch), transaction.atomic(using=branch.connection_name):
        run = CeleryResult.enqueue(HELLO)
    assert CeleryResult.objects.get().pk == run.pk


# Calls

def test_start_by_rest(branch, api, admin, sent):
    """REST in a branch answers with the run's row, which names the branch."""
    task = CeleryTask.objects.get(name=HELLO)
    url = reverse('plugins-api:netbox_celery-api:celerytask-run', args=[task.pk])

    answer = api.post(url, {}, format='json', **in_header(branch))

    assert answer.status_code == 201, answer.content
    run = CeleryResult.objects.get(pk=answer.json()['id'])
    assert answer.json()['branch'] == {
        'id': branch.pk, 'display': 'branch', 'name': 'branch', 'schema_id': branch.schema_id, 'status': 'ready',
    }
    assert sent()[str(run.task_id)]['netbox_branch'] == branch.schema_id
    change = ObjectChange.objects.get(changed_object_id=run.pk, changed_object_type__model='celeryresult')
    assert (change.user, change.action) == (admin, 'create')
    assert not branch.get_unmerged_changes().exists()
    assert api.post(url, {}, format='json').json()['branch'] is None


@pytest.mark.parametrize('chosen', ['cookie', 'query'])
def test_start_by_the_page(branch, browser, chosen):
    """So does the run's page."""
    task = CeleryTask.objects.get(name=HELLO)
    url = reverse('plugins:netbox_celery:celerytask_run', args=[task.pk])
    if chosen == 'cookie':
        browser.cookies['active_branch'] = branch.schema_id
        answer = browser.post(url, {'name': 'World'})
    else:
        answer = browser.post(f'{url}?_branch={branch.schema_id}', {'name': 'World'})

    assert answer.status_code == 302
    run = CeleryResult.objects.get()
    assert run.branch == branch.schema_id
    for client in (browser, browser):
        page = client.get(run.get_absolute_url()).content.decode()
        assert branch.get_absolute_url() in page
        client.cookies.pop('active_branch', None)


def test_branch_is_named(branch, api, browser):
    """Lists, filters, exports and GraphQL name the branch of a run, a deleted one by its schema ID."""
    in_main = CeleryResult.enqueue(HELLO)
    with activate_branch(branch):
        run = CeleryResult.enqueue(HELLO)
    list_url = reverse('plugins:netbox_celery:celeryresult_list')
    rest_url = reverse('plugins-api:netbox_celery-api:celeryresult-list')

    for value in ('branch', branch.schema_id):
        assert [found['id'] for found in api.get(rest_url, {'branch': value}).json()['results']] == [run.pk]
    assert [found['id'] for found in api.get(rest_url, {'branch': 'null'}).json()['results']] == [in_main.pk]
    assert api.get(rest_url, {'branch': 'other'}).json()['count'] == 0
    table = CeleryResultTable(CeleryResult.objects.all())
    assert [row.get_cell('branch') for row in table.rows] == [
        f'<a href="{branch.get_absolute_url()}">branch</a>', table.columns['branch'].default
    ]
    header, *values = table.as_values()
    assert [dict(zip(header, row))['Branch'] for row in values] == ['branch', None]
    assert browser.get(list_url, {'branch': 'branch'}).status_code == 200
    query = '{celery_result_list(filters: {branch: {exact: "SCHEMA"}}) {id branch branch_name}}'
    answer = browser.post(
        reverse('graphql'), {'query': query.replace('SCHEMA', branch.schema_id)}, content_type='application/json'
    )
    assert answer.json()['data']['celery_result_list'] == [
        {'id': str(run.pk), 'branch': branch.schema_id, 'branch_name': 'branch'}
    ], json.dumps(answer.json())

    Branch.objects.filter(pk=branch.pk).delete()
    assert api.get(f'{rest_url}{run.pk}/').json()['branch'] == {
        'id': None, 'display': branch.schema_id, 'name': None, 'schema_id': branch.schema_id, 'status': None,
    }
    assert branch.schema_id in browser.get(run.get_absolute_url()).content.decode()


def test_changes_of_a_run(branch, user, browser):
    """The page of a run's changes links the branch that has them, until that is merged."""
    with activate_branch(branch):
        run = CeleryResult.enqueue(HELLO)
    CeleryResult.objects.filter(pk=run.pk).update(status='completed', completed=timezone.now(), request_id=run.task_id)
    change = Site(pk=1, name='changed-there', slug='there').to_objectchange('create')
    change.user, change.request_id = user, run.task_id
    with activate_branch(branch):
        Site.objects.create(pk=1, name='changed-there', slug='there')
        change.save(using=branch.connection_name)
    url = f'{run.get_absolute_url()}changes/'
    there = f'?_branch={branch.schema_id}'

    page = browser.get(url).content.decode()
    assert there in page and 'changed-there' not in page
    assert re.search(r'Changes\s*<span[^>]*>1</span>', page)
    page = browser.get(url + there).content.decode()
    assert 'changed-there' in page and 'until it is merged' not in page
    browser.cookies.pop('active_branch', None)
    branch.merge(user)
    page = browser.get(url).content.decode()
    assert 'changed-there' in page and 'until it is merged' not in page


# Transactions

def test_commit(branch, user, sent):
    """The row is part of a transaction of the branch, and the message is sent on its commit."""
    with activate_branch(branch):
        with transaction.atomic(using=branch.connection_name):
            run = CeleryResult.enqueue(HELLO, user=user)
            many = list(CeleryResult.enqueue_many(HELLO, [(), ()]))
            assert {result._state.db for result in (run, *many)} == {'default'}
            assert not CeleryResult.objects.exists()
            assert not sent()
        ids = {str(result.task_id) for result in (run, *many)}
        assert set(sent()) == ids
    assert {str(result.task_id) for result in CeleryResult.objects.all()} == ids
    assert set(CeleryResult.objects.values_list('branch', flat=True)) == {branch.schema_id}


@pytest.mark.parametrize('how', ['apply_async', 'delay_on_commit', 'unique', 'enqueue_many', 'untracked', 'inner'])
def test_rollback(branch, sent, make_task, how):
    """A rollback in the branch leaves neither a row nor a message."""
    task = make_task(lambda self, task_id: None, name='tests:rolled_back', stale_time_limit=60)
    calls = {
        'apply_async': task.apply_async,
        'delay_on_commit': task.delay_on_commit,
        'unique': lambda: task.apply_async(unique=True),
        'enqueue_many': lambda: CeleryResult.enqueue_many(task, [(), ()]),
        'untracked': lambda: task.apply_async_on_commit(netbox_track=False),
        'inner': transaction.atomic(task.apply_async),
    }
    with activate_branch(branch), pytest.raises(ZeroDivisionError):
        with transaction.atomic(using=branch.connection_name):
            calls[how]()
            raise ZeroDivisionError
    assert not CeleryResult.objects.exists()
    sweep.resend(get_connection(), app)
    assert not sent()


def test_helper_for_tests(branch, sent):
    """`run_task` runs a task in the branch in which it is called, and the test stays there."""
    with activate_branch(branch):
        for task, status in (
            (tasks.site, 'completed'), (tasks.site_then_fail, 'errored'), (tasks.site_at_last, 'completed')
        ):
            assert run_task(task, task.name.partition(':')[2]).status == status
            assert branches.current() == branch.schema_id
        with transaction.atomic(using=branch.connection_name), pytest.raises(RuntimeError, match='of a branch'):
            run_task(tasks.site, 'lost')
    run_task(tasks.site, 'main')

    assert set(Site.objects.values_list('name', flat=True)) == {'main'}
    of_branch = Site.objects.using(branch.connection_name)
    assert set(of_branch.values_list('name', flat=True)) == {'site', 'site_then_fail', 'site_at_last'}
    assert not sent()


@pytest.mark.parametrize('is_caught', [False, True])
def test_import_in_a_transaction(branch, sent, tmp_path, monkeypatch, is_caught):
    """A module with a failing query at import does not break the branch's transaction."""
    name, query = f'vain_tasks_{is_caught}'.lower(), "list(Site.objects.raw('SELECT nothing_of_the_kind'))"
    text = f'try:\n    {query}\nexcept DatabaseError:\n    pass\n' if is_caught else query
    (tmp_path / f'{name}.py').write_text(f'from django.db import DatabaseError\nfrom dcim.models import Site\n{text}')
    monkeypatch.syspath_prepend(tmp_path)
    for kept in ('_failures', '_unlogged'):
        monkeypatch.setattr(discovery, kept, {})
    with activate_branch(branch), transaction.atomic(using=branch.connection_name):
        app.loader.import_task_module(name)
        run = CeleryResult.enqueue(HELLO)

    assert [failure.module for failure in discovery.failures()] == ([] if is_caught else [name])
    assert set(sent()) == {str(run.task_id)}


def test_both_transactions(branch, sent):
    """With a transaction of main around it, as in a script of NetBox, the message waits for both."""
    with activate_branch(branch):
        with transaction.atomic():
            with transaction.atomic(using=branch.connection_name):
                run = CeleryResult.enqueue(HELLO)
            assert not sent()
        assert set(sent()) == {str(run.task_id)}


def test_on_commit_after_the_branch(branch, sent):
    """A function on commit runs in the branch in which it was registered, though that is no longer active."""
    task = app.tasks[HELLO]
    with transaction.atomic():
        with activate_branch(branch):
            task.delay_on_commit()
            task.apply_async_on_commit()
        task.delay_on_commit()
    assert sorted(found.get('netbox_branch') or '' for found in sent().values()) == [
        '', branch.schema_id, branch.schema_id
    ]


def test_wait_in_a_transaction(branch):
    """Waiting inside a transaction of the branch would never end, and is refused."""
    with activate_branch(branch), transaction.atomic(using=branch.connection_name):
        with pytest.raises(RuntimeError, match='commit'):
            app.tasks[HELLO].apply_async_and_get_result(timeout=1)


def test_cancel_in_a_transaction(branch):
    """A cancel in a transaction of the branch is part of it, too."""
    run = CeleryResult.enqueue(HELLO)
    with activate_branch(branch), pytest.raises(ZeroDivisionError):
        with transaction.atomic(using=branch.connection_name):
            assert run.cancel()
            raise ZeroDivisionError
    run.refresh_from_db()
    assert run.status == 'pending'


def test_unique(branch, make_branch, make_task):
    """A unique task runs once in main, and once in each branch."""
    task = make_task(lambda self, task_id: None, name='tests:once', unique=True, stale_time_limit=60)
    other = make_branch('other')
    first = [task.delay().id, task.delay().id]
    with activate_branch(branch):
        assert task.is_processing() is False
        second = [task.delay().id, task.delay().id]
        assert task.is_processing()
    with activate_branch(other):
        third = [task.delay().id]

    assert first[0] == first[1] and second[0] == second[1]
    assert len({*first, *second, *third}) == 3


# What stands beside a run

def test_object_in_the_branch(branch, api, browser):
    """A run can be about an object that exists only in the branch, whose page there shows it."""
    with activate_branch(branch):
        site = Site.objects.create(name='only here', slug='only-here')
        run = CeleryResult.enqueue(HELLO, instance=site)
        assert CeleryResult.objects.get(pk=run.pk).object == site
    assert CeleryResult.objects.get(pk=run.pk).object.name == 'only here'

    url = reverse('plugins-api:netbox_celery-api:celeryresult-detail', args=[run.pk])
    assert api.get(url, **in_header(branch)).json()['object']['name'] == 'only here'
    assert api.get(url).status_code == 200
    browser.cookies['active_branch'] = branch.schema_id
    assert 'only here' in browser.get(run.get_absolute_url()).content.decode()
    assert run.get_absolute_url() in browser.get(
        reverse('plugins:netbox_celery:celeryresult_list'),
        {'object_type_id': ContentType.objects.get_for_model(Site).pk, 'object_id': site.pk}
    ).content.decode()


def test_object_in_the_branch_of_a_schedule(branch, api):
    """So can a schedule that is created in the branch."""
    with activate_branch(branch):
        site = Site.objects.create(name='only here', slug='only-here')
    data = {
        'name': 'nightly', 'kind': 'crontab', 'crontab': '0 3 * * *', 'task': {'name': HELLO},
        'object_type': 'dcim.site', 'object_id': site.pk,
    }
    url = reverse('plugins-api:netbox_celery-api:celeryschedule-list')
    answer = api.post(url, data, format='json', **in_header(branch))

    assert answer.status_code == 201, answer.content
    assert answer.json()['branch']['schema_id'] == branch.schema_id
    assert answer.json()['object']['name'] == 'only here'
    edited = api.patch(f'{url}{answer.json()["id"]}/', {'description': 'x'}, format='json', **in_header(branch))
    assert edited.status_code == 200, edited.content
    # In main it cannot be named, since it is not there
    assert api.post(url, {**data, 'name': 'other'}, format='json').status_code == 400


def test_change_log(branch, api):
    """Changes of our objects in a branch are in main's change log, and are never merged."""
    url = reverse('plugins-api:netbox_celery-api:celeryschedule-list')
    answer = api.post(url, {
        'name': 'nightly', 'kind': 'crontab', 'crontab': '0 3 * * *', 'task': {'name': HELLO},
    }, format='json', **in_header(branch))
    assert answer.status_code == 201, answer.content
    api.patch(f'{url}{answer.json()["id"]}/', {'enabled': False}, format='json', **in_header(branch))
    api.delete(f'{url}{answer.json()["id"]}/', **in_header(branch))

    changes = ObjectChange.objects.filter(changed_object_type__model='celeryschedule')
    assert sorted(changes.values_list('action', flat=True)) == ['create', 'delete', 'update']
    assert not branch.get_unmerged_changes().exists()


def test_tags(branch, api, browser):
    """The tags of our objects are main's, in each branch the same."""
    main_tag = Tag.objects.create(name='main', slug='main')
    other = Tag.objects.create(name='second', slug='second')
    with activate_branch(branch):
        run = CeleryResult.enqueue(HELLO, netbox_tags=['main'])
        Tag.objects.create(name='only here', slug='only-here')
        with pytest.raises(ValueError, match='only here'):
            CeleryResult.enqueue(HELLO, netbox_tags=['only here'])
    assert TaggedItem.objects.filter(object_id=run.pk, tag=main_tag).exists()

    url = reverse('plugins-api:netbox_celery-api:celeryresult-detail', args=[run.pk])
    for headers in ({}, in_header(branch)):
        assert [tag['name'] for tag in api.get(url, **headers).json()['tags']] == ['main']
    answer = api.patch(url, {'tags': [{'name': 'main'}, {'name': 'second'}]}, format='json', **in_header(branch))
    assert answer.status_code in (200, 400), answer.content
    with activate_branch(branch):
        run.tags.set([main_tag, other])
        assert set(CeleryResult.objects.get(pk=run.pk).tags.all()) == {main_tag, other}
        with pytest.raises(AbortRequest, match='only here'):
            run.tags.add(Tag.objects.get(name='only here'))
        run.tags.remove('main')
        assert list(CeleryResult.objects.prefetch_related('tags').get(pk=run.pk).tags.all()) == [other]
    assert list(CeleryResult.objects.get(pk=run.pk).tags.all()) == [other]
    assert not TaggedItem.objects.using(branch.connection_name).filter(object_id=run.pk).exists()
    with activate_branch(branch):
        site = Site.objects.create(name='a site', slug='a-site')
        site.tags.add('only here')  # others' are the branch's, as ever
    assert not TaggedItem.objects.filter(object_id=site.pk).exclude(object_id=run.pk).exists()


# Schedules

def test_schedule(branch, user, sent, admin):
    """A schedule that is created in a branch runs there, whichever process sends it; one of main in main."""
    task = CeleryTask.objects.get(name=HELLO)

    def make(name):
        return CelerySchedule.objects.create(name=name, task=task, kind='interval', interval=60, owner=admin)

    with activate_branch(branch):
        inside = make('inside')
    outside = make('outside')
    assert (inside.branch, outside.branch) == (branch.schema_id, '')

    for schedule in (inside, outside):
        CelerySchedule.objects.filter(pk=schedule.pk).update(next_run=timezone.now())
        schedules.fire(schedule.pk, {})
        assert CeleryResult.objects.get(schedule=schedule).branch == schedule.branch
    found = {headers.get('netbox_branch') for headers in sent().values()}
    assert found == {branch.schema_id, None}

    assert inside.run_now(admin).branch == branch.schema_id
    with activate_branch(branch):
        assert outside.run_now(admin).branch == branch.schema_id


@pytest.mark.parametrize('status, goes_on', [('syncing', True), ('merged', False), ('archived', False), (None, False)])
def test_schedule_of_a_branch_that_is_not_ready(branch, admin, sent, status, goes_on):
    """Its runs fail with a reason while the branch is not ready; if it never will be, the schedule is stopped."""
    with activate_branch(branch):
        schedule = CelerySchedule.objects.create(
            name='inside', task=CeleryTask.objects.get(name=HELLO), kind='interval', interval=60, owner=admin
        )
    CelerySchedule.objects.filter(pk=schedule.pk).update(next_run=timezone.now())
    rows = Branch.objects.filter(pk=branch.pk)
    rows.update(status=status) if status else rows.delete()

    schedules.fire(schedule.pk, {})

    run = CeleryResult.objects.get()
    assert (run.status, run.reason, run.branch) == ('failed', 'branch_not_ready', branch.schema_id)
    assert branch.schema_id in run.error
    schedule.refresh_from_db()
    assert (schedule.enabled, schedule.stopped is None) == (goes_on, goes_on)
    assert not sent()
    with pytest.raises(BranchNotReady, match=branch.schema_id):
        schedule.run_now(admin)


def test_run_again_in_a_deleted_branch(branch, api):
    """The user gets the reason."""
    with activate_branch(branch):
        run = CeleryResult.enqueue(HELLO)
    CeleryResult.objects.filter(pk=run.pk).update(status='completed', completed=timezone.now())
    Branch.objects.filter(pk=branch.pk).update(status='archived')

    answer = api.post(reverse('plugins-api:netbox_celery-api:celeryresult-rerun', args=[run.pk]))

    assert answer.status_code == 400
    assert 'Archived' in answer.content.decode()
    assert CeleryResult.objects.count() == 1


def test_hot_path_without_a_branch(django_assert_num_queries):
    """Without an active branch, a call costs no more than without NetBox Branching: its row."""
    app.tasks[HELLO].delay()
    with django_assert_num_queries(0, connection=connections[DEFAULT_DB_ALIAS]):
        app.tasks[HELLO].delay()  # the row goes by the engine's own cursor, which Django does not count
