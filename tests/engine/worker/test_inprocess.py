"""Runs in the calling process: what is kept, what is executed, and that everything is restored afterwards."""
import threading

import pytest
from celery.exceptions import Retry
from django.db import connection, transaction

from netbox_celery.celery import app
from netbox_celery.engine.identity import identity
from netbox_celery.engine.worker import inprocess
from netbox_celery.models import CeleryResult

pytestmark = pytest.mark.django_db


@pytest.fixture
def task(make_task):
    def body(self, task_id, how='return'):
        if how == 'raise':
            raise ValueError('by hand')
        if how == 'exit':
            raise SystemExit(3)
        if how == 'retry':
            raise self.retry(countdown=5)
        return identity.name
    return make_task(body, name='tests:in-process')


def call(task, *args):
    """Call a task as its caller does, and return the messages, the exception and the row."""
    since = len(connection.run_on_commit)
    with inprocess.in_process(app) as messages:
        outcome = task.delay(*args)
        inprocess.commit(since)
        message, = messages
        exc = inprocess.execute_message(app, message)
        inprocess.commit(since)
    return messages, exc, CeleryResult.objects.get(task_id=outcome.id)


def test_success(task):
    messages, exc, row = call(task)
    assert (row.status, row.result, row.worker, row.attempt) == ('completed', inprocess.NODE, inprocess.NODE, 1)
    assert exc is None
    assert messages[0].headers['id'] == str(row.task_id)


@pytest.mark.parametrize('how, status, cls', [
    ('raise', 'errored', ValueError), ('retry', 'retrying', Retry),
])
def test_exception(task, how, status, cls):
    """The exception is returned as it was raised, and the row is as in a worker."""
    messages, exc, row = call(task, how)
    assert row.status == status
    assert isinstance(exc, cls)
    # The next attempt is a message that is kept as well
    assert [message.headers['retries'] for message in messages] == ([0, 1] if how == 'retry' else [0])


def test_body_that_exits(task):
    """Only its run ends."""
    __, __, row = call(task, 'exit')
    assert (row.status, row.error) == ('errored', 'SystemExit: 3')


def test_cancelled_before(task):
    """The body does not run."""
    since = len(connection.run_on_commit)
    with inprocess.in_process(app) as messages:
        outcome = task.delay()
        inprocess.commit(since)
        row = CeleryResult.objects.get(task_id=outcome.id)
        row.cancel()
        inprocess.execute_message(app, messages[0])
    row.refresh_from_db()
    assert (row.status, row.result, row.attempt) == ('revoked', None, 0)


def state_of_app():
    return app.amqp._producer_pool, app.backend, identity.key, task_of_celery().__trace__


def task_of_celery():
    return app.tasks['celery.map']


@pytest.mark.parametrize('is_raising', [False, True])
def test_state_is_restored(task, is_raising):
    """The pool of producers, the backend and the identity are restored, whatever happened."""
    app.producer_pool  # noqa: B018 - it is made when it is asked for
    before = state_of_app()
    try:
        with inprocess.in_process(app):
            assert identity.key is not None
            assert app.backend is not before[1] and app.amqp._producer_pool is not before[0]
            if is_raising:
                raise ValueError
    except ValueError:
        pass
    after = state_of_app()
    assert all(one is other for one, other in zip(before, after))


def test_worker_keeps_its_identity(worker):
    """A process that is a worker already stays that worker."""
    key = worker.key
    with inprocess.in_process(app):
        assert worker.key == key
    assert worker.key == key


def test_other_threads():
    """Other threads continue to send to the broker."""
    found = []
    with inprocess.in_process(app):
        def acquire():
            with app.amqp.producer_pool.acquire(block=True) as producer:
                found.append(producer)
        thread = threading.Thread(target=acquire)
        thread.start()
        thread.join(30)
        with app.amqp.producer_pool.acquire(block=True) as mine:
            assert isinstance(mine, inprocess.Producer)
    assert found and not isinstance(found[0], inprocess.Producer)


def test_commit(caplog):
    """Callbacks registered since are called once, in order, with those that they register; earlier ones are not."""
    done = []
    transaction.on_commit(lambda: done.append('before'))
    since = len(connection.run_on_commit)

    def first():
        done.append('first')
        transaction.on_commit(lambda: done.append('third'))
    transaction.on_commit(first)
    transaction.on_commit(lambda: 1 / 0, robust=True)
    transaction.on_commit(lambda: done.append('second'))
    inprocess.commit(since)
    inprocess.commit(since)
    assert done == ['first', 'second', 'third']
    assert 'ZeroDivisionError' in caplog.text
    assert len(connection.run_on_commit) == since
    transaction.on_commit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        inprocess.commit(since)
