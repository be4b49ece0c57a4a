"""Pools of greenlets: gevent and eventlet. A run has its own greenlet, and leaves no connection to PostgreSQL."""
import signal
import time

import pytest
from django.db import connection
from netbox_test_plugin import tasks
from netbox_test_plugin.side import noted, notes, open_gate

from netbox_celery.engine.sending.control import cancellation
from netbox_celery.engine.store.database import KEPT
from netbox_celery.models import CeleryResult
from tests.integration.conftest import workers_made
from tests.integration.support import ended, lines, row, settled, until, waiting

CONCURRENCY = 100
#: The heartbeat's, the sweep's two, the recorder's, and those that Django has made for the engine's own threads.
OF_THE_WORKER = 6
LINES = ['line 0', 'line 1', 'line 2']


@pytest.fixture(scope='module', params=['gevent', 'eventlet'])
def pool(request):
    return request.param


@pytest.fixture(scope='module')
def pooled(make_instance, pool):
    """The NetBox of the pool's workers, whose name identifies their connections."""
    return make_instance(pool, database_settings={'OPTIONS': {'application_name': pool}})


@pytest.fixture(scope='module')
def worker(pooled, pool, worker_log, django_db_blocker):
    with workers_made(pooled, worker_log) as make, django_db_blocker.unblock():
        yield make(pool, pool=pool, concurrency=CONCURRENCY).start().ready()


def connections(pool, query='%'):
    with connection.cursor() as cursor:
        cursor.execute(
            'SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND query LIKE %s', [pool, query]
        )
        return cursor.fetchone()[0]


def unfinished():
    return CeleryResult.objects.filter(completed=None).count()


def started(runs):
    until(lambda: all(notes(run.id) for run in runs), 60)
    return runs


def test_thousand_runs(worker, pool):
    """A thousand runs that log and query finish, with at most one connection for each active run."""
    assert (worker.row.pool, worker.row.concurrency) == (pool, CONCURRENCY)
    most = 0
    runs = [worker.send(tasks.query if number % 2 else tasks.say_all) for number in range(1_000)]

    def look():
        nonlocal most
        most = max(most, connections(pool))
        return not unfinished()

    until(look, 120, lambda: f'{unfinished()} runs go on')
    assert most <= CONCURRENCY + KEPT + OF_THE_WORKER
    assert set(CeleryResult.objects.values_list('status', flat=True)) == {'completed'}
    assert len(lines(runs[0])) == len(lines(runs[-2])) == 9
    until(lambda: connections(pool) <= KEPT + OF_THE_WORKER, 10, lambda: connections(pool))
    assert worker.tracebacks() == []


def test_all_at_a_time(worker, pool, gate):
    """As many runs as the pool allows are active at a time, each with its own log."""
    runs = started([worker.send(tasks.hold, gate, 3) for __ in range(CONCURRENCY)])
    assert CeleryResult.objects.filter(status='running').count() == CONCURRENCY
    assert connections(pool) <= KEPT + OF_THE_WORKER
    open_gate(gate)
    assert {ended(run, 60).status for run in runs} == {'completed'}
    assert all(lines(run) == [*LINES, 'after the gate'] for run in runs)


def test_a_statement_lets_others_go_on(worker, pool, gate):
    """While one run waits for PostgreSQL, others run."""
    slow = started([worker.send(tasks.sleep_in_database, 6)])[0]
    began = time.monotonic()
    assert [worker.run(tasks.query).status for __ in range(5)] == ['completed'] * 5
    assert time.monotonic() - began < 5 and row(slow).status == 'running'
    assert ended(slow).status == 'completed'


def test_progress_and_retries(worker):
    result = settled(worker.run(tasks.retry, 2))
    assert (result.status, result.result, result.attempt) == ('completed', 3, 3)
    assert lines(result) == ['attempt 1', 'attempt 2', 'attempt 3']
    shown = worker.run(tasks.show_progress, 7)
    assert (shown.status, shown.value) == ('completed', 7)
    failed = worker.run(tasks.autoretry, 99)
    assert (failed.status, failed.error) == ('errored', 'ValueError: wrong')


def test_bodies_that_leave(worker):
    """A `BaseException`, or a lack of memory, ends its run and no other."""
    for how, error in (('own', 'OwnInterrupt'), ('exit', 'SystemExit'), ('memory', 'no more of it')):
        result = worker.run(tasks.leave, how)
        assert result.status == 'errored' and error in result.error + result.traceback
    assert worker.run(tasks.echo).status == 'completed'


