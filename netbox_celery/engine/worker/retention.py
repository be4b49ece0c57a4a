"""Deletes old runs and their logs.

It does so in batches, each in its own transaction: nothing waits for it, nothing is lost if it is stopped, and the next
call continues with the rest. As in NetBox's own housekeeping of jobs, no change log is written and no signal is sent.
"""
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from ... import host
from ...config import MOST_DAYS, get_config
from ..store import lifecycle
from ..store.database import EngineConnection, execute

__all__ = (
    'Pruned',
    'count_old',
    'cutoff',
    'prune',
    'retention_days',
)

#: Key of the advisory lock ("prune" on a phone's keys).
LOCK = 77863
#: A process that hangs for this long loses the lock to the next one, seconds.
HUNG_AFTER = 3_600
#: Runs that are deleted in one transaction.
RUNS = 500
#: Lines of logs that are deleted in one statement.
LINES = 10_000

#: The runs that finished before a time, in order: each statement continues where the last one stopped.
OLD = f"""
    SELECT id FROM {lifecycle.TABLE}
    WHERE id > %(after)s AND completed < %(before)s
    ORDER BY id LIMIT {RUNS}
"""
DELETE_LINES = f"""
    DELETE FROM {lifecycle.LOG} WHERE id = ANY(ARRAY(
        SELECT id FROM {lifecycle.LOG} WHERE result_id = ANY(%(ids)s) LIMIT {LINES}
    ))
"""


@dataclass
class Pruned:
    """How much has been deleted so far."""
    runs: int = 0
    lines: int = 0
    #: Another process is deleting: nothing was done.
    is_busy: bool = False


def retention_days() -> int:
    """Return for how many days finished runs are kept; 0: forever."""
    days = get_config().retention
    return host.job_retention() if days is None else days


def cutoff(days: int | None = None) -> datetime | None:
    """Return the time before which runs must have finished to be old, or `None` if runs are kept forever.

    Args:
        days: For how long runs are kept; by default according to the settings.

    Raises:
        ValueError: `datetime` does not go back that far.
    """
    days = retention_days() if days is None else days
    if days > MOST_DAYS:
        raise ValueError(f'Runs can be kept for {MOST_DAYS} days at most (or forever), not for {days} days')
    return timezone.now() - timedelta(days=days) if days > 0 else None


def count_old(before: datetime, with_lines: bool = True) -> Pruned:
    """Return how many runs, and how many lines of their logs, `prune` would delete, as a `Pruned`."""
    from ...models import CeleryLogEntry, CeleryResult

    old = CeleryResult.objects.filter(completed__lt=before).order_by()
    lines = CeleryLogEntry.objects.filter(result__in=old).count() if with_lines else 0
    return Pruned(runs=old.count(), lines=lines)


def prune(
    before: datetime, report: Callable[[Pruned], object] | None = None, is_cancelled: Callable[[], bool] | None = None
) -> Pruned:
    """Delete the runs that finished before a time, and everything that belongs to them.

    Args:
        before: An aware `datetime` (see `cutoff`).
        report: Called after each batch with the `Pruned` so far.
        is_cancelled: Called after each batch; returns whether to stop.

    Returns:
        A `Pruned`.
    """
    pruned = Pruned()
    with EngineConnection().advisory_lock(LOCK, HUNG_AFTER) as locked:
        if not locked:
            return Pruned(is_busy=True)
        after = 0
        while ids := [id for (id,) in execute(connection, OLD, {'after': after, 'before': before})]:
            after = ids[-1]
            for lines in _delete_lines(ids):
                pruned.lines += lines
                if report and lines == LINES:
                    report(pruned)
                if is_cancelled and is_cancelled():
                    return pruned
            pruned.runs += _delete_runs(ids)
            if report:
                report(pruned)
            if is_cancelled and is_cancelled():
                break
    return pruned


def _delete_lines(ids):
    """Delete the lines of runs' logs, and yield how many were deleted in each batch."""
    while True:
        with connection.cursor() as cursor:
            cursor.execute(DELETE_LINES, {'ids': ids})
            lines = cursor.rowcount
        yield lines
        if lines < LINES:
            return


def _delete_runs(ids):
    """Delete runs whose logs are empty, with their tags and everything else that NetBox has about them.

    Returns:
        The number of deleted runs.
    """
    from ...models import CeleryResult

    old = CeleryResult.objects.filter(pk__in=ids)
    try:
        with transaction.atomic():
            host.delete_references(CeleryResult, ids)
            return old._raw_delete(old.db)
    except IntegrityError:
        # Another plugin has rows that refer to runs: Django knows how to delete them
        return old.delete()[1].get(CeleryResult._meta.label, 0)
