"""PgBouncer in transaction mode, and psycopg's pool: a session of PostgreSQL is used for one transaction."""
import time
from collections import Counter
from datetime import datetime

import pytest
from django.db import connection
from netbox_test_plugin import tasks
from netbox_test_plugin.side import notes, open_gate

from development.stack.pgbouncer import PgBouncer
from netbox_celery.engine.schedules.firing import DUE_HEADER
from netbox_celery.engine.schedules.leader import LEASE
from netbox_celery.engine.store import database
from netbox_celery.models import CeleryResult, CelerySchedule, CeleryTask
from tests.integration.conftest import workers_made
from tests.integration.support import ended, lines, settled, until
from users.models import User

POOL_SIZE = 10


@pytest.fixture(scope='module')
def bouncer(services):
    if not PgBouncer.binary():
        pytest.skip('PgBouncer is not installed: sudo apt-get install pgbouncer')
    server = PgBouncer(services.directory / 'pgbouncer', services.cluster, pool_size=POOL_SIZE)
    server.log = services.directory / 'log' / 'pgbouncer.log'
    server.start(server.log, die_with_parent=True)
    yield server
    server.stop()


@pytest.fixture(scope='module')
def behind(bouncer, make_instance):
    """A NetBox that connects to PostgreSQL through PgBouncer, as documented."""
    def make(name='bouncer', options=None, **settings):
        return make_instance(name, database_settings={
            'PORT': bouncer.port, 'DISABLE_SERVER_SIDE_CURSORS': True,
            'OPTIONS': {'application_name': 'bouncer', **(options or {})}, **settings,
        })
    return make


@pytest.fixture(scope='module')
def worker(behind, worker_log, django_db_blocker):
    with workers_made(behind(), worker_log) as make, django_db_blocker.unblock():
        yield make('bounced').start().ready()


def sessions():
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'bouncer'")
        return cursor.fetchone()[0]


@pytest.mark.parametrize('setting', [None, True, False])
def test_prepared_statements(bouncer, monkeypatch, setting):
    """Statements are not prepared behind a pooler, unless the setting allows it."""
    for port, is_pooled in ((bouncer.port, True), (bouncer.cluster.port, False)):
        monkeypatch.setattr(database, '_is_pooled', None)
        wrapper = database.without_pool(connection)
        wrapper.settings_dict = {**wrapper.settings_dict, 'PORT': port}
        wrapper.settings_dict.pop('DISABLE_SERVER_SIDE_CURSORS', None)
        if setting is not None:
            wrapper.settings_dict['DISABLE_SERVER_SIDE_CURSORS'] = setting
        wrapper.inc_thread_sharing()
        try:
            database.execute(wrapper, 'SELECT 1')
            prepares = bool(wrapper.connection._prepared._names)
        finally:
            wrapper.close()
        assert prepares == (not is_pooled if setting is None else not setting)


def test_runs(worker, bouncer):
    """Hundreds of runs log, query and are retried, in as many sessions as PgBouncer has."""
    runs = [worker.send((tasks.query, tasks.say_all, tasks.echo)[number % 3]) for number in range(300)]
    retried = settled(worker.run(tasks.retry, 2, timeout=60))
    assert (retried.status, retried.attempt, len(lines(retried))) == ('completed', 3, 3)
    assert {ended(run, 60).status for run in runs} == {'completed'}
    assert all(len(lines(run)) == 9 for run in runs[1::3])
    assert all(len(notes(run.id)) == 1 for run in runs[2::3])
    assert 0 < sessions() <= POOL_SIZE
    assert worker.tracebacks() == []


def test_sweep(worker, make_worker, behind, bouncer, gate):
    """Runs of a killed worker are found, and a sweep breaks no session."""
    lost = make_worker('bounced-lost', instance=behind('bouncer-lost')).start().ready()
    early, late = lost.send(tasks.hold, gate, 3), lost.send(tasks.hold_late, gate)
    until(lambda: notes(early.id) and notes(late.id) and len(lines(early)) == 3)
    lost.kill()
    open_gate(gate)
    result = ended(early, 30)
    assert (result.status, result.reason) == ('errored', 'worker_lost')
    until(lambda: CeleryResult.objects.get(task_id=late.id).reason == 'worker_lost')
    assert worker.run(tasks.query).status == 'completed'
    assert 'in transaction' not in bouncer.log.read_text()
    assert worker.tracebacks() == []


def test_beat(make_beat, behind):
    """A beat keeps the lease; when it is killed another one replaces it, and each due time is sent once."""
    beats = [make_beat(f'bounced-{number}', instance=behind(f'bouncer-beat-{number}')) for number in range(2)]
    until(lambda: all(beat.is_leader or beat.is_standby for beat in beats), 120)
    leader, standby = sorted(beats, key=lambda beat: not beat.is_leader)
    task, __ = CeleryTask.objects.get_or_create(name=tasks.echo.name)
    schedule = CelerySchedule.objects.create(
        name='bounced', task=task, queue='nobody', kind='interval', interval=2, missed='run_all', missed_max=100,
        owner=User.objects.create_superuser('olga'),
    )
    time.sleep(16)
    assert not standby.is_leader and leader.output.count('this one is active') == 1
    assert 'another beat has taken over' not in leader.output
    leader.kill()
    until(lambda: standby.is_leader, LEASE + 2)
    time.sleep(3)
    runs = CeleryResult.objects.filter(schedule=schedule).order_by('pk')
    times = [datetime.fromisoformat(run.options['headers'][DUE_HEADER]) for run in runs]
    assert max(Counter(times).values()) == 1
    gaps = {(after - before).total_seconds() for before, after in zip(times, times[1:])}
    assert len(times) >= 10 and gaps == {2}


def test_pool_of_psycopg(make_worker, behind, bouncer):
    """With Django's own pool as well, threads share fewer connections than there are threads."""
    instance = behind(
        'bouncer-pool', options={'pool': {'min_size': 1, 'max_size': 3, 'timeout': 10}}, CONN_MAX_AGE=0
    )
    worker = make_worker('bounced-pool', instance=instance, pool='threads', concurrency=8).start().ready()
    runs = [worker.send(tasks.query if number % 2 else tasks.say_all) for number in range(100)]
    assert {ended(run, 60).status for run in runs} == {'completed'}
    assert 'PoolTimeout' not in worker.output and worker.tracebacks() == []
