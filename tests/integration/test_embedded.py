"""Workers inside another program: Celery's for tests, `app.Worker()`, `app.worker_main()`.

Here that program is the test process itself.
"""
import logging
import threading
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from celery._state import _set_task_join_will_block, task_join_will_block
from celery.bin.celery import celery as celery_command
from celery.contrib.testing.worker import start_worker
from celery.result import allow_join_result
from celery.utils.log import get_task_logger
from celery.worker import state as worker_state
from click.testing import CliRunner
from django.db import ProgrammingError, connection, connections

from netbox_celery.celery import app
from netbox_celery.engine.identity import OWN_THREADS, identity
from netbox_celery.engine.store.database import close_connections, get_connection
from netbox_celery.engine.store.recorder import recorder
from netbox_celery.engine.worker import signals, sweep
from netbox_celery.models import CeleryWorker
from netbox_celery.tasks import TaskFailed
from netbox_example_plugin.tasks import hello_world

from .support import ended, lines, row, until

logger = get_task_logger(__name__)


@pytest.fixture(autouse=True)
def waits_for_results():
    """Let this process wait for results again: Celery forbids it once a worker is made."""
    yield
    _set_task_join_will_block(False)


@pytest.fixture(autouse=True)
def as_before():
    """Restore logging and the app's queues, which Celery's set-up changes."""
    root, task_logger = logging.getLogger(), logging.getLogger('celery.task')
    before = [(log, log.level, list(log.handlers)) for log in (root, task_logger, logging.getLogger('celery'))]
    queues = app.amqp.queues._consume_from
    yield
    app.amqp.queues._consume_from = queues
    for log, level, handlers in before:
        log.level, log.handlers = level, handlers


@pytest.fixture
def queue():
    return f'embedded-{uuid4().hex[:8]}'


@pytest.fixture
def greet(make_task):
    def greet(self, task_id, name='World', how='well'):
        self.log(f'Hello {name}!')
        logger.info('By logging')
        self.progress(1, 2, step='Half')
        if how == 'failing':
            raise TaskFailed('No')
        if how == 'once more' and not self.request.retries:
            raise self.retry(countdown=0)
        return {'name': name, 'thread': threading.current_thread().name}
    return make_task(greet, name='tests:embedded_greet')


def own_threads():
    return {thread.name for thread in threading.enumerate() if thread.name.startswith(OWN_THREADS)}


@pytest.fixture
def opened(monkeypatch):
    """Count the connections that this process has opened since, other than this thread's, as PostgreSQL knows them."""
    recorder.flush()
    close_connections()
    connection.close()
    name = uuid4().hex
    options = connections.settings['default'].get('OPTIONS') or {}
    monkeypatch.setitem(connections.settings['default'], 'OPTIONS', {**options, 'application_name': name})

    def opened():
        with connection.cursor() as cursor:
            cursor.execute(
                'SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND pid <> pg_backend_pid()', (name,)
            )
            return cursor.fetchone()[0]
    yield opened
    recorder.flush()
    close_connections()
    connection.close()


@contextmanager
def started_in_thread(worker):
    """Run a worker as programs do that embed it."""
    thread = threading.Thread(target=worker.start, daemon=True)
    thread.start()
    try:
        until(lambda: CeleryWorker.objects.filter(name=worker.hostname, stopped=None).exists())
        yield worker
    finally:
        worker.stop()
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def celery_testing(queue, **options):
    with start_worker(app, queues=[queue], perform_ping_check=False, shutdown_timeout=30, **options) as worker:
        yield worker


@contextmanager
def app_worker(queue, pool='solo', **options):
    with started_in_thread(app.Worker(queues=[queue], pool=pool, quiet=True, loglevel='ERROR', **options)) as worker:
        yield worker


WAYS = {
    'start_worker': celery_testing,
    'start_worker-threads': lambda queue: celery_testing(queue, pool='threads', concurrency=2),
    'start_worker-prefork': lambda queue: celery_testing(queue, pool='prefork', concurrency=1),
    'app.Worker': app_worker,
    'app.Worker-threads': lambda queue: app_worker(queue, pool='threads', concurrency=2),
}


@pytest.mark.parametrize('way', WAYS)
def test_runs(way, queue, greet, opened):
    """Runs are claimed, logged and finished, and the worker's row starts and stops with it."""
    threads = own_threads() - {f'{OWN_THREADS}recorder'}
    with WAYS[way](queue) as worker:
        entry = CeleryWorker.objects.get(name=worker.hostname, stopped=None)
        assert entry.queues == [queue]
        assert opened()
        well, failing, again = [
            greet.apply_async(('Bob',), {'how': how}, queue=queue) for how in ('well', 'failing', 'once more')
        ]
        result = ended(well)
        assert (result.status, result.worker, result.attempt, result.step) == ('completed', worker.hostname, 1, 'Half')
        assert result.result['name'] == 'Bob'
        assert lines(well) == ['Hello Bob!', 'By logging']
        with allow_join_result():  # Celery takes all of the process for its worker
            assert well.get(timeout=10)['name'] == 'Bob'
        assert (ended(failing).status, row(failing).error) == ('failed', 'No')
        assert (ended(again).status, row(again).attempt) == ('completed', 2)
    entry.refresh_from_db()
    assert entry.stopped
    assert own_threads() - {f'{OWN_THREADS}recorder'} == threads
    assert identity.key is None
    until(lambda: not opened(), 5)  # PostgreSQL takes its time to see that it was left
    assert not task_join_will_block()


