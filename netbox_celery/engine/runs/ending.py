"""How a run finishes, or leaves the worker that holds it: all ways in one table, and the functions that write them.

Each way is an entry of `ENDS`: which process writes it and how that process notices it, the status and reason of the
row after it, and the statement. A run finishes once: the statements of `netbox_celery.engine.store.lifecycle` accept
only the first end, and a cancel takes precedence over success. If a body sets the end itself
(`self.celery_result.error()`), that end is the first.

* The process that runs the body writes with the token of its claim (`end_claimed`), after the log of the run. If the
  database is unavailable for long or refuses the end, the recorder writes it later.
* Another process of the worker, mostly its parent, finishes a run that waits or that the worker holds
  (`end_from_outside`), or puts it back into the queue (`give_back`). `reports` does the writing for a parent.
* The sweep writes ends that no other process has reported; callers write ends of runs that have not started.
"""
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery.exceptions import (
    ChordError,
    MaxRetriesExceededError,
    NotRegistered,
    QueueNotFound,
    Reject,
    TaskRevokedError,
)
from kombu.exceptions import EncodeError, OperationalError

from ...choices import ResultReasonChoices as Reason
from ...choices import ResultStatusChoices as Status
from ...config import get_config
from ..exceptions import (
    BodyInterrupted,
    BranchNotReady,
    NotHandedOver,
    OutOfRange,
    QueueRefused,
    RetryNotSent,
    TaskFailed,
)
from ..identity import identity
from ..sending.admission import advance_line
from ..store import lifecycle
from ..store.database import UNUSABLE, get_connection
from ..store.payload import cut_text, unreported
from ..store.recorder import recorder
from . import reports

