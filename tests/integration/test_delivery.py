"""From a call to a claim: transactions, copies of messages, and calls when something is missing."""
import json
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from unittest import mock
from uuid import uuid4

import pytest
from django.db import DatabaseError, connection, transaction
from kombu.exceptions import EncodeError, OperationalError
from netbox_test_plugin import tasks
from netbox_test_plugin.side import noted, notes, open_gate

from dcim.models import Site
from netbox_celery.celery import app
from netbox_celery.config import get_config
from netbox_celery.engine.store import lifecycle
from netbox_celery.engine.store.database import EngineConnection
from netbox_celery.models import CeleryResult

from .support import ended, row, until, waiting

NOWHERE = 'a-queue-that-nobody-serves'


def messages(queue):
    """Return the messages in a queue of the broker."""
    with closing(app.backend.client.__class__.from_url(app.conf.broker_url)) as client:
        return [json.loads(message) for message in client.lrange(get_config().key_prefix + queue, 0, -1)]


def push(queue, message):
    with closing(app.backend.client.__class__.from_url(app.conf.broker_url)) as client:
        client.lpush(get_config().key_prefix + queue, json.dumps(message))


@pytest.fixture
def queue():
    """A queue that no worker serves, empty."""
    name = f'{NOWHERE}-{uuid4().hex}'
    yield name
    with closing(app.backend.client.__class__.from_url(app.conf.broker_url)) as client:
        client.delete(get_config().key_prefix + name)


def test_call_sends(make_worker):
    """A call makes a row and a message; a worker that starts later runs it, in a process of the pool."""
    worker = make_worker('later', concurrency=1)
    run = worker.send(tasks.echo, 'x')

    assert row(run).status == 'pending'
    assert until(lambda: row(run).sent)
    message, = messages(worker.queue)
    assert message['headers']['task'] == 'netbox_test_plugin:echo'
    assert message['headers']['id'] == run.id
    worker.start().ready()
    assert ended(run).result == [['x'], {}]
    assert notes(run.id)[0][0] in worker.children


def test_transaction(prefork):
    """In a transaction row and message wait for the commit; a savepoint that is rolled back drops its own."""
    with transaction.atomic():
        site = Site.objects.create(name='new', slug='new')
        kept = prefork.send(tasks.query, netbox_object=site)
        with pytest.raises(ValueError), transaction.atomic():
            dropped = prefork.send(tasks.echo)
            raise ValueError
        # A worker that got a message now would find no row, and run what may be rolled back
        assert not app.control.inspect([prefork.row.name]).query_task(kept.id, dropped.id)[prefork.row.name]
        assert messages(prefork.queue) == []
        assert row(kept).sent is None

    result = ended(kept)
    assert (result.status, result.result[0], result.object) == ('completed', 1, site)
    assert result.sent is not None
    assert prefork.send(tasks.echo).get(timeout=20) == [[], {}]
    assert not CeleryResult.objects.filter(task_id=dropped.id).exists()
    assert notes(dropped.id) == []


def test_rollback(queue):
    """After a rollback there is neither row nor message."""
    with pytest.raises(ValueError), transaction.atomic():
        run = tasks.echo.apply_async(queue=queue)
        assert run.id
        CeleryResult.enqueue_many(tasks.echo, [(1,), (2,)], queue=queue)
        raise ValueError

    assert not CeleryResult.objects.exists()
    assert messages(queue) == []


def test_transaction_in_a_body(worker):
    """What a body calls in a transaction is sent on commit, and not if a savepoint is rolled back."""
    result = worker.run(tasks.call, worker.queue, True)

    child = ended(result.result)
    assert (child.status, child.result) == ('completed', [['kept'], {}])
    assert (child.parent_id, child.root_id) == (result.task_id, result.task_id)
    assert CeleryResult.objects.count() == 2


def test_run_that_sends_itself(worker):
    """A task that sends itself starts new runs, with new IDs, under the first."""
    first = worker.run(tasks.call_itself, worker.queue)
    until(lambda: CeleryResult.objects.filter(status='completed').count() == 3)

    runs = list(CeleryResult.objects.order_by('pk'))
    assert [run.result for run in runs] == [2, 1, 0]
    assert [run.parent_id for run in runs] == [None, first.task_id, runs[1].task_id]
    assert {run.root_id for run in runs} == {first.task_id}


def test_same_message_twice(worker, gate):
    """A copy of a message does not run: neither while the run is active, nor after its end."""
    run = worker.send(tasks.hold, gate)
    until(lambda: notes(run.id))
    copy = message_of(run, tasks.hold, gate)
    for __ in range(3):
        push(worker.queue, copy)
    # The copies are before this in the queue
    other = worker.send(tasks.echo)
    assert ended(other).status == 'completed'
    assert row(run).status == 'running'

    open_gate(gate)
    result = ended(run)
    push(worker.queue, copy)
    assert worker.run(tasks.echo).status == 'completed'
    assert noted(run.id) == ['started', 'ended']
    assert (row(run).status, row(run).claims, row(run).completed) == ('completed', 1, result.completed)
    assert run.get(timeout=10) == gate


