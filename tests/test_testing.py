"""The test helpers for plugin authors."""
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pytest
from celery import chord, group
from celery.exceptions import Ignore, NotRegistered, Reject
from celery.utils.log import get_task_logger
from django.db import IntegrityError, connection, transaction
from django.test import TestCase, TransactionTestCase
from kombu import Connection
from kombu.exceptions import EncodeError
from redis.connection import AbstractConnection

from dcim.models import Device, Site
from development.stack.instance import Instance, executable
from development.stack.template import PRISTINE
from netbox_celery.celery import app
from netbox_celery.engine.identity import identity
from netbox_celery.engine.store.database import get_connection
from netbox_celery.engine.store.recorder import recorder
from netbox_celery.models import CeleryLogEntry, CeleryResult
from netbox_celery.tasks import CeleryBaseTask, TaskFailed
from netbox_celery.testing import TaskError
from netbox_celery.testing import run_task as run_plainly
from users.models import User

logger = get_task_logger(__name__)

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch):
    """There is neither a broker nor a result backend."""
    monkeypatch.setattr(app.amqp, '_producer_pool', app.producer_pool)

    connect = AbstractConnection.connect

    def refuse(self, *args, **kwargs):
        assert getattr(self, 'db', 0) == 1, 'Redis was asked for more than NetBox keeps in its cache'
        return connect(self, *args, **kwargs)
    monkeypatch.setattr(AbstractConnection, 'connect', refuse)
    monkeypatch.setattr(Connection, '_ensure_connection', refuse)


def test_outcome(run_task, make_task):
    def body(self, task_id, name, size=1):
        self.log(f'Hello {name}', grouping='greetings', obj=Site.objects.create(name=name, slug=name))
        logger.warning('By logging')
        self.progress(3, 4, step='Nearly')
        return {'id': task_id, 'size': (size, size), 'pk': self.celery_result.pk}
    user = User.objects.create_user('alice')
    run = run_task(make_task(body, name='tests:body'), 'bob', size=2, netbox_user=user, netbox_name='Greeting')
    assert (run.status, run.reason, run.error, run.traceback, run.exception) == ('completed', '', '', '', None)
    assert run.result == {'id': run.task_id, 'size': [2, 2], 'pk': run.row.pk}
    assert [(line.level, line.message, line.grouping, line.attempt) for line in run.log] == [
        (20, 'Hello bob', 'greetings', 1), (30, 'By logging', 'main', 1),
    ]
    assert run.log[0].object == Site.objects.get()
    row = run.row
    assert (row.user, row.name, row.value, row.value_max, row.step) == (user, 'Greeting', 3, 4, 'Nearly')
    assert run.row.attempts[0]['worker'] == run.row.worker == 'in-process@test'
    assert run.raise_for_error() is run
    assert identity.key is None


def test_failures(run_task, make_task):
    """Nothing is raised unless the test asks for it."""
    def body(self, task_id, how):
        self.log('Before')
        if how == 'failed':
            raise TaskFailed('No answer')
        if how == 'errored':
            raise ValueError('Odd')
        if how == 'ignored':
            raise Ignore('Not today')
        if how == 'rejected':
            raise Reject('Not me', requeue=False)
        if how == 'exit':
            raise SystemExit(3)
        if how == 'cancelled':
            self.celery_result.canceled('Asked to')
        if how == 'own error':
            self.celery_result.error('By itself')
    task = make_task(body, name='tests:body')
    for how, status, reason, error, raised in (
        ('failed', 'failed', '', 'No answer', TaskFailed),
        ('errored', 'errored', '', 'ValueError: Odd', ValueError),
        ('ignored', 'ignored', '', 'Not today', TaskError),
        ('rejected', 'failed', 'rejected', 'Reject: Not me', TaskError),
        ('cancelled', 'revoked', 'cancelled', 'Asked to', TaskError),
        ('own error', 'failed', '', 'By itself', TaskFailed),
    ):
        run = run_task(task, how)
        assert (run.status, run.reason, run.error) == (status, reason, error)
        assert run.messages == ['Before']
        with pytest.raises(raised):
            run.raise_for_error()
    assert 'in body' in run_task(task, 'errored').traceback
    left = run_task(task, 'exit')
    assert (left.status, type(left.exception), left.exception.code) == ('errored', SystemExit, 3)


