"""The next runs of a schedule as a page shows them."""
from datetime import UTC, datetime, timedelta
from unittest.mock import patch
from zoneinfo import ZoneInfo

import pytest
from django.utils import timezone

from netbox_celery.models import CelerySchedule
from netbox_celery.reading.upcoming import upcoming

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def clock():
    with patch('django.utils.timezone.now', return_value=NOW):
        yield


def show(**columns):
    return upcoming(CelerySchedule(**{'timezone': 'UTC', **columns}))


def test_times():
    shown = show(kind='crontab', crontab='0 0 1 * *')
    assert [moment.month for moment, __, __ in shown['times']] == [4, 5, 6, 7, 8, 9, 10, 11, 12, 1]
    assert (shown['in_words'], shown['obstacle'], shown['idle']) == ('At 00:00, on day 1 of the month (UTC)', '', '')


def test_how_long():
    """Down to the second where that matters."""
    shown = show(kind='interval', interval=30)
    assert [until for __, __, until in shown['times']][:3] == ['30 seconds', '1\xa0minute', '1\xa0minute']
    assert show(kind='interval', interval=1)['times'][0][2] == '1 second'
    assert show(kind='interval', interval=90000)['times'][0][2] == '1\xa0day, 1\xa0hour'


@pytest.mark.parametrize(('seconds', 'until'), [
    (59.4, '59 seconds'), (59.7, '1\xa0minute'), (119.7, '2\xa0minutes'), (3599.9, '1\xa0hour'), (0.3, 'now'),
])
def test_how_long_to_the_nearest_second(seconds, until):
    """Time has passed since the times were computed: a minute from now is not "0 minutes"."""
    assert show(kind='once', at=NOW + timedelta(seconds=seconds))['times'][0][2] == until


def test_clocks():
    """The time in the schedule's own zone is shown if that differs from NetBox's."""
    shown = show(kind='crontab', crontab='30 2 * * *', timezone='Asia/Kolkata')
    assert shown['other_zone'] == 'Asia/Kolkata'
    assert {(there.hour, there.minute) for __, there, __ in shown['times']} == {(2, 30)}
    for columns in ({'kind': 'crontab', 'crontab': '30 2 * * *'}, {'kind': 'interval', 'interval': 60}):
        shown = show(**columns)
        assert (shown['other_zone'], shown['times'][0][1]) == ('', None)
    with timezone.override(ZoneInfo('Asia/Kolkata')):
        shown = show(kind='crontab', crontab='30 2 * * *', timezone='Asia/Kolkata')
        assert (shown['zone'], shown['other_zone']) == ('Asia/Kolkata', '')


def test_changed_clocks():
    """The preview includes the night in which the clocks of Berlin skip 02:30."""
    shown = show(kind='crontab', crontab='30 2 28-30 3 *', timezone='Europe/Berlin')
    assert [f'{there:%d %H:%M}' for __, there, __ in shown['times'][:3]] == ['28 02:30', '29 03:30', '30 02:30']


@pytest.mark.parametrize(('columns', 'obstacle'), [
    ({'kind': 'once', 'at': NOW - timedelta(days=1)}, 'No further runs'),
    ({'kind': 'interval', 'interval': 60, 'end': NOW}, 'No further runs'),
    ({'kind': 'crontab', 'crontab': '61 * * * *'}, 'is not a valid minute'),
    ({'kind': 'crontab', 'crontab': '0 * * * *', 'timezone': 'Gone/Away'}, 'is not a valid time zone'),
])
def test_obstacles(columns, obstacle):
    shown = show(**columns)
    assert shown['times'] == []
    assert obstacle in shown['obstacle']


def test_idle():
    """Why none of the times will come: one that is enabled is not said to be disabled."""
    assert 'no longer defined' in show(kind='interval', interval=60, present=False)['idle']
    assert 'is disabled' in show(kind='interval', interval=60, enabled=False)['idle']
