"""Unique tasks: of all calls with the same arguments, in all processes, one runs at a time; the others join it."""
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from celery import chain, chord, group
from celery.exceptions import CeleryError
from django.db import connection, transaction
from django.urls import reverse
from kombu.exceptions import EncodeError, OperationalError
from netbox_test_plugin import tasks
from netbox_test_plugin.side import notes, open_gate
from netbox_test_plugin.tasks import policies

from core.models import ObjectChange
from netbox_celery.celery import app
from netbox_celery.engine.schedules.sync import sync_catalogue
from netbox_celery.models import CeleryResult, CeleryTask
from users.models import User

from .support import ended, row, until, waiting

unique = policies.unique


def holders():
    return CeleryResult.objects.filter(completed=None, concurrency_slot__gt=0).count()


def test_two_calls_one_run(worker, gate):
    first = worker.send(unique, kwargs={'gate': gate})
    second = worker.send(unique, kwargs={'gate': gate})
    until(lambda: notes(first.id))
    third = worker.send(unique, '', gate)
    other = worker.send(unique, kwargs={'gate': gate, 'other': 1})

    assert first.id == second.id == third.id != other.id
    assert unique.is_processing((), {'gate': gate})
    open_gate(gate)
    assert first.get(timeout=20) == second.get(timeout=20) == ''
    assert len(notes(first.id)) == 1
    assert CeleryResult.objects.count() == 2
    assert not unique.is_processing((), {'gate': gate})
    # It is free no later than the result is visible
    fourth = worker.send(unique, kwargs={'gate': gate})
    assert fourth.id != first.id
    assert ended(fourth).status == ended(other).status == 'completed'


@pytest.mark.parametrize('how,status', [
    ('', 'completed'), ('fail', 'failed'), ('ignore', 'ignored'), ('kill', 'errored'), ('soft', 'errored'),
])
def test_free_after_its_end(prefork, how, status):
    for __ in range(2):
        assert prefork.run(unique, how, timeout=30).status == status
        assert not unique.is_processing((how,))
    assert CeleryResult.objects.count() == 2


def test_free_after_a_hard_time_limit(prefork, gate):
    run = prefork.send(unique, kwargs={'gate': gate}, time_limit=1)
    assert ended(run, 30).reason == 'time_limit'
    assert holders() == 0


def test_free_after_a_cancel(prefork, gate):
    """A waiting run is free immediately, an active one when its process has been terminated."""
    waits = unique.apply_async((), {'gate': gate}, queue='nobody', countdown=100)
    row(waits).cancel()
    run = prefork.send(unique, kwargs={'gate': gate})
    assert run.id != waits.id
    until(lambda: notes(run.id))
    row(run).cancel()
    ended(run)
    assert not unique.is_processing((), {'gate': gate})


def test_held_over_retries(worker):
    run = worker.send(unique, 'retry')
    waiting(run, 'retrying')
    assert worker.send(unique, 'retry').id == run.id
    assert unique.is_processing(('retry',))
    assert (ended(run).status, row(run).attempt) == ('completed', 3)
    assert not unique.is_processing(('retry',))


def test_free_after_the_broker_refused(threads):
    with pytest.raises(OperationalError):
        unique.apply_async(('refused',), queue='x', connection=app.connection('redis://127.0.0.1:1/'), retry=False)
    assert not unique.is_processing(('refused',))


@pytest.mark.parametrize('how', ['worker', 'child'])
def test_held_by_the_dead_until_found(make_worker, how):
    victim = make_worker('victim-unique').start().ready()
    run = victim.send(unique, kwargs={'gate': 'never'})
    pid = until(lambda: notes(run.id))[0][0]
    os.kill(victim.process.pid if how == 'worker' else pid, signal.SIGKILL)
    if how == 'worker':
        victim.process.wait()
        victim.start().ready()
    assert (ended(run, 60).status, row(run).reason) == ('errored', 'worker_lost')
    assert holders() == 0


SCRIPT = '''
import sys, django
django.setup()
from netbox_test_plugin.tasks.policies import unique
sys.stdin.readline()
print([unique.apply_async(("crowd",), queue="nobody").id for __ in range(int(sys.argv[1]))])
'''


