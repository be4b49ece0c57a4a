"""When a schedule is due: pure functions from a time to times, without a database and without a clock.

Celery evaluates crontabs (month ends, leap years, ranges). Clock changes are handled here, as cron does it: a time that
does not exist on that day is due later, by as much as the clocks jump; a time that exists twice is due once, the first
time. A crontab for every hour follows the real hours, so it is due in both of them.
"""
import re
from calendar import monthrange
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from celery.schedules import ParseException, crontab
from celery.utils.time import weekday, yearmonth
from cron_descriptor import DescriptionTypeEnum, ExpressionDescriptor, Options
from cron_descriptor.Exception import FormatError, WrongArgumentError
from django.utils.timezone import localtime
from django.utils.translation import get_language, ngettext, to_locale
from django.utils.translation import gettext as _

from ...choices import ScheduleKindChoices as Kind
from ..store.times import LATEST, MAX_SECONDS

if TYPE_CHECKING:
    from ...models import CelerySchedule

__all__ = (
    'describe',
    'due_times',
    'last_due',
    'next_due',
    'parse_crontab',
    'parse_interval',
    'parse_timezone',
)

TICK = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
#: Clocks jump by a day at most.
MARGIN = 2 * DAY

#: The five fields in order: what messages call them, Celery's name, and the function that parses names in them.
FIELDS = (
    ('minute', 'minute', None), ('hour', 'hour', None), ('day of month', 'day_of_month', None),
    ('month', 'month_of_year', yearmonth), ('day of week', 'day_of_week', weekday),
)
#: An item of a field: `*` and `mon-fri`, each with or without `/2`, and `5`.
ITEM = re.compile(r'(\*|[0-9A-Za-z]+-[0-9A-Za-z]+)(/[0-9]+)?|[0-9A-Za-z]+')
NAME = re.compile(r'[A-Za-z]+')


@lru_cache(maxsize=1024)
def parse_crontab(text: str) -> crontab:
    """Return the `celery.schedules.crontab` of a text with five fields.

    Raises:
        ValueError: The text is not a valid crontab; the message names the wrong field.
    """
    fields = text.split()
    if len(fields) != len(FIELDS):
        raise ValueError(_(
            'A crontab has 5 fields (minute, hour, day of month, month, day of week), not {count}'
        ).format(count=len(fields)))
    for field, (name, argument, read) in zip(fields, FIELDS):
        for item in field.split(','):
            if not ITEM.fullmatch(item):
                raise ValueError(_('"{item}" is not a valid {field}').format(item=item, field=name))
            for word in NAME.findall(item):
                try:
                    read(word)
                except (KeyError, TypeError):
                    raise ValueError(_('"{item}" is not a valid {field}').format(item=word, field=name)) from None
            try:
                crontab(**{argument: item})
            except (ParseException, ValueError) as exc:
                raise ValueError(_('"{item}" is not a valid {field}').format(item=item, field=name)) from exc
    never = _('The crontab "{crontab}" never matches: there is no such day').format(crontab=text)
    try:
        cron = crontab(**{argument: field for field, (__, argument, __) in zip(fields, FIELDS)})
    except ValueError as exc:
        raise ValueError(never) from exc
    if not _has_day(cron):
        raise ValueError(never)
    cron.tz, cron.nowfun = UTC, lambda: datetime.now(UTC)  # otherwise it asks the current Celery app for both
    return cron


def _has_day(cron):
    """Whether any day matches a crontab: within 28 years, February 29 falls on every day of the week."""
    return any(
        day <= monthrange(year, month)[1] and datetime(year, month, day).isoweekday() % 7 in cron.day_of_week
        for year in range(2000, 2028) for month in cron.month_of_year for day in cron.day_of_month
    )


