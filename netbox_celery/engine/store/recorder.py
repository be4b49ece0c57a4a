"""The writer of logs and progress: a queue, a thread with its own connection, batches by size and by time.

A task that logs must not wait for PostgreSQL, and others must see its log lines almost immediately, while the task's
own transaction is still open, and even if it is rolled back. So a call only appends to a queue. A thread writes the
pending entries every `flush_interval`, or as soon as a batch is full: lines by `COPY`, the newest progress of each run,
and which messages the broker has accepted. A write that fails does not fail a task: it is retried until the database is
available again, within bounds of memory, and lines that are lost are counted and reported.
"""
import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from django.db import DatabaseError, IntegrityError

from ...choices import LogLevelChoices
from ...config import get_config
from ..identity import OWN_THREADS
from .database import (
    INTERRUPTS,
    LATER,
    UNAVAILABLE,
    UNUSABLE,
    CallersConnection,
    Connection,
    EngineConnection,
    before_dropping,
)
from .lifecycle import LOG, TABLE, UNCLAIMED
from .payload import clean_line, cut_text, text_of
from .progress import Progress, RecordedRun

__all__ = (
    'Recorder',
    'recorder',
)

logger = logging.getLogger(__name__)

COPY_LINES = f"""
    COPY {LOG} (result_id, attempt, level, grouping, message, object_type_id, object_id, created) FROM STDIN
"""

IS_WRITTEN = f'SELECT 1 FROM {LOG} WHERE result_id = %s AND created = %s AND message = %s LIMIT 1'

#: The highest level that the column can hold.
HIGHEST_LEVEL = 32_767
#: Lines of a full batch.
BATCH = 500
#: Pending lines from which on a caller writes itself instead of queueing more: this bounds memory, and lets the writer
#: catch up.
BACKLOG = 10 * BATCH
#: Lines kept while the database is unavailable; the oldest ones are dropped.
BACKLOG_UNAVAILABLE = 100 * BATCH

# A claim sets `sent` itself; and a run that was requeued since must be sent again.
WRITE_SENT = f'UPDATE {TABLE} SET sent = now() WHERE id = ANY(%s) AND sent IS NULL AND {UNCLAIMED}'

#: A pending log line: primary key of its run, attempt, level, grouping, message, object type, object, time.
type Line = tuple[int | None, int, int, str, str, int | None, int | None, float]


