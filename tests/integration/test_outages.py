"""PostgreSQL and Redis stop and restart while tasks run: no run is lost, none ends wrongly, none runs twice."""
import os
import signal
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celery import chord
from django.db import connection
from netbox_test_plugin import tasks
from netbox_test_plugin.side import noted, notes, open_gate
from netbox_test_plugin.tasks import canvas, policies
from redis import Redis

from netbox_celery.celery import app
from netbox_celery.engine.results.chords import GRACE, Watch
from netbox_celery.engine.store.database import EngineConnection
from netbox_celery.engine.worker.missing import find_missing
from netbox_celery.models import CeleryResult

from .support import ended, lines, row, until


@contextmanager
def postgres_away(services):
    """Kill PostgreSQL as a power failure would, and start it again on the same port after the block."""
    cluster, port = services.cluster, services.cluster.port
    connection.close()
    # The tests' cluster does not flush its log at each commit: keep what was committed so far
    with cluster.connect() as admin:
        admin.execute('CHECKPOINT')
    os.kill(cluster.process.pid, signal.SIGKILL)
    until(lambda: not cluster.process.running)
    # Its processes see that the first one has exited
    until(lambda: not processes_in(cluster.directory))
    try:
        yield
    finally:
        cluster.start(services.directory / 'log' / 'postgres.log', port=port, die_with_parent=True)
        assert cluster.port == port
        connection.close()


def processes_in(directory):
    found = []
    for path in Path('/proc').glob('[0-9]*'):
        try:
            if (path / 'cwd').resolve() == directory.resolve():
                found.append(path.name)
        except OSError:
            pass
    return found


@contextmanager
def redis_away(services, forgets=True):
    """Kill Redis, with or without its data, and start it again on the same port after the block."""
    redis, port = services.redis, services.redis.port
    if not forgets:
        with Redis.from_url(redis.url()) as client:
            client.save()
    os.kill(redis.process.pid, signal.SIGKILL)
    until(lambda: not redis.process.running)
    try:
        yield
    finally:
        redis.start(services.directory / 'log' / 'redis.log', port=port, die_with_parent=True)
        assert redis.port == port
        (redis.directory / 'dump.rdb').unlink(missing_ok=True)


@pytest.fixture
def all_workers(prefork, threads):
    # Celery waits ever longer between its attempts to reach a broker again
    yield prefork, threads
    for worker in (prefork, threads):
        assert worker.run(tasks.echo, timeout=180).status == 'completed'


def test_soft_limit_while_the_database_is_unavailable(services, prefork, gate):
    """Runs that could not start in time end with that reason when the database is back; later ones run."""
    runs = [prefork.send(tasks.hold, gate, countdown=2, soft_time_limit=1) for __ in range(4)]
    until(lambda: all(row(run).sent for run in runs))
    with postgres_away(services):
        for run in runs:
            until(lambda run=run: f'Soft time limit (1s) exceeded for {tasks.hold.name}[{run.id}]' in prefork.output)
            until(lambda run=run: f'[{run.id}] raised' in prefork.output)
    for run in runs:
        result = ended(run, 60)
        assert (result.status, result.reason) == ('errored', 'soft_time_limit')
        assert notes(run.id) == []
    assert prefork.run(tasks.echo).status == 'completed'


def test_postgresql_restarted(services, all_workers, gate):
    """Active tasks continue, log and finish across an outage, and its events are written afterwards."""
    runs = [worker.send(tasks.across, gate) for worker in all_workers]
    killed = all_workers[0].send(tasks.hold, 'never')
    due = [worker.send(tasks.echo, countdown=2) for worker in all_workers]
    for run in (*runs, killed):
        until(lambda: notes(run.id))
    until(lambda: lines(runs[0]) == lines(runs[1]) == ['before'])

    with postgres_away(services):
        os.kill(notes(killed.id)[0][0], signal.SIGKILL)
        # The bodies end, and log, while nothing can be written
        open_gate(gate)
        # Longer than workers may be silent: all of them are, and none is to be taken for dead
        time.sleep(5)

    for run in runs:
        result = ended(run, 60)
        assert (result.status, result.claims) == ('completed', 1)
        assert lines(run) == ['before', 'after']
        assert run.get(timeout=10) == 0
    for run in due:
        assert (ended(run, 60).status, row(run).claims) == ('completed', 1)
        assert len(notes(run.id)) == 1
    assert (ended(killed, 60).status, row(killed).reason) == ('errored', 'worker_lost')
    # The connections that processes and threads had kept are broken: no task fails for it
    for worker in all_workers:
        again = [worker.send(tasks.query) for __ in range(12)]
        assert {ended(run, 60).status for run in again} == {'completed'}


def test_cancellation_checks_without_postgresql(services, all_workers, gate):
    """Bodies that check for cancellation in a loop, or read their rows, continue without delay and finish."""
    runs = [worker.send(tasks.look, gate) for worker in all_workers]
    reads = [worker.send(tasks.read, gate) for worker in all_workers]
    cancelled = all_workers[1].send(tasks.look, gate)
    for run in (*runs, *reads, cancelled):
        until(lambda run=run: notes(run.id))
    with postgres_away(services):
        open_gate(gate)
        for run in (*runs, cancelled):
            # A loop of two seconds: to wait for the database at each look would take longer
            until(lambda run=run: 'ended' in dict(notes(run.id)).values())
        time.sleep(5)
    row(cancelled).cancel()
    open_gate(f'{gate}-end')

    for run in runs:
        assert (ended(run, 60).status, row(run).result) == ('completed', [False, False, False])
    assert ended(cancelled, 60).status == 'revoked'
    for run in reads:
        assert (ended(run, 60).status, row(run).result[0]) == ('completed', tasks.read.name)


