"""`self.celery_result`: the row of the current run, as its task reads and changes it."""
import logging
import time
from typing import Any
from uuid import UUID

from celery.app.task import get_actual_ignore_result
from celery.exceptions import Ignore, TaskRevokedError
from django.db import connection

from ...choices import ResultStatusChoices as Status
from ...config import get_config
from ..app import get_app
from ..exceptions import NotJSON, TaskFailed
from ..internals import task_stack
from ..sending.rows import data_jsonb
from ..store import lifecycle
from ..store.database import UNAVAILABLE, UNUSABLE, get_connection
from ..store.payload import cut_text, dumps, result_columns, text_of, whole_number
from ..store.recorder import recorder
from .ending import ENDS, end_claimed

__all__ = (
    'TrackedResult',
    'look_for_cancel',
    'report_own_end',
)

logger = logging.getLogger(__name__)

#: Seconds for which an answer of `look_for_cancel()` is reused: a tight loop may ask in every iteration.
CANCEL_CHECK_INTERVAL = 0.5


class TrackedResult:
    """The row of the run that is being executed.

    Attributes are those of the `CeleryResult`, which is loaded when one is first read, and again after
    `refresh_from_db()`. This query is part of the task, and raises like its other queries if the database is
    unavailable; only after `refresh_from_db()` are the earlier values kept instead. `pk`, `id` and `task_id` need no
    query. Writes go through the recorder: they are visible to others within half a second, also while the task's
    transaction is open, and do not raise database errors.
    """

    def __init__(self, run):
        self._run = run
        self._row = None
        self._is_old = False
        self._written: tuple[float, int | None] = (float('-inf'), None)

    def __getattr__(self, name: str) -> Any:
        # Python looks up methods of a copy or of an unpickled object before the object has any attribute
        if '_run' not in vars(self) or name.startswith('__') and name.endswith('__'):
            raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')
        return getattr(self.row, name)

    def __copy__(self):
        return type(self)(self._run)

    def __deepcopy__(self, memo):
        return type(self)(self._run)

    def __reduce__(self):
        # In another process, it is an ordinary row
        return _load_row, (self._run.id,)

    def __repr__(self):
        return f'<TrackedResult: {self._run.task_id}>'

    @property
    def pk(self) -> int:
        return self._run.id

    id = pk

    @property
    def task_id(self) -> UUID:
        return UUID(self._run.task_id)

    @property
    def row(self) -> Any:
        """The `CeleryResult`."""
        if self._row is None or self._is_old:
            recorder.flush(self._run, timeout=1)
            try:
                self._row = self._load()
            except UNUSABLE as exc:
                if self._row is None:
                    raise
                if self._run.is_new_warning('row'):
                    logger.warning('Task %s continues with an earlier copy of its row: %s', self._run.task_id, exc)
            self._is_old = False
        return self._row

    def _load(self):
        from ...models import CeleryResult

        get = CeleryResult.objects.get
        try:
            return get(pk=self._run.id)
        except UNAVAILABLE:
            if connection.in_atomic_block:
                raise
            # A restart of PostgreSQL has broken the connection
            connection.close_if_unusable_or_obsolete()
            return get(pk=self._run.id)

    def refresh_from_db(self) -> None:
        """Load the row again when an attribute is next read."""
        self._is_old = True

    def update(
        self, *, value: float | None = None, value_max: float | None = None, step: str | None = None, data: Any = None
    ) -> None:
        """Set the progress, the step or the task's own data.

        Args:
            value: Progress of the task, a whole number; anything else is ignored.
            value_max: The value at which the task is done, likewise.
            step: The current step, in a few words.
            data: Data of the task that can be written as JSON; it replaces the earlier data.

        Raises:
            kombu.exceptions.EncodeError: The data cannot be written as JSON (also a `TypeError`), or nests too deeply.
        """
        text = data_jsonb(data)
        recorder.progress(self._run, value=value, value_max=value_max, step=step, data=text)
        if self._row is not None:
            written = {'value': whole_number(value), 'value_max': whole_number(value_max), 'step': step, 'data': data}
            for name, new in written.items():
                if new is not None:
                    setattr(self._row, name, new)

    def increment_value(self, n: float = 1) -> None:
        """Add `n` to the progress."""
        recorder.progress(self._run, value=n, increment=True)
        if self._row is not None:
            self._row.value = (self._row.value or 0) + (whole_number(n) or 0)

    def update_value(
        self, value: float, value_step: float | None = None, rate_limit: float | None = None
    ) -> None:
        """Set the progress, but not at every call of a tight loop. The end of the run writes the last value.

        Args:
            value: Progress of the task.
            value_step: Write only if the value has changed by this much since the last write.
            rate_limit: Shortest time between two writes, seconds.
        """
        when, last = self._written
        now = time.monotonic()
        # `update` ignores what is not a number
        if (number := whole_number(value)) is not None:
            if (
                value_step is not None and last is not None and abs(number - last) < value_step
                or rate_limit is not None and now - when < rate_limit
            ):
                self._run.left_out = value
                return
            self._written = (now, number)
        self.update(value=value)

    # Ends that the task sets itself; the first one is kept

    def success(self, value: Any = None) -> None:
        """End the run as completed.

        Args:
            value: Its result, which must be valid as JSON.

        Raises:
            kombu.exceptions.EncodeError: It cannot be written as JSON (also a `TypeError`), and Celery stores it.
        """
        columns, text = result_columns(value, get_config().payload_length)
        if text is None and _stores_results():
            try:
                dumps(value)
            except (TypeError, ValueError) as exc:
                raise NotJSON(f'The result cannot be stored as JSON ({exc})') from exc
        self._end(ENDS['set_success'], value, **columns)

    def error(self, error: object = '', traceback: object = '') -> None:
        """End the run as failed.

        Args:
            error: What went wrong, as text or an exception.
            traceback: Where it went wrong, as text.
        """
        text, where = _line(error), cut_text(text_of(traceback), get_config().payload_length)
        self._end(ENDS['set_error'], text, error=text, traceback=where, exact_result=_exception_text(TaskFailed(text)))

    def canceled(self, error: object = '') -> None:
        """End the run as revoked: the task was asked to stop and did.

        Args:
            error: The reason, as text.
        """
        text = _line(error)
        self._end(ENDS['set_canceled'], text, error=text, exact_result=_exception_text(TaskRevokedError(text)))

    def _end(self, end, outcome, **values):
        row = end_claimed(self._run, end, **values)
        if row is not None:
            self._run.own_end = row[1], outcome  # the status differs if the run was cancelled
        self._row = None