def test_again_and_again(queue, greet, opened):
    """One process starts several workers one after another, each with a row of its own."""
    keys = set()
    for __ in range(3):
        with celery_testing(queue) as worker:
            keys.add(CeleryWorker.objects.get(name=worker.hostname, stopped=None).key)
            assert ended(greet.apply_async(queue=queue)).status == 'completed'
    assert len(keys) == 3
    until(lambda: not opened(), 5)  # PostgreSQL takes its time to see that it was left


def test_side_by_side(queue):
    """Workers of one process share one identity: the first to stop does not affect the other.

    Celery's event loop is one for a process, too; so this is about who is registered.
    """
    first, second = [
        app.Worker(queues=[name], pool='solo', quiet=True, hostname=f'{name}@here', loglevel='ERROR')
        for name in (f'{queue}-a', f'{queue}-b')
    ]
    signals._prepare(first)
    held = CeleryWorker.objects.get(name=first.hostname)
    signals._prepare(second)
    assert not CeleryWorker.objects.filter(name=second.hostname).exists()
    assert identity.key == held.key
    signals._sign_off(second)
    held.refresh_from_db()
    assert (held.stopped, identity.key) == (None, held.key)
    signals._sign_off(first)
    held.refresh_from_db()
    assert held.stopped
    assert identity.key is None
    signals._sign_off(first)  # the signal comes as well


def test_stopped_in_the_middle(queue, make_task):
    """A run is finished or released when its worker is stopped."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(self, task_id):
        begun.set()
        go_on.wait(30)
    task = make_task(wait, name='tests:embedded_wait')
    with celery_testing(queue, pool='threads', concurrency=1):
        run = task.apply_async(queue=queue)
        assert begun.wait(20)
        threading.Timer(0.5, go_on.set).start()
    assert ended(run).status in ('completed', 'errored')


def test_the_row_was_deleted(queue, make_task, monkeypatch):
    """Test cases empty all tables between tests: a worker does not take its own runs for those of a dead one."""
    monkeypatch.setattr(type(identity), 'may_declare_lost', True)
    begun, go_on = threading.Event(), threading.Event()

    def wait(self, task_id):
        begun.set()
        go_on.wait(30)
        return 'done'
    task = make_task(wait, name='tests:embedded_wait')
    with celery_testing(queue):
        run = task.apply_async(queue=queue)
        assert begun.wait(20)
        CeleryWorker.objects.filter(key=identity.key).delete()
        sweep.close_lost(get_connection(), app)
        go_on.set()
        assert ended(run).status == 'completed'


def test_cannot_be_registered(queue, monkeypatch):
    """A worker that cannot be registered raises the error, and nothing waits for it."""
    monkeypatch.setattr(signals, 'LOOK', 'SELECT 1 FROM netbox_celery_nothing')
    with pytest.raises(ProgrammingError, match='netbox_celery_nothing'), celery_testing(queue):
        pass
    with pytest.raises(ProgrammingError, match='netbox_celery_nothing'):
        app.Worker(queues=[queue], pool='solo', quiet=True)


def test_only_made(queue):
    """A worker that is not started has no row, and changes nothing in the process."""
    worker = app.Worker(queues=[queue], pool='solo', quiet=True, loglevel='ERROR', hostname=f'{queue}@here')
    assert not CeleryWorker.objects.filter(name=worker.hostname).exists()
    assert identity.key is None


@contextmanager
def stopping_after(run):
    """Let the worker that the block runs stop by itself when a run has finished."""
    def stop():
        ended(run)
        worker_state.should_stop = 0
    threading.Thread(target=stop).start()
    try:
        yield
    finally:
        worker_state.should_stop = None


def test_worker_main(queue, greet):
    """The command line's program, called by another program: it runs in its main thread, and stops by itself."""
    run = greet.apply_async(queue=queue)
    with stopping_after(run):
        app.worker_main(['worker', '-P', 'solo', '-Q', queue, '-n', f'{queue}@%h', '-l', 'ERROR'])
    assert row(run).status == 'completed'
    assert CeleryWorker.objects.get(name__startswith=queue).stopped
    assert identity.key is None


def test_click(queue, greet):
    """Celery's command line, called by a test."""
    run = greet.apply_async(queue=queue)
    with stopping_after(run):
        result = CliRunner().invoke(celery_command, [
            '-A', 'netbox_celery', 'worker', '-P', 'solo', '-Q', queue, '-n', f'{queue}@%h', '-l', 'ERROR'
        ], catch_exceptions=False)
    assert not result.exit_code
    assert row(run).status == 'completed'
    assert CeleryWorker.objects.get(name__startswith=queue).stopped


def test_as_celery_documents_it(greet):
    """With all defaults: the worker is pinged, and serves the queues of the settings."""
    import celery.contrib.testing.tasks  # noqa: F401 - registers the ping

    with start_worker(app, shutdown_timeout=30) as worker:
        run = greet.delay()
        assert run.get(timeout=20)['name'] == 'World'
        assert (row(run).status, row(run).worker) == ('completed', worker.hostname)


def test_with_beat(make_worker):
    """The beat inside a worker (`-B`) uses our scheduler, and stops with it."""
    worker = make_worker('beatful', options=['-B']).start().ready()
    worker.says('this one is active')
    assert worker.run(hello_world, 'Bob').status == 'completed'
    children = worker.children
    worker.stop()
    assert worker.row.stopped
    until(lambda: not any(Path(f'/proc/{pid}').exists() for pid in children))
