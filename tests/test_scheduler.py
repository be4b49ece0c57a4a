"""Beat's scheduler, tick by tick: one sends, the others wait, and it continues whatever happens."""
import logging
import threading
from datetime import timedelta
from unittest import mock
from uuid import uuid4

import pytest
from celery.beat import Scheduler
from django.db import OperationalError, connection, transaction
from django.db.models.functions import Now
from django.utils import timezone

from netbox_celery import scheduler as module
from netbox_celery.celery import app
from netbox_celery.engine.schedules import firing as schedules
from netbox_celery.engine.schedules.firing import DUE_HEADER
from netbox_celery.engine.schedules.sync import sync_catalogue
from netbox_celery.housekeeping import PRUNE
from netbox_celery.models import CeleryResult, CelerySchedule, CeleryTask, Lease
from netbox_celery.scheduler import HOUSEKEEPING_INTERVAL, SHORT_WAIT, STANDBY_INTERVAL, DatabaseScheduler
from tests.factories import make_schedule
from users.models import User

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def make_beat():
    beats = []

    def make(keeps_house=False, **options):
        beat = DatabaseScheduler(app, lazy=True, **options)
        beats.append(beat)
        if not keeps_house:
            beat._keep_house = lambda: None
        return beat
    yield make
    for beat in beats:
        beat.leadership.release()


@pytest.fixture
def make_due(make_task):
    """Make a schedule that has been due for so many seconds (or will be, if negative), of a task that is never run."""
    make_task(lambda self, task_id: None, name='tests:due', queue='nobody')
    sync_catalogue()
    task = CeleryTask.objects.get(name='tests:due')
    owner = User.objects.create_superuser('owner')

    def make(name='due', since=1):
        schedule = make_schedule(name, task, kind='interval', interval=3600, owner=owner)
        CelerySchedule.objects.filter(pk=schedule.pk).update(next_run=timezone.now() - timedelta(seconds=since))
        return schedule
    return make


def runs():
    return list(CeleryResult.objects.order_by('pk').values_list('schedule__name', flat=True))


@pytest.mark.parametrize('given, used', [(None, 5), (300, 5), (2, 2)])
def test_max_interval(make_beat, given, used):
    """An edit takes effect within five seconds, even if beat is told to sleep longer."""
    assert make_beat(max_interval=given).max_interval == used


def test_one_sends(make_beat, make_due, caplog):
    """The other waits, logs that once, and replaces it later."""
    caplog.set_level(logging.INFO)
    make_due()
    first, second = make_beat(), make_beat()
    assert first.tick() == 0
    assert [second.tick() for __ in range(3)] == [STANDBY_INTERVAL] * 3
    assert caplog.text.count('another beat is active, this one is on standby') == 1
    assert runs() == ['due']

    first.close()
    make_due('later')
    assert second.tick() == 0
    assert runs() == ['due', 'later']
    assert first.tick() == STANDBY_INTERVAL


@pytest.mark.parametrize('since, at_least, at_most', [(-4, 1, 4), (-60, 5, 5), (None, 5, 5)])
def test_nothing_is_due(make_beat, make_due, since, at_least, at_most):
    """It wakes up when something is due, and within five seconds in any case."""
    if since is not None:
        make_due(since=since)
    assert at_least <= make_beat().tick() <= at_most
    assert runs() == []


def test_each_once(make_beat, make_due):
    """All due schedules are sent immediately, one run each."""
    for number in range(5):
        make_due(f'due {number}', since=10 - number)
    beat = make_beat()
    assert beat.tick() == 0
    assert beat.tick() == 5
    assert runs() == [f'due {number}' for number in range(5)]


def test_lease_is_renewed_between_sends(make_beat, make_due, monkeypatch):
    """With much to send it renews its lease in between."""
    monkeypatch.setattr(module, 'SENDING_TIME', 0)
    for number in range(3):
        make_due(f'due {number}')
    beat = make_beat()
    for number in range(3):
        assert beat.tick() == 0
        assert len(runs()) == number + 1


def test_schedule_that_is_being_edited(make_beat, make_due):
    """It is skipped for a moment, and does not delay others."""
    edited, __ = make_due('edited', since=5), make_due('other')
    beat = make_beat()
    locked, done = threading.Event(), threading.Event()

    def edit():
        with transaction.atomic():
            CelerySchedule.objects.select_for_update().get(pk=edited.pk)
            locked.set()
            done.wait(20)
        connection.close()
    thread = threading.Thread(target=edit)
    thread.start()
    locked.wait(20)
    try:
        assert beat.tick() == 0
        assert runs() == ['other']
        assert beat.tick() == SHORT_WAIT
    finally:
        done.set()
        thread.join()
    assert beat.tick() == 0
    assert runs() == ['other', 'edited']


