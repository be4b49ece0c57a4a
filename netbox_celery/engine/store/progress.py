"""The progress of runs on its way into their rows: of what gathers between two writes, the newest values count."""
import logging
import threading

from django.db import DatabaseError

from .database import LATER
from .lifecycle import TABLE
from .payload import clean_line, text_of, whole_number

__all__ = (
    'Progress',
)

logger = logging.getLogger(__name__)

# Progress never touches a run that has ended, or one that another claim holds by now.
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


class Progress:
    """What is to be written of each run's progress."""

    def __init__(self):
        self._entries = {}
        self._lock = threading.Lock()

    def __bool__(self):
        return bool(self._entries)

    def set(self, run, *, value=None, value_max=None, step=None, data=None, increment=False):
        """Set the progress of a run.

        Args:
            run: The `Run`.
            value: How far it is, or with `increment` how much further; what is no number is left out.
            value_max: Where it ends, likewise.
            step: What it does at the moment.
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

    def write(self, connection):
        """Write all of it, run by run; what cannot be written now is kept, below what comes meanwhile."""
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


def _number(run, value):
    """Return a number of progress as one that can be stored, or `None`."""
    if value is None:
        return None
    number = whole_number(value)
    if number is None and run.tell_once('number'):
        shown = text_of(value)[:100]
        logger.warning('Task %s: progress that is no number, or too large a one, is left out: %s', run.task_id, shown)
    return number


def _merged(entry, newer):
    """Return an entry of progress that could not be written, with what has come since."""
    if newer is None:
        return entry
    merged = {key: entry[key] if value is None else value for key, value in newer.items()}
    if not newer['absolute'] and newer['value'] is not None:
        merged['value'] = (entry['value'] or 0) + newer['value']
    merged['absolute'] = entry['absolute'] or newer['absolute']
    return merged