def _load_row(id):
    """Return the `CeleryResult` of a pickled `TrackedResult`."""
    from ...models import CeleryResult

    return CeleryResult.objects.get(pk=id)


def _stores_results():
    """Whether Celery stores, or passes on, the result of this thread's task."""
    task = task_stack.top
    request = task and task.request_stack.top
    return request is None or bool(request.chord or request.chain or request.callbacks) or (
        not get_actual_ignore_result(task, request)
    )


def _exception_text(exc):
    """Return an exception as the row stores it for code that asks before Celery reports it (`exception_text`)."""
    return get_app().backend.exception_text(exc)


def _line(error):
    return cut_text(text_of(error), get_config().log_message_length)


def look_for_cancel(run):
    """Return whether a run was cancelled, as far as is known: a task does not fail because that cannot be checked.

    Args:
        run: The `Run`.
    """
    started = time.monotonic()
    if run.is_cancelled or started < run.next_look:
        return run.is_cancelled
    pause = CANCEL_CHECK_INTERVAL
    try:
        run.is_cancelled = lifecycle.is_cancelled(get_connection(), run.id, patience=0)
    except UNUSABLE as exc:
        # Detecting that a server does not respond may take long: a loop must not spend its time on it
        pause = max(pause, 10 * (time.monotonic() - started))
        if run.is_new_warning('cancel'):
            logger.warning('Task %s cannot see whether it was cancelled, and continues: %s', run.task_id, exc)
    run.next_look = time.monotonic() + pause
    return run.is_cancelled


def report_own_end(task, request, status, outcome):
    """Report the end that a body has set itself, and that the row already has, to Celery.

    Args:
        task: The task.
        request: Its current request.
        status: The final status of the row.
        outcome: The result or the error that the body gave.

    Returns:
        The result, if the run is completed.

    Raises:
        TaskFailed: The run failed.
        celery.exceptions.Ignore: The run was revoked, which the result backend already knows.
    """
    if status == Status.STATUS_COMPLETED:
        return outcome
    if status == Status.STATUS_FAILED:
        raise TaskFailed(outcome)
    task.backend.mark_as_revoked(
        request.id, outcome, request, store_result=not get_actual_ignore_result(task, request)
    )
    raise Ignore(outcome)
