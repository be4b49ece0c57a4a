"""Real beats send each due time once, whenever one of them dies."""
import copy
import os
import signal
import socket
import threading
import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from django.contrib.sessions.models import Session
from django.utils import timezone
from netbox_test_plugin import tasks
from netbox_test_plugin.side import noted

from development.stack.instance import PLUGINS, Instance
from netbox_celery.engine.schedules.firing import DUE_HEADER
from netbox_celery.engine.schedules.leader import ACQUIRE, LEASE
from netbox_celery.models import CeleryResult, CelerySchedule, CeleryTask
from netbox_celery.tasks import get_django_command_task
from users.models import User

from .conftest import CONFIG
from .support import until, waiting

#: What a standby may need to take over, seconds.
TAKEOVER = 10


@pytest.fixture
def owner():
    return User.objects.create_superuser('olga')


@pytest.fixture
def make_schedule(owner):
    """Make a schedule of the task `echo`, by default every two seconds and with all missed times."""
    def make(name='echo', task=tasks.echo, queue='nobody', **columns):
        task, __ = CeleryTask.objects.get_or_create(name=task.name)
        columns = {
            'kind': 'interval', 'interval': 2, 'owner': owner, 'task': task, 'missed': 'run_all', 'missed_max': 100,
            **columns,
        }
        return CelerySchedule.objects.create(name=name, queue=queue, **columns)
    return make


@pytest.fixture
def make_beats(make_beat):
    """Start several beats, and return them when one of them sends, with that one first."""
    def make(number):
        beats = [make_beat(f'beat-{index}') for index in range(number)]
        until(lambda: all(beat.is_leader or beat.is_standby for beat in beats), 120)
        return sorted(beats, key=lambda beat: not beat.is_leader)
    return make


def runs(schedule):
    return CeleryResult.objects.filter(schedule=schedule).order_by('pk')


def due_times(schedule):
    """Return the due times for which a schedule was run, in the order of the runs."""
    return [datetime.fromisoformat(run.options['headers'][DUE_HEADER]) for run in runs(schedule)]


def check_each_once(schedule, first, last):
    """Check that each due time from `first` to `last` was run, once and in order."""
    times = due_times(schedule)
    wanted = []
    while first <= last:
        wanted.append(first)
        first += timedelta(seconds=schedule.interval)
    assert max(Counter(times).values()) == 1
    assert times[:len(wanted)] == wanted


def test_two_beats(make_beats, make_schedule):
    """One of two beats sends, the other logs that it does not, and each due time is sent once."""
    leader, standby = make_beats(2)
    schedules = [make_schedule('two'), make_schedule('three', interval=3)]
    firsts = [schedule.next_run for schedule in schedules]
    time.sleep(30)
    for schedule, first in zip(schedules, firsts):
        check_each_once(schedule, first, timezone.now() - timedelta(seconds=2))
    assert 'another beat is active, this one is on standby' in standby.output
    assert not standby.is_leader and 'netbox_test_plugin' not in standby.output
    assert not CeleryResult.objects.filter(sent=None, created__lt=timezone.now() - timedelta(seconds=5)).exists()


def test_killed_in_a_loop(make_beats, make_beat, make_schedule):
    """Leader after leader is killed: the next one sends in time, each due time is sent once, and there is no burst."""
    beats = make_beats(2)
    every, latest = make_schedule('all'), make_schedule('latest', missed='run_once')
    first = every.next_run
    for number in range(3):
        time.sleep(2.5)
        leader = next(beat for beat in beats if beat.is_leader)
        leader.kill()
        beats.remove(leader)
        until(lambda: any(beat.is_leader for beat in beats), TAKEOVER)
        beats.append(make_beat(f'replacement-{number}'))
        until(lambda: beats[-1].is_standby, 120)
    check_each_once(every, first, timezone.now() - timedelta(seconds=2))

    times = due_times(latest)
    assert times == sorted(set(times))
    created = list(runs(latest).values_list('created', flat=True))
    gaps = [(after - before).total_seconds() for before, after in zip(created, created[1:])]
    assert max(gaps) < TAKEOVER
    # Missed times are caught up by one run, which is followed by the next due one
    assert len([gap for gap in gaps if gap < 0.2]) <= 3


