"""One of several beats holds the lease."""
import math
from datetime import timedelta

import pytest
from celery.beat import Service
from django.db import connection
from django.db.models import F
from django.utils import timezone

from netbox_celery.celery import app
from netbox_celery.engine.schedules import leader
from netbox_celery.engine.schedules.leader import LEASE, Leadership
from netbox_celery.models import CelerySchedule, Lease
from netbox_celery.scheduler import DatabaseScheduler
from tests.factories import make_schedule

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def two():
    pair = Leadership(), Leadership()
    yield pair
    for each in pair:
        each.release()


def test_one_at_a_time(two):
    first, second = two
    assert (first.acquire(), second.acquire()) == (True, False)
    assert (first.is_held, second.is_held) == (True, False)
    assert second.seconds_to_next() is None
    assert 0 < second.seconds_left() <= LEASE
    first.release()
    assert second.seconds_left() == 0
    assert second.acquire() and second.is_held


def test_run_out(two):
    """A beat that does not renew its lease loses it to the next that asks, and knows it before it sends anything."""
    first, second = two
    first.acquire()
    Lease.objects.update(until=F('until') - timedelta(seconds=LEASE - 1))
    assert not second.acquire()
    Lease.objects.update(until=F('until') - timedelta(seconds=1))
    assert second.acquire()
    assert first.seconds_to_next() is None
    assert not first.is_held and not first.acquire()


def test_renewed(two):
    """Each look for due schedules renews the lease, even an expired one that no other beat has taken."""
    first, second = two
    first.acquire()
    for __ in range(3):
        Lease.objects.update(until=F('until') - timedelta(seconds=LEASE + 1))
        assert first.seconds_to_next() is not None
        assert LEASE - 1 < second.seconds_left() <= LEASE
        assert not second.acquire()


def test_sessions_do_not_matter(two):
    """The lease outlives the database session that wrote it, as behind a connection pooler."""
    first, second = two
    first.acquire()
    session = first._connection._wrapper.connection.info.backend_pid
    with connection.cursor() as cursor:
        cursor.execute('SELECT pg_terminate_backend(%s, 5000)', [session])
    assert not second.acquire()
    assert first.seconds_to_next() is not None


def test_clock_set_back(two):
    """A dead beat's lease from before the clock was set back does not count; a living beat renews its own."""
    first, second = two
    first.acquire()
    Lease.objects.update(until=F('until') + timedelta(hours=1))
    assert first.seconds_to_next() is not None and not second.acquire()
    Lease.objects.update(until=F('until') + timedelta(hours=1))
    assert second.seconds_left() == LEASE
    assert second.acquire()


def test_lease_is_longer_than_beat_sleeps():
    assert DatabaseScheduler.max_interval + 2 < LEASE


def test_released_by_its_holder_alone(two):
    first, second = two
    first.acquire()
    first.is_held, second.is_held = False, True
    second.release()
    assert not second.acquire()


def test_seconds_to_next(two):
    first, __ = two
    first.acquire()
    assert first.seconds_to_next() == math.inf
    make_schedule('later', kind='interval', interval=60)
    make_schedule('disabled', kind='interval', interval=5, enabled=False)
    assert 50 < first.seconds_to_next() < 61
    CelerySchedule.objects.filter(name='later').update(next_run=timezone.now() - timedelta(seconds=5))
    assert first.seconds_to_next() < 0


def test_new_connections_are_hardened(monkeypatch):
    """Beat's new connections notice a network failure by themselves, and keep no state in a session."""
    settings = leader.connections.settings['default']
    monkeypatch.setitem(settings, 'OPTIONS', dict(settings.get('OPTIONS', {})))
    before = connection.settings_dict['OPTIONS']
    leader.harden_connections()
    lead = Leadership()
    try:
        assert lead.acquire()
        parameters = lead._connection._wrapper.connection.info.get_parameters()
        assert (parameters['keepalives_idle'], parameters['tcp_user_timeout']) == ('4', '10000')
        assert lead._connection.execute("SELECT current_setting('idle_session_timeout')") == [('0',)]
    finally:
        lead.release()
        connection.settings_dict['OPTIONS'] = before


def test_default_scheduler():
    """`celery beat` needs no `-S`; a lazy scheduler opens no connection."""
    assert app.conf.beat_scheduler == 'netbox_celery.scheduler:DatabaseScheduler'
    scheduler = Service(app, scheduler_cls=app.conf.beat_scheduler, max_interval=300).get_scheduler(lazy=True)
    assert type(scheduler) is DatabaseScheduler
    assert scheduler.max_interval == 5
    assert scheduler.leadership._connection._wrapper is None