__all__ = (
    'ENDS',
    'End',
    'describe',
    'end_claimed',
    'end_from_outside',
    'end_unclaimed',
    'failure_of',
    'give_back',
    'record_retry',
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class End:
    """A way in which a run finishes, or leaves the worker that holds it."""
    #: Status and reason of the row after it.
    status: str
    reason: str
    #: The process that writes it: that of the `body`, the `parent` of a worker, the `sweep`, or a `caller`.
    writer: str
    #: How the writer notices it: a method of the result backend or of `self`, a signal, a function.
    noticed_by: str
    #: The statement, by its name in `store.lifecycle` unless another module is named.
    statement: str


_COMPLETED, _FAILED, _ERRORED = Status.STATUS_COMPLETED, Status.STATUS_FAILED, Status.STATUS_ERRORED
_REVOKED, _IGNORED = Status.STATUS_REVOKED, Status.STATUS_IGNORED
_PENDING, _RETRYING = Status.STATUS_PENDING, Status.STATUS_RETRYING
_CLAIM, _HOLDER, _WAITING = 'FINISH_BY claim', 'FINISH_BY holder', 'FINISH_BY waiting'

#: All ways in which a run finishes or leaves its worker.
ENDS: Mapping[str, End] = MappingProxyType({
    # The process of the body
    'returned': End(_COMPLETED, '', 'body', 'mark_as_done', _CLAIM),
    'raised': End(_ERRORED, '', 'body', 'mark_as_failure', _CLAIM),
    'failed': End(_FAILED, '', 'body', 'mark_as_failure', _CLAIM),
    'branch_not_ready': End(_FAILED, Reason.REASON_BRANCH_NOT_READY, 'body', 'mark_as_failure', _CLAIM),
    'soft_time_limit': End(_ERRORED, Reason.REASON_SOFT_TIME_LIMIT, 'body', 'mark_as_failure', _CLAIM),
    'max_retries': End(_ERRORED, Reason.REASON_MAX_RETRIES, 'body', 'mark_as_failure', _CLAIM),
    'interrupted': End(_ERRORED, '', 'body', 'task_postrun', _CLAIM),
    'rejected': End(_FAILED, Reason.REASON_REJECTED, 'body', 'task_postrun', _CLAIM),
    'ignored': End(_IGNORED, '', 'body', 'task_postrun', _CLAIM),
    'ignored_at_start': End(_IGNORED, Reason.REASON_IGNORE_WINDOW, 'body', 'task_postrun', _CLAIM),
    'set_success': End(_COMPLETED, '', 'body', 'celery_result.success', _CLAIM),
    'set_error': End(_FAILED, '', 'body', 'celery_result.error', _CLAIM),
    'set_canceled': End(_REVOKED, Reason.REASON_CANCELLED, 'body', 'celery_result.canceled', _CLAIM),
    'cancelled_while_running': End(_REVOKED, Reason.REASON_CANCELLED, 'body', 'mark_as_done', _CLAIM),
    'retried': End(_RETRYING, '', 'body', 'mark_as_retry', 'RETRY'),
    'retry_not_sent': End(_ERRORED, '', 'body', 'mark_as_retry', _CLAIM),
    'retry_refused': End(_ERRORED, Reason.REASON_PUBLISH_FAILED, 'body', 'task_postrun', _CLAIM),
    'rejected_for_requeue': End(_PENDING, '', 'body', 'task_postrun', 'REQUEUE_BY body'),
    'replaced': End(_PENDING, Reason.REASON_REPLACED, 'body', 'on_replace', 'REPLACE'),
    'replaced_untracked': End(_IGNORED, '', 'body', 'on_replace', _CLAIM),
    # The same for a run that could not be claimed
    'returned_unclaimed': End(_COMPLETED, '', 'body', 'mark_as_done', _WAITING),
    'raised_unclaimed': End(_ERRORED, '', 'body', 'mark_as_failure', _WAITING),
    # The worker's parent, about a run that it had handed to a process or thread
    'time_limit': End(_ERRORED, Reason.REASON_TIME_LIMIT, 'parent', 'mark_as_failure', _HOLDER),
    'time_limit_given_back': End(_PENDING, Reason.REASON_TIME_LIMIT, 'parent', 'mark_as_failure', 'REQUEUE_BY holder'),
    'process_lost': End(_ERRORED, Reason.REASON_WORKER_LOST, 'parent', 'mark_as_failure', _HOLDER),
    'process_lost_retried': End(_PENDING, Reason.REASON_WORKER_LOST, 'parent', 'mark_as_retry', 'REQUEUE_BY holder'),
    'process_lost_given_back': End(_PENDING, Reason.REASON_WORKER_LOST, 'parent', 'on_reject', 'REQUEUE_BY holder'),
    'process_lost_too_often': End(_ERRORED, Reason.REASON_WORKER_LOST, 'parent', 'on_reject', _HOLDER),
    'process_failed': End(_ERRORED, '', 'parent', 'mark_as_failure', _HOLDER),
    'shut_down': End(_ERRORED, Reason.REASON_WORKER_LOST, 'parent', 'mark_as_retry', _HOLDER),
    'terminated': End(_REVOKED, Reason.REASON_TERMINATED, 'parent', 'mark_as_revoked', _HOLDER),
    # The worker's parent, about a message
    'revoked': End(_REVOKED, Reason.REASON_CANCELLED, 'parent', 'mark_as_revoked', _WAITING),
    'expired': End(_REVOKED, Reason.REASON_EXPIRED, 'parent', 'mark_as_revoked', _WAITING),
    'unregistered': End(_ERRORED, Reason.REASON_UNREGISTERED, 'parent', 'mark_as_failure', _WAITING),
    'unreadable': End(_ERRORED, Reason.REASON_REJECTED, 'parent', 'task_rejected', _WAITING),
    'refused_in_branch': End(_FAILED, Reason.REASON_BRANCH_NOT_READY, 'parent', 'task_rejected', _WAITING),
    'not_handed_over': End(_ERRORED, Reason.REASON_REJECTED, 'parent', 'mark_as_failure', _WAITING),
    'not_followed': End(_IGNORED, '', 'parent', 'Messages', _WAITING),
    'chord_failed': End(_ERRORED, Reason.REASON_UPSTREAM_FAILED, 'parent', 'mark_as_failure', _WAITING),
    # The sweep
    'worker_lost': End(_ERRORED, Reason.REASON_WORKER_LOST, 'sweep', 'close_lost', _CLAIM),
    'worker_lost_given_back': End(_PENDING, Reason.REASON_WORKER_LOST, 'sweep', 'close_lost', 'REQUEUE_BY claim'),
    'replacement_lost': End(_ERRORED, Reason.REASON_WORKER_LOST, 'sweep', 'close_lost', 'CLOSE_REPLACED'),
    'replacement_resent': End(_PENDING, Reason.REASON_REPLACED, 'sweep', 'close_lost', 'RESEND_REPLACEMENT'),
    'expired_in_queue': End(_REVOKED, Reason.REASON_EXPIRED, 'sweep', 'expire', _WAITING),
    'unsendable': End(_ERRORED, Reason.REASON_PUBLISH_FAILED, 'sweep', 'resend', _WAITING),
    # Callers, about runs that have not started
    'cancelled': End(_REVOKED, Reason.REASON_CANCELLED, 'caller', 'control.cancel_many', 'CANCEL'),
    'cancelled_with_parent': End(_REVOKED, Reason.REASON_CANCELLED, 'caller', 'family.insert_child', 'CANCEL'),
    'not_published': End(_ERRORED, Reason.REASON_PUBLISH_FAILED, 'caller', 'publish.note_refusal', 'PUBLISH_FAILED'),
    'skipped': End(_IGNORED, Reason.REASON_SKIPPED, 'caller', 'admit', 'admission.CLOSED'),
    'joined': End(_IGNORED, Reason.REASON_JOINED, 'caller', 'admit', 'admission.CLOSED'),
    'ignored_by_window': End(_IGNORED, Reason.REASON_IGNORE_WINDOW, 'caller', 'admit', 'admission.CLOSED'),
    # The process that finishes a run on which this one depends
    'upstream_failed': End(_ERRORED, Reason.REASON_UPSTREAM_FAILED, 'caller', '_fail_chain', 'closing.CLOSE'),
    'replacement_failed': End(_ERRORED, Reason.REASON_UPSTREAM_FAILED, 'caller', '_fail_chain', 'CLOSE_REPLACED'),
})

#: Exceptions of a body with an end of their own; all others have `raised`.
BODY_FAILURES = (
    (TaskFailed, 'failed'),
    (BranchNotReady, 'branch_not_ready'),
    (SoftTimeLimitExceeded, 'soft_time_limit'),
    (MaxRetriesExceededError, 'max_retries'),
    (Reject, 'rejected'),
    (RetryNotSent, 'retry_not_sent'),
    (BodyInterrupted, 'interrupted'),
)
#: Exceptions with which Celery reports a run; all others have `process_failed`. If a body raises one of those after
#: `BODY_FAILURES`, for example because it asked for the result of another run, it is an error like any other.
FAILURES = (
    *BODY_FAILURES,
    (TimeLimitExceeded, 'time_limit'),
    (WorkerLostError, 'process_lost'),
    (NotRegistered, 'unregistered'),
    (NotHandedOver, 'not_handed_over'),
    (ChordError, 'chord_failed'),
    (TaskRevokedError, 'revoked'),
)
#: Why `Task.retry()` could not send the next attempt.
UNSENT = (OperationalError, EncodeError, QueueNotFound, QueueRefused, OutOfRange)


def failure_of(exc, by_body=False):
    """Return `(end, error)` for an exception with which a task failed: the `End`, and a line for people.

    Args:
        exc: The exception.
        by_body: Whether the body raised it; otherwise Celery reports the run with it.
    """
    if isinstance(exc, Reject) and isinstance(exc.reason, UNSENT):
        name = 'retry_refused'
    else:
        name = next(
            (name for cls, name in (BODY_FAILURES if by_body else FAILURES) if isinstance(exc, cls)),
            'raised' if by_body else 'process_failed'
        )
    return ENDS[name], describe(exc)


def describe(exc):
    """Return an exception as a line for people: its type, unless the text is clear without it, and its message."""
    if exc is None:
        return ''
    try:
        text = str(exc.reason if isinstance(exc, Reject) else exc)
    except Exception:  # noqa: BLE001 - an author's __str__ may raise anything
        text = '<its text could not be made>'
    name = type(exc).__name__
    if text == f'{name}()':
        line = name
    elif isinstance(exc, TaskFailed | BodyInterrupted | BranchNotReady) or text.startswith(f'{name}('):
        line = text
    else:
        line = f'{name}: {text}' if text else name
    return cut_text(line, get_config().log_message_length)


# The process of the body

def end_claimed(run, end, **values):
    """Finish a run that this process has claimed: first its log is written, then its end.

    Args:
        run: The `Run`.
        end: The `End`.
        **values: Further values, as for `lifecycle.finish`.

    Returns:
        The value that `lifecycle.finish` returns: `None` if another process or claim holds the run, or has finished it.
    """
    recorder.flush(run)
    if run.unreported and not values.get('in_backend'):
        values['exact_result'] = unreported(values.get('exact_result'))
    # The replacement of the run is not claimed yet, if it could be sent at all
    claims = None if run.replaced else run.claims

    def write(connection, patience=60):
        return _write_own_end(
            connection, run.task_id, end, claims=claims, windows=run.opens, patience=patience, **values
        )
    try:
        row = write(get_connection())
    except UNUSABLE as exc:
        logger.error('The end of task %s (%s) cannot be written yet: %s', run.task_id, end.status, exc)
        recorder.end_later(run.task_id, partial(write, patience=0))
        row = run.id, end.status, end.reason, None
    run.ended = run.ended or row is not None
    return row


def end_unclaimed(task_id, end, **values):
    """Finish a run whose body has run although it could not be claimed, if its row still waits; arguments as above."""
    recorder.end_later(task_id, partial(_write_own_end, task_id=task_id, end=end, patience=0, **values))


def _write_own_end(connection, task_id, end, **values):
    row = lifecycle.finish(connection, task_id, end.status, reason=end.reason, **values)
    if row is not None and row[3]:
        advance_line(connection, row[3])
    return row


def record_retry(run, error, traceback, exception=None):
    """Record that an attempt failed and that the next one has been sent.

    Args:
        run: The `Run`.
        error: Why it failed, in a line.
        traceback: Where it failed.
        exception: The exception as JSON text, for code that asks Celery, unless results are ignored.

    Returns:
        `(id, status)`, or `None` if the run has finished.
    """
    recorder.flush(run)
    write = partial(lifecycle.retry, task_id=run.task_id, claims=run.claims, eta=run.next_eta, error=error,
                    traceback=traceback, exception=unreported(None) if run.unreported else exception)
    try:
        row = write(get_connection())
    except UNUSABLE as exc:
        logger.error('The retry of task %s cannot be written yet: %s', run.task_id, exc)
        recorder.end_later(run.task_id, partial(write, patience=0))
        row = run.id, Status.STATUS_RETRYING
    run.retried = True
    return row


# Another process of the worker

def end_from_outside(task_id, end, *, attempt=None, error='', traceback='', exact_result=None, in_backend=False):
    """Finish a run from outside the process that runs it: one that is not claimed, or one that this worker holds.

    Args:
        task_id: ID of the run.
        end: The `End`.
        attempt: The attempt that this worker holds, if that may be finished, too.
        error: What went wrong, in a line.
        traceback: Where it went wrong.
        exact_result: The exception, as Celery's result backend reports it.
        in_backend: Whether the end is also reported to Celery's result backend.

    Returns:
        The value that `lifecycle.finish` returns; `None` also if the end will be written later.
    """
    def write(connection):
        write_end = partial(
            _write_end, connection, task_id, end, error=error, traceback=traceback, exact_result=exact_result,
            in_backend=in_backend
        )
        row = None
        if identity.key is not None and attempt is not None:
            row = write_end(holder=identity.key, attempt=attempt)
        return row or write_end()
    return reports.write(task_id, write)


def _write_end(connection, task_id, end, **values):
    """Write an end, and send the run that waited in line for it."""
    row = lifecycle.finish(connection, task_id, end.status, reason=end.reason, **values, patience=0)
    if row is not None and row[3]:
        reports.advance(connection, row[3])
    return row


def give_back(task_id, end, too_often, *, attempt, error=''):
    """Put a run that this worker holds back into the queue, before the broker delivers its message again.

    Args:
        task_id: ID of the run.
        end: The `End` with which it leaves the worker.
        too_often: The `End` with which it finishes if it was given back too often already.
        attempt: The attempt that this worker holds.
        error: Why, in a line.

    Returns:
        The status of the run, if the message must not go back: it was cancelled, or has been given back too often.
    """
    def write(connection):
        row = lifecycle.requeue(
            connection, task_id, by='holder', holder=identity.key, attempt=attempt, reason=end.reason, error=error,
            patience=0
        )
        if row is not None:
            return row[1] if row[1] != Status.STATUS_PENDING else None
        row = _write_end(
            connection, task_id, too_often, holder=identity.key, attempt=attempt,
            error=f'{error}. The run is not started again after {lifecycle.MOST_LOSSES} losses'
        )
        return row and row[1]
    return reports.write(task_id, write)