def message_of(run, task, *args, **changes):
    """Return a message as Celery would have sent it."""
    name = f'copies-{uuid4().hex}'
    with app.producer_or_acquire() as producer:
        message = app.amqp.create_task_message(run.id, task.name, args, {}, root_id=run.id, **changes)
        message.headers['netbox_celery'] = True
        app.amqp.send_task_message(producer, task.name, message, queue=name)
    copy, = messages(name)
    copy['properties']['delivery_info']['routing_key'] = row(run).queue
    return copy


def test_message_that_cannot_be_read(worker):
    """It ends its run, which is not sent again, and those who wait for the result get the error."""
    run = tasks.echo.apply_async(queue=NOWHERE)
    push(worker.queue, message_of(run, tasks.echo, {'__type__': 'uuid', '__value__': 'x'}))

    result = ended(run)
    assert (result.status, result.reason) == ('errored', 'rejected')
    assert result.error.startswith('The message could not be read: DecodeError')
    with pytest.raises(Exception, match='could not be read'):
        run.get(timeout=10)
    assert worker.run(tasks.echo).status == 'completed'


def test_copy_of_an_earlier_attempt(prefork):
    """A copy of the first attempt's message does nothing while the run waits for its second."""
    run = prefork.send(tasks.retry, 1, 2)
    waiting(run, 'retrying')
    push(prefork.queue, message_of(run, tasks.retry, 1, 2))

    assert prefork.run(tasks.echo).status == 'completed'
    assert row(run).status == 'retrying'
    assert ended(run).status == 'completed'
    assert len(notes(run.id)) == 2


def test_message_without_a_row(worker):
    """A producer without the plugin makes no row: the worker makes it, and tracks the run."""
    run = app.AsyncResult(str(uuid4()))
    with app.producer_or_acquire() as producer:
        message = app.amqp.create_task_message(
            run.id, tasks.echo.name, ('foreign',), {}, expires=datetime.now(UTC) + timedelta(hours=1)
        )
        app.amqp.send_task_message(producer, tasks.echo.name, message, queue=worker.queue)

    result = until(lambda: CeleryResult.objects.filter(task_id=run.id, status='completed').first())
    assert (result.result, result.args, result.queue) == ([['foreign'], {}], ['foreign'], worker.queue)
    assert result.expires is not None
    assert result.root_id == result.task_id


