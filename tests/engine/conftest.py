import json
from contextlib import closing
from uuid import uuid4

import pytest
from celery.app.task import Context
from django.db import OperationalError


@pytest.fixture
def shared():
    """The test's own connection in place of the engine's."""
    from tests.support import Shared

    return Shared()


@pytest.fixture
def worker(monkeypatch):
    """Be a worker; returns who that is."""
    from netbox_celery.engine.identity import identity
    from netbox_celery.engine.store.recorder import recorder

    monkeypatch.setattr(identity, 'key', uuid4())
    monkeypatch.setattr(identity, 'name', 'celery@me')
    yield identity
    recorder.flush()


@pytest.fixture
def deliver(make_task, worker):
    """Give a task the request of a message; returns the task."""
    from netbox_celery.celery import app
    from netbox_celery.engine.calls.run import get_run, leave
    from netbox_celery.models import CeleryResult
    from tests.factories import HELLO_WORLD

    tasks = []

    def deliver(task_id=None, task_options=None, **request):
        task = app.tasks.get('tests:delivered') or make_task(
            lambda self, task_id: None, name='tests:delivered', **(task_options or {})
        )
        # Rows of the factory have another task, unless a test gives one
        CeleryResult.objects.filter(task_id=task_id, celery_name=HELLO_WORLD).update(celery_name=task.name)
        task.request_stack.push(Context({
            'id': str(task_id or uuid4()), 'task': task.name, 'args': [], 'kwargs': {}, 'netbox_celery': True,
            'called_directly': False, 'hostname': 'celery@host', **request,
        }))
        tasks.append(task)
        return task
    yield deliver
    for task in tasks:
        if run := get_run(task.request_stack.top):
            leave(run)
        task.pop_request()


@pytest.fixture
def queue():
    """The name of a queue that no worker serves; called, it returns the messages in it, oldest first."""
    from netbox_celery.celery import app
    from netbox_celery.config import get_config

    class Queue(str):
        def __call__(self):
            return [json.loads(message) for message in client.lrange(key, 0, -1)][::-1]
    name = Queue(f'queue-{uuid4().hex}')
    key = get_config().key_prefix + name
    with closing(app.backend.client.__class__.from_url(app.conf.broker_url)) as client:
        yield name
        client.delete(key)


@pytest.fixture
def losing(monkeypatch):
    """Break the connection once, after a statement was executed and before its answer is there."""
    from netbox_celery.engine.store import database

    execute, lost = database._execute, []

    def losing(part):
        def lose(wrapper, sql, params):
            found = execute(wrapper, sql, params)
            if not lost and part in sql:
                lost.append(sql)
                wrapper.connection.close()
                raise OperationalError('gone')
            return found
        monkeypatch.setattr(database, '_execute', lose)
        return lost
    return losing


@pytest.fixture
def described(make_task):
    def described(self, task_id, device: int, name: str = 'x', *rest, flag: bool = False, **more):
        """
        The first line.

        The rest of it.
        """
    return make_task(described, name='tests:described', max_retries=7, time_limit=5)


@pytest.fixture
def configured():
    """Let the app have queues and routes of the settings, for the time of a test."""
    from netbox_celery.celery import app

    names = ('task_queues', 'task_routes', 'task_default_queue')
    before = {name: app.conf.changes[name] for name in names if name in app.conf.changes}

    def configure(**settings):
        app.conf.update(settings)
        app.__dict__.pop('amqp', None)
    yield configure
    for name in names:
        app.conf.changes.pop(name, None)
    app.conf.update(before)
    app.__dict__.pop('amqp', None)


@pytest.fixture
def identity(monkeypatch):
    """Be the main process of a worker that has just started, to what speaks for it."""
    from netbox_celery.engine.identity import Identity
    from netbox_celery.engine.runs import ending, reports
    from netbox_celery.engine.worker import presence

    identity = Identity()
    identity.take('w@host')
    for module in (ending, reports, presence):
        monkeypatch.setattr(module, 'identity', identity)
    return identity
