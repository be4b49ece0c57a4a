"""The ends of a run that this process executes: what it logged is written first, then how it ended.

An end that cannot be written, since the database is away for long or does not take it, the recorder writes later.
"""
import logging
from functools import partial

from ...choices import ResultStatusChoices as Status
from ..sending.admission import advance_line
from ..store import lifecycle
from ..store.database import UNUSABLE, get_connection
from ..store.payload import untold
from ..store.recorder import recorder

__all__ = (
    'finish_run',
    'finish_unclaimed',
    'retry_run',
)

logger = logging.getLogger(__name__)


def finish_run(run, status, **values):
    """End a run.

    Args:
        run: The `Run`.
        status: The end status.
        **values: As for `lifecycle.finish`.

    Returns:
        What `lifecycle.finish` does: `None` if the run is not this process's to end any more.
    """
    recorder.flush(run)
    if run.untold and not values.get('in_backend'):
        values['exact_result'] = untold(values.get('exact_result'))
    # What replaced the run is not claimed yet, if it could be sent at all.
    claims = None if run.replaced else run.claims
    finish = partial(_finish, run.task_id, status, claims=claims, windows=run.opens, **values)
    try:
        row = finish(get_connection())
    except UNUSABLE as exc:
        logger.error('The end of task %s (%s) cannot be written yet: %s', run.task_id, status, exc)
        recorder.end_later(run.task_id, partial(finish, patience=0))
        row = run.id, status, values.get('reason', ''), None
    run.ended = run.ended or row is not None
    return row


def finish_unclaimed(task_id, status, **values):
    """End a run whose body has run though it could not be claimed, if its row still waits; arguments as above."""
    recorder.end_later(task_id, partial(_finish, task_id, status, patience=0, **values))


def _finish(task_id, status, connection, **values):
    row = lifecycle.finish(connection, task_id, status, **values)
    if row is not None and row[3]:
        advance_line(connection, row[3])
    return row


def retry_run(run, error, traceback, exception=None):
    """Record that an attempt failed and that the next one has been sent.

    Args:
        run: The `Run`.
        error: Why it failed, in a line.
        traceback: Where it failed.
        exception: The same as code that asks Celery is told it, as JSON text, if it is.

    Returns:
        `(id, status)`, or `None` if the run has ended.
    """
    recorder.flush(run)
    write = partial(lifecycle.retry, task_id=run.task_id, claims=run.claims, eta=run.next_eta, error=error,
                    traceback=traceback, exception=untold(None) if run.untold else exception)
    try:
        row = write(get_connection())
    except UNUSABLE as exc:
        logger.error('The retry of task %s cannot be written yet: %s', run.task_id, exc)
        recorder.end_later(run.task_id, partial(write, patience=0))
        row = run.id, Status.STATUS_RETRYING
    run.retried = True
    return row
