"""The range of times that runs and schedules can have.

Python's calendar ends with the year 9999, PostgreSQL's does not, and a time near either end cannot be shown in every
time zone. So every entry point (code, REST, forms, imports) accepts only times between `EARLIEST` and `LATEST`. Any
other time in a row is read as the nearest of these two (`netbox_celery.models.fields`).
"""
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

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
#: The longest duration of a policy, seconds: a hundred years.
MAX_SECONDS = 100 * 366 * 86400


def check_time(value: datetime) -> datetime:
    """Return an aware `datetime` if a run or a schedule can have it.

    Raises:
        ValueError: It is out of range.
    """
    if EARLIEST <= value <= LATEST:
        return value
    raise OutOfRange(f'{value.isoformat()} is out of range: a time lies between the years 1970 and 9990')


def aware(value: Any) -> datetime | None:
    """Return a time of a call, given as a `datetime` or as text, as an aware `datetime`; `None` if there is none.

    Raises:
        TypeError: It is neither.
        ValueError: The text is not a valid time, or the time is out of range.
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


def time_after(seconds: float, start: datetime | None = None) -> datetime:
    """Return the time that is the given number of seconds after `start`, or after now.

    Raises:
        ValueError: The number is invalid, or the time is out of range.
    """
    try:
        return check_time((start or datetime.now(UTC)) + timedelta(seconds=seconds))
    except OverflowError as exc:
        raise OutOfRange(f'{seconds} seconds from now is out of range: {exc}') from exc


def check_length(seconds: float) -> float:
    """Return a duration in seconds if a policy can have it.

    Raises:
        ValueError: It is negative, longer than a hundred years, or not a number.
    """
    if 0 <= seconds <= MAX_SECONDS:
        return seconds
    raise OutOfRange(f'{seconds} seconds is out of range: a duration lies between 0 and a hundred years')


def check_limits(options: Mapping[str, Any]) -> None:
    """Check the time limits of a call, because a worker's timer cannot handle durations of centuries.

    Args:
        options: Execution options.

    Raises:
        TypeError, ValueError: A limit is not a number of seconds, or is longer than a hundred years.
    """
    for name in ('time_limit', 'soft_time_limit'):
        if (limit := options.get(name)) is not None:
            try:
                check_length(limit)
            except (TypeError, ValueError) as exc:
                raise type(exc)(f'{name}: {exc}') from exc


def nearest(value: Any) -> datetime | None:
    """Return the time in a message that other code sent, or the nearest allowed time; `None` if it is not a time."""
    try:
        return aware(value)
    except (TypeError, ValueError):
        if not isinstance(value, datetime):
            return None
        return LATEST if value.year > LATEST.year - 1 else EARLIEST


def moment(text: Any) -> datetime | None:
    """Return a time that a row holds as text, such as those of its attempts, or `None` if it is not a valid time."""
    try:
        return aware(text) if isinstance(text, str) else None
    except ValueError:
        return None


def nearest_sql(column: str) -> str:
    """Return SQL for a time or the nearest allowed one: psycopg cannot read `infinity`, nor years after 9999."""
    return (
        f"CASE WHEN {column} < '{EARLIEST}' THEN '{EARLIEST}'::timestamptz "
        f"WHEN {column} > '{LATEST}' THEN '{LATEST}'::timestamptz ELSE {column} END"
    )
