"""RabbitMQ as the broker, with classic and with quorum queues: what works with Redis works there."""
import os
import socket
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest
from amqp.exceptions import PreconditionFailed
from celery import chain, chord
from django.db import transaction
from kombu.exceptions import OperationalError
from netbox_test_plugin import tasks
from netbox_test_plugin.side import noted, notes, open_gate
from netbox_test_plugin.tasks import canvas

from netbox_celery.celery import app
from netbox_celery.engine.store.database import EngineConnection
from netbox_celery.engine.worker.missing import find_missing
from netbox_celery.models import CeleryResult

from .support import ended, lines, row, speaking_to, until, waiting

CONFIGURATIONS = {
    'classic': {'task_queue_max_priority': 10},
    'quorum': {
        'task_default_queue_type': 'quorum', 'task_create_missing_queue_type': 'quorum',
        # Delayed delivery wants a topic
        'task_default_exchange_type': 'topic', 'task_create_missing_queue_exchange_type': 'topic',
    },
}


@pytest.fixture(scope='module', params=CONFIGURATIONS)
def place(request, rabbitmq, make_instance, make_module_worker, without_shared_workers):
    """A broker with queues of each type in turn, a worker, and this process as the caller."""
    settings, kind = CONFIGURATIONS[request.param], request.param
    instance = make_instance(f'rabbitmq-{kind}', broker_url=rabbitmq.url(), celery=settings)
    worker = make_module_worker(f'rabbitmq-{kind}', instance=instance, concurrency=3)
    with speaking_to(rabbitmq.url(), broker_transport_options={'confirm_publish': True}, **settings):
        worker.start().ready()
        yield SimpleNamespace(kind=kind, instance=instance, worker=worker, broker=rabbitmq)
        worker.stop()


def count(queue):
    """Return how many messages and consumers a queue has."""
    with app.connection_for_write() as connection:
        declared = connection.default_channel.queue_declare(queue, passive=True)
    return declared.message_count, declared.consumer_count


def restart(place):
    broker = place.broker
    broker.start(place.instance.root.parent / 'log' / 'rabbitmq.log', port=broker.port, die_with_parent=True)


def test_from_call_to_end(place):
    """Runs are sent, claimed, retried, logged and finished; results are found."""
    send, queue = place.worker.send, place.worker.queue
    run = send(tasks.echo, 1, kwargs={'a': 2})
    assert run.get(timeout=30) == [[1], {'a': 2}]
    result = row(run)
    assert (result.status, result.result, result.queue, result.claims) == ('completed', [[1], {'a': 2}], queue, 1)
    assert result.sent is not None

    with transaction.atomic():
        late = send(tasks.hold_late, 'open')
        assert row(late).sent is None
    open_gate('open')
    runs = {
        'completed': [late, send(tasks.retry, 2), send(tasks.say, 'x', 3)], 'failed': [send(tasks.fail, 'failed')],
        'errored': [send(tasks.fail, 'value'), send(tasks.hard)],
    }
    for status, of_it in runs.items():
        assert {ended(run).status for run in of_it} == {status}
    assert len(row(runs['completed'][1]).attempts) == 3
    assert lines(runs['completed'][2]) == ['x'] * 3


def test_many_concurrent_calls(place):
    """A thousand runs are sent together."""
    CeleryResult.enqueue_many(tasks.echo, [(number,) for number in range(1_000)], queue=place.worker.queue)

    unfinished = CeleryResult.objects.exclude(status='completed')
    until(lambda: not unfinished.exists(), 60, lambda: list(unfinished.values_list('status', 'error')[:5]))
    assert {result[0][0] for result in CeleryResult.objects.values_list('result', flat=True)} == set(range(1_000))


def test_workflow(place):
    """A chord in a chain finishes, and its rows are related."""
    def add(*numbers):
        return canvas.add.s(*numbers).set(queue=place.worker.queue)

    outcome = chain(chord([add(number, 1) for number in range(3)], add()), add(1))()

    assert outcome.get(timeout=30) == 7
    assert CeleryResult.objects.filter(status='completed').count() == 5
    assert CeleryResult.objects.values('root_id').distinct().count() == 1


