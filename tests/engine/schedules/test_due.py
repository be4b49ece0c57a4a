"""When schedules are due: calendars, clock changes, and descriptions."""
from datetime import UTC, datetime, timedelta
from itertools import islice
from random import Random
from zoneinfo import ZoneInfo, available_timezones

import pytest
from django.utils import translation

from netbox_celery.engine.schedules import due
from netbox_celery.models import CelerySchedule

BERLIN = ZoneInfo('Europe/Berlin')
LORD_HOWE = ZoneInfo('Australia/Lord_Howe')  # its clocks change by half an hour


def at(text, zone=BERLIN, fold=0):
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold)


def cron(crontab, zone=BERLIN, **columns):
    return CelerySchedule(kind='crontab', crontab=crontab, timezone=zone.key, **columns)


def interval(seconds, **columns):
    return CelerySchedule(kind='interval', interval=seconds, **columns)


def following(schedule, after, count=4, zone=BERLIN):
    """Return the next times as local times of a zone, with their offsets from UTC."""
    return [f'{moment.astimezone(zone):%m-%d %H:%M%z}'[:-2] for moment in islice(due.due_times(schedule, after), count)]


def test_crontab():
    assert following(cron('*/20 9-10 * * mon-fri'), at('2026-11-20 10:20'), 3) == [
        '11-20 10:40+01', '11-23 09:00+01', '11-23 09:20+01',
    ]


def test_day_of_the_month_and_of_the_week():
    """Both must match, as in Celery: Friday the 13th."""
    assert following(cron('0 12 13 * fri'), at('2026-01-01 00:00'), 3) == [
        '02-13 12:00+01', '03-13 12:00+01', '11-13 12:00+01',
    ]


def test_due_now_is_not_due_next():
    """What is due at a time does not follow it; what is due a microsecond later does."""
    assert due.next_due(cron('30 2 * * *'), at('2026-11-20 02:30')) == at('2026-11-21 02:30')
    assert due.next_due(cron('30 2 * * *'), at('2026-11-20 02:29:59.999999')) == at('2026-11-20 02:30')


def test_month_ends():
    assert following(cron('0 0 31 * *'), at('2026-01-31 00:00'), 3) == [
        '03-31 00:00+02', '05-31 00:00+02', '07-31 00:00+02',
    ]


def test_29th_of_february():
    moments = list(islice(due.due_times(cron('0 0 29 2 *'), at('2026-01-01 00:00')), 2))
    assert moments == [at('2028-02-29 00:00'), at('2032-02-29 00:00')]
    # 2096 is the last leap year for eight years
    assert due.next_due(cron('0 0 29 2 *'), at('2096-03-01 00:00')) == at('2104-02-29 00:00')
    # And on a Monday, once in 28 years
    assert due.next_due(cron('0 0 29 2 mon'), at('2026-01-01 00:00')) == at('2044-02-29 00:00')


def test_clocks_go_forward():
    """A time that is skipped is due once that day, as much later as the clocks are moved."""
    assert following(cron('30 2 * * *'), at('2026-03-28 12:00'), 3) == [
        '03-29 03:30+02', '03-30 02:30+02', '03-31 02:30+02',
    ]
    # Also if one asks within that hour
    assert due.next_due(cron('30 2 * * *'), at('2026-03-29 03:10')) == at('2026-03-29 03:30')


def test_clocks_go_forward_over_one_of_two():
    """A skipped time is due in order, and not twice at the same moment."""
    assert following(cron('45 2,3 * * *'), at('2026-03-29 01:00'), 2) == ['03-29 03:45+02', '03-30 02:45+02']
    assert following(cron('15,45 2-3 * * *'), at('2026-03-29 01:00'), 3) == [
        '03-29 03:15+02', '03-29 03:45+02', '03-30 02:15+02',
    ]
    half = cron('5,20 2 * * *', LORD_HOWE)
    assert following(half, at('2026-10-03 12:00', LORD_HOWE), 3, LORD_HOWE) == [
        '10-04 02:35+11', '10-04 02:50+11', '10-05 02:05+11',
    ]


def test_clocks_go_back():
    """A time that occurs twice is due once that day, the first time."""
    assert following(cron('30 2 * * *'), at('2026-10-24 12:00'), 3) == [
        '10-25 02:30+02', '10-26 02:30+01', '10-27 02:30+01',
    ]
    assert due.next_due(cron('30 2 * * *'), at('2026-10-25 02:10', fold=1)) == at('2026-10-26 02:30')