def test_retries(run_task, make_task):
    """Retries run immediately, whatever their time is."""
    def by_hand(self, task_id):
        self.log(f'Attempt {self.request.retries + 1}')
        if self.request.retries < 2:
            raise self.retry(countdown=3600, exc=ValueError('Not yet'))
        return self.request.retries
    run = run_task(make_task(by_hand, name='tests:by_hand'))
    assert (run.status, run.result, run.row.attempt, run.exception) == ('completed', 2, 3, None)
    assert [(line.attempt, line.message) for line in run.log] == [(n, f'Attempt {n}') for n in (1, 2, 3)]
    assert [attempt['error'] for attempt in run.row.attempts] == ['ValueError: Not yet', 'ValueError: Not yet', '']

    def by_itself(self, task_id):
        raise OSError('Away')
    options = {'autoretry_for': (OSError,), 'max_retries': 4, 'retry_backoff': 900}
    run = run_task(make_task(by_itself, name='tests:by_itself', **options))
    assert (run.status, run.row.attempt) == ('errored', 5)
    with pytest.raises(OSError, match='Away'):
        run.raise_for_error()

    with pytest.raises(RuntimeError, match='100 times'):
        run_task(make_task(lambda self, task_id: self.retry(), name='tests:for_ever', max_retries=None))


def test_calls(run_task, make_task):
    """What a task sends is collected, and run if the test asks for it."""
    add = make_task(lambda self, task_id, a, b=1: a + b, name='tests:add')

    def parent(self, task_id):
        add.apply_async((1,), {'b': 2}, queue='slow', countdown=60)
        with transaction.atomic():
            add.delay(3)
        try:
            with transaction.atomic():
                add.delay(4)
                raise ValueError
        except ValueError:
            pass
        transaction.on_commit(lambda: add.delay(5))
    run = run_task(make_task(parent, name='tests:parent'))
    assert run.status == 'completed'
    assert [(call.name, call.args, call.kwargs) for call in run.calls] == [
        ('tests:add', [1], {'b': 2}), ('tests:add', [3], {}), ('tests:add', [5], {}),
    ]
    assert run.calls[0].queue == 'slow'
    assert [(call.row.status, str(call.row.parent_id)) for call in run.calls[:2]] == [
        ('scheduled', run.task_id), ('pending', run.task_id),
    ]
    assert run.calls[0].run().result == 3
    assert [again.result for again in run.run_calls()[1:]] == [4, 6]


def test_workflows(run_task, make_task):
    add = make_task(lambda self, task_id, a, b=1: a + b, name='tests:add')
    total = make_task(lambda self, task_id, numbers: sum(numbers), name='tests:total')
    run = run_task(add.s(1, 2) | add.s(10) | add.s(100))
    assert run.result == 3
    assert [step.result for step in run.run_calls()] == [13, 113]

    def parent(self, task_id):
        chord([add.s(n) for n in range(3)], total.s())()
    run = run_task(make_task(parent, name='tests:parent'))
    assert [step.result for step in run.run_calls()] == [1, 2, 3, 6]

    run = run_task(add.s(1).set(link=add.s(5)))
    assert (run.result, [step.result for step in run.run_calls()]) == (2, [7])
    for canvas in (group(add.s(1), add.s(2)), chord([add.s(1), add.s(2)], total.s())):
        with pytest.raises(TypeError, match='has no run of its own'):
            run_task(canvas)

    def replaced(self, task_id):
        raise self.replace(add.s(40, 2))
    run = run_task(make_task(replaced, name='tests:replaced'))
    assert (run.status, run.result, run.row.celery_name) == ('completed', 42, 'tests:replaced')


def test_cancelled(run_task, make_task):
    """A task sees that it was cancelled, and a run that was cancelled before does not start."""
    ran = []

    def body(self, task_id):
        CeleryResult.objects.filter(task_id=task_id).update(cancelled='2026-01-01T00:00Z')
        ran.append(self.is_cancelled())
    run = run_task(make_task(body, name='tests:body'))
    assert (ran, run.status) == ([True], 'revoked')

    def parent(self, task_id):
        app.tasks['tests:body'].delay()
    run = run_task(make_task(parent, name='tests:parent'))
    CeleryResult.objects.get(task_id=run.calls[0].task_id).cancel()
    assert run.calls[0].run().status == 'revoked'
    assert len(ran) == 1


def test_blocks_of_its_own(run_task, make_task):
    """An atomic block that the body rolls back takes nothing of the run with it."""
    def body(self, task_id):
        self.log('Before')
        with transaction.atomic():
            Site.objects.create(name='a', slug='a')
            self.log('Inside')
            self.progress(7)
            self.celery_result.refresh_from_db()
            assert self.celery_result.status == 'running'
            raise ValueError('Back')
    run = run_task(make_task(body, name='tests:body'))
    assert (run.status, run.messages, run.row.value) == ('errored', ['Before', 'Inside'], 7)
    assert not Site.objects.exists()