def test_row_without_a_result_backend(place, make_instance, make_worker):
    """Rows have their results, errors and retries, with any result backend of Celery, or none."""
    instance = make_instance(
        f'rowless-{place.kind}', broker_url=place.broker.url(), celery=CONFIGURATIONS[place.kind],
        result_backend={'classic': 'rpc://', 'quorum': 'disabled://'}[place.kind],
    )
    worker = make_worker(f'rowless-{place.kind}', instance=instance).start().ready()
    assert worker.run(tasks.echo, 1).result == [[1], {}]
    assert worker.run(tasks.fail, 'value').error == 'ValueError: wrong value'
    result = worker.run(tasks.retry, 1)
    assert (result.status, len(result.attempts)) == ('completed', 2)
    assert worker.run(tasks.kill_self).reason == 'worker_lost'
    gate = uuid4().hex
    run = worker.send(tasks.hold, gate)
    until(lambda: notes(run.id))
    assert row(run).cancel()
    assert ended(run).status == 'revoked'
    assert worker.tracebacks() == []


def test_late_ack_with_a_killed_worker(place, make_worker, gate):
    """RabbitMQ redelivers a dead worker's message immediately; it runs again, once, when the worker is known dead."""
    victim = make_worker(f'victim-{place.kind}', instance=place.instance, concurrency=1).start().ready()
    late = victim.send(tasks.hold_late, gate)
    until(lambda: notes(late.id))
    fetched = victim.send(tasks.echo)
    until(lambda: f'{fetched.id}] received' in victim.output)
    heir = make_worker(
        f'heir-{place.kind}', instance=place.instance, queue=victim.queue, concurrency=2
    ).start().ready()

    victim.kill()

    # A run that had not started is not claimed
    assert ended(fetched).status == 'completed'
    until(lambda: len(notes(late.id)) == 2)
    assert row(late).worker.startswith(heir.name)
    open_gate(gate)
    assert ended(late).status == 'completed'
    assert noted(late.id) == ['started', 'started', 'ended']
    assert heir.run(tasks.echo).status == 'completed'
    assert len(notes(late.id)) == 3


def test_killed_process(place):
    """A message that is requeued because its process died is delivered again."""
    result = place.worker.run(tasks.kill_once)

    assert (result.status, result.result) == ('completed', 'survived')
    assert len(notes(result.task_id)) == 2


def test_many_on_a_lost_connection(place):
    """A pooled connection that was closed meanwhile fails no bulk call: its messages are sent on a new one."""
    with app.producer_or_acquire() as producer:
        assert producer.channel.is_open
        producer.connection.connection.transport.sock.shutdown(socket.SHUT_RDWR)
    runs = CeleryResult.enqueue_many(tasks.echo, [(number,) for number in range(20)], queue=place.worker.queue)
    until(lambda: runs.filter(status='completed').count() == 20)


def test_restart(place, gate):
    """RabbitMQ crashes and restarts while tasks run and wait: all of them finish, and each has run once.

    What was not acknowledged is delivered again while it runs: the copy is refused.
    """
    runs = [place.worker.send(task, gate) for task in (tasks.hold, tasks.hold_late)]
    for run in runs:
        until(lambda: notes(run.id))
    queued = [place.worker.send(tasks.echo, number) for number in range(3)]
    later = tasks.echo.apply_async(('later',), queue=(elsewhere := f'elsewhere-{uuid4().hex}'))

    place.broker.crash()
    restart(place)

    until(lambda: count(place.worker.queue)[1], 60)
    assert {ended(run, 60).status for run in queued} == {'completed'}
    until(lambda: f'{runs[1].id} is not run: ' in place.worker.output)
    open_gate(gate)
    for run in runs:
        assert (ended(run, 60).status, row(run).claims) == ('completed', 1)
        assert noted(run.id) == ['started', 'ended']
    assert [len(notes(run.id)) for run in queued] == [1] * 3
    if place.kind == 'classic':
        # RabbitMQ 3 may forget a quorum queue that was declared a moment before a crash
        assert until(lambda: count(elsewhere)[0] == 1)
    assert row(later).status == 'pending'
    assert row(later).cancel()


