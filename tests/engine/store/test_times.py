"""Times near the ends of the calendar: which a call may have, and what happens to those of messages."""
from datetime import UTC, datetime, timedelta, timezone
from uuid import uuid4

import pytest
from celery.exceptions import CeleryError

from netbox_celery.engine.calls.policies import seconds
from netbox_celery.engine.store.times import EARLIEST, LATEST, aware, nearest, time_after
from netbox_celery.models import CeleryResult

pytestmark = pytest.mark.django_db

EAST, WEST = (timezone(timedelta(hours=hours)) for hours in (14, -12))
#: What no run can have.
IMPOSSIBLE = [
    datetime.max, datetime.min, datetime.max.replace(tzinfo=UTC), datetime.max.replace(tzinfo=WEST),
    datetime.min.replace(tzinfo=EAST), datetime(9999, 12, 31, 23, 59, 59, tzinfo=WEST), datetime(1969, 12, 31),
    '9999-12-31T23:59:59-05:00', '0001-01-01T00:00:00+05:00', '9990-01-01T00:00:01Z',
]


def nothing(self, task_id):
    pass


@pytest.mark.parametrize('options', [
    *({'eta': value} for value in IMPOSSIBLE), *({'expires': value} for value in IMPOSSIBLE),
    *({name: value} for name in ('countdown', 'expires') for value in (
        1e12, 1e300, float('inf'), float('nan'), -1e12, 10 ** 12, 10 ** 400,
    )),
    *({name: value} for name in ('time_limit', 'soft_time_limit') for value in (10 ** 400, float('inf'), -1)),
], ids=str)
def test_calls(make_task, options):
    """The error is a `ValueError` that names the limits, and there is neither a row nor a message."""
    task = make_task(nothing)
    for call in (
        lambda: task.apply_async(**options), lambda: CeleryResult.enqueue(task, **options),
        lambda: CeleryResult.enqueue_many(task, [()], **options), lambda: task.si().set(**options).delay(),
    ):
        with pytest.raises(ValueError):
            call()
    assert not CeleryResult.objects.exists()


def test_limits():
    assert aware(EARLIEST) == EARLIEST and aware(LATEST.isoformat()) == LATEST
    with pytest.raises(ValueError, match='between the years 1970 and 9990'):
        aware(LATEST + timedelta(microseconds=1))
    with pytest.raises(TypeError):
        aware(5)
    assert time_after(60, EARLIEST) == EARLIEST + timedelta(minutes=1)


@pytest.mark.parametrize('value', [timedelta.max, timedelta(seconds=-1), float('nan'), float('inf'), 1e300, 'long'])
def test_lengths(value):
    """A policy's invalid length of time is an error of the call, like other invalid settings."""
    with pytest.raises(CeleryError, match='length of time'):
        seconds(value)


@pytest.mark.parametrize('setting', [
    {'unique': True, 'stale_time_limit': timedelta.max}, {'concurrency_key': 'k', 'stale_time_limit': float('nan')},
    {'ignore_task_after_success': True, 'ignore_task_timedelta': timedelta.max},
], ids=str)
def test_policies(make_task, setting):
    task = make_task(nothing)
    with pytest.raises(CeleryError, match='length of time'):
        task.apply_async(**setting)
    assert not CeleryResult.objects.exists()


def test_stale_beyond_the_calendar(make_task):
    """Each time is allowed by itself, but their sum is beyond the calendar."""
    task = make_task(nothing, unique=True, stale_time_limit=timedelta(days=365 * 99))
    with pytest.raises(ValueError):
        task.apply_async(eta=LATEST - timedelta(days=1))


@pytest.mark.parametrize(('value', 'expected'), [
    (None, None), ('', None), ('nonsense', None), (5, None), (datetime.max, LATEST), (datetime.min, EARLIEST),
    (datetime.max.replace(tzinfo=WEST), LATEST), (datetime.min.replace(tzinfo=EAST), EARLIEST),
    (datetime(2030, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)),
])
def test_messages(value, expected):
    """Odd times in a message do not prevent the run's row."""
    assert nearest(value) == expected


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize('eta', ['9999-12-31T23:59:59-05:00', '0001-01-01T00:00:00+05:00'])
def test_foreign_message(deliver, eta):
    from netbox_celery.engine.runs import claim

    when = datetime.fromisoformat(eta)
    task = deliver(task_id := uuid4(), netbox_celery=None, eta=when, expires=when)
    claim.begin(task)
    row = CeleryResult.objects.get(task_id=task_id)
    assert row.status == 'running' and row.expires in (EARLIEST, LATEST)
