"""The ends of a run that this process executes: what it logged is written first, then how it ended."""
import logging

from django.db import DatabaseError

from . import lifecycle
from .admission import advance
from .database import get_connection
from .recorder import recorder

__all__ = (
    'finish_run',
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
    # What replaced the run is not claimed yet, if it could be sent at all.
    claims = None if run.replaced else run.claims
    connection = get_connection()
    row = lifecycle.finish(connection, run.task_id, status, claims=claims, window=run.opens, **values)
    run.ended = True
    if row is not None and row[3]:
        _advance(connection, row[3])
    return row


def _advance(connection, key):
    """Let those begin that wait in line for the end of a run."""
    from ..celery import app

    try:
        advance(app, connection.execute, key)
    except DatabaseError as exc:
        logger.warning('Who waits in line for %s waits for the next sweep: %s', key, exc)


def retry_run(run, error, traceback):
    """Record that an attempt failed and that the next one has been sent.

    Args:
        run: The `Run`.
        error: Why it failed, in a line.
        traceback: Where it failed.

    Returns:
        `(id, status)`, or `None` if the run has ended.
    """
    recorder.flush(run)
    row = lifecycle.retry(
        get_connection(), run.task_id, claims=run.claims, eta=run.next_eta, error=error, traceback=traceback
    )
    run.retried = True
    return row