def test_hanging_leader(make_beats, make_schedule):
    """A leader that hangs loses its lease, and sends nothing twice when it continues."""
    leader, standby = make_beats(2)
    schedule = make_schedule()
    first = schedule.next_run
    until(lambda: runs(schedule).exists())
    leader.signal(signal.SIGSTOP)
    try:
        until(lambda: standby.is_leader, TAKEOVER)
    finally:
        leader.signal(signal.SIGCONT)
    leader.says('another beat has taken over', 15)
    time.sleep(5)
    times = due_times(schedule)
    assert times == sorted(set(times)) and times[0] == first
    assert times[-1] > timezone.now() - timedelta(seconds=4)
    assert leader.output.count('this one is active') == 1


class Cable:
    """A connection to PostgreSQL that can be cut without notice to either side."""

    def __init__(self, port):
        self.target = port
        self.is_cut = threading.Event()
        self.server = socket.create_server(('127.0.0.1', 0))
        self.port = self.server.getsockname()[1]
        self.sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, __ = self.server.accept()
            except OSError:
                return
            far = socket.create_connection(('127.0.0.1', self.target))
            self.sockets += near, far
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source, sink):
        try:
            while not self.is_cut.is_set() and (data := source.recv(65536)):
                if not self.is_cut.is_set():
                    sink.sendall(data)
            if not self.is_cut.is_set():
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        for each in (self.server, *self.sockets):
            each.close()


def test_cut_network(services, make_beat, make_schedule):
    """A leader whose network is cut delays no one: its lease expires, and so does a lock on a schedule."""
    cable = Cable(services.cluster.port)
    cluster = copy.copy(services.cluster)
    cluster.port = cable.port
    instance = Instance(
        services.directory / 'cable', cluster, services.redis, for_tests=True,
        plugins=[*PLUGINS, 'netbox_test_plugin'], plugins_config={'netbox_celery': CONFIG},
    ).write()
    try:
        leader = make_beat('cut', instance=instance)
        until(lambda: leader.is_leader, 120)
        standby = make_beat('standby')
        until(lambda: standby.is_standby, 120)
        schedule = make_schedule()
        first = schedule.next_run
        until(lambda: runs(schedule).exists())
        cable.is_cut.set()
        until(lambda: standby.is_leader, TAKEOVER)
        until(lambda: len(due_times(schedule)) > 8)
        check_each_once(schedule, first, timezone.now() - timedelta(seconds=2))
        leader.kill()
    finally:
        cable.close()


def test_lease_held_by_another(services, make_beat, make_schedule):
    """A beat without the lease sends nothing and logs that; it sends when the lease is no longer renewed."""
    schedule = make_schedule()
    somebody = {'holder': uuid4()}
    with psycopg.connect(services.cluster.url('netbox'), autocommit=True) as connection:
        assert connection.execute(ACQUIRE, somebody).fetchone()
        beat = make_beat()
        until(lambda: connection.execute(ACQUIRE, somebody).fetchone() and beat.is_standby, 120)
        for __ in range(6):
            time.sleep(1)
            assert connection.execute(ACQUIRE, somebody).fetchone()
        assert not runs(schedule).exists()
    until(lambda: runs(schedule).exists(), LEASE + 3)


def test_killed_before_the_commit(services, make_beats, make_schedule):
    """A beat that dies with a half-made run has done nothing: the next one makes it."""
    leader, standby = make_beats(2)
    with psycopg.connect(services.cluster.url('netbox')) as connection:
        connection.execute('LOCK TABLE netbox_celery_celeryresult IN SHARE MODE')
        schedule = make_schedule(kind='once', interval=None, at=timezone.now() + timedelta(seconds=1))
        until(lambda: connection.execute(
            "SELECT pid FROM pg_locks WHERE relation = 'netbox_celery_celeryresult'::regclass AND NOT granted"
        ).fetchone(), 20, lambda: print(leader.output))
        leader.kill()
    until(lambda: standby.is_leader, TAKEOVER)
    until(lambda: runs(schedule).exists())
    time.sleep(2)
    assert due_times(schedule) == [schedule.at]
    schedule.refresh_from_db()
    assert (schedule.enabled, schedule.next_run) == (False, None)