def test_each_hour_when_clocks_change():
    """An hourly crontab is due once in each hour that exists."""
    hourly = cron('10 * * * *')
    assert following(hourly, at('2026-03-29 00:30'), 3) == ['03-29 01:10+01', '03-29 03:10+02', '03-29 04:10+02']
    assert following(hourly, at('2026-10-25 01:30'), 3) == ['10-25 02:10+02', '10-25 02:10+01', '10-25 03:10+01']
    every_five = list(islice(due.due_times(cron('*/5 * * * *'), at('2026-10-25 00:00')), 12 * 25))
    assert {b - a for a, b in zip(every_five, every_five[1:])} == {timedelta(minutes=5)}
    half = cron('*/15 * * * *', LORD_HOWE)
    moments = list(islice(due.due_times(half, at('2026-04-05 00:00', LORD_HOWE)), 20))
    assert {b - a for a, b in zip(moments, moments[1:])} == {timedelta(minutes=15)}


@pytest.mark.parametrize('zone', ['Europe/Berlin', 'America/New_York', 'Australia/Lord_Howe', 'Africa/Casablanca'])
def test_each_day_is_due_once(zone):
    """Whatever the clocks do, a daily time is due once a day, in order."""
    zone = ZoneInfo(zone)
    for crontab in ('0 0 * * *', '30 2 * * *', '59 23 * * *', '5 1 * * *'):
        moments = list(due.due_times(
            cron(crontab, zone), datetime(2025, 12, 31, 12, tzinfo=UTC), datetime(2027, 1, 1, 12, tzinfo=UTC)
        ))
        assert moments == sorted(set(moments))
        days = [moment.astimezone(zone).date() for moment in moments]
        assert len(days) == len(set(days))
        assert abs(len(days) - 366) <= 1


def test_interval():
    now = at('2026-11-20 12:00:30')
    assert due.next_due(interval(90), now) == now + timedelta(seconds=90)
    start = at('2026-11-20 00:00')
    anchored = interval(3600, start=start)
    assert due.next_due(anchored, start - timedelta(days=3)) == start
    assert due.next_due(anchored, start) == start + timedelta(hours=1)
    assert due.next_due(anchored, now) == at('2026-11-20 13:00')


def test_once():
    schedule = CelerySchedule(kind='once', at=at('2026-11-20 12:00'))
    assert due.next_due(schedule, at('2026-11-20 11:00')) == at('2026-11-20 12:00')
    assert due.next_due(schedule, at('2026-11-20 12:00')) is None


def test_start_and_end():
    """Both are included."""
    schedule = cron('0 * * * *', start=at('2026-11-20 12:00'), end=at('2026-11-20 14:00'))
    assert following(schedule, at('2026-01-01 00:00')) == ['11-20 12:00+01', '11-20 13:00+01', '11-20 14:00+01']


def test_last_due():
    """Missed times are found without counting all of them, for each type."""
    first, now = at('2026-11-20 12:00'), at('2026-11-20 12:03:30')
    every_minute = [first + timedelta(minutes=minutes) for minutes in range(4)]
    for schedule in (cron('* * * * *'), interval(60)):
        assert due.last_due(schedule, first, now) == (every_minute[-1:], at('2026-11-20 12:04'))
        assert due.last_due(schedule, first, now, 3) == (every_minute[-3:], at('2026-11-20 12:04'))
        assert due.last_due(schedule, first, now, 100) == (every_minute, at('2026-11-20 12:04'))
        years = due.last_due(schedule, at('1996-11-20 12:00'), now, 2)
        assert years == (every_minute[-2:], at('2026-11-20 12:04'))
    yearly = cron('0 0 24 12 *')
    assert due.last_due(yearly, at('2020-12-24 00:00'), now, 2) == (
        [at('2024-12-24 00:00'), at('2025-12-24 00:00')], at('2026-12-24 00:00')
    )
    once = CelerySchedule(kind='once', at=first)
    assert due.last_due(once, first, now, 5) == ([first], None)


def test_last_due_before_the_end():
    first, end = at('2026-11-20 12:00'), at('2026-11-20 12:02')
    for schedule in (cron('* * * * *', end=end), interval(60, end=end)):
        times, following = due.last_due(schedule, first, at('2026-11-20 18:00'), 10)
        assert (len(times), times[-1], following) == (3, end, None)


def a_field(choice, lowest, highest):
    """Return a field of a crontab."""
    first = choice.randint(lowest, highest)
    return choice.choice((
        '*', f'*/{choice.randint(1, highest // 2)}', f'{first}-{choice.randint(first, highest)}',
        ','.join(str(choice.randint(lowest, highest)) for __ in range(3)),
    ))