def parse_timezone(name: str) -> ZoneInfo:
    """Return the `ZoneInfo` of a name such as `Europe/Berlin`.

    Raises:
        ValueError: There is no such time zone.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError) as exc:
        raise ValueError(_('"{name}" is not a valid time zone').format(name=name)) from exc


def parse_interval(seconds: float | None) -> timedelta:
    """Return the `timedelta` of an interval.

    Raises:
        ValueError: It is not longer than 0 seconds, or longer than a hundred years.
    """
    if not seconds or not 0 < seconds <= MAX_SECONDS:
        raise ValueError(_('An interval must be longer than 0 seconds and at most a hundred years'))
    return max(timedelta(seconds=seconds), TICK)


def next_due(schedule: 'CelerySchedule', after: datetime) -> datetime | None:
    """Return the first time after `after` at which a schedule is due, or `None` if there is none.

    An interval with a start is due at the start and after each interval from there; without a start, one interval after
    `after`.

    Args:
        schedule: A `CelerySchedule`, saved or not.
        after: An aware `datetime`, itself excluded.

    Returns:
        An aware `datetime` in UTC.

    Raises:
        ValueError: The crontab, the time zone or the interval is not valid.
    """
    try:
        due = _next(schedule, after)
        if due is None or due > LATEST or schedule.end and due > schedule.end:
            return None
        return due.astimezone(UTC)
    except (OverflowError, RuntimeError):
        return None  # the calendar ends with the year 9999; for a crontab Celery raises a RuntimeError


def _next(schedule, after):
    if schedule.kind == Kind.KIND_ONCE:
        return schedule.at if schedule.at and schedule.at > after else None
    if schedule.kind == Kind.KIND_INTERVAL:
        return _next_interval(schedule, after)
    if schedule.start:
        after = max(after, schedule.start - TICK)
    return _next_crontab(parse_crontab(schedule.crontab), parse_timezone(schedule.timezone), after)


def due_times(schedule: 'CelerySchedule', after: datetime, until: datetime | None = None) -> Iterator[datetime]:
    """Yield the times at which a schedule is due after `after`, up to and including `until`, or without an end.

    Args:
        schedule, after: As for `next_due`.
        until: An aware `datetime`.
    """
    due = next_due(schedule, after)
    while due is not None and (until is None or due <= until):
        yield due
        due = next_due(schedule, due)


def last_due(
    schedule: 'CelerySchedule', first: datetime, until: datetime, count: int = 1
) -> tuple[list[datetime], datetime | None]:
    """Return the last times at which a schedule was due, and the next one.

    This takes no longer for a year than for a day: beat may have been down for that long. The search goes back from the
    end, day by day, and days on which the schedule cannot be due cost almost nothing.

    Args:
        schedule: As for `next_due`.
        first: A time at which it was due, such as its `next_run`.
        until: Upper limit of the times, usually now.
        count: Maximum number of times.

    Returns:
        A list of aware `datetime`s from `first` to `until`, the latest one last, and the first one after `until`, or
        `None` if there is none.
    """
    if schedule.kind == Kind.KIND_ONCE:
        return [first], None
    if schedule.kind == Kind.KIND_INTERVAL:
        return _last_interval(schedule, first, until, count)
    following = next_due(schedule, first)
    if following is None or following > until:
        return [first], following  # the usual case
    earliest = max(first, schedule.start) if schedule.start else first
    latest = min(until, schedule.end) if schedule.end else until
    cron, zone = parse_crontab(schedule.crontab), parse_timezone(schedule.timezone)
    # The schedule may have other times now than when `first` was calculated
    return _last_crontab(cron, zone, earliest, latest, count) or [first], next_due(schedule, until)


def _last_interval(schedule, first, until, count):
    interval = parse_interval(schedule.interval)
    last = (until - first) // interval
    if schedule.end:
        last = min(last, max((schedule.end - first) // interval, 0))
    following = first + (last + 1) * interval
    return (
        [first + number * interval for number in range(max(0, last - count + 1), last + 1)],
        None if schedule.end and following > schedule.end else following,
    )


def _next_interval(schedule, after):
    interval = parse_interval(schedule.interval)
    if not schedule.start:
        return after + interval
    if after < schedule.start:
        return schedule.start
    return schedule.start + ((after - schedule.start) // interval + 1) * interval


# Crontabs

def _next_crontab(cron, zone, after):
    local = after.astimezone(zone)
    each_hour = len(cron.hour) == 24
    if each_hour and (due := _next_in_repeated_hour(cron, zone, after)):
        return due
    # A time that the clocks have just skipped is still to come, so start from the earlier offset
    offset = min(local.utcoffset(), (after - DAY).astimezone(zone).utcoffset())
    walls = _wall_times(cron, after.astimezone(UTC).replace(tzinfo=None) + offset)
    skipped = None
    while True:
        wall = next(walls)
        due = wall.replace(tzinfo=zone).astimezone(UTC)
        exists = due.astimezone(zone).replace(tzinfo=None) == wall
        if due > after and exists:
            return min(due, skipped or due)
        if due > after and not each_hour:
            skipped = min(due, skipped or due)


def _last_crontab(cron, zone, first, until, count):
    """Return the last times from `first` to `until` at which a crontab is due, the latest one last."""
    found: set[datetime] = set()
    last_day = None
    day, first_day = (until.astimezone(zone) + MARGIN).date(), (first.astimezone(zone) - MARGIN).date()
    while day >= (last_day or first_day):
        if day.month not in cron.month_of_year:
            day = day.replace(day=1)
        elif day.day in cron.day_of_month and day.isoweekday() % 7 in cron.day_of_week:
            found.update(due for due in _due_on(cron, zone, day) if first <= due <= until)
            if last_day is None and len(found) >= count:
                # A time that the clocks skipped on an earlier day may be due later than those found so far
                last_day = max(first_day, (sorted(found)[-count].astimezone(zone) - MARGIN).date())
        day -= DAY
    return sorted(found)[-count:]


def _due_on(cron, zone, day):
    """Yield the times at which a crontab is due on a day, given in local time."""
    each_hour = len(cron.hour) == 24
    for hour in cron.hour:
        for minute in cron.minute:
            wall = datetime(day.year, day.month, day.day, hour, minute)
            due = wall.replace(tzinfo=zone).astimezone(UTC)
            if not each_hour:
                yield due
            elif due.astimezone(zone).replace(tzinfo=None) == wall:
                yield due
                yield wall.replace(tzinfo=zone, fold=1).astimezone(UTC)


def _next_in_repeated_hour(cron, zone, after):
    """Return when a crontab for every hour is due next in an hour that the clocks repeat, if `after` is in one."""
    moment = after.astimezone(UTC).replace(second=0, microsecond=0)
    while _is_ambiguous(local := (moment := moment + MINUTE).astimezone(zone), zone):
        if (local.minute in cron.minute and local.day in cron.day_of_month and local.month in cron.month_of_year
                and local.isoweekday() % 7 in cron.day_of_week):
            return moment
    return None


def _is_ambiguous(local, zone):
    wall = local.replace(tzinfo=None)
    first, second = (wall.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
    return first > second


def _wall_times(cron, wall):
    """Yield the local times after `wall`, without time zones, at which a crontab is due."""
    wall = wall.replace(tzinfo=UTC)  # which has no clock changes
    while True:
        last, delta, __ = cron.remaining_delta(wall, tz=UTC)
        wall = last + delta
        yield wall.replace(tzinfo=None)


# Words

def describe(schedule: 'CelerySchedule') -> str:
    """Return in words when a schedule is due. A crontab that is not valid is returned unchanged."""
    if schedule.kind == Kind.KIND_CRONTAB:
        return _('{crontab} ({timezone})').format(
            crontab=_describe_crontab(schedule.crontab), timezone=schedule.timezone
        )
    if schedule.kind == Kind.KIND_INTERVAL:
        return _describe_interval(schedule.interval)
    if schedule.at is None:
        return _('Once')
    return _('Once, at {time}').format(time=localtime(schedule.at).strftime('%Y-%m-%d %H:%M:%S'))


def _describe_crontab(text):
    try:
        parse_crontab(text)
        # The library does not know long names. And it reads a day of the month with a day of the week as cron does
        # (either matches), while Celery requires both, so each is described separately
        *others, day_of_week = NAME.sub(lambda name: name[0][:3], text).split()
        options = Options()
        options.locale_code = _locale(get_language() or 'en')
        words = ExpressionDescriptor(' '.join((*others, '*')), options).get_description()
        return words + ExpressionDescriptor(f'0 0 * * {day_of_week}', options).get_description(
            DescriptionTypeEnum.DAYOFWEEK
        )
    except (FormatError, ValueError, WrongArgumentError):
        return text


@lru_cache
def _locale(language):
    """Return the name of the library's translation that is closest to a language of Django's."""
    locale = to_locale(language)
    known = sorted(file.name.removesuffix('.mo') for file in files('cron_descriptor').joinpath('locale').iterdir())
    return next(
        (name for wanted in (locale, locale.split('_')[0]) for name in known if name.startswith(wanted)), 'en_US'
    )


def _describe_interval(seconds):
    for name, length in (
        (lambda n: ngettext('Every day', 'Every {n} days', n), 86400),
        (lambda n: ngettext('Every hour', 'Every {n} hours', n), 3600),
        (lambda n: ngettext('Every minute', 'Every {n} minutes', n), 60),
        (lambda n: ngettext('Every second', 'Every {n} seconds', n), 1),
    ):
        if seconds and seconds % length == 0:
            return name(int(seconds // length)).format(n=int(seconds // length))
    return _('Every {seconds} seconds').format(seconds=seconds)