def test_worker_and_broker_killed(place, make_worker, gate):
    """A worker and RabbitMQ are killed together: the next worker finds all messages, and each run ends once."""
    victim = make_worker(f'both-{place.kind}', instance=place.instance).start().ready()
    late, early = victim.send(tasks.hold_late, gate), victim.send(tasks.hold, gate)
    until(lambda: notes(late.id) and notes(early.id))
    queued = [victim.send(tasks.echo, number) for number in range(10)]
    until(lambda: f'{queued[0].id}] received' in victim.output)
    if place.kind == 'quorum':
        # RabbitMQ 3.10 leaves a quorum queue without a leader that it made a moment before it is killed
        time.sleep(10)

    victim.kill()
    place.broker.crash()
    restart(place)

    heir = make_worker(f'next-{place.kind}', instance=place.instance, queue=victim.queue).start().ready()
    assert {ended(run, 60).status for run in queued} == {'completed'}
    assert (ended(early, 60).status, row(early).reason) == ('errored', 'worker_lost')
    until(lambda: len(notes(late.id)) == 2, 60)
    open_gate(gate)
    assert ended(late, 60).status == 'completed'
    assert {len(notes(run.id)) for run in queued} == {1}
    assert noted(late.id) == ['started', 'started', 'ended']
    assert heir.tracebacks() == []


def test_refused(place):
    """While RabbitMQ is down, callers get the error, and rows have it; committed calls are sent when it is back.
    """
    place.broker.crash()
    try:
        with pytest.raises(OperationalError):
            place.worker.send(tasks.echo, retry=False)
        result = CeleryResult.objects.get()
        assert (result.status, result.reason) == ('errored', 'publish_failed')
        with transaction.atomic():
            run = place.worker.send(tasks.echo, 'committed', retry=False)
        assert (row(run).status, row(run).sent) == ('pending', None)
    finally:
        restart(place)

    # Not to wait for as long as a caller may take
    CeleryResult.objects.filter(task_id=run.id).update(last_updated=datetime.now(UTC) - timedelta(minutes=1))
    assert ended(run, 60).result == [['committed'], {}]
    assert len(notes(run.id)) == 1


def test_expires(place):
    """RabbitMQ drops expired messages silently; the row is revoked all the same."""
    run = tasks.echo.apply_async(queue=(queue := f'nobody-{uuid4().hex}'), expires=0.5)
    assert count(queue)[0] == 1 or row(run).expires < datetime.now(UTC)

    result = ended(run)
    assert (result.status, result.reason) == ('revoked', 'expired')
    assert until(lambda: count(queue)[0] == 0)
    assert run.state == 'REVOKED'


def test_cancel(place, make_worker, gate, user):
    """A waiting run is revoked immediately, and does not run; an active one is terminated."""
    run = tasks.echo.apply_async(queue=(queue := f'cancelled-{uuid4().hex}'))
    assert row(run).cancel(user=user)
    assert row(run).status == 'revoked'

    worker = make_worker(f'cancel-{place.kind}', instance=place.instance, queue=queue, concurrency=1).start().ready()
    running = worker.send(tasks.hold_rejecting, gate)
    until(lambda: notes(running.id))
    assert row(running).cancel(user=user)
    assert ended(running).status == 'revoked'
    assert worker.run(tasks.echo).status == 'completed'
    assert notes(run.id) == []
    assert noted(running.id) == ['started']


def test_eta(place):
    """A run does not start before its time; with quorum queues its message waits in RabbitMQ, not in the worker."""
    run, far = place.worker.send(tasks.echo, countdown=3), place.worker.send(tasks.echo, countdown=3_000)
    assert (row(run).status, row(far).status) == ('scheduled', 'scheduled')
    if place.kind == 'quorum':
        # 2,048 s is the highest power of 2 in it
        until(lambda: count('celery_delayed_11')[0])

    result = ended(run)
    assert result.status == 'completed'
    assert result.started >= result.scheduled - timedelta(seconds=0.5)
    assert row(far).cancel()
    again = place.worker.send(tasks.retry, 1, 1)
    assert waiting(again, 'retrying').scheduled
    # Less than the second that RabbitMQ could hold them back
    shorts = [place.worker.send(tasks.retry, 1, 0.3), place.worker.send(tasks.echo, countdown=0.2)]
    assert {ended(run).status for run in (again, *shorts)} == {'completed'}