def test_broken_transaction(run_task, make_task):
    """A database error outside an atomic block would break the test: it is rolled back to the last write."""
    def body(self, task_id):
        self.log('Before')
        with connection.cursor() as cursor:
            cursor.execute('SELECT 1/0')
    run = run_task(make_task(body, name='tests:body'))
    assert run.status == 'errored'
    assert 'division by zero' in run.error
    assert run.messages == ['Before']
    Site.objects.create(name='b', slug='b')  # the test continues


def test_integrity_error(run_task, make_task):
    def body(self, task_id):
        Site.objects.create(name='a', slug='a')
        try:
            with transaction.atomic():
                Site.objects.create(name='a', slug='a')
        except IntegrityError:
            self.log_warning('It is there')
    run = run_task(make_task(body, name='tests:body'))
    assert (run.status, run.messages) == ('completed', ['It is there'])


def test_policies(run_task, make_task):
    unique = make_task(lambda self, task_id, n: n, name='tests:unique', unique=True, stale_time_limit=60)

    def parent(self, task_id):
        unique.delay(1)
    waiting = run_task(make_task(parent, name='tests:parent')).calls[0]
    joined = run_task(unique, 1)
    assert (joined.task_id, joined.status) == (waiting.task_id, 'pending')
    assert waiting.run().result == 1
    assert run_task(unique, 1).status == 'completed'
    once = make_task(lambda self, task_id: 1, name='tests:once', ignore_task_after_success=True,
                     ignore_task_timedelta=60)
    assert [run_task(once).status for __ in range(2)] == ['completed', 'ignored']
    frozen = make_task(
        lambda self, task_id: 1, name='tests:frozen', ignore_task_after_success=True, ignore_task_timedelta=60
    ).s()
    frozen.freeze()
    assert [run_task(frozen).status for __ in range(2)] == ['completed', 'ignored']


def test_wrong_calls(run_task, make_task):
    task = make_task(lambda self, task_id, n: n, name='tests:body')
    with pytest.raises(TypeError):
        run_task(task)
    with pytest.raises(EncodeError):
        run_task(task, object())
    with pytest.raises(TypeError, match='is not a task'):
        run_task(len)
    assert run_task('tests:body', 1, netbox_name='By name').row.name == 'By name'
    with pytest.raises(NotRegistered):
        run_task('tests:nothing')


def test_untracked(run_task, make_task):
    task = make_task(lambda self, task_id: self.celery_result, name='tests:body', netbox_track=False)
    run = run_task(task)
    assert (run.raise_for_error().status, run.log, run.result) == ('completed', [], None)
    with pytest.raises(TaskError, match='has no row'):
        assert run.row


def test_rolled_back(run_task, make_task):
    """The other tests have left nothing."""
    get_connection().execute('SELECT 1')
    assert not CeleryResult.objects.filter(celery_name__startswith='tests:').exists()
    assert not CeleryLogEntry.objects.exists()


def test_waiting_inside(run_task, make_task):
    """A task cannot wait for what is not run: Celery forbids it here as well."""
    add = make_task(lambda self, task_id, a: a + 1, name='tests:add')
    run = run_task(make_task(lambda self, task_id: add.delay(1).get(), name='tests:waiting'))
    assert (run.status, len(run.calls)) == ('errored', 1)
    assert 'Never call result.get() within a task!' in run.error


def test_many(run_task, make_task):
    add = make_task(lambda self, task_id, a: a + 1, name='tests:add')
    run = run_task(make_task(
        lambda self, task_id: CeleryResult.enqueue_many(add, [((n,), {}) for n in range(3)]) and None,
        name='tests:many'
    ))
    assert run.raise_for_error().calls[2].args == [2]
    assert [again.result for again in run.run_calls()] == [1, 2, 3]


def test_what_the_test_has_called(run_task, make_task, django_capture_on_commit_callbacks):
    """Calls of the test itself stay part of its own transaction."""
    task = make_task(lambda self, task_id: transaction.on_commit(lambda: done.append('task')), name='tests:body')
    done = []
    with django_capture_on_commit_callbacks() as callbacks:
        transaction.on_commit(lambda: done.append('test'))
        run_task(task)
    assert (done, len(callbacks)) == (['task'], 1)


