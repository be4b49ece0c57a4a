"""Messages for forbidden queues, and messages with a known ID, with real workers."""
import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from celery import Celery
from celery.result import AsyncResult
from kombu import Exchange
from netbox_test_plugin import tasks
from netbox_test_plugin.side import notes

from netbox_celery.celery import app
from netbox_celery.engine.exceptions import QueueRefused
from netbox_celery.engine.store.database import EngineConnection
from netbox_celery.engine.worker.missing import find_missing
from netbox_celery.models import CeleryResult

from .support import ended, row, until, waiting


@pytest.fixture
def elsewhere():
    """A program without the plugin: an app of plain Celery."""
    other = Celery('elsewhere', broker=app.conf.broker_url, backend=app.conf.result_backend, set_as_current=False)
    other.conf.update(
        broker_transport_options=app.conf.broker_transport_options,
        result_backend_transport_options=app.conf.result_backend_transport_options,
    )
    yield other
    other.close()


@pytest.mark.parametrize('name', ['unacked', '_kombu.binding.celery'])
def test_reserved_name(prefork, name):
    """No call is sent there, no worker consumes from there, and workers continue."""
    for options in ({'queue': name}, {'exchange': Exchange(''), 'routing_key': name}):
        with pytest.raises(QueueRefused):
            tasks.echo.apply_async((), **options)
    (answer,) = app.control.add_consumer(name, destination=[prefork.row.name], reply=True, timeout=10)
    assert 'A queue cannot be named' in str(answer)
    with app.connection_for_write() as connection, pytest.raises(ValueError, match='A queue cannot be named'):
        connection.default_channel.queue_purge(name)
    assert prefork.run(tasks.echo).status == 'completed'
    assert prefork.run(tasks.echo).status == 'completed'


def test_worker_for_a_reserved_name(make_worker):
    worker = make_worker('reserved', queue='unacked').start()
    assert worker.wait(90) != 0
    assert "A queue cannot be named 'unacked'" in worker.output


def test_cancel_by_another_spelling(prefork, gate):
    """A run with an ID in another spelling is terminated, and found by each spelling."""
    id = uuid4()
    run = prefork.send(tasks.hold, gate, task_id=id.hex.upper())
    until(lambda: row(id).status == 'running')
    app.control.revoke(f'urn:uuid:{id}', terminate=True)
    assert ended(id).status == 'revoked'
    assert until(lambda: run.state == AsyncResult(id.hex).state == 'REVOKED')
    assert [what for __, what in notes(str(id))] == ['started']


def test_result_by_another_spelling(worker):
    id = uuid4()
    assert worker.send(tasks.echo, 5, task_id=id.hex).get(timeout=30) == [[5], {}]
    assert AsyncResult(id.hex.upper()).get(timeout=5) == [[5], {}]
    assert str(row(id).task_id) == str(id)


@pytest.mark.parametrize('spell', [str.upper, lambda id: id.replace('-', ''), '{{{}}}'.format, 'urn:uuid:{}'.format])
def test_foreign_message_in_another_spelling(prefork, elsewhere, gate, spell):
    """Its run is tracked, the sender gets the result by its ID, and a cancel ends it."""
    ids = [str(uuid4()), str(uuid4())]
    result = elsewhere.send_task(tasks.echo.name, (5,), task_id=spell(ids[0]), queue=prefork.queue)
    assert result.get(timeout=30) == [[5], {}]
    assert (ended(ids[0]).status, row(ids[0]).result) == ('completed', [[5], {}])
    assert app.AsyncResult(spell(ids[0])).get(timeout=5) == [[5], {}]

    elsewhere.send_task(tasks.hold.name, (gate,), task_id=spell(ids[1]), queue=prefork.queue)
    until(lambda: CeleryResult.objects.filter(task_id=ids[1], status='running'))
    assert row(ids[1]).cancel()
    assert ended(ids[1]).status == 'revoked'
    assert until(lambda: elsewhere.AsyncResult(spell(ids[1])).state == 'REVOKED')


def test_revoked_from_elsewhere_in_another_spelling(prefork, elsewhere, gate):
    id = uuid4()
    prefork.send(tasks.hold, gate, task_id=id)
    until(lambda: row(id).status == 'running')
    elsewhere.control.revoke(id.hex.upper(), terminate=True)
    assert ended(id).status == 'revoked'


@pytest.mark.parametrize('task, args', [
    (tasks.hold, ('x',)), (tasks.echo, (6,)), (tasks.plain, (5,)), ('netbox_test_plugin:nobody', (5,)),
], ids=['task', 'arguments', 'untracked', 'unknown'])
def test_known_id_of_another_call(prefork, elsewhere, task, args):
    """A message with a waiting run's ID, but another task or other arguments, is not that run."""
    run = tasks.echo.apply_async((5,), queue=prefork.queue, countdown=600)
    seen = len(prefork.output)
    elsewhere.send_task(getattr(task, 'name', task), args, task_id=run.id, queue=prefork.queue)
    if task is not tasks.plain:  # which is not tracked
        until(lambda: 'is not run: its row is that of another call' in prefork.output[seen:]
              or f'A message with the ID of {tasks.echo.name}[{run.id}] is for' in prefork.output[seen:])
    assert prefork.run(tasks.echo).status == 'completed'
    assert (row(run).status, row(run).claims, notes(run.id)) == ('scheduled', 0, [])
    assert row(run).cancel()


def test_retry_in_another_queue(prefork, make_worker, monkeypatch):
    """A retry in another queue is looked for there, and not declared lost."""
    run = prefork.send(tasks.retry_elsewhere, nowhere := f'nowhere-{uuid4().hex}')
    waiting(run, 'retrying')
    assert row(run).queue == nowhere
    old = datetime.now(UTC) - timedelta(hours=1)
    CeleryResult.objects.filter(task_id=run.id).update(sent=old, last_updated=old, scheduled=old)
    own = EngineConnection()
    assert find_missing(own, app) == 0
    with app.connection_for_write() as connection:
        message = connection.default_channel.client.rpop(nowhere)
    assert json.loads(message)['headers']['id'] == run.id
    assert find_missing(own, app) == 1
    own.close()
    assert row(run).cancel()


def test_unknown_exchange(prefork):
    """Its queue is unknown, so it is not sent again and again."""
    run = tasks.echo.apply_async((), exchange='somewhere', routing_key='else')
    until(lambda: row(run).sent)
    old = datetime.now(UTC) - timedelta(hours=1)
    CeleryResult.objects.filter(task_id=run.id).update(sent=old, last_updated=old)
    own = EngineConnection()
    assert find_missing(own, app) == 0
    own.close()
    assert (row(run).queue, row(run).sent) == ('', old)
    assert row(run).cancel()