def test_many_with_an_eta(place):
    """Runs that are due later leave the worker free for those that are due now."""
    many = CeleryResult.enqueue_many(
        tasks.echo, [(number,) for number in range(50)], queue=place.worker.queue, countdown=6
    )
    assert place.worker.run(tasks.echo, timeout=5).status == 'completed'
    assert {ended(run, 30).status for run in many} == {'completed'}
    assert min(run.started for run in many.all()) >= many[0].scheduled - timedelta(seconds=0.5)


def test_sent_again(place):
    """A run that the sweep sends a second time runs once, at its time."""
    run = place.worker.send(tasks.echo, countdown=3)
    until(lambda: row(run).sent)
    CeleryResult.objects.filter(task_id=run.id).update(sent=None, last_updated=datetime.now(UTC) - timedelta(minutes=1))

    result = ended(run)
    assert result.status == 'completed'
    assert result.started >= result.scheduled - timedelta(seconds=0.5)
    until(lambda: f'{run.id} is not run: ' in place.worker.output)
    assert len(notes(run.id)) == 1


def test_refused_queues(place):
    """An error of one queue does not block messages for another one, and ends its own run."""
    with app.connection_for_write() as connection:
        # Declared with other arguments than ours
        connection.default_channel.queue_declare(other := f'other-{uuid4().hex}', arguments={'x-max-length': 5})
    with pytest.raises(PreconditionFailed):
        tasks.echo.apply_async(queue=other)
    (refused,) = CeleryResult.objects.all()
    assert (refused.status, refused.reason) == ('errored', 'publish_failed')

    rows = []
    for queue in (other, place.worker.queue):
        with transaction.atomic():
            run = tasks.echo.apply_async((), queue=place.worker.queue)
            rows.append(CeleryResult.objects.get(task_id=run.id))
            transaction.set_rollback(True)
        options = {**rows[-1].options, 'queue': queue}
        rows[-1].pk, rows[-1].options, rows[-1].queue = None, options, queue
        rows[-1].save(force_insert=True)
    CeleryResult.objects.filter(sent=None).update(last_updated=datetime.now(UTC) - timedelta(minutes=1))
    assert ended(rows[1], 60).status == 'completed'
    first = ended(rows[0], 60)
    assert (first.status, first.reason) == ('errored', 'publish_failed')
    assert 'PRECONDITION_FAILED' in first.error


def test_nothing_is_taken_for_missing(place):
    """RabbitMQ's queues cannot be read, so no waiting run is considered lost."""
    run = tasks.echo.apply_async(queue=f'long-{uuid4().hex}')
    old = datetime.now(UTC) - timedelta(hours=1)
    until(lambda: row(run).sent)
    CeleryResult.objects.filter(task_id=run.id).update(sent=old, last_updated=old)
    own = EngineConnection()
    assert find_missing(own, app) == 0
    own.close()

    assert row(run).sent == old
    assert row(run).cancel()


def test_priority(place, make_worker, gate):
    """A high number is a high priority, unlike with Redis."""
    if place.kind == 'quorum':
        pytest.skip('RabbitMQ 3 has no priorities in quorum queues')
    worker = make_worker(
        'priority', instance=place.instance, concurrency=1, options=('--prefetch-multiplier', '1')
    ).start().ready()
    worker.send(tasks.hold, gate)
    # The worker has fetched this one before the others came
    first = worker.send(tasks.echo, priority=0)
    until(lambda: f'{first.id}] received' in worker.output)
    low, middle, high = (worker.send(tasks.echo, priority=priority) for priority in (1, 5, 9))
    assert count(worker.queue)[0] == 3
    open_gate(gate)

    assert [ended(run).options['priority'] for run in (low, middle, high)] == [1, 5, 9]
    assert row(high).started < row(middle).started < row(low).started


def test_private(rabbitmq):
    """It cannot be reached from another host."""
    pids = [rabbitmq.process.pid, rabbitmq.names.pid]
    sockets = {os.readlink(f'/proc/{pid}/fd/{fd}') for pid in pids for fd in os.listdir(f'/proc/{pid}/fd')}
    for table, local in (('tcp', '0100007F'), ('tcp6', '00000000000000000000000001000000')):
        with open(f'/proc/net/{table}') as file:
            for fields in map(str.split, list(file)[1:]):
                if fields[3] == '0A' and f'socket:[{fields[9]}]' in sockets:
                    assert fields[1].startswith(local), fields