def test_examples(run_task, make_task, monkeypatch):
    """The examples of the guide work."""
    def backup(self, task_id, pk):
        if not Device.objects.filter(pk=pk).exists():
            mail.delay('alice')
            raise TaskFailed('No answer')
        self.log('Saved 180 lines')
        return {'lines': 180}
    mail = make_task(lambda self, task_id, name: None, name='my_plugin:mail')
    module = ModuleType('my_plugin.tasks')
    module.backup = make_task(backup, name='my_plugin:backup')
    monkeypatch.setitem(sys.modules, 'my_plugin', ModuleType('my_plugin'))
    monkeypatch.setitem(sys.modules, 'my_plugin.tasks', module)
    page = (Path(__file__).parents[1] / 'docs' / 'testing.md').read_text()
    namespace = {
        'fetch': make_task(lambda self, task_id, n: n, name='my_plugin:fetch'),
        'parse': make_task(lambda self, task_id, n: n, name='my_plugin:parse'),
        'store': make_task(lambda self, task_id, n: 'stored', name='my_plugin:store'),
    }
    for example in re.findall(r'^```python\n(.*?)^```', page, re.MULTILINE | re.DOTALL):
        exec(example, namespace)  # noqa: S102
    for name in ('test_no_answer', 'test_chain', 'test_sends_a_mail'):
        namespace[name](run_task)
    namespace['BackupTestCase']('test_backup').test_backup()


class CommittingTest(TransactionTestCase):
    """Without a transaction the engine uses its own connections, as in a worker."""

    def test_run(self):
        task = app.task(name='tests:committing', base=CeleryBaseTask, bind=True, shared=False)(committing)
        try:
            run = run_plainly(task, 'c')
            assert (run.status, run.messages) == ('errored', ['Inside'])
            assert [call.args for call in run.calls] == [['again']]
            assert not Site.objects.exists()
        finally:
            app.tasks.pop(task.name)


def committing(self, task_id, name):
    self.apply_async(['again'])
    with transaction.atomic():
        Site.objects.create(name=name, slug=name)
        self.log('Inside')
        recorder.flush()
        assert CeleryLogEntry.objects.count() == 1
        raise ValueError


class OrdinaryTest(TestCase):
    """NetBox's own runner has no fixtures."""

    def test_run(self):
        run = run_plainly('netbox_example_plugin:hello_world', 'Bob')
        self.assertEqual(run.raise_for_error().result, 'Hello Bob!')


# What authors run

SESSION_WORKER = {
    'conftest.py': """
        import pytest


        @pytest.fixture(scope='session')
        def celery_session_app():
            from netbox_celery.celery import app

            return app


        @pytest.fixture(scope='session')
        def celery_worker_parameters():
            return {'queues': ['authors'], 'perform_ping_check': False}
    """,
    'test_worker.py': """
        import pytest


        @pytest.mark.django_db(transaction=True)
        @pytest.mark.parametrize('name', ['Ann', 'Bob'])
        def test_worker(celery_session_worker, name):
            from netbox_celery.models import CeleryResult, CeleryWorker
            from netbox_example_plugin.tasks import hello_world

            result = hello_world.apply_async((name,), queue='authors')
            assert result.get(timeout=30) == f'Hello {name}!'
            run = CeleryResult.objects.get(task_id=result.id)
            assert (run.status, run.worker) == ('completed', celery_session_worker.hostname)
            assert [line.message for line in run.log_entries.all()] == [f'Hello {name}!']


        @pytest.mark.django_db
        def test_in_process_beside_it(celery_session_worker, run_task):
            from netbox_example_plugin.tasks import hello_world

            assert run_task(hello_world).status == 'completed'
    """,
}


@pytest.fixture
def author(services, tmp_path):
    """Run an author's command, with its own test database; returns its output."""
    def run(*command):
        instance = Instance(
            tmp_path / 'netbox', services.cluster, services.redis, redis_databases=(8, 9), for_tests=True,
            database_settings={'TEST': {'TEMPLATE': PRISTINE}},
        ).write()
        process = subprocess.run(
            [executable(command[0]), *command[1:]], env={**os.environ, **instance.environ}, cwd=tmp_path, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
        )
        assert process.returncode == 0, process.stdout
        # Its database could be dropped: there was no connection to it
        assert 'being accessed' not in process.stdout, process.stdout
        with services.cluster.connect('postgres') as cluster:
            assert cluster.execute("SELECT count(*) FROM pg_database WHERE datname = 'test_netbox'").fetchone() == (0,)
        return process.stdout
    return run


def test_with_netbox(author):
    """The example plugin's tests, with NetBox's own runner."""
    assert 'Ran 5 tests' in author('netbox', 'test', '--noinput', 'netbox_example_plugin')


def test_with_pytest(author):
    assert '6 passed' in author('pytest', '-p', 'no:cacheprovider', '--pyargs', 'netbox_example_plugin')


def test_with_celerys_fixtures(author, tmp_path):
    """A worker of Celery's fixtures, with the database of pytest-django."""
    for name, text in SESSION_WORKER.items():
        (tmp_path / name).write_text(dedent(text))
    assert '3 passed' in author('pytest', '-p', 'no:cacheprovider', '-p', 'celery.contrib.pytest', str(tmp_path))
