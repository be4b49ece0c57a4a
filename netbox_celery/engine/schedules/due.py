"""When a schedule is due: pure functions from a time to times, without a database and without a clock.

Celery reckons crontabs (month ends, leap years, ranges); what becomes of them when the clocks change is decided here,
as cron has it: a time that does not exist on that day is due as much later as the clocks jump; one that exists twice
is due once, the first time. A crontab for each hour goes by the hours that there are, so it is due in both of them.
"""
import re
from calendar import monthrange
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib.resources import files
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
#: Clocks jump by a day at the most.
MARGIN = 2 * DAY

#: The five fields, and what reads a name in one of them.
FIELDS = (
    ('minute', None), ('hour', None), ('day of the month', None), ('month', yearmonth), ('day of the week', weekday),
)
#: An item of a field: `*` and `mon-fri`, each with `/2` or without, and `5`.
ITEM = re.compile(r'(\*|[0-9A-Za-z]+-[0-9A-Za-z]+)(/[0-9]+)?|[0-9A-Za-z]+')
NAME = re.compile(r'[A-Za-z]+')


@lru_cache(maxsize=1024)
def parse_crontab(text):
    """Return the `celery.schedules.crontab` that five fields of text stand for.

    Raises:
        ValueError: The text is no crontab; the message says which field is wrong.
    """
    fields = text.split()
    if len(fields) != len(FIELDS):
        raise ValueError(_(
            'A crontab has five fields: minute, hour, day of the month, month, day of the week; not {count}'
        ).format(count=len(fields)))
    for field, (name, read) in zip(fields, FIELDS):
        for item in field.split(','):
            if not ITEM.fullmatch(item):
                raise ValueError(_('{item!r} is no {field}').format(item=item, field=name))
            for word in NAME.findall(item):
                try:
                    read(word)
                except (KeyError, TypeError):
                    raise ValueError(_('{item!r} is no {field}').format(item=word, field=name)) from None
    minute, hour, day_of_month, month, day_of_week = fields
    try:
        cron = crontab(minute, hour, day_of_week, day_of_month, month)
    except (ParseException, ValueError) as exc:
        raise ValueError(_('{crontab!r} is no crontab: {error}').format(crontab=text, error=exc)) from exc
    if not _has_day(cron):
        raise ValueError(_('{crontab!r} is never due').format(crontab=text))
    cron.tz, cron.nowfun = UTC, lambda: datetime.now(UTC)  # or it would ask the current Celery app for both
    return cron


def _has_day(cron):
    """Whether there is a day that a crontab's fields allow: a 29th of February falls on each weekday in 28 years."""
    return any(
        day <= monthrange(year, month)[1] and datetime(year, month, day).isoweekday() % 7 in cron.day_of_week
        for year in range(2000, 2028) for month in cron.month_of_year for day in cron.day_of_month
    )


def parse_timezone(name):
    """Return the `ZoneInfo` of a name such as `Europe/Berlin`.

    Raises:
        ValueError: There is none.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError) as exc:
        raise ValueError(_('There is no time zone {name!r}').format(name=name)) from exc


def parse_interval(seconds):
    """Return the `timedelta` of an interval.

    Raises:
        ValueError: It is none, or longer than a lifetime.
    """
    if not seconds or not 0 < seconds <= MAX_SECONDS:
        raise ValueError(_('An interval must be longer than 0 seconds, and not longer than a hundred years'))
    return max(timedelta(seconds=seconds), TICK)


def next_due(schedule, after):
    """Return the first time after another one at which a schedule is due, or `None` if there is none.

    An interval with a start is due there and each interval later; one without, an interval after `after`.

    Args:
        schedule: A `CelerySchedule`, saved or not.
        after: An aware `datetime`; what is due at that very time is not meant.

    Returns:
        An aware `datetime` in UTC.

    Raises:
        ValueError: The crontab, the time zone or the interval is wrong.
    """
    try:
        due = _next(schedule, after)
        if due is None or due > LATEST or schedule.end and due > schedule.end:
            return None
        return due.astimezone(UTC)
    except (OverflowError, RuntimeError):
        return None  # the calendar ends with the year 9999; of a crontab Celery says so with a RuntimeError


def _next(schedule, after):
    if schedule.kind == Kind.KIND_ONCE:
        return schedule.at if schedule.at and schedule.at > after else None
    if schedule.kind == Kind.KIND_INTERVAL:
        return _next_interval(schedule, after)
    if schedule.start:
        after = max(after, schedule.start - TICK)
    return _next_crontab(parse_crontab(schedule.crontab), parse_timezone(schedule.timezone), after)


def due_times(schedule, after, until=None):
    """Yield the times at which a schedule is due after `after`, up to and including `until` (without: for ever).

    Args:
        schedule, after: As for `next_due`.
        until: An aware `datetime`.
    """
    while (after := next_due(schedule, after)) is not None and (until is None or after <= until):
        yield after


def last_due(schedule, first, until, count=1):
    """Return the last times at which a schedule was due, and the one that comes next.

    Takes no longer for a year than for a day: beat may have been down for that. What was due is looked for from the
    end, day by day, and days on which nothing can be due cost next to nothing.

    Args:
        schedule: As for `next_due`.
        first: A time at which it was due, such as its `next_run`.
        until: Not later than this: now, usually.
        count: How many at the most.

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
        return [first], following  # nearly always
    earliest = max(first, schedule.start) if schedule.start else first
    latest = min(until, schedule.end) if schedule.end else until
    cron, zone = parse_crontab(schedule.crontab), parse_timezone(schedule.timezone)
    # Its times may be others by now than when `first` was reckoned
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
    # A time which the clocks have just jumped over is still to come: so begin where they stood before
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
    found, last_day = set(), None
    day, first_day = (until.astimezone(zone) + MARGIN).date(), (first.astimezone(zone) - MARGIN).date()
    while day >= (last_day or first_day):
        if day.month not in cron.month_of_year:
            day = day.replace(day=1)
        elif day.day in cron.day_of_month and day.isoweekday() % 7 in cron.day_of_week:
            found.update(due for due in _due_on(cron, zone, day) if first <= due <= until)
            if last_day is None and len(found) >= count:
                # What the clocks jumped over on an earlier day may be due later than what has been found
                last_day = max(first_day, (sorted(found)[-count].astimezone(zone) - MARGIN).date())
        day -= DAY
    return sorted(found)[-count:]


def _due_on(cron, zone, day):
    """Yield when a crontab is due by the clock on the wall of a day."""
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
    """Return when a crontab for each hour is due next in an hour that the clocks repeat, if `after` lies in one."""
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
    """Yield the times on the clock on the wall after `wall`, without time zones, at which a crontab is due."""
    wall = wall.replace(tzinfo=UTC)  # where no clock changes
    while True:
        last, delta, __ = cron.remaining_delta(wall, tz=UTC)
        wall = last + delta
        yield wall.replace(tzinfo=None)


# Words

def describe(schedule):
    """Return in words when a schedule is due. A crontab that is wrong is returned as it is."""
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
        # The library knows no long names, and has cron's reading of a day of the month beside a day of the week (either
        # is enough), where Celery wants both: so each is described by itself.
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
    """Return the name of the library's translation that is nearest to a language of Django's."""
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
