"""Schedules that are not created in NetBox: those of `beat_schedule` in Celery's settings, and those of tasks.

They are rows like all others. Their timing and task come from the source, their policies can be edited in NetBox. A
schedule that its source no longer has is kept, marked absent, and does not run; if it returns, its policies are
unchanged. Every process adds new schedules, so that they can be seen before a beat runs. Only the beat that sends
updates existing ones.
"""
import logging
import math
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from celery.beat import BeatLazyFunc
from celery.schedules import crontab, schedule
from django.utils import timezone

from ...choices import ScheduleKindChoices as Kind
from ...choices import ScheduleOriginChoices as Origin
from ..catalogue import discovery
from ..catalogue.registry import registered_tasks
from ..internals import crontab_fields
from ..store.payload import other_number, read_value, to_jsonb
from .due import next_due, parse_crontab, parse_interval, parse_timezone

__all__ = (
    'Unschedulable',
    'sync',
    'timing',
)

logger = logging.getLogger(__name__)

#: Options of `beat_schedule` for which a schedule has a field.
OPTION_FIELDS = ('queue', 'priority', 'expires')
#: Start of a `relative` interval: it is due at whole minutes, hours and days of the clock.
EPOCH = datetime(2000, 1, 1)
#: The highest number that the column of `expires` can hold.
MAX_EXPIRES = 2 ** 31 - 1

#: Entries that could not be scheduled in the last call, and why, by name.
_refused: dict[str, str] = {}


class Unschedulable(ValueError):
    """An entry cannot become a schedule in NetBox; the message says why."""


def sync(app: Any, beat_schedule: Mapping[str, Any], *, is_leader: bool = False) -> None:
    """Update the schedules that come from the settings and the code.

    Args:
        app: The Celery app.
        beat_schedule: Celery's setting of that name, a dict.
        is_leader: Whether this is the beat that sends; others only add new schedules.
    """
    global _refused
    from ...models import CelerySchedule

    wanted, refused = _collect(app, beat_schedule)
    rows = {row.name: row for row in CelerySchedule.objects.exclude(
        origin=Origin.ORIGIN_USER
    ).select_related('task')}
    for name, values in wanted.items():
        try:
            _write(name, values, rows.get(name), is_leader)
        except Unschedulable as exc:
            refused[name] = str(exc)
        except Exception as exc:  # noqa: BLE001 - the others are written nevertheless
            refused[name] = f'{type(exc).__name__}: {exc}'
    if is_leader:
        # Logged once, not every minute
        logged, _refused = dict(_refused), refused
        for name, why in refused.items() - logged.items():
            logger.error('beat: %r of the settings or the code is not scheduled: %s', name, why)
        for name, row in rows.items():
            if row.present and name not in wanted and not _is_unknown(row):
                row.present = False
                row.save()
                logger.info('beat: %s is no longer scheduled', name)


def _is_unknown(row):
    """Whether a schedule comes from a plugin whose tasks this process could not import: another process may have them.
    """
    plugin = row.task.plugin or discovery.package_of(row.task.name)
    return row.origin == Origin.ORIGIN_CODE and plugin in discovery.failed_plugins()


def _collect(app, beat_schedule):
    """Return the columns of the schedules that should exist, and why others cannot, both by name."""
    wanted: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    entries = [(name, entry, Origin.ORIGIN_SETTINGS) for name, entry in beat_schedule.items()]
    for task in registered_tasks().values():
        when = getattr(task, 'schedule', None)
        # A method of that name is not ours
        if when is not None and not callable(when):
            entries.append((task.name, {'task': task.name, 'schedule': when}, Origin.ORIGIN_CODE))
    for name, entry, origin in entries:
        try:
            if name in wanted:
                raise Unschedulable('the settings have a schedule of this name')
            wanted[name] = _columns(app, dict(entry)) | {'origin': origin}
        except Exception as exc:  # noqa: BLE001 - the others are scheduled nevertheless
            refused[name] = str(exc)
    return wanted, refused