def test_cancel(worker, pool, gate, user):
    """A greenlet is ended where it waits, also in a statement; others, and their logs, continue."""
    runs = started([worker.send(tasks.hold, gate, 3) for __ in range(10)])
    querying = started([worker.send(tasks.sleep_in_database, 60)])[0]
    cancelled = [*runs[:3], querying]
    for run in cancelled:
        assert cancellation(row(run)) == 'terminate'
        assert row(run).cancel(user=user)
    for run in cancelled:
        assert ended(run, 10).status == 'revoked'
        assert 'Cancelled by alice' in row(run).error
    open_gate(gate)
    assert {ended(run).status for run in runs[3:]} == {'completed'}
    assert all(lines(run)[:3] == LINES for run in runs)
    assert noted(runs[0].id) == ['started']
    assert worker.run(tasks.query).status == 'completed'
    until(lambda: connections(pool) <= KEPT + OF_THE_WORKER, 10, lambda: connections(pool))
    # PostgreSQL has stopped as well
    until(lambda: not connections(pool, 'SELECT pg_sleep%'), 10)


def test_terminate(worker, gate):
    """Celery's own `terminate` for one worker, which writes the row."""
    from netbox_celery.celery import app

    run = started([worker.send(tasks.hold, gate)])[0]
    app.control.revoke(run.id, terminate=True, destination=[worker.row.name])
    result = ended(run, 10)
    assert (result.status, result.reason) == ('revoked', 'terminated')
    assert noted(run.id) == ['started']


def test_time_limits(worker, pool):
    """gevent raises a hard time limit in the body and ignores a soft one; eventlet ignores both."""
    hard = worker.send(tasks.sleep_limited, 3, time_limit=1)
    soft = worker.send(tasks.sleep_limited, 3, soft_time_limit=1)
    result = ended(hard)
    if pool == 'gevent':
        assert (result.status, result.reason) == ('errored', 'time_limit')
        assert noted(hard.id) == ['started']
    else:
        assert result.status == 'completed'
    assert ended(soft).status == 'completed'


def test_soft_shutdown(make_worker, make_instance, pool, gate):
    """With Celery's soft shutdown, a run that does not finish in time is lost, and its row says so immediately."""
    instance = make_instance(f'{pool}-soft', celery={'worker_soft_shutdown_timeout': 2})
    worker = make_worker(f'{pool}-soft', instance=instance, pool=pool, concurrency=10).start().ready()
    run = started([worker.send(tasks.hold, gate)])[0]
    worker.signal(signal.SIGQUIT)
    worker.wait()
    result = ended(run, 10)
    assert (result.status, result.reason) == ('errored', 'worker_lost')


def test_kill(worker, make_worker, pooled, pool, gate):
    """The runs of a killed worker are found by another one, and sent again if they may be."""
    lost = make_worker(f'{pool}-lost', instance=pooled, pool=pool, concurrency=10).start().ready()
    early, late = started([lost.send(tasks.hold, gate, 3), lost.send(tasks.hold_late, gate)])
    until(lambda: lines(early) == LINES)
    lost.kill()
    result = ended(early, 30)
    assert (result.status, result.reason) == ('errored', 'worker_lost')
    assert waiting(late, 'pending').reason == 'worker_lost'


@pytest.fixture
def own_name(pool):
    return f'{pool}-stopped'


@pytest.fixture
def own_worker(make_instance, own_name, pool, worker_log):
    """A worker that the test may stop, whose connections have its name."""
    instance = make_instance(own_name, database_settings={'OPTIONS': {'application_name': own_name}})
    with workers_made(instance, worker_log) as make:
        yield make(own_name, pool=pool, concurrency=CONCURRENCY).start().ready()


def test_shutdown(own_worker, own_name, gate):
    """A worker that is asked to stop waits for its runs, and leaves no connection."""
    worker = own_worker
    run = started([worker.send(tasks.hold, gate, 3)])[0]
    worker.signal(signal.SIGTERM)
    worker.says('Warm shutdown')
    open_gate(gate)
    assert worker.wait() == 0
    assert (ended(run).status, lines(run)) == ('completed', [*LINES, 'after the gate'])
    assert worker.row.stopped is not None
    until(lambda: connections(own_name) == 0, 10)
