"""Reads a run's log while it grows.

Readers poll with the primary key of the last line they have seen. One request per poll is enough:

- The run is read before its lines, and its end is written after its last line (`netbox_celery.engine.store.recorder`).
  So if the run has finished, all its lines are there.
- A poll reads only the new lines: the index on `(result, id)` starts at the cursor. With a filter, the cursor also
  moves past the lines that do not match, so each line is read once.
"""
from dataclasses import dataclass

from django.db.models import Max, QuerySet

from ..models import CeleryLogEntry, CeleryResult

__all__ = (
    'DEFAULT_LIMIT',
    'MAX_LIMIT',
    'LogFilter',
    'LogPage',
    'log_lines',
    'read_log',
)

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000

#: Columns of the run that are shown beside its log: a poll does not load arguments, results and tracebacks.
FOLLOWED = (
    'id', 'task_id', 'name', 'celery_name', 'status', 'reason', 'attempt', 'value', 'value_max', 'step', 'worker',
    'scheduled', 'started', 'completed', 'cancelled',
)


@dataclass(frozen=True)
class LogFilter:
    """Selects lines of a log; by default all."""
    #: Lines of these levels.
    levels: tuple[int, ...] = ()
    #: Lines of this level and above.
    min_level: int | None = None
    #: Lines of these groupings.
    groupings: tuple[str, ...] = ()
    #: Lines whose message contains this text; not case-sensitive.
    search: str = ''

    def __bool__(self):
        return bool(self.levels or self.min_level is not None or self.groupings or self.search)

    def apply(self, entries: QuerySet) -> QuerySet:
        """Filter a queryset of log entries."""
        if self.levels:
            entries = entries.filter(level__in=self.levels)
        if self.min_level is not None:
            entries = entries.filter(level__gte=self.min_level)
        if self.groupings:
            entries = entries.filter(grouping__in=self.groupings)
        if self.search:
            entries = entries.filter(message__icontains=self.search)
        return entries


@dataclass(frozen=True)
class LogPage:
    """Lines of a run's log, oldest first, and the run as it was before they were read."""
    #: The run, with the columns in `FOLLOWED`.
    result: CeleryResult
    #: The `CeleryLogEntry` rows.
    entries: list[CeleryLogEntry]
    #: The cursor for the next poll.
    next_after: int
    #: Whether there are more lines now.
    has_more: bool

    @property
    def finished(self):
        """Whether the run has finished and this page is the end of its log, so that nothing more will come."""
        return self.result.is_finished and not self.has_more


def read_log(
    results: QuerySet, pk: int | str, *, after: int = 0, limit: int = DEFAULT_LIMIT, offset: int = 0,
    wanted: LogFilter = LogFilter()
) -> LogPage:
    """Read the lines of a run's log that follow a cursor.

    Args:
        results: The runs that the reader may see, a queryset.
        pk: Primary key of the run.
        after: Primary key of the last line read (`LogPage.next_after`); 0 for the beginning.
        limit: Maximum number of lines.
        offset: Lines to skip after the cursor.
        wanted: A `LogFilter`.

    Returns:
        A `LogPage`.

    Raises:
        CeleryResult.DoesNotExist: There is no such run among `results`.
    """
    result = results.only(*FOLLOWED).get(pk=pk)
    log = log_lines(pk, after)
    # Read before the lines: whatever is written after this is left to the next poll.
    end = log.aggregate(end=Max('pk'))['end'] if wanted else None
    entries = list(wanted.apply(log)[offset:offset + limit + 1])
    has_more, entries = len(entries) > limit, entries[:limit]
    seen = entries[-1].pk if entries else after
    return LogPage(
        result=result, entries=entries, next_after=seen if has_more else max(seen, end or 0), has_more=has_more
    )


def log_lines(pk: int | str, after: int = 0, wanted: LogFilter = LogFilter()) -> QuerySet:
    """Return a queryset of the lines of a run's log that follow a cursor, oldest first, with their objects."""
    entries = CeleryLogEntry.objects.filter(result_id=pk, pk__gt=after).prefetch_related('object').order_by('pk')
    return wanted.apply(entries)
