"""What a live page shows of a run's log: a window that opens at the end and moves on with every poll.

The window is opened at the log's last lines, however long it is; earlier ones are loaded on request. A poll brings
the lines after the cursor. A reader who follows a log that grows faster than polls can carry is taken to its end,
with what lies between one click away; one who does not follow gets line after line.
"""
import re
from dataclasses import dataclass, field

from django.db.models import Max
from django.urls import NoReverseMatch
from django.utils.html import escape
from django.utils.safestring import mark_safe

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

#: Most lines that are sent to a browser at once.
WINDOW = 500
#: Attempt and grouping that need no heading.
START = (1, 'main')


@dataclass
class LogLine:
    """A line of a log as it is shown."""
    entry: CeleryLogEntry
    #: The message, with what was searched for marked.
    message: str
    #: The NetBox object that the line is about, if there is one that the reader may view.
    object: object = None
    #: The line is the first of an attempt, or of a group.
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
    """Some lines of a run's log, oldest first, and where the run stood before they were read."""
    result: CeleryResult
    lines: list = field(default_factory=list)
    #: The cursor from which to read on.
    after: int = 0
    #: Primary key of the first line, if there are lines before it.
    before: int | None = None
    #: Whether there are more lines now.
    has_more: bool = False
    #: The lines are not the next ones: they take the place of what is shown.
    replaces: bool = False
    #: `(attempt, grouping)` of the last line that the reader then has: headings stand where these change.
    shown: tuple = START

    @property
    def is_complete(self):
        """Whether the run has ended and these lines end its log."""
        return self.result.is_finished and not self.has_more

    @property
    def state(self):
        """Where the run stands, in short: pages compare it to see whether more than the progress has changed."""
        cancelling = 'cancelling' if self.result.is_cancelling else ''
        return f'{self.result.status}:{self.result.attempt}:{cancelling}'


def open_log(result, user, wanted=LogFilter()):
    """Open a run's log at its end.

    Args:
        result: The `CeleryResult`, read before now.
        user: The reader.
        wanted: A `LogFilter`.
    """
    end = log_lines(result.pk).aggregate(end=Max('pk'))['end'] or 0
    entries, before = _last(log_lines(result.pk, wanted=wanted).filter(pk__lte=end))
    return LogWindow(
        result, _dress(entries, user, wanted), after=end, before=before, replaces=True, shown=_last_shown(entries)
    )


def follow_log(results, pk, user, *, after, shown=START, following=True, wanted=LogFilter()):
    """Read on in a run's log.

    Args:
        results: The runs that the reader may see, a queryset.
        pk: Primary key of the run.
        user: The reader.
        after: The cursor.
        shown: `(attempt, grouping)` of the last line that the reader has.
        following: Whether the reader wants to be at the log's end, rather than to miss nothing on the way.
        wanted: A `LogFilter`.

    Raises:
        CeleryResult.DoesNotExist: There is no such run among `results`.
    """
    page = read_log(results, pk, after=after, limit=WINDOW, wanted=wanted)
    if page.has_more and following:
        return open_log(page.result, user, wanted)
    return LogWindow(
        page.result, _dress(page.entries, user, wanted, shown), after=page.next_after, has_more=page.has_more,
        shown=_last_shown(page.entries, shown)
    )


def earlier_lines(result, user, *, before, wanted=LogFilter()):
    """Read the lines of a run's log that precede a line."""
    entries, earlier = _last(log_lines(result.pk, wanted=wanted).filter(pk__lt=before))
    return LogWindow(result, _dress(entries, user, wanted), before=earlier)


def is_worker_alive():
    """Whether there is a worker that could begin a run."""
    return any(worker.is_alive for worker in CeleryWorker.objects.filter(stopped=None).order_by('-heartbeat'))


def _last(entries):
    """Return the last entries of a queryset, oldest first, and the primary key of the first if there are others."""
    found = list(entries.order_by('-pk')[:WINDOW + 1])
    has_earlier, found = len(found) > WINDOW, found[:WINDOW][::-1]
    return found, found[0].pk if has_earlier else None


def _last_shown(entries, shown=START):
    return (entries[-1].attempt, entries[-1].grouping) if entries else shown


def _dress(entries, user, wanted, shown=START):
    """Return entries as lines, with headings where an attempt or a group begins."""
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
    """Return the objects of log lines that a user may view, by content type and primary key; a query for each type."""
    wanted = {}
    for entry in entries:
        if entry.object_type_id and entry.object_id:
            wanted.setdefault(entry.object_type_id, set()).add(entry.object_id)
    objects = {}
    for type_id, ids in wanted.items():
        found_type = find_type(type_id)
        model = found_type and found_type.model_class()
        if model is None:
            continue
        found = viewable(model, user).filter(pk__in=ids)
        objects.update(((type_id, obj.pk), obj) for obj in found)
    return objects


def _mark(message, search):
    """Return a message as HTML, with what was searched for marked."""
    if not search:
        return message
    parts = re.split(f'({re.escape(search)})', message, flags=re.IGNORECASE)
    return mark_safe(''.join(
        f'<mark>{escape(part)}</mark>' if number % 2 else escape(part) for number, part in enumerate(parts)
    ))