def test_killed_before_the_message(services, prefork, make_beats, make_schedule):
    """A beat dies between the commit and the message: the sweep sends the message, and there is no second run."""
    leader, standby = make_beats(2)
    redis = services.redis.process.pid
    os.kill(redis, signal.SIGSTOP)
    try:
        schedule = make_schedule(
            kind='once', interval=None, at=timezone.now() + timedelta(seconds=1), queue=prefork.queue
        )
        run = until(lambda: runs(schedule).first(), 20)
        leader.kill()
    finally:
        os.kill(redis, signal.SIGCONT)
    waiting(run, 'completed', timeout=60)
    assert noted(run.task_id) == ['ran']
    assert due_times(schedule) == [schedule.at]


def test_run(prefork, make_beat, make_schedule, owner, tmp_path):
    """A schedule's run has its task, arguments, owner and object, names the schedule, and no file is left behind."""
    beat = make_beat(cwd=tmp_path)
    beat.says('this one is active')
    schedule = make_schedule(
        args=['a', 1], kwargs={'when': datetime(2026, 1, 2)}, queue=prefork.queue, object=owner, expires=60
    )
    run = waiting(until(lambda: runs(schedule).first()), 'completed', timeout=60)
    assert run.result == [['a', 1], {'when': datetime(2026, 1, 2)}]
    assert (run.user, run.object, run.schedule, run.celery_name) == (owner, owner, schedule, tasks.echo.name)
    assert run.expires == due_times(schedule)[0] + timedelta(seconds=60)
    beat.stop()
    assert not list(Path(tmp_path).iterdir())


def test_run_of_a_command(prefork, make_beat, make_schedule):
    """A management command can be scheduled like any other task."""
    make_beat()
    Session.objects.create(session_key='old', expire_date=timezone.now() - timedelta(days=1))
    schedule = make_schedule(
        task=get_django_command_task('clearsessions'), kwargs={'verbosity': 0}, queue=prefork.queue
    )

    run = waiting(until(lambda: runs(schedule).first(), 60), 'completed', timeout=60)
    assert run.celery_name == 'command.django.contrib.sessions.clearsessions'
    assert not Session.objects.filter(session_key='old').exists()


def test_edits_take_effect(make_beat, make_schedule):
    """Changes take effect within five seconds, also for an idle beat."""
    beat = make_beat()
    beat.says('this one is active')
    schedule = make_schedule(interval=86400)
    time.sleep(6)  # it now sleeps for the longest time
    schedule.interval = 1
    schedule.save()
    until(lambda: runs(schedule).exists(), 7)
    schedule.enabled = False
    schedule.save()
    number = runs(schedule).count()
    time.sleep(3)
    assert runs(schedule).count() <= number + 1
    schedule.enabled = True
    schedule.save()
    until(lambda: runs(schedule).count() > number + 1, 8)
    # Times that were missed while it was disabled are not caught up
    assert all(later - earlier >= timedelta(seconds=1) for earlier, later in zip(
        due_times(schedule), due_times(schedule)[1:]
    ))


def test_database_restarted(services, make_beat, make_schedule):
    """A beat whose sessions PostgreSQL closes keeps the lease, and misses and repeats nothing."""
    beat = make_beat()
    beat.says('this one is active')
    schedule = make_schedule()
    first = schedule.next_run
    until(lambda: runs(schedule).exists())
    with psycopg.connect(services.cluster.url('netbox'), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = 'netbox' AND pid <> pg_backend_pid() AND query LIKE '%celeryschedule%'"
        )
    time.sleep(8)
    assert beat.output.count('this one is active') == 1
    check_each_once(schedule, first, timezone.now() - timedelta(seconds=2))


def test_beat_in_a_worker(make_worker, make_schedule, tmp_path):
    """`worker -B` sends like `beat`, leaves no file, and its beat stops with it, even if it is killed."""
    worker = make_worker('with-beat', options=('-B',), cwd=tmp_path).start().ready()
    schedule = make_schedule(queue=worker.queue)
    run = until(lambda: runs(schedule).first(), 30)
    assert waiting(run, 'completed', timeout=60).schedule == schedule
    assert worker.run(tasks.echo).status == 'completed'
    assert not list(Path(tmp_path).iterdir())
    worker.kill()
    number = runs(schedule).count()
    time.sleep(5)
    assert runs(schedule).count() <= number + 1
