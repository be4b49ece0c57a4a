"""The window of a run's log on a live page: it opens at the end and advances with every poll.

However long the log is, the window opens at its last lines; earlier ones are loaded on request. A poll returns the
lines after the cursor. If the log grows faster than polls can transfer it, a reader who follows jumps to its end, and
can load the lines in between with a click; a reader who does not follow gets every line in order.
"""
import re
from dataclasses import dataclass, field
from typing import Any

from django.db.models import Max, QuerySet
from django.urls import NoReverseMatch
from django.utils.html import escape
from django.utils.safestring import mark_safe

from users.models import User

from ..models import CeleryLogEntry, CeleryResult, CeleryWorker
from ..models.about import find_type
from .log import LogFilter, log_lines, read_log
from .viewing import viewable

__all__ = (
    'WINDOW',
    'LogLine',
    'LogWindow',
    'earlier_lines',
    'follow_log',
    'is_worker_alive',
    'open_log',
)

#: Maximum number of lines in one response.
WINDOW = 500
#: Attempt and grouping that get no heading.
START = (1, 'main')


@dataclass
class LogLine:
    """A line of a log, ready for display."""
    entry: CeleryLogEntry
    #: The message, with the search term marked.
    message: str
    #: The NetBox object of the line, if the reader may view it.
    object: Any = None
    #: Whether the line is the first of an attempt or of a group.
    begins_attempt: bool = False
    begins_group: bool = False

    @property
    def object_url(self):
        try:
            return self.object.get_absolute_url()
        except (AttributeError, NoReverseMatch):
            return None


@dataclass
class LogWindow:
    """Lines of a run's log, oldest first, and the run as it was before they were read."""
    result: CeleryResult
    lines: list[LogLine] = field(default_factory=list)
    #: The cursor for the next poll.
    after: int = 0
    #: Primary key of the first line, if there are lines before it.
    before: int | None = None
    #: Whether there are more lines now.
    has_more: bool = False
    #: Whether the lines replace those on the page, rather than follow them.
    replaces: bool = False
    #: `(attempt, grouping)` of the last line on the page: a heading appears where these change.
    shown: tuple[int, str] = START

    @property
    def is_complete(self):
        """Whether the run has finished and these lines are the end of its log."""
        return self.result.is_finished and not self.has_more

    @property
    def state(self):
        """The state of the run as a short text: pages compare it to see whether more than the progress has changed."""
        cancelling = 'cancelling' if self.result.is_cancelling else ''
        return f'{self.result.status}:{self.result.attempt}:{cancelling}'


def open_log(result: CeleryResult, user: User, wanted: LogFilter = LogFilter()) -> LogWindow:
    """Open a run's log at its end.

    Args:
        result: The `CeleryResult`, read before now.
        user: The reader.
        wanted: A `LogFilter`.
    """
    end = log_lines(result.pk).aggregate(end=Max('pk'))['end'] or 0
    entries, before = _last(log_lines(result.pk, wanted=wanted).filter(pk__lte=end))
    return LogWindow(
        result, _as_lines(entries, user, wanted), after=end, before=before, replaces=True, shown=_last_shown(entries)
    )


def follow_log(
    results: QuerySet, pk: int, user: User, *, after: int, shown: tuple[int, str] = START, following: bool = True,
    wanted: LogFilter = LogFilter()
) -> LogWindow:
    """Read the next lines of a run's log.

    Args:
        results: The runs that the reader may see, a queryset.
        pk: Primary key of the run.
        user: The reader.
        after: The cursor.
        shown: `(attempt, grouping)` of the last line on the page.
        following: Whether the reader wants the end of the log, rather than every line in order.
        wanted: A `LogFilter`.

    Raises:
        CeleryResult.DoesNotExist: There is no such run among `results`.
    """
    page = read_log(results, pk, after=after, limit=WINDOW, wanted=wanted)
    if page.has_more and following:
        return open_log(page.result, user, wanted)
    return LogWindow(
        page.result, _as_lines(page.entries, user, wanted, shown), after=page.next_after, has_more=page.has_more,
        shown=_last_shown(page.entries, shown)
    )


def earlier_lines(
    result: CeleryResult, user: User, *, before: int, wanted: LogFilter = LogFilter()
) -> LogWindow:
    """Read the lines of a run's log that precede a line."""
    entries, earlier = _last(log_lines(result.pk, wanted=wanted).filter(pk__lt=before))
    return LogWindow(result, _as_lines(entries, user, wanted), before=earlier)


def is_worker_alive() -> bool:
    """Whether any worker is online that could start a run."""
    return any(worker.is_alive for worker in CeleryWorker.objects.filter(stopped=None).order_by('-heartbeat'))


def _last(entries):
    """Return the last entries of a queryset, oldest first, and the key of the first if there are earlier ones."""
    found = list(entries.order_by('-pk')[:WINDOW + 1])
    has_earlier, found = len(found) > WINDOW, found[:WINDOW][::-1]
    return found, found[0].pk if has_earlier else None


def _last_shown(entries, shown=START):
    return (entries[-1].attempt, entries[-1].grouping) if entries else shown


def _as_lines(entries, user, wanted, shown=START):
    """Return entries as lines, marked where an attempt or a group starts."""
    objects = _load_objects(entries, user)
    attempt, grouping = shown
    lines = []
    for entry in entries:
        lines.append(LogLine(
            entry=entry,
            message=_mark(entry.message, wanted.search),
            object=objects.get((entry.object_type_id, entry.object_id)),
            begins_attempt=entry.attempt != attempt,
            begins_group=entry.grouping != grouping,
        ))
        attempt, grouping = entry.attempt, entry.grouping
    return lines


def _load_objects(entries, user):
    """Return the objects of log lines that a user may view, by content type and primary key; one query per type."""
    wanted: dict[int, set[int]] = {}
    for entry in entries:
        if entry.object_type_id and entry.object_id:
            wanted.setdefault(entry.object_type_id, set()).add(entry.object_id)
    objects: dict[tuple[int, int], Any] = {}
    for type_id, ids in wanted.items():
        found_type = find_type(type_id)
        model = found_type and found_type.model_class()
        if model is None:
            continue
        found = viewable(model, user).filter(pk__in=ids)
        objects.update(((type_id, obj.pk), obj) for obj in found)
    return objects


def _mark(message, search):
    """Return a message as HTML, with the search term marked."""
    if not search:
        return message
    parts = re.split(f'({re.escape(search)})', message, flags=re.IGNORECASE)
    return mark_safe(''.join(
        f'<mark>{escape(part)}</mark>' if number % 2 else escape(part) for number, part in enumerate(parts)
    ))