def _columns(app, entry):
    """Return the columns for an entry of `beat_schedule`.

    Raises:
        Unschedulable: A schedule cannot express the entry.
    """
    entry.pop('name', None)
    task = entry.pop('task', None)
    if not task:
        raise Unschedulable('it has no task')
    args, kwargs = list(entry.pop('args', None) or ()), dict(entry.pop('kwargs', None) or {})
    options = dict(entry.pop('options', None) or {})
    when = timing(app, entry.pop('schedule', None), entry.pop('relative', False))
    if entry:
        raise Unschedulable(f'schedules do not support {", ".join(sorted(entry))}')
    if any(isinstance(value, BeatLazyFunc) for value in (*args, *kwargs.values())):
        raise Unschedulable('BeatCallBack: arguments are stored in the database, and are the same for each run')
    fields = {name: options.pop(name) for name in OPTION_FIELDS if options.get(name) is not None}
    if 'expires' in fields and not isinstance(fields['expires'], int | float):
        raise Unschedulable('expires must be a number of seconds')
    if 'expires' in fields:
        fields['expires'] = _whole_seconds(fields['expires'])
    # As the row will have them; a TypeError says what cannot be stored
    args, kwargs, options = (
        _as_stored(name, value) for name, value in (('args', args), ('kwargs', kwargs), ('options', options))
    )
    return {
        'task': task, 'args': args, 'kwargs': kwargs, 'options': options, 'queue': '', 'priority': None,
        'expires': None, **fields, **when,
    }


def _as_stored(name, value):
    text, changed = to_jsonb(value)
    stored = read_value(text)
    if changed:
        raise Unschedulable(f'{name}: contains values that cannot be stored, such as a NUL character or NaN')
    if (number := other_number(stored)) is not None:
        raise Unschedulable(f'{name}: PostgreSQL would store the number {number} as a different one')
    return stored


def timing(app: Any, when: Any, relative: bool = False) -> dict[str, Any]:
    """Return the columns for one of Celery's schedules, a number of seconds or a `timedelta`.

    Args:
        app: The Celery app.
        when: The `celery.schedules.crontab`, `celery.schedules.schedule`, number or `timedelta`.
        relative: Whether an interval is due at whole minutes, hours and days (see `celery.schedules.schedule`).

    Raises:
        Unschedulable: A schedule cannot express it.
    """
    columns: dict[str, Any] = {
        'kind': Kind.KIND_INTERVAL, 'crontab': '', 'interval': None, 'at': None, 'start': None, 'end': None,
        'timezone': str(app.timezone),
    }
    if type(when) is crontab:
        text = ' '.join(map(_field, crontab_fields(when)))
        parse_crontab(text)
        return columns | {'kind': Kind.KIND_CRONTAB, 'crontab': text, 'timezone': str(parse_timezone(str(when.tz)))}
    if type(when) is schedule:
        when, relative = when.run_every, when.relative
    if isinstance(when, int | float) and not isinstance(when, bool):
        try:
            when = timedelta(seconds=when)
        except (OverflowError, ValueError) as exc:
            raise Unschedulable(f'{when!r} seconds is not an interval: {exc}') from exc
    if not isinstance(when, timedelta):
        raise Unschedulable(
            f'{when!r} is neither a crontab nor an interval ({type(when).__module__}.{type(when).__name__})'
        )
    if when <= timedelta():
        raise Unschedulable('its interval is not longer than 0 seconds')
    start = EPOCH.replace(tzinfo=parse_timezone(columns['timezone'])) if relative else None
    parse_interval(when.total_seconds())
    return columns | {'interval': when.total_seconds(), 'start': start}


def _whole_seconds(expires):
    if not 0 < expires <= MAX_EXPIRES:
        raise Unschedulable(f'expires must be a number of seconds from 1 to {MAX_EXPIRES}, not {expires!r}')
    return math.ceil(expires)


def _field(spec):
    """Return a field of a Celery crontab as text."""
    if isinstance(spec, str):
        return ''.join(spec.split()).lower()
    return ','.join(map(str, sorted(spec))) if isinstance(spec, Iterable) else str(spec)


def _write(name, values, row, is_leader):
    from ...models import CelerySchedule, CeleryTask

    if row is not None and not is_leader:
        return
    if row is None and CelerySchedule.objects.filter(name=name).exists():
        raise Unschedulable('a schedule of this name was created in NetBox')
    # A task that only workers know is in the catalogue as soon as a worker runs
    task, __ = CeleryTask.objects.get_or_create(name=values['task'], defaults={'present': False})
    values = {**values, 'task': task, 'present': True}
    if row is None:
        row = CelerySchedule(name=name, description=task.description, **values)
        row.next_run = next_due(row, timezone.now())
        # Not by `save()`: the user of the current request did not create it
        CelerySchedule.objects.bulk_create([row], ignore_conflicts=True)
        logger.info('%s is scheduled: %s', name, values['crontab'] or f'every {values["interval"]} s')
    elif any(getattr(row, field) != value for field, value in values.items()):
        for field, value in values.items():
            setattr(row, field, value)
        row.save()
        logger.info('%s has a new schedule', name)