def test_crowd(instance, side):
    """Fifty concurrent calls from ten processes make one run."""
    env = {**os.environ, **instance.environ, 'DJANGO_SETTINGS_MODULE': 'netbox.settings'}
    crowd = [
        subprocess.Popen([sys.executable, '-c', SCRIPT, '5'], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         text=True)
        for __ in range(10)
    ]
    answers = [process.communicate('go\n', timeout=120)[0].strip().splitlines()[-1] for process in crowd]

    assert len({*answers}) == 1
    run = CeleryResult.objects.get()
    assert answers[0].count(str(run.task_id)) == 5


def test_crowd_of_threads(threads, gate):
    """Threads meet in PostgreSQL at the same moment, again and again, while runs finish."""
    def call(number):
        try:
            return threads.send(unique, number % 3).id
        finally:
            connection.close()

    with ThreadPoolExecutor(10) as pool:
        ids = {*pool.map(call, range(150))}
    for id in ids:
        assert ended(id, 60).status == 'completed'
    assert {str(task_id) for task_id in CeleryResult.objects.values_list('task_id', flat=True)} == ids
    # At no time two of the same arguments
    for number in range(3):
        runs = CeleryResult.objects.filter(args=[number]).order_by('started').values_list('started', 'completed')
        assert all(after[0] >= before[1] for before, after in zip(runs, runs[1:]))


def test_stale_run_gives_up_its_slot(threads, gate):
    """A new run starts, the old one continues, and does not free the new one's slot."""
    old = threads.send(unique, kwargs={'gate': gate})
    until(lambda: notes(old.id))
    CeleryResult.objects.update(stale_after=datetime.now(UTC) - timedelta(seconds=1))
    assert not unique.is_processing((), {'gate': gate})
    new = unique.apply_async((), {'gate': gate}, queue='nobody')
    assert new.id != old.id

    open_gate(gate)
    assert ended(old).status == 'completed'
    assert unique.is_processing((), {'gate': gate})
    assert unique.apply_async((), {'gate': gate}, queue='nobody').id == new.id


def test_stale_time_counts_from_the_eta():
    run = unique.apply_async(countdown=3600, queue='nobody')
    assert row(run).stale_after > row(run).scheduled + timedelta(minutes=4)


@pytest.mark.parametrize('options,message', [
    ({}, 'stale_time_limit'),
    ({'stale_time_limit': 5, 'on_conflict': 'maybe'}, 'on_conflict'),
    ({'stale_time_limit': 5, 'limit': 0}, 'limit'),
    ({'stale_time_limit': 5, 'concurrency_key': 'x'}, 'concurrency_key'),
    ({'stale_time_limit': 5, 'netbox_track': False}, 'row'),
])
def test_wrong_settings(options, message):
    with pytest.raises(CeleryError, match=message):
        policies.nameless.apply_async(**options)
    assert not CeleryResult.objects.exists()


def test_is_processing_of_what_is_not_unique():
    with pytest.raises(CeleryError, match='is not unique'):
        tasks.echo.is_processing()


def test_unsendable_arguments_leave_nothing():
    for args, options, error in (((object(),), {}, EncodeError), ((), {'queue': object()}, CeleryError)):
        with pytest.raises(error):
            unique.apply_async(args, **options)
    assert not CeleryResult.objects.exists()


def test_key_of_its_own(threads, gate):
    first = threads.send(policies.own_key, 'sw1', gate)
    assert threads.send(policies.own_key, kwargs={'device': 'sw1'}).id == first.id
    assert threads.send(policies.own_key, 'sw2').id != first.id
    assert row(first).concurrency_key == 'unique-netbox_test_plugin:own_key-sw1'
    open_gate(gate)


def test_in_a_transaction():
    """A call joins a run of its own transaction; a rollback leaves nothing."""
    with transaction.atomic():
        first = unique.apply_async(('tx',), queue='nobody')
        assert unique.apply_async(('tx',), queue='nobody').id == first.id
        transaction.set_rollback(True)
    assert not CeleryResult.objects.exists()
    assert unique.apply_async(('tx',), queue='nobody').id != first.id


def test_wait_for_another_transaction():
    """Whether a call joins is only known when the other transaction has ended."""
    def call(pool_number):
        try:
            return unique.apply_async(('both',), queue='nobody').id
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        with transaction.atomic():
            first = unique.apply_async(('both',), queue='nobody')
            second = pool.submit(call, 1)
            until(lambda: blocked(), 20)
        assert second.result(20) == first.id
        with transaction.atomic():
            lost = unique.apply_async(('other',), queue='nobody')
            third = pool.submit(lambda: (unique.apply_async(('other',), queue='nobody').id, connection.close())[0])
            until(lambda: blocked(), 20)
            transaction.set_rollback(True)
        assert third.result(20) != lost.id


