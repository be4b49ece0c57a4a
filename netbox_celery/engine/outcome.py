"""The ends of a run that this process executes: what it logged is written first, then how it ended."""
from . import lifecycle
from .database import get_connection
from .recorder import recorder

__all__ = (
    'finish_run',
    'retry_run',
)


def finish_run(run, status, **values):
    """End a run.

    Args:
        run: The `Run`.
        status: The end status.
        **values: As for `lifecycle.finish`.

    Returns:
        `(id, status, reason)` as written, or `None` if the run is not this process's to end any more.
    """
    recorder.flush(run)
    # What replaced the run is not claimed yet, if it could be sent at all.
    claims = None if run.replaced else run.claims
    row = lifecycle.finish(get_connection(), run.task_id, status, claims=claims, **values)
    run.ended = True
    return row


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