def a_change_of_clocks(choice, zone):
    """Return a time near a clock change, or any time if the zone has none that year."""
    begin = datetime(choice.randint(1975, 2035), 1, 1, tzinfo=UTC)
    hours = [begin + timedelta(hours=hours) for hours in range(0, 8760, 6)]
    offsets = [hour.astimezone(zone).utcoffset() for hour in hours]
    changes = [hour for hour, one, next in zip(hours, offsets, offsets[1:]) if one != next]
    return choice.choice(changes or hours)


@pytest.mark.parametrize('seed', range(8))
def test_last_due_is_what_was_due(seed):
    """Searching from the end finds what counting from the start does, for any crontab, zone and clock change."""
    choice = Random(seed)
    zones, checked = sorted(available_timezones()), 0
    while checked < 25:
        zone = ZoneInfo(choice.choice(zones))
        fields = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
        schedule = cron(' '.join(a_field(choice, *limits) for limits in fields), zone)
        try:
            before = a_change_of_clocks(choice, zone) - timedelta(minutes=choice.randint(0, 3600))
            first = due.next_due(schedule, before)
        except ValueError:
            continue  # never due
        until = first + timedelta(minutes=choice.randint(0, 60 * choice.choice((1, 10, 60))))
        expected = [first, *due.due_times(schedule, first, until)]
        for count in (1, 3, 100):
            assert due.last_due(schedule, first, until, count) == (
                expected[-count:], due.next_due(schedule, until)
            ), (schedule.crontab, zone, first, until)
        checked += 1


@pytest.mark.parametrize(('crontab', 'days'), [
    ('* * * 1-8 *', 270), ('* * * 1-8 *', 20_000), ('* * * * *', 20_000), ('0 0 29 2 *', 20_000),
    ('* * 29 2 mon', 20_000),
])
def test_gap_costs_nothing(crontab, days, monkeypatch):
    """The minutes of a gap are not counted: the work is bounded, however long the gap is."""
    now, looked_at = datetime(2026, 11, 28, 12, tzinfo=UTC), []
    on = due._due_on
    monkeypatch.setattr(due, '_due_on', lambda *args: looked_at.append(args) or on(*args))
    monkeypatch.setattr(due, 'due_times', None)
    schedule = cron(crontab, LORD_HOWE)
    (last,), following = due.last_due(schedule, now - timedelta(days=days), now)
    assert last <= now < following and due.next_due(schedule, last) == following
    assert len(looked_at) < 10


@pytest.mark.parametrize('text', [
    '', '* * * *', '* * * * * *', '@daily', '60 * * * *', '* 24 * * *', '* * 0 * *', '* * * 13 *', '* * * * 7',
    '*/0 * * * *', '1-5/2/3 * * * *', '*5 * * * *', '1,,2 * * * *', 'x * * * *', '* * * mon *', '* * * * jan',
    '0 0 30 2 *', '0 0 31 4,6 *', '-1 * * * *', '1.5 * * * *',
])
def test_invalid_crontab(text):
    with pytest.raises(ValueError):
        due.parse_crontab(text)


@pytest.mark.parametrize('text, message', [
    ('61 2 * * *', '"61" is not a valid minute'), ('1,61 2 * * *', '"61" is not a valid minute'),
    ('0 3 * * sonday', '"sonday" is not a valid day of week'),
    ('0 3 * *', 'A crontab has 5 fields (minute, hour, day of month, month, day of week), not 4'),
    ('0 0 31 2 *', 'The crontab "0 0 31 2 *" never matches: there is no such day'),
])
def test_message_names_the_field(text, message):
    with pytest.raises(ValueError) as caught:
        due.parse_crontab(text)
    assert str(caught.value) == message


def test_describe():
    assert due.describe(cron('30 2 * * mon-fri')) == 'At 02:30, Monday through Friday (Europe/Berlin)'
    # The library would say "or on Friday", as cron has it
    assert due.describe(cron('0 0 13 * friday')) == 'At 00:00, on day 13 of the month, only on Friday (Europe/Berlin)'
    assert due.describe(cron('nonsense')) == 'nonsense (Europe/Berlin)'
    assert due.describe(interval(7200)) == 'Every 2 hours'
    assert due.describe(interval(86400)) == 'Every day'
    assert due.describe(interval(1.5)) == 'Every 1.5 seconds'
    with translation.override('de'):
        assert due.describe(cron('30 2 * * *')) == 'Um 02:30 (Europe/Berlin)'
