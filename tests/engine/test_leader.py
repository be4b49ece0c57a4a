"""Of several beats, one has the lock."""
import math
from datetime import timedelta

import pytest
from celery.beat import Service
from django.db import connection
from django.utils import timezone

from development.stack.processes import wait_until
from netbox_celery.celery import app
from netbox_celery.engine import leader
from netbox_celery.engine.leader import Leadership
from netbox_celery.models import CelerySchedule
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
    first.release()
    wait_until(second.acquire, 20)
    assert second.is_held


def test_connection_lost(two):
    """Who has lost the session has lost the lock, and knows it before it sends anything; another may have it."""
    first, second = two
    first.acquire()
    with connection.cursor() as cursor:
        cursor.execute('SELECT pg_terminate_backend(%s, 5000)', (first._session,))
    assert second.acquire()
    assert first.seconds_to_next() is None
    assert not first.is_held and not first.acquire()


def test_session_that_says_nothing(two):
    """PostgreSQL ends it: that is what frees the lock of a beat that hangs, or whose network is gone."""
    two[0].acquire()
    ((timeout,),) = two[0]._connection.execute("SELECT current_setting('idle_session_timeout')")
    assert timeout == '10s'


def test_seconds_to_next(two):
    first, __ = two
    first.acquire()
    assert first.seconds_to_next() == math.inf
    make_schedule('later', kind='interval', interval=60)
    make_schedule('disabled', kind='interval', interval=5, enabled=False)
    assert 50 < first.seconds_to_next() < 61
    CelerySchedule.objects.filter(name='later').update(next_run=timezone.now() - timedelta(seconds=5))
    assert first.seconds_to_next() < 0


def test_new_connections_are_hardened(monkeypatch, services):
    """What beat connects to from then on notices a cut network by itself, on both ends."""
    settings = leader.connections.settings['default']
    monkeypatch.setitem(settings, 'OPTIONS', dict(settings.get('OPTIONS', {})))
    before = connection.settings_dict['OPTIONS']
    leader.harden_connections()
    lead = Leadership()
    try:
        assert lead.acquire()
        ((idle, timeout),) = lead._connection.execute(
            "SELECT current_setting('tcp_keepalives_idle'), current_setting('tcp_user_timeout')"
        )
        assert (idle, timeout) == ('4', '10000')
        parameters = lead._connection._wrapper.connection.info.get_parameters()
        assert parameters['keepalives_idle'] == '4'
    finally:
        lead.release()
        connection.settings_dict['OPTIONS'] = before
        leader.connection_created.disconnect(dispatch_uid=leader.__name__)


def test_default_scheduler():
    """`celery beat` needs no `-S`; asked what it is, the scheduler connects to nothing."""
    assert app.conf.beat_scheduler == 'netbox_celery.scheduler:DatabaseScheduler'
    scheduler = Service(app, scheduler_cls=app.conf.beat_scheduler, max_interval=300).get_scheduler(lazy=True)
    assert type(scheduler) is DatabaseScheduler
    assert scheduler.max_interval == 5
    assert scheduler.leadership._connection._wrapper is None
