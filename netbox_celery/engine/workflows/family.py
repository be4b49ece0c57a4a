"""The runs of a workflow: those that have a root in common.

A cancelled workflow stays cancelled. Waiting runs are revoked, running ones are terminated or asked to stop. Runs that
a cancelled run starts later (the next step of its chain, the body of its chord, a callback) are created as revoked, and
their messages are not sent.
"""
import logging

from django.db.models import Q

from ..store import lifecycle
from ..store.conditions import HAS_OTHER_ROOT
from ..store.database import caller, execute
from .canvas import as_request

__all__ = (
    'are_orphans',
    'insert_child',
    'mark_parts',
    'members',
    'refuse',
)

logger = logging.getLogger(__name__)


def members(result):
    """Return all runs of the workflow of a run, a queryset."""
    root_id = result.root_id or result.task_id
    return type(result).objects.filter(Q(task_id=root_id) | Q(root_id=root_id) & HAS_OTHER_ROOT)


# GUARANTEE: if a run is cancelled while it makes a call, the later of the two sees the other. The lock waits for a
# cancel in progress, and code that cancels a workflow looks for new rows until there are none. Within a transaction of
# the task's own there is no lock, since it would block what the engine writes for the run: the check is repeated after
# the commit.
PARENT_CANCELLED = f'(SELECT cancelled IS NOT NULL FROM {lifecycle.TABLE} WHERE task_id = %(parent_id)s {{lock}})'

#: Completed parts of chords may still be about to send the body.
MARK_PARTS = f"""
    UPDATE {lifecycle.TABLE} SET cancelled = now(), last_updated = now()
    WHERE id = ANY(%s) AND status = 'completed' AND cancelled IS NULL AND options ? 'chord'
    RETURNING id
"""
BECAUSE = 'Not run: [{parent_id}], which started it, was cancelled'


def insert_child(insert, row):
    """Insert the row of a run that another run starts; as revoked if that one was cancelled.

    Args:
        insert: The statement that inserts any row, up to the columns that it returns.
        row: The column values.

    Returns:
        `(rows, is_revoked)`: the inserted row, if there was none, with its primary key in the first column; and whether
        it was revoked, so that its message must not be sent.
    """
    connection = caller()
    lock = '' if connection.in_atomic_block else 'FOR SHARE'
    rows = execute(connection, f'{insert.rstrip()}, {PARENT_CANCELLED.format(lock=lock)}', row)
    is_revoked = bool(rows) and bool(rows[0][1])
    if is_revoked:
        lifecycle.cancel(connection, [rows[0][0]], BECAUSE.format(**row))
    return rows, is_revoked


def are_orphans(ids, parent_id):
    """Revoke runs if the run that started them was cancelled meanwhile, and return whether it was."""
    connection = caller()
    rows = execute(connection, f'SELECT {PARENT_CANCELLED.format(lock="")}', {'parent_id': parent_id})
    if not rows[0][0]:
        return False
    lifecycle.cancel(connection, ids, BECAUSE.format(parent_id=parent_id))
    return True


def refuse(app, name, options):
    """Report to the result backend that a run was created as revoked, and end what depends on it."""
    try:
        app.backend.mark_as_revoked(options['task_id'], 'revoked', as_request(options['task_id'], name, options))
    except Exception as exc:  # noqa: BLE001 - backends fail each in their own way
        logger.warning('The end of %s could not be stored in the result backend: %s', options['task_id'], exc)


def mark_parts(ids):
    """Mark completed runs as cancelled if their chord may be continuing at this moment.

    Returns:
        Whether any of them had not been marked before.
    """
    return bool(execute(caller(), MARK_PARTS, (list(ids),)))