def test_one_of_many_claims_wins(prefork):
    """Of fifty simultaneous claims of a run, on separate connections, one is granted."""
    run = tasks.echo.apply_async(queue=NOWHERE, countdown=3600)
    barrier, granted = threading.Barrier(50), []
    holder = prefork.row.key

    def claim():
        own = EngineConnection()
        own.execute('SELECT 1')
        barrier.wait()
        claimed = lifecycle.claim(
            own, task_id=run.id, attempt=1, nesting=0, worker='w', holder=holder
        )
        if claimed:
            granted.append(claimed)
        own.close()

    threads = [threading.Thread(target=claim) for __ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(granted) == 1
    assert (row(run).claims, len(row(run).attempts)) == (1, 1)


def test_broker_refuses_the_call(queue):
    """Outside a transaction the caller gets the error, and the row records it."""
    with app.connection_for_write('redis://127.0.0.1:1/0') as nobody, pytest.raises(OperationalError):
        tasks.echo.apply_async(queue=queue, producer=nobody.Producer(auto_declare=False), retry=False)

    result = CeleryResult.objects.get()
    assert (result.status, result.reason) == ('errored', 'publish_failed')
    assert 'did not accept' in result.error


def no_broker():
    """Let the broker refuse every message."""
    return mock.patch.object(app.amqp, 'send_task_message', side_effect=OperationalError('nobody listens'))


def test_broker_refuses_after_the_commit(prefork):
    """After the commit no caller can get the error: the row stays unsent, and the sweep sends it, once."""
    with no_broker(), transaction.atomic():
        run = prefork.send(tasks.echo, 'late')
    assert (row(run).status, row(run).sent) == ('pending', None)
    assert messages(prefork.queue) == []
    # Not to wait for as long as a caller may take
    CeleryResult.objects.filter(task_id=run.id).update(last_updated=datetime.now(UTC) - timedelta(minutes=1))

    assert ended(run).result == [['late'], {}]
    assert len(notes(run.id)) == 1
    assert prefork.run(tasks.echo).status == 'completed'
    assert len(notes(run.id)) == 1


@pytest.mark.parametrize('args, options', [
    (('x' * 100_000,), {}),
    (('nul \x00 surrogate \ud800',), {}),
    (('secret',), {'argsrepr': "('***',)"}),
    ((uuid4(), datetime(2030, 1, 1, tzinfo=UTC)), {}),
], ids=['large', 'odd', 'redacted', 'typed'])
def test_sent_again_as_it_was(prefork, args, options):
    """What the sweep sends has the arguments of the call, also those that the row does not show."""
    with no_broker(), transaction.atomic():
        run = prefork.send(tasks.echo, *args, **options)
    CeleryResult.objects.filter(task_id=run.id).update(last_updated=datetime.now(UTC) - timedelta(minutes=1))

    if 'argsrepr' in options:
        assert 'secret' not in str(row(run).args)
    assert tuple(run.get(timeout=20)[0]) == args
    assert row(run).message is None


def test_what_cannot_be_sent_is_closed(prefork):
    """A row that no broker could ever send ends with the reason, and does not hold up those behind it; what was to come
    after it is closed as well.
    """
    with no_broker(), transaction.atomic():
        chain = (tasks.echo.si() | tasks.echo.si()).apply_async(queue=prefork.queue)
        hopeless, fine = row(chain.parent), prefork.send(tasks.echo)
    long_ago = datetime.now(UTC) - timedelta(minutes=1)
    CeleryResult.objects.filter(pk=hopeless.pk).update(options={**hopeless.options, 'compression': 'no such'})
    CeleryResult.objects.update(last_updated=long_ago)

    result = ended(hopeless)
    assert (result.status, result.reason) == ('errored', 'publish_failed')
    assert ended(fine).status == 'completed'
    after = until(lambda: CeleryResult.objects.filter(task_id=chain.id).first())
    assert (after.status, after.reason) == ('errored', 'upstream_failed')
    assert chain.parent.id in after.error


@pytest.mark.parametrize('in_transaction', [False, True])
def test_row_cannot_be_made(worker, in_transaction):
    """The task matters more than its row: it runs untracked, and the caller's transaction is unaffected."""
    with mock.patch('netbox_celery.engine.sending.enqueue.INSERT', 'INSERT INTO no_such_table VALUES (%(task_id)s)'):
        if in_transaction:
            with transaction.atomic():
                run = worker.send(tasks.whoami)
                Site.objects.create(name='kept', slug='kept')
        else:
            run = worker.send(tasks.whoami)

    assert run.get(timeout=20) == {'row': None, 'id': run.id, 'task_id': run.id, 'cancelled': False}
    assert not CeleryResult.objects.exists()
    assert Site.objects.count() == in_transaction


def test_not_tracked(worker):
    """Tracking can be turned off for a call: there is no row, and the body knows."""
    run = worker.send(tasks.whoami, netbox_track=False)

    assert run.get(timeout=20)['row'] is None
    assert not CeleryResult.objects.exists()


@pytest.mark.parametrize('send', [
    lambda site, queue: tasks.echo.apply_async((site,), queue=queue),
    lambda site, queue: tasks.echo.apply_async(kwargs={'site': site}, queue=queue),
    lambda site, queue: tasks.echo.delay(site),
    lambda site, queue: CeleryResult.enqueue(tasks.echo, args=(site,), queue=queue),
    lambda site, queue: CeleryResult.enqueue_many(tasks.echo, [(1,), (site,)], queue=queue),
], ids=['args', 'kwargs', 'delay', 'enqueue', 'enqueue_many'])
def test_model_instance_as_argument(queue, send):
    """A model instance is not JSON: the call says what to do, and leaves neither row nor message."""
    site = Site.objects.create(name='s', slug='s')
    with pytest.raises(EncodeError, match='primary keys'):
        send(site, queue)

    assert not CeleryResult.objects.exists()
    assert messages(queue) == []


@pytest.mark.parametrize('options, error', [
    ({'netbox_tags': ['no such tag']}, ValueError),
    ({'netbox_colour': 'red'}, TypeError),
    ({'netbox_kwargs': {'colour': 'red'}}, TypeError),
], ids=str)
def test_invalid_option(queue, options, error):
    """An invalid option is an error of the call, which leaves no row that would be sent later."""
    with pytest.raises(error):
        tasks.echo.apply_async(queue=queue, **options)

    assert not CeleryResult.objects.exists()
    assert messages(queue) == []


def test_user_that_does_not_exist(queue):
    """A user who does not exist costs neither the row nor the task."""
    run = tasks.echo.apply_async(queue=queue, netbox_user=999_999)

    assert len(messages(queue)) == 1
    assert messages(queue)[0]['headers']['id'] == run.id
    assert row(run).user is None


def test_connection_is_usable_after_a_failure(queue):
    """A failed insert leaves the caller's connection as it was."""
    with mock.patch('netbox_celery.engine.sending.enqueue.INSERT', 'nonsense'), transaction.atomic():
        tasks.echo.apply_async(queue=queue)
        with connection.cursor() as cursor:
            cursor.execute('SELECT 1')
    with pytest.raises(DatabaseError), connection.cursor() as cursor:
        cursor.execute('nonsense')


def test_own_task_id(worker):
    """A caller may choose the ID: a UUID as such or as text; any other text runs untracked, with a warning."""
    own = uuid4()
    assert worker.run(tasks.whoami, task_id=own).task_id == own
    own = uuid4()
    assert worker.run(tasks.whoami, task_id=str(own)).task_id == own

    run = worker.send(tasks.whoami, task_id='my-own-name')
    assert run.get(timeout=20) == {'row': None, 'id': 'my-own-name', 'task_id': 'my-own-name', 'cancelled': False}
    assert CeleryResult.objects.count() == 2
