"""The writer of logs and progress: a queue, a thread with its own connection, batches by size and by time.

A task that logs must not wait for PostgreSQL, and what it logs must be visible to others within the blink of an eye,
while the task's own transaction is still open, and whatever becomes of it. So a call only appends to a queue; a
thread writes what has gathered every `flush_interval`, or as soon as a batch is full: lines by `COPY`, the progress
of each run as its newest value, and which messages the broker has taken. A failing write fails no task: it is tried
again until the database is back, within bounds of memory, and what is lost is counted and reported.
"""
import atexit
import logging
import os
import threading
import time
from collections import deque
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

from billiard.exceptions import SoftTimeLimitExceeded
from django.db import DatabaseError, IntegrityError

from ...choices import LogLevelChoices
from ...config import get_config
from ..identity import OWN_THREADS
from .database import INTERRUPTS, LATER, UNAVAILABLE, UNUSABLE, EngineConnection, before_dropping
from .lifecycle import LOG, TABLE, UNCLAIMED
from .payload import clean_line, cut_text, text_of
from .progress import Progress

__all__ = (
    'Recorder',
    'recorder',
)

logger = logging.getLogger(__name__)

COPY_LINES = f"""
    COPY {LOG} (result_id, attempt, level, grouping, message, object_type_id, object_id, created) FROM STDIN
"""

IS_WRITTEN = f'SELECT 1 FROM {LOG} WHERE result_id = %s AND created = %s AND message = %s LIMIT 1'

#: The highest number that its column can hold as a level.
HIGHEST_LEVEL = 32_767
#: Lines that make a full batch.
BATCH = 500
#: Lines that wait before a caller writes itself instead of queueing more (bounds memory, and lets the writer catch up).
BACKLOG = 10 * BATCH
#: Lines kept while the database is away; the oldest go first.
BACKLOG_UNAVAILABLE = 100 * BATCH

# A claim has noted it already, and what was put back since is to be sent again.
WRITE_SENT = f'UPDATE {TABLE} SET sent = now() WHERE id = ANY(%s) AND sent IS NULL AND {UNCLAIMED}'