class Recorder:
    """Collects log lines, progress and sent marks in this process, and writes them in batches."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        """Start empty: at first, and in a child after a fork (the parent writes its own lines)."""
        self._pid = os.getpid()
        self._lines: deque[Line] = deque()
        self._progress = Progress()
        self._sent: deque[int] = deque()
        self._ends: deque[tuple[Any, Callable[[Connection], object]]] = deque()
        #: Number of pending lines that were in a `COPY` whose outcome is unknown: all of them are written, or none.
        self._doubtful = 0
        self._lost = 0
        self._state_lock = threading.Lock()
        self._write_lock = threading.RLock()
        self._wake = threading.Event()
        self._idle = True
        self._thread: threading.Thread | None = None
        self._connection: EngineConnection | CallersConnection = EngineConnection()
        self._borrowed = False
        self._config: Any = None

    @property
    def config(self) -> Any:
        if self._config is None:
            self._config = get_config()
        return self._config

    # What tasks call

    def log(
        self, run: RecordedRun, message: Any, level: Any = LogLevelChoices.LEVEL_INFO, grouping: Any = 'main',
        obj: Any = None
    ) -> None:
        """Add a line to a run's log.

        Args:
            run: The run.
            message: The text. It is cut, with a note, if it is longer than `log_message_length` characters.
            level: A level of `LogLevelChoices`, or any number.
            grouping: The heading under which the line is shown.
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

    def progress(self, run: RecordedRun, **values: Any) -> None:
        """Set the progress of a run; arguments as for `Progress.set`."""
        run.recorded = True
        if values.get('value') is not None:
            run.left_out = None
        self._progress.set(run, **values)
        if self._idle:
            self._notify()

    def sent(self, id: int) -> None:
        """Record that the broker accepted the message of a run (given by its primary key)."""
        self._sent.append(id)
        if self._idle:
            self._notify()

    def end_later(self, task_id: Any, write: Callable[[Connection], object]) -> None:
        """Write the end of a run, which could not be written, as soon as the database is available again.

        Args:
            task_id: ID of the run.
            write: Function that writes the end; it is called with a connection.
        """
        self._ends.append((task_id, write))
        self._notify()

    def close(self) -> None:
        """Write what is pending before this process exits, and log which ends are lost."""
        self.flush(timeout=2)
        for task_id, __ in self._ends:
            logger.critical('The end of task %s is lost: it could not be written before its process exited', task_id)

    def flush(self, run: RecordedRun | None = None, timeout: float = 10) -> bool:
        """Write everything that is pending, in the calling thread.

        Args:
            run: If given, do nothing unless this run has log lines or progress; and if lines of it were dropped, add
                that to its log.
            timeout: How long to try while the database is unavailable, seconds.

        Returns:
            Whether everything is written.
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

    def _note_dropped(self, run: RecordedRun) -> None:
        self._lines.append((
            run.id, run.attempt, LogLevelChoices.LEVEL_WARNING, 'main',
            f'The log is limited to {self.config.log_lines:,} lines: {run.dropped:,} more were left out.',
            None, None, time.time(),
        ))
        run.dropped = 0

    @contextmanager
    def writing_with(self, connection: CallersConnection) -> Generator[None]:
        """Write with the connection of the calling thread, and only in that thread, within the block.

        While the body is in a block that it may roll back, nothing is written until the end of that block.
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

    def _notify(self) -> None:
        if self._borrowed:
            return
        if self._thread is None or self._pid != os.getpid():
            self._start()
        self._wake.set()

    def _start(self) -> None:
        with self._state_lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name=f'{OWN_THREADS}recorder', daemon=True)
                self._thread.start()

    def _loop(self) -> None:
        interval = self.config.flush_interval
        while True:
            self._wake.wait()
            # From here on callers need not wake the thread: it checks again after the interval in any case
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

    def _write_pending(self, in_thread: bool = False) -> bool:
        """Write what is pending, and return whether all of it could be written."""
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
                # Whatever it is, no task must fail because of it
                logger.exception('Log lines or progress could not be written')
                return False
        return True

    def _write_lines(self) -> None:
        if self._doubtful:
            self._drop_written()
        while self._lines:
            batch = [self._lines.popleft() for __ in range(min(len(self._lines), BATCH))]
            try:
                self._copy(batch)
            except LATER:
                self._put_back(batch, len(batch))
                raise
            except Exception:  # noqa: BLE001 - one invalid line must not affect the others
                self._write_one_by_one(batch)

    def _put_back(self, batch: list[Line], doubtful: int) -> None:
        self._lines.extendleft(reversed(batch))
        self._doubtful = doubtful

    def _drop_written(self) -> None:
        """Drop the doubtful lines if they were written, and only the answer was lost with the connection."""
        result_id, _attempt, _level, _grouping, message, _type_id, _object_id, created = self._lines[0]
        try:
            written = bool(self._connection.execute(
                IS_WRITTEN, (result_id, datetime.fromtimestamp(created, UTC), clean_line(message))
            ))
        except LATER:
            raise
        except Exception:  # noqa: BLE001 - an invalid line, or a missing table: the cause is logged when it is written
            written = False
        for __ in range(self._doubtful if written else 0):
            self._lines.popleft()
        self._doubtful = 0

    def _copy(self, batch: list[Line]) -> None:
        self._connection.copy(COPY_LINES, (
            (
                result_id, attempt, level, clean_line(grouping)[:100], clean_line(message),
                object_type_id, object_id, datetime.fromtimestamp(created, UTC),
            )
            for result_id, attempt, level, grouping, message, object_type_id, object_id, created in batch
        ))

    def _write_one_by_one(self, batch: list[Line]) -> None:
        """Write the valid lines of a batch that PostgreSQL refused: a run was deleted, or a line is invalid."""
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

    def _write_sent(self) -> None:
        while self._sent:
            ids = [self._sent.popleft() for __ in range(len(self._sent))]
            try:
                self._connection.execute(WRITE_SENT, (ids,))
            except LATER:
                self._sent.extend(ids)
                raise

    def _write_ends(self) -> None:
        while self._ends:
            task_id, write = self._ends[0]
            try:
                write(self._connection)
            except LATER:
                raise
            except UNUSABLE:
                time.sleep(0.2)
                return  # the error was logged when the end was queued
            except Exception:
                logger.exception('The end of task %s is lost', task_id)
            else:
                logger.warning('The end of task %s has been written', task_id)
            self._ends.popleft()

    def _shed(self, exc: Exception) -> None:
        """Drop the oldest lines while the database is unavailable, to keep memory within bounds."""
        lost = 0
        while len(self._lines) > BACKLOG_UNAVAILABLE:
            self._lines.popleft()
            lost += 1
        self._doubtful = max(0, self._doubtful - lost)
        if lost:
            self._report(lost, exc)

    def _report(self, lost: int, exc: Exception) -> None:
        first, self._lost = self._lost == 0, self._lost + lost
        level = logging.ERROR if first else logging.DEBUG
        logger.log(level, '%s log line(s) could not be written (%s in total): %s', lost, self._lost, exc)


def _level(level: Any) -> int:
    """Return any level as one that can be stored."""
    try:
        return max(0, min(int(level), HIGHEST_LEVEL))
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # noqa: BLE001 - no task must fail because of the level that an author passes
        return LogLevelChoices.LEVEL_INFO


def _reference(obj: Any) -> tuple[int | None, int | None]:
    """Return `(object_type_id, object_id)` of a NetBox object; `(None, None)` in a broken transaction."""
    from django.contrib.contenttypes.models import ContentType

    if type(getattr(obj, 'pk', None)) is not int:
        return None, None  # it was not saved, has a key of another type, or is not an object of NetBox's
    try:
        return ContentType.objects.get_for_model(obj, for_concrete_model=False).pk, obj.pk
    except (AttributeError, DatabaseError):
        return None, None


#: The recorder of this process.
recorder = Recorder()
os.register_at_fork(after_in_child=recorder._reset)
atexit.register(recorder.close)
before_dropping(partial(recorder.flush, timeout=1))
