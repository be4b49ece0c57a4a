"""Which times runs and schedules can have.

Python's calendar ends with the year 9999, PostgreSQL's goes on, and a time near the end of either cannot be shown in
every time zone. So every way in (code, REST, forms, imports) takes the times between `EARLIEST` and `LATEST` and no
others; what a row holds nevertheless is read as the nearest of them (`netbox_celery.models.fields`).
"""
from datetime import UTC, datetime, timedelta

from dateutil.parser import isoparse

from ..exceptions import OutOfRange

__all__ = (
    'EARLIEST',
    'LATEST',
    'MAX_SECONDS',
    'aware',
    'check_length',
    'check_limits',
    'check_time',
    'moment',
    'nearest',
    'nearest_sql',
    'time_after',
)

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(9990, 1, 1, tzinfo=UTC)
#: The longest time that a policy can be in force, seconds: a hundred years.
MAX_SECONDS = 100 * 366 * 86400


def check_time(value):
    """Return an aware `datetime` if a run or a schedule can have it.

    Raises:
        ValueError: It is too near to an end of the calendar.
    """
    if EARLIEST <= value <= LATEST:
        return value
    raise OutOfRange(f'{value.isoformat()} is out of range: a time lies between the years 1970 and 9990')


def aware(value):
    """Return a time of a call, given as an object or as text, as an aware `datetime`; `None` if there is none.

    Raises:
        TypeError: It is neither.
        ValueError: It is no time, or one that a run cannot have.
    """
    if not value:
        return None
    if isinstance(value, str):
        value = isoparse(value)
    if not isinstance(value, datetime):
        raise TypeError(f'{value!r} is not a datetime')
    if value.tzinfo is None:
        try:
            value = value.astimezone()
        except (OverflowError, OSError) as exc:
            raise OutOfRange(f'{value.isoformat()} is out of range: {exc}') from exc
    return check_time(value)


def time_after(seconds, start=None):
    """Return the time so many seconds after another one, or after now.

    Raises:
        ValueError: It is not a number of seconds, or leads out of the calendar.
    """
    try:
        return check_time((start or datetime.now(UTC)) + timedelta(seconds=seconds))
    except OverflowError as exc:
        raise OutOfRange(f'{seconds} seconds from now is out of range: {exc}') from exc


def check_length(seconds):
    """Return a length of time in seconds if a policy can be in force for so long.

    Raises:
        ValueError: It is negative, longer than a hundred years, or not a number.
    """
    if 0 <= seconds <= MAX_SECONDS:
        return seconds
    raise OutOfRange(f'{seconds} seconds is out of range: a length of time lies between 0 and a hundred years')


def check_limits(options):
    """Check the time limits of a call: a worker's timer knows no time that is centuries away.

    Args:
        options: Execution options.

    Raises:
        TypeError, ValueError: One is not a number of seconds, or longer than a hundred years.
    """
    for name in ('time_limit', 'soft_time_limit'):
        if (limit := options.get(name)) is not None:
            try:
                check_length(limit)
            except (TypeError, ValueError) as exc:
                raise type(exc)(f'{name}: {exc}') from exc


def nearest(value):
    """Return the time of a message that did not come from here, `None` if it is none, or the nearest one allowed."""
    try:
        return aware(value)
    except (TypeError, ValueError):
        if not isinstance(value, datetime):
            return None
        return LATEST if value.year > LATEST.year - 1 else EARLIEST


def moment(text):
    """Return the time that a row has as text, such as those of its attempts, or `None` if it is none."""
    try:
        return aware(text) if isinstance(text, str) else None
    except ValueError:
        return None


def nearest_sql(column):
    """Return SQL for a time or the nearest one allowed: psycopg cannot read `infinity`, nor years past 9999."""
    return (
        f"CASE WHEN {column} < '{EARLIEST}' THEN '{EARLIEST}'::timestamptz "
        f"WHEN {column} > '{LATEST}' THEN '{LATEST}'::timestamptz ELSE {column} END"
    )