class Recorder:
    """Takes lines, progress and publish marks of this process and writes them in batches."""

    def __init__(self):
        self._reset()

    def _reset(self):
        """Start anew: at first use, and in a child after a fork (the parent's lines are the parent's to write)."""
        self._pid = os.getpid()
        self._lines = deque()
        self._progress = Progress()
        self._sent = deque()
        self._ends = deque()
        #: So many of the lines that wait were in a `COPY` without an answer: all of them are written, or none.
        self._doubtful = 0
        self._lost = 0
        self._state_lock = threading.Lock()
        self._write_lock = threading.RLock()
        self._wake = threading.Event()
        self._idle = True
        self._thread = None
        self._connection = EngineConnection()
        self._borrowed = False
        self._config = None

    @property
    def config(self):
        if self._config is None:
            self._config = get_config()
        return self._config

    # What tasks call

    def log(self, run, message, level=LogLevelChoices.LEVEL_INFO, grouping='main', obj=None):
        """Add a line to a run's log.

        Args:
            run: The `Run`.
            message: The text; longer than `log_message_length` characters, it is cut and says so.
            level: A level of `LogLevelChoices`, or any number.
            grouping: Under which heading the line stands.
            obj: The NetBox object that the line is about.
        """
        config = self._config or self.config
        run.recorded = True
        run.lines += 1
        if run.lines > config.log_lines:
            run.dropped += 1
            return
        if type(message) is not str:
            message = text_of(message)
        if len(message) > config.log_message_length:
            message = cut_text(message, config.log_message_length)
        if type(level) is not int or not 0 <= level <= HIGHEST_LEVEL:
            level = _level(level)
        if type(grouping) is not str:
            grouping = text_of(grouping)
        object_type_id = object_id = None
        if obj is not None:
            object_type_id, object_id = _reference(obj)
        lines = self._lines
        lines.append((run.id, run.attempt, level, grouping, message, object_type_id, object_id, time.time()))
        waiting = len(lines)
        if waiting >= BACKLOG:
            self._write_pending()
        elif self._idle or waiting == BATCH:
            self._notify()

    def progress(self, run, **values):
        """Set the progress of a run: arguments as for `Progress.set`."""
        run.recorded = True
        if values.get('value') is not None:
            run.left_out = None
        self._progress.set(run, **values)
        if self._idle:
            self._notify()

    def sent(self, id):
        """Note that the broker took the message of a run (its primary key)."""
        self._sent.append(id)
        if self._idle:
            self._notify()

    def end_later(self, task_id, write):
        """Write the end of a run that could not be written, as soon as the database takes it.

        Args:
            task_id: ID of the run.
            write: A function that writes it, with the connection that it is given.
        """
        self._ends.append((task_id, write))
        self._notify()

    def close(self):
        """Write what waits before this process ends, and say what is lost with it."""
        self.flush(timeout=2)
        for task_id, __ in self._ends:
            logger.critical('The end of task %s is lost, it could not be written before its process ended', task_id)

    def flush(self, run=None, timeout=10):
        """Write everything that waits, in the calling thread.

        Args:
            run: If given: nothing is done unless it logged or showed progress; and if lines of it were left out, its
                log says so.
            timeout: For how long to try while the database is unavailable, seconds.

        Returns:
            Whether all is written.
        """
        if run is not None:
            if not run.recorded:
                return True
            if run.dropped:
                self._note_dropped(run)
            if run.left_out is not None:
                self.progress(run, value=run.left_out)
        deadline = time.monotonic() + timeout
        while not self._write_pending():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)
        return True

    def _note_dropped(self, run):
        self._lines.append((
            run.id, run.attempt, LogLevelChoices.LEVEL_WARNING, 'main',
            f'The log is limited to {self.config.log_lines:,} lines: {run.dropped:,} more were left out.',
            None, None, time.time(),
        ))
        run.dropped = 0

    @contextmanager
    def writing_with(self, connection):
        """Write with a connection of the calling thread, a `CallersConnection`, and in that thread alone, for a while.

        In a block that the body may roll back nothing is written: it waits for the end of the block.
        """
        self.flush()
        with self._write_lock:
            before, self._connection, self._borrowed = (self._connection, self._borrowed), connection, True
        try:
            yield
        finally:
            self.flush(timeout=0)
            with self._write_lock:
                self._connection, self._borrowed = before

    # The thread

    def _notify(self):
        if self._borrowed:
            return
        if self._thread is None or self._pid != os.getpid():
            self._start()
        self._wake.set()

    def _start(self):
        with self._state_lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name=f'{OWN_THREADS}recorder', daemon=True)
                self._thread.start()

    def _loop(self):
        interval = self.config.flush_interval
        while True:
            self._wake.wait()
            # From here callers need not wake the thread: it will look again after the interval in any case.
            self._idle = False
            self._wake.clear()
            if len(self._lines) < BATCH:
                self._wake.wait(interval)
                self._wake.clear()
            self._write_pending(in_thread=True)
            self._idle = True
            if self._borrowed:
                continue
            if self._lines or self._progress or self._sent or self._ends:
                self._wake.set()

    # Writing

    def _write_pending(self, in_thread=False):
        """Write what waits. Returns whether all of it could be written."""
        with self._write_lock:
            if self._borrowed and (in_thread or self._connection.is_nested):
                return True
            try:
                self._write_lines()
                self._progress.write(self._connection)
                self._write_sent()
                self._write_ends()
            except UNAVAILABLE as exc:
                self._connection.close()
                self._shed(exc)
                time.sleep(0.2)
                return False
            except INTERRUPTS:
                raise
            except Exception:
                # Whatever it is, no task fails for it.
                logger.exception('Log lines or progress could not be written')
                return False
        return True

    def _write_lines(self):
        if self._doubtful:
            self._settle_doubt()
        while self._lines:
            batch = [self._lines.popleft() for __ in range(min(len(self._lines), BATCH))]
            try:
                self._copy(batch)
            except LATER:
                self._put_back(batch, len(batch))
                raise
            except Exception:  # noqa: BLE001 - one odd line must not take others with it
                self._write_one_by_one(batch)

    def _put_back(self, batch, doubtful):
        self._lines.extendleft(reversed(batch))
        self._doubtful = doubtful

    def _settle_doubt(self):
        """Leave out what was written, though the answer was lost with the connection."""
        result_id, __, __, __, message, __, __, created = self._lines[0]
        try:
            written = self._connection.execute(
                IS_WRITTEN, (result_id, datetime.fromtimestamp(created, UTC), clean_line(message))
            )
        except LATER:
            raise
        except Exception:  # noqa: BLE001 - an odd line, or no table to look into: what is wrong is said when it is written
            written = False
        for __ in range(self._doubtful if written else 0):
            self._lines.popleft()
        self._doubtful = 0

    def _copy(self, batch):
        self._connection.copy(COPY_LINES, (
            (
                result_id, attempt, level, clean_line(grouping)[:100], clean_line(message),
                object_type_id, object_id, datetime.fromtimestamp(created, UTC),
            )
            for result_id, attempt, level, grouping, message, object_type_id, object_id, created in batch
        ))

    def _write_one_by_one(self, batch):
        """Save what can be saved of a batch that PostgreSQL refused: a run of it was deleted, or a line is odd."""
        lost = 0
        for number, line in enumerate(batch):
            try:
                self._copy([line])
            except LATER:
                self._put_back(batch[number:], 1)
                raise
            except IntegrityError:
                logger.debug('Run %s was deleted, its log ends here', line[0])
            except Exception as exc:  # noqa: BLE001 - whatever it is, the next line may be fine
                lost, reason = lost + 1, exc
        if lost:
            self._report(lost, reason)

    def _write_sent(self):
        while self._sent:
            ids = [self._sent.popleft() for __ in range(len(self._sent))]
            try:
                self._connection.execute(WRITE_SENT, (ids,))
            except LATER:
                self._sent.extend(ids)
                raise

    def _write_ends(self):
        while self._ends:
            task_id, write = self._ends[0]
            try:
                write(self._connection)
            except LATER:
                raise
            except UNUSABLE:
                time.sleep(0.2)
                return  # it was said when it came here
            except Exception:
                logger.exception('The end of task %s is lost', task_id)
            else:
                logger.warning('The end of task %s has been written', task_id)
            self._ends.popleft()

    def _shed(self, exc):
        """While the database is away: keep memory within bounds."""
        lost = 0
        while len(self._lines) > BACKLOG_UNAVAILABLE:
            self._lines.popleft()
            lost += 1
        self._doubtful = max(0, self._doubtful - lost)
        if lost:
            self._report(lost, exc)

    def _report(self, lost, exc):
        first, self._lost = self._lost == 0, self._lost + lost
        level = logging.ERROR if first else logging.DEBUG
        logger.log(level, '%s log line(s) could not be written (%s in all): %s', lost, self._lost, exc)


def _level(level):
    """Return a level that is no number, or none that can be stored, as one that is."""
    try:
        return max(0, min(int(level), HIGHEST_LEVEL))
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # noqa: BLE001 - whatever an author gives, it fails no task
        return LogLevelChoices.LEVEL_INFO


def _reference(obj):
    """Return `(object_type_id, object_id)` of a NetBox object; it stays unnamed in a transaction that is broken."""
    from django.contrib.contenttypes.models import ContentType

    if type(getattr(obj, 'pk', None)) is not int:
        return None, None  # it was not saved yet, has a key of another kind, or is none of NetBox's
    try:
        return ContentType.objects.get_for_model(obj, for_concrete_model=False).pk, obj.pk
    except (AttributeError, DatabaseError):
        return None, None


#: The recorder of this process.
recorder = Recorder()
os.register_at_fork(after_in_child=recorder._reset)
atexit.register(recorder.close)
before_dropping(partial(recorder.flush, timeout=1))
