"""Schedules: what is valid, and how a change affects their times."""
from datetime import UTC, datetime, timedelta

import pytest
from django.core.exceptions import ValidationError
from django.db.models import ProtectedError
from django.utils import timezone

from netbox_celery.models import CeleryResult, CelerySchedule, CeleryTask
from tests.factories import make_result, make_schedule, make_task
from users.models import User

pytestmark = pytest.mark.django_db


def build(**columns):
    task = CeleryTask.objects.first() or make_task()
    return CelerySchedule(**{'name': 'A', 'task': task, 'crontab': '0 * * * *', **columns})


def test_valid():
    for columns in (
        {}, {'kind': 'interval', 'crontab': '', 'interval': 90.5}, {'timezone': 'Europe/Berlin'},
        {'kind': 'once', 'crontab': '', 'at': timezone.now() + timedelta(seconds=5)}, {'kwargs': {'name': 'Bob'}},
    ):
        build(**columns).full_clean()


@pytest.mark.parametrize(('columns', 'field'), [
    ({'crontab': ''}, 'crontab'),
    ({'crontab': '61 * * * *'}, 'crontab'),
    ({'timezone': 'Nowhere/Else'}, 'timezone'),
    ({'timezone': ''}, 'timezone'),
    ({'timezone': '../../etc/passwd'}, 'timezone'),
    ({'interval': 5}, 'interval'),
    ({'kind': 'interval', 'crontab': ''}, 'interval'),
    ({'kind': 'interval', 'crontab': '', 'interval': 0}, 'interval'),
    ({'kind': 'interval', 'crontab': '', 'interval': float('nan')}, 'interval'),
    ({'kind': 'interval', 'crontab': '', 'interval': 1e300}, 'interval'),
    ({'kind': 'interval', 'interval': 5}, 'crontab'),
    ({'kind': 'once', 'crontab': ''}, 'at'),
    ({'kind': 'once', 'crontab': '', 'at': timezone.now() - timedelta(seconds=5)}, 'at'),
    ({'start': timezone.now() + timedelta(days=2), 'end': timezone.now() + timedelta(days=1)}, 'end'),
    ({'end': timezone.now() - timedelta(days=1)}, 'end'),
    ({'args': {'name': 'Bob'}}, 'args'),
    ({'kwargs': ['Bob']}, 'kwargs'),
    ({'kwargs': {'nobody': 'Bob'}}, 'kwargs'),
    ({'kwargs': {'name': 'a\0b'}}, 'kwargs'),
    ({'args': ['\ud800']}, 'args'),
    ({'args': [float('nan')]}, 'args'),
    ({'start': datetime.max.replace(tzinfo=UTC)}, 'end'),
    ({'args': ['Bob', 'Eve']}, 'kwargs'),
    ({'object_id': 5}, 'object_type'),
    ({'missed_max': 0}, 'missed_max'),
    ({'kind': 'solar'}, 'kind'),
])
def test_invalid(columns, field):
    with pytest.raises(ValidationError) as caught:
        build(**columns).full_clean()
    assert field in caught.value.message_dict


def test_change_of_time():
    """A change of the timing recomputes the next time; other changes leave it."""
    schedule = make_schedule()
    soon = timezone.now() + timedelta(seconds=5)
    for name, value, is_reckoned in (
        ('description', 'x', False), ('kwargs', {'name': 'x'}, False), ('missed', 'skip', False),
        ('crontab', '5 * * * *', True), ('timezone', 'Asia/Kolkata', True),
        ('start', timezone.now() + timedelta(days=1), True), ('end', timezone.now() + timedelta(days=3), True),
    ):
        CelerySchedule.objects.update(next_run=soon)
        setattr(schedule, name, value)
        schedule.save()
        schedule.refresh_from_db()
        assert (schedule.next_run != soon) is is_reckoned, name


def test_enabled_again():
    """Times that were missed while it was disabled are not caught up."""
    schedule = make_schedule(kind='interval', interval=60)
    CelerySchedule.objects.update(next_run=timezone.now() - timedelta(hours=1))
    schedule.enabled = False
    schedule.save()
    assert schedule.next_run is None
    schedule.enabled = True
    schedule.save(update_fields=['enabled'])
    schedule.refresh_from_db()
    assert timezone.now() < schedule.next_run < timezone.now() + timedelta(seconds=61)


def stop(schedule):
    """Do what beat does if the owner may not run the task."""
    now = timezone.now()
    CelerySchedule.objects.filter(pk=schedule.pk).update(enabled=False, next_run=None, stopped=now)
    return now


@pytest.mark.parametrize(('columns', 'update_fields', 'remains'), [
    ({}, None, True),
    ({'description': 'Changed', 'stopped': None}, None, True),
    ({'stopped': None}, ['stopped'], True),
    ({'enabled': True}, None, False),
    ({'enabled': True}, ['enabled'], False),
    ({'owner': 'eve'}, None, False),
    ({'owner': 'eve'}, ['owner'], False),
])
def test_stopped(columns, update_fields, remains):
    """Beat sets the mark, and no form that was open meanwhile removes it: only enabling it, or a new owner, does."""
    if 'owner' in columns:
        columns = {**columns, 'owner': User.objects.create_user(columns['owner'])}
    schedule = make_schedule(owner=User.objects.create_user('olga'), enabled=False)
    stopped = stop(schedule)
    for name, value in columns.items():
        setattr(schedule, name, value)
    schedule.save(update_fields=update_fields)
    schedule.refresh_from_db()
    assert schedule.stopped == (stopped if remains else None)


def test_stopped_is_over():
    """A schedule that people enabled and disabled again was disabled by them."""
    schedule = make_schedule()
    stop(schedule)
    for enabled in (True, False):
        schedule.enabled = enabled
        schedule.save()
    schedule.refresh_from_db()
    assert (schedule.enabled, schedule.stopped) == (False, None)


def test_due_times():
    """A preview shows the stored next time first, or the times of the form."""
    schedule = make_schedule(kind='interval', interval=60)
    first = timezone.now() + timedelta(seconds=5)
    CelerySchedule.objects.update(next_run=first)
    schedule.refresh_from_db()
    times = schedule.due_times()
    assert [next(times) for _ in range(3)] == [first + timedelta(seconds=60 * n) for n in range(3)]
    assert next(build(name='B').due_times()).minute == 0


def test_change_log_leaves_ticks_out():
    assert not {'next_run', 'last_run', 'stopped'} & set(make_schedule().serialize_object())


def test_deletion():
    """Runs stay without their schedule; an owner can be deleted, a scheduled task cannot."""
    schedule = make_schedule(owner=User.objects.create_user('olga'))
    run = make_result(schedule=schedule)
    with pytest.raises(ProtectedError):
        type(schedule.task).objects.filter(pk=schedule.task_id).delete()
    schedule.owner.delete()
    schedule.refresh_from_db()
    assert schedule.owner is None
    schedule.delete()
    assert CeleryResult.objects.get(pk=run.pk).schedule is None