def test_ignore_window_without_postgresql(services, prefork, gate):
    """A body that opens an ignore window waits for the database, and does not fail."""
    run = prefork.send(policies.manual, kwargs={'gate': gate})
    until(lambda: notes(run.id))
    with postgres_away(services):
        open_gate(gate)
        time.sleep(6)

    assert ended(run, 60).status == 'completed'
    assert prefork.send(policies.manual, kwargs={'gate': gate}).state == 'IGNORED'


def test_terminated_connections(services, worker):
    """Tasks and their logs are unaffected when an administrator closes all connections."""
    assert {worker.run(tasks.query).status for __ in range(4)} == {'completed'}
    connection.close()
    with services.cluster.connect() as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'netbox'")

    runs = [worker.send(tasks.query) for __ in range(8)] + [worker.send(tasks.say, 'x', 3) for __ in range(4)]
    assert {ended(run).status for run in runs} == {'completed'}
    assert [lines(run) for run in runs[8:]] == [['x'] * 3] * 4


def test_call_without_postgresql(services, prefork):
    """A call that cannot make a row still sends its task, which then has none."""
    with postgres_away(services):
        run = prefork.send(tasks.whoami)

    assert run.get(timeout=60)['row'] is None
    assert not CeleryResult.objects.exists()


def test_fetched_messages_come_back(services, prefork, gate):
    """Messages that a worker had fetched when its broker stopped come back immediately, and run once.

    Without that it would come back after the visibility timeout of Redis, which kept it: an hour.
    """
    running = [prefork.send(tasks.hold_late, gate, 1) for __ in range(2)]
    for run in running:
        until(lambda: notes(run.id))
    fetched = [prefork.send(tasks.echo, number) for number in range(3)]
    with Redis.from_url(services.redis.url()) as client:
        until(lambda: not client.llen(f'netbox_celery:{prefork.queue}'))

    with redis_away(services, forgets=False):
        pass
    pid = prefork.process.pid
    open_gate(gate)

    for run in (*running, *fetched):
        assert ended(run, 60).status == 'completed'
    assert prefork.process.pid == pid and prefork.process.poll() is None
    assert noted(running[0].id) == ['started', 'ended']
    assert [len(notes(run.id)) for run in fetched] == [1, 1, 1]


def test_redis_restarted(services, all_workers, gate):
    """A run ends in its row although Redis is down; workers reconnect; lost messages are sent again."""
    # One of each is acknowledged when it ends, when Redis does not know of it any more
    runs = [worker.send(task, gate, 2) for worker in all_workers for task in (tasks.hold, tasks.hold_late)]
    for run in runs:
        until(lambda: notes(run.id))
    pids = [worker.process.pid for worker in all_workers]
    waiting = tasks.echo.apply_async(('lost',), queue='nobody-yet')
    until(lambda: row(waiting).sent)

    with redis_away(services):
        open_gate(gate)
        for run in runs:
            assert ended(run).status == 'completed'

    for worker in all_workers:
        assert worker.run(tasks.echo, timeout=180).status == 'completed'
    assert [worker.process.pid for worker in all_workers] == pids
    for run in runs:
        assert lines(run) == ['line 0', 'line 1', 'after the gate']
        assert noted(run.id) == ['started', 'ended']
    # As if a minute had passed
    old = datetime.now(UTC) - timedelta(minutes=2)
    CeleryResult.objects.filter(task_id=waiting.id).update(sent=old, last_updated=old, queue=all_workers[0].queue,
                                                           options={'queue': all_workers[0].queue})
    own = EngineConnection()
    assert find_missing(own, app) == 1
    own.close()
    CeleryResult.objects.filter(task_id=waiting.id, sent=None).update(last_updated=old)
    assert ended(waiting).result == [['lost'], {}]


def test_chord_when_redis_is_restarted(services, prefork, gate):
    """Its parts finish while Redis is down, which has lost the count: the body is sent all the same."""
    parts = [canvas.pass_gate.si(gate=gate).set(queue=prefork.queue) for __ in range(2)]
    outcome = chord(parts, canvas.add.s(3).set(queue=prefork.queue))()
    runs = until(lambda: (found := CeleryResult.objects.filter(status='running')).count() == 2 and list(found))
    with redis_away(services):
        open_gate(gate)
        for run in runs:
            assert ended(run.task_id).status == 'completed'
    assert prefork.run(tasks.echo, timeout=180).status == 'completed'
    assert not CeleryResult.objects.filter(task_id=outcome.id).exists()

    # As if a minute had passed
    CeleryResult.objects.update(completed=datetime.now(UTC) - timedelta(seconds=GRACE))
    with closing(EngineConnection()) as own:
        assert Watch().look(own, app) == 1
    assert outcome.get(timeout=20) == 5


def test_connection_lost_while_a_process_dies(services, make_worker, gate):
    """The worker reconnects, and continues with the other process and the replacement of the dying one."""
    worker = make_worker('fading', concurrency=2).start().ready()
    run = worker.send(tasks.fade, gate)
    until(lambda: notes(run.id))
    time.sleep(1)  # until its parent has seen that the files are closed
    with Redis.from_url(services.redis.url()) as client:
        for kind in ('normal', 'pubsub'):
            client.client_kill_filter(_type=kind, skipme=True)

    worker.says('Connection to broker lost')
    assert worker.run(tasks.echo).status == 'completed'
    open_gate(gate)
    assert (ended(run, 60).status, row(run).reason) == ('errored', 'worker_lost')
    assert worker.run(tasks.echo).status == 'completed'
    assert until(lambda: len(worker.children) == 2)
    assert worker.process.poll() is None
