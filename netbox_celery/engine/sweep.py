"""What was lost is found: runs of dead workers, messages that never went out, runs that expired in the queue.

Every worker's parent sweeps from its heartbeat thread; an advisory lock lets one do it at a time. Each finding is
settled by a guarded transition, so a sweep that is wrong about a worker's death, or dies itself, does no harm.
"""
import logging

from billiard.exceptions import WorkerLostError
from celery import Celery, states
from celery.exceptions import TaskRevokedError
from django.db import close_old_connections

from ..choices import ResultReasonChoices as Reason
from ..choices import ResultStatusChoices as Status
from ..config import get_config
from . import catalogue, lifecycle
from .enqueue import HEADER
from .missing import GRACE, find_missing
from .payload import PayloadDecoder
from .presence import identity

__all__ = (
    'duties',
    'release',
    'sweep',
)

logger = logging.getLogger(__name__)

#: Key of the advisory lock ("celery" on a phone's keys).
LOCK = 235379
#: A row without `sent` this long after its creation was not sent by whoever made it, seconds.
UNSENT_AFTER = 15
#: Rows settled in one go.
BATCH = 500

ALIVE = f"""
    SELECT key FROM {lifecycle.WORKERS}
    WHERE stopped IS NULL AND heartbeat > now() - make_interval(secs => %(lost_after)s)
"""
LOST = f"""
    SELECT task_id, celery_name, claims, worker FROM {lifecycle.TABLE}
    WHERE status = 'running' AND completed IS NULL AND (holder IS NULL OR holder NOT IN ({ALIVE}))
    ORDER BY id LIMIT {BATCH}
"""
UNSENT = f"""
    SELECT id, task_id, celery_name, args::text, kwargs::text, options::text, message,
        -- The message must ask for the attempt that is due, or no claim will take it.
        CASE WHEN status = 'retrying' THEN attempt ELSE GREATEST(attempt - 1, 0) END, scheduled
    FROM {lifecycle.TABLE}
    WHERE {lifecycle.WAITING} AND completed IS NULL AND sent IS NULL
        -- What was claimed before has lost its message for sure.
        AND (claims > 0 OR last_updated < now() - make_interval(secs => %(after)s))
    ORDER BY id LIMIT {BATCH}
"""
EXPIRED = f"""
    SELECT task_id FROM {lifecycle.TABLE}
    WHERE {lifecycle.WAITING} AND completed IS NULL AND expires < now()
    ORDER BY id LIMIT {BATCH}
"""
MARK_SENT = f'UPDATE {lifecycle.TABLE} SET sent = now() WHERE id = %s AND sent IS NULL'
FORGET_WORKERS = f"DELETE FROM {lifecycle.WORKERS} WHERE heartbeat < now() - interval '1 day'"


def duties(app):
    """Return what a worker does beside its heartbeat: pairs of an interval in seconds and a function."""
    interval = get_config().sweep_interval
    return (
        (interval, lambda connection: sweep(connection, app)),
        (GRACE, lambda connection: find_missing(connection, app)),
        (catalogue.SYNC_INTERVAL, lambda connection: _sync_catalogue()),
    )


def _sync_catalogue():
    close_old_connections()
    catalogue.sync(force=True)


def sweep(connection, app):
    """Settle what was lost, unless another worker is at it.

    Args:
        connection: An `EngineConnection`.
        app: The Celery app.
    """
    # Locks of a session outlive a killed parent as long as a child has its socket. This one is held by a statement.
    with connection.advisory_lock(LOCK) as locked:
        if not locked:
            return
        close_lost(connection, app)
        expire(connection, app)
        resend(connection, app)
        connection.execute(FORGET_WORKERS)


def close_lost(connection, app):
    """Requeue the runs of dead workers whose tasks asked for it (`acks_late`), and end the others."""
    lost_after = get_config().worker_lost_after
    for task_id, name, claims, worker in connection.execute(LOST, {'lost_after': lost_after}):
        _let_go(connection, app, task_id, name, claims, f'The worker {worker} that ran it was lost')


def release(connection, app):
    """Let go of what this worker still holds when it stops."""
    held = connection.execute(
        f"SELECT task_id, celery_name, claims FROM {lifecycle.TABLE} "
        f"WHERE status = 'running' AND completed IS NULL AND holder = %s", (identity.key,)
    )
    for task_id, name, claims in held:
        _let_go(connection, app, task_id, name, claims, 'The worker was stopped while the task was running')


def _let_go(connection, app, task_id, name, claims, error):
    task = app.tasks.get(name)
    row = task is not None and task.acks_late and lifecycle.requeue(
        connection, task_id, by='claim', claims=claims, reason=Reason.REASON_WORKER_LOST, error=error, resend=True
    ) or lifecycle.finish(
        connection, task_id, Status.STATUS_ERRORED, claims=claims, reason=Reason.REASON_WORKER_LOST, error=error
    )
    if not row:
        return  # it went on by itself
    if row[1] == Status.STATUS_PENDING:
        logger.warning('Task %s[%s] will be run again: %s', name, task_id, error)
    elif row[1] == Status.STATUS_REVOKED:
        _tell_backend(app, task_id, TaskRevokedError('revoked'), states.REVOKED)
    else:
        logger.error('Task %s[%s] is lost: %s', name, task_id, error)
        _tell_backend(app, task_id, WorkerLostError(error), states.FAILURE)


def _tell_backend(app, task_id, exc, state):
    """Let those who wait for the result know of its end."""
    try:
        app.backend.store_result(str(task_id), exc, state)
    except Exception as error:  # noqa: BLE001 - backends fail each in their own way
        logger.warning('The end of %s could not be stored in the result backend: %s', task_id, error)


def expire(connection, app):
    """End runs that expired while they waited; a broker may drop their messages without a word."""
    for (task_id,) in connection.execute(EXPIRED):
        row = lifecycle.finish(
            connection, task_id, Status.STATUS_REVOKED, reason=Reason.REASON_EXPIRED,
            error='It expired before a worker began it'
        )
        if row is not None:
            app.backend.mark_as_revoked(str(task_id), 'expired')


def resend(connection, app):
    """Send the messages of rows that were not sent: the broker was away, or the process died in between."""
    for id, task_id, name, *row in connection.execute(UNSENT, {'after': UNSENT_AFTER}):
        send_row(app, task_id, name, *row)
        connection.execute(MARK_SENT, (id,))
        logger.info('Task %s[%s] was sent again', name, task_id)


def send_row(app, task_id, name, args, kwargs, options, message, retries, scheduled):
    """Send the message of a row; JSON columns as text."""
    decode = PayloadDecoder().decode
    args, kwargs = decode(message) if message else (decode(args), decode(kwargs))
    options = decode(options) | {'retries': retries, 'eta': scheduled}
    options['headers'] = {**(options.get('headers') or {}), HEADER: True}
    Celery.send_task(app, name, args, kwargs, task_id=str(task_id), add_to_parent=False, **options)