def blocked():
    with connection.cursor() as cursor:
        cursor.execute('SELECT count(*) FROM pg_locks WHERE NOT granted')
        return cursor.fetchone()[0]


def test_eager_calls_heed_it(gate):
    run = unique.apply_async(('eager',), queue='nobody')
    result = unique.apply(('eager',))
    assert (result.state, result.get(), notes(result.id)) == ('IGNORED', None, [])
    row(run).cancel()
    assert unique.apply(('eager',)).get() == 'eager'
    assert CeleryResult.objects.count() == 1


@pytest.mark.parametrize('workflow', [
    lambda worker: chain(unique.s('head').set(queue=worker.queue), tasks.echo.s().set(queue=worker.queue)),
    lambda worker: chord(
        [unique.s('head').set(queue=worker.queue), tasks.echo.s(1).set(queue=worker.queue)],
        tasks.echo.s().set(queue=worker.queue)
    ),
])
def test_head_of_a_workflow_that_joins(prefork, workflow):
    """It cannot join, since its next steps cannot be linked to a run that was sent, so it ends as ignored."""
    unique.apply_async(('head',), queue='nobody')
    result = workflow(prefork).apply_async()

    with pytest.raises(Exception, match=r'(?s).*'):
        result.get(timeout=30)
    last = ended(result.id)
    assert (last.status, last.reason) == ('errored', 'upstream_failed')
    assert CeleryResult.objects.filter(status='ignored', reason='joined').count() == 1


def test_last_step_that_joins(worker):
    """The caller knows the ID of the last step, so it cannot become another run."""
    unique.apply_async(('last',), queue='nobody')
    result = chain(
        tasks.echo.si(1).set(queue=worker.queue), unique.si('last').set(queue=worker.queue)
    ).apply_async()

    assert result.get(timeout=30) is None
    assert (row(result).status, row(result).reason) == ('ignored', 'joined')


def test_chain_within_a_run(worker):
    """A chain that a body starts does not follow the body, which is still active."""
    run = worker.send(unique, 'again')
    assert ended(run).status == 'completed'
    head = CeleryResult.objects.get(parent_id=run.id)
    assert (head.status, head.reason) == ('ignored', 'joined')


def test_group_that_joins():
    """Its members' IDs are known before they are sent: those that join are ignored, and waiting ends."""
    unique.apply_async(('member',), queue='nobody')
    members = group(unique.s('member').set(queue='nobody') for __ in range(3)).apply_async()
    assert [row(member).reason for member in members.results] == ['joined'] * 3
    assert members.get(timeout=10) == [None] * 3


def test_many_concurrent_calls():
    """`enqueue_many` checks each call."""
    runs = CeleryResult.enqueue_many(unique, [('one',), ('two',), ('one',)], queue='nobody')
    assert [run.args for run in runs] == [['one'], ['two']]


@pytest.fixture
def admin(client):
    client.force_login(User.objects.create_superuser('admin'))
    sync_catalogue()
    return client


@pytest.mark.parametrize('name,policy,message,code', [
    ('unique', {}, 'is already active', 200), ('keyed', {'on_conflict': 'skip'}, 'same key was active', 201),
    ('keyed', {'on_conflict': 'fail'}, 'is already active, as', 400),
])
def test_started_by_people_and_programs(admin, monkeypatch, name, policy, message, code):
    """The answer names the run, or the reason; a joined run gets no second change-log entry."""
    task = getattr(policies, name)
    for attribute, value in policy.items():
        monkeypatch.setattr(task, attribute, value)
    run = task.apply_async(('x',), queue='lab-nobody')
    found = CeleryTask.objects.get(name=task.name)

    page = admin.post(
        reverse('plugins:netbox_celery:celerytask_run', args=[found.pk]),
        {'parameter_how': 'x', 'parameter_device': 'x', 'queue': 'lab-nobody'}, follow=True,
    )
    assert message in page.content.decode()
    answer = admin.post(
        reverse('plugins-api:netbox_celery-api:celerytask-run', args=[found.pk]),
        {'args': ['x'], 'queue': 'lab-nobody'}, content_type='application/json',
    )
    assert answer.status_code == code, answer.content
    if code == 200:
        assert answer.json()['task_id'] == run.id
        assert not ObjectChange.objects.exists()
    assert CeleryResult.objects.filter(status='pending').count() == 1
