"""Workers that are part of another program: Celery's for tests, `app.Worker()`, `app.worker_main()`.

Here that program is the test process itself.
"""
import logging
import threading
import time
from contextlib import contextmanager
from uuid import uuid4

import pytest
from celery.contrib.testing.worker import start_worker
from celery.utils.log import get_task_logger
from django.db import connection, connections

from netbox_celery.celery import app
from netbox_celery.engine.presence import identity
from netbox_celery.engine.run import OWN_THREADS
from netbox_celery.models import CeleryResult, CeleryWorker
from netbox_celery.tasks import TaskFailed

from .support import ended, lines, row, until

logger = get_task_logger(__name__)


@pytest.fixture(autouse=True)
def as_before():
    """Celery's set-up takes over logging and the queues of the app, and leaves both so."""
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


def others_connected():
    """Return how many connections this process has to the database beside this thread's own."""
    with connection.cursor() as cursor:
        cursor.execute("""
            SELECT application_name FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid() AND client_port IS NOT NULL
        """)
        return len(cursor.fetchall())


@contextmanager
def in_thread(worker):
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
    with in_thread(app.Worker(queues=[queue], pool=pool, quiet=True, loglevel='ERROR', **options)) as worker:
        yield worker


WAYS = {
    'start_worker': celery_testing,
    'start_worker-threads': lambda queue: celery_testing(queue, pool='threads', concurrency=2),
    'start_worker-prefork': lambda queue: celery_testing(queue, pool='prefork', concurrency=1),
    'app.Worker': app_worker,
    'app.Worker-threads': lambda queue: app_worker(queue, pool='threads', concurrency=2),
}


@pytest.mark.parametrize('way', WAYS)
def test_runs(way, queue, greet):
    """Runs are claimed, logged and ended, and the worker's row comes and goes with it."""
    threads = own_threads() - {f'{OWN_THREADS}recorder'}
    with WAYS[way](queue) as worker:
        entry = CeleryWorker.objects.get(name=worker.hostname, stopped=None)
        assert entry.queues == [queue]
        well, failing, again = [
            greet.apply_async(('Bob',), {'how': how}, queue=queue) for how in ('well', 'failing', 'once more')
        ]
        result = ended(well)
        assert (result.status, result.worker, result.attempt, result.step) == ('completed', worker.hostname, 1, 'Half')
        assert result.result['name'] == 'Bob'
        assert lines(well) == ['Hello Bob!', 'By logging']
        assert well.get(timeout=10)['name'] == 'Bob'
        assert (ended(failing).status, row(failing).error) == ('failed', 'No')
        assert (ended(again).status, row(again).attempt) == ('completed', 2)
    entry.refresh_from_db()
    assert entry.stopped
    assert own_threads() - {f'{OWN_THREADS}recorder'} == threads
    assert identity.key is None
