"""Collects the progress of runs for their rows: of all values set between two writes, only the newest is written."""
import logging
import threading
from typing import Any, Protocol

from django.db import DatabaseError

from .database import LATER, Connection
from .lifecycle import TABLE
from .payload import clean_line, text_of, whole_number

__all__ = (
    'Progress',
    'RecordedRun',
)

logger = logging.getLogger(__name__)

# GUARANTEE: progress changes neither a finished run nor one that another claim holds by now.
WRITE = f"""
    UPDATE {TABLE} SET
        value = CASE WHEN %(absolute)s THEN %(value)s
            WHEN %(value)s::bigint IS NOT NULL THEN COALESCE(value, 0) + %(value)s ELSE value END,
        value_max = COALESCE(%(value_max)s, value_max),
        step = COALESCE(%(step)s, step),
        data = COALESCE(%(data)s::jsonb, data),
        last_updated = now()
    WHERE id = %(id)s AND claims = %(claims)s AND status = 'running'
"""
NOTHING = {'absolute': False, 'value': None, 'value_max': None, 'step': None, 'data': None}


class RecordedRun(Protocol):
    """What the recorder needs to know of a claimed run: `engine.calls.run.Run` has it."""
    #: Whether the recorder was given anything for the run.
    recorded: bool
    #: Log lines accepted, and lines dropped because of the limit.
    lines: int
    dropped: int
    #: The newest value of the progress that was not recorded, because another one was recorded shortly before.
    left_out: Any

    @property
    def id(self) -> int | None:
        """Primary key of its row."""

    @property
    def task_id(self) -> Any: ...

    @property
    def claims(self) -> int:
        """Token of its claim."""

    @property
    def attempt(self) -> int: ...

    def is_new_warning(self, what: str) -> bool:
        """Whether a warning about this run is logged for the first time."""


class Progress:
    """The progress that is still to be written, by run."""

    def __init__(self) -> None:
        self._entries: dict[int | None, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._entries)

    def set(
        self, run: RecordedRun, *, value: Any = None, value_max: Any = None, step: Any = None, data: str | None = None,
        increment: bool = False
    ) -> None:
        """Set the progress of a run.

        Args:
            run: The run.
            value: The progress so far, or with `increment` an addition to it; ignored if it is not a number.
            value_max: The value at which the run will be done; ignored if it is not a number.
            step: What the run is doing.
            data: The task's own data, as JSON text that `jsonb` accepts.
        """
        value, value_max = _number(run, value), _number(run, value_max)
        with self._lock:
            entry = self._entries.setdefault(run.id, {'id': run.id, **NOTHING})
            entry['claims'] = run.claims
            if value is not None:
                if increment:
                    entry['value'] = (entry['value'] or 0) + value
                else:
                    entry['absolute'], entry['value'] = True, value
            if value_max is not None:
                entry['value_max'] = value_max
            if step is not None:
                entry['step'] = clean_line(text_of(step))[:255]
            if data is not None:
                entry['data'] = data

    def write(self, connection: Connection) -> None:
        """Write all progress, run by run. What cannot be written now is kept; newer values take precedence over it."""
        while self._entries:
            with self._lock:
                id, entry = self._entries.popitem()
            try:
                connection.execute(WRITE, entry)
            except LATER:
                with self._lock:
                    self._entries[id] = _merged(entry, self._entries.get(id))
                raise
            except DatabaseError:
                logger.exception('The progress of run %s could not be written', id)


def _number(run: RecordedRun, value: Any) -> int | None:
    """Return a number as a column can store it, or `None`."""
    if value is None:
        return None
    number = whole_number(value)
    if number is None and run.is_new_warning('number'):
        shown = text_of(value)[:100]
        logger.warning('Task %s: progress is ignored, because it is not a number or too large: %s', run.task_id, shown)
    return number


def _merged(entry: dict[str, Any], newer: dict[str, Any] | None) -> dict[str, Any]:
    """Return an entry that could not be written, updated by a newer one."""
    if newer is None:
        return entry
    merged = {key: entry[key] if value is None else value for key, value in newer.items()}
    if not newer['absolute'] and newer['value'] is not None:
        merged['value'] = (entry['value'] or 0) + newer['value']
    merged['absolute'] = entry['absolute'] or newer['absolute']
    return merged