def test_lease_lost(make_beat, make_due, caplog):
    """A beat without the lease sends nothing until it has it again."""
    beat = make_beat()
    beat.tick()
    make_due()
    Lease.objects.update(holder=uuid4())
    assert beat.tick() == SHORT_WAIT
    assert 'another beat has taken over' in caplog.text
    assert beat.tick() == STANDBY_INTERVAL
    assert runs() == []
    Lease.objects.update(until=Now() + timedelta(seconds=1))
    assert beat.tick() <= 1 + SHORT_WAIT
    Lease.objects.update(until=Now() - timedelta(seconds=1))
    assert beat.tick() == 0
    assert runs() == ['due']


@pytest.mark.parametrize('error, message', [
    (OperationalError('away'), 'the database is unavailable: away'),
    (RuntimeError('odd'), 'unexpected error, trying again'),
], ids=['away', 'odd'])
def test_errors_do_not_end_it(make_beat, make_due, monkeypatch, caplog, error, message):
    """Neither a database that is down nor any other error ends it."""
    def fail():
        raise error
    make_due()
    beat = make_beat()
    beat.tick()
    make_due('later')
    with monkeypatch.context() as patch:
        patch.setattr(schedules, 'find_due', fail)
        assert beat.tick() == STANDBY_INTERVAL
    assert message in caplog.text
    assert beat.tick() == 0
    assert runs() == ['due', 'later']


# What changes seldom

def test_housekeeping(make_beat, monkeypatch):
    """The sending beat does it first, and again after a minute; a waiting one does not."""
    times = []
    monkeypatch.setattr(schedules, 'resume_after_clock', lambda: times.append(1))
    beat, standby = make_beat(keeps_house=True), make_beat(keeps_house=True)
    for __ in range(3):
        beat.tick(), standby.tick()
    assert len(times) == 1
    assert CelerySchedule.objects.filter(name=PRUNE).exists()
    beat._housekeeping_due -= HOUSEKEEPING_INTERVAL
    beat.tick()
    assert len(times) == 2


def test_housekeeping_that_fails(make_beat, make_due, monkeypatch, caplog):
    """What is due is sent all the same, at the next tick."""
    def fail(*args, **kwargs):
        raise RuntimeError('odd')
    monkeypatch.setattr(module.sources, 'sync', fail)
    make_due()
    beat = make_beat(keeps_house=True)
    assert [beat.tick(), beat.tick()] == [STANDBY_INTERVAL, 0]
    assert 'unexpected error' in caplog.text
    assert runs() == ['due']


def test_apply_entry(make_beat, make_due, monkeypatch):
    """Runs are sent by `apply_entry`, as with Celery's beat: its listeners are called, and may add headers."""
    heard = []
    apply_entry = Scheduler.apply_entry

    def listening(self, entry, producer=None):
        heard.append((entry.name, entry.task, entry.schedule.run_every, entry.app, self.app))
        entry.options['headers'] = {**entry.options.pop('headers', {}), 'heard': True, DUE_HEADER: 'never'}
        return apply_entry(self, entry, producer=producer)

    monkeypatch.setattr(Scheduler, 'apply_entry', listening)
    schedule = make_due()
    assert make_beat().tick() == 0
    assert heard == [('due', 'tests:due', timedelta(hours=1), app, app)]
    headers = CeleryResult.objects.get().options['headers']
    assert headers['heard'] is True
    assert headers[DUE_HEADER] != 'never'
    schedule.refresh_from_db()
    assert schedule.options == {}


def test_crontab_entry(make_beat, make_due, monkeypatch):
    """A crontab is an entry's crontab, too, in the schedule's time zone; a single time is not."""
    heard = []
    monkeypatch.setattr(Scheduler, 'apply_entry', lambda self, entry: heard.append(entry.schedule))
    CelerySchedule.objects.filter(pk=make_due('crontab').pk).update(
        kind='crontab', crontab='5 4 * * 1-5', interval=None, timezone='Europe/Berlin'
    )
    CelerySchedule.objects.filter(pk=make_due('once').pk).update(kind='once', interval=None, at=timezone.now())
    assert make_beat().tick() == 0
    cron, = (when for when in heard if when is not None)
    assert (cron._orig_minute, cron._orig_day_of_week, str(cron.tz)) == ('5', '1-5', 'Europe/Berlin')
    assert len(heard) == 2
    # A listener that starts nothing delays nothing
    assert sorted(runs()) == ['crontab', 'once']


@pytest.mark.parametrize('when', ['before', 'after'])
def test_apply_entry_fails(make_beat, make_due, monkeypatch, when):
    """A failing listener neither prevents a run, nor starts one twice."""
    apply_entry = Scheduler.apply_entry

    def failing(self, entry, producer=None):
        if when == 'after':
            apply_entry(self, entry)
        raise RuntimeError('the monitor is ill')

    monkeypatch.setattr(Scheduler, 'apply_entry', failing)
    make_due()
    assert make_beat().tick() == 0
    assert runs() == ['due']


def test_database_is_unavailable_in_apply_entry(make_beat, make_due, monkeypatch):
    """Celery's method hides errors. An outage of the database is not hidden: the run is still due."""
    schedule = make_due()
    monkeypatch.setattr(schedules, 'start_run', mock.Mock(side_effect=OperationalError('away')))
    make_beat().tick()
    assert runs() == []
    schedule.refresh_from_db()
    assert schedule.last_run is None
