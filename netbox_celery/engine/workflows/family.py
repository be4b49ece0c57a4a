"""The runs of a workflow as a whole: those that have a root in common.

A workflow that is cancelled stays cancelled. What waits is revoked, what runs is ended or asked to stop, and what a
run starts after its cancel - the next step of its chain, the body of its chord, a callback - is born revoked: its row
says so, and its message is not sent.
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


# GUARANTEE: of a cancel and of a call by the cancelled run, the later one knows of the other. The lock waits for a
# cancel that is under way; who cancels a workflow looks for new rows until there are none. In a transaction of the
# task's own there is no lock, since it would be in the way of what the engine writes for the run: the look is taken
# again after the commit.
PARENT_CANCELLED = f'(SELECT cancelled IS NOT NULL FROM {lifecycle.TABLE} WHERE task_id = %(parent_id)s {{lock}})'

#: Parts of chords that are done may still be about to send the body.
MARK_PARTS = f"""
    UPDATE {lifecycle.TABLE} SET cancelled = now(), last_updated = now()
    WHERE id = ANY(%s) AND status = 'completed' AND cancelled IS NULL AND options ? 'chord'
    RETURNING id
"""
BECAUSE = 'Not run: [{parent_id}], which started it, was cancelled'


def insert_child(insert, row):
    """Insert the row of a run that another run starts; revoked, if that one was cancelled.

    Args:
        insert: The statement for any row, up to what it returns.
        row: The column values.

    Returns:
        `(rows, is_revoked)`: the inserted row, if there was none, which begins with its primary key; and whether it
        was revoked, so that its message must not be sent.
    """
    connection = caller()
    lock = '' if connection.in_atomic_block else 'FOR SHARE'
    rows = execute(connection, f'{insert.rstrip()}, {PARENT_CANCELLED.format(lock=lock)}', row)
    is_revoked = bool(rows) and bool(rows[0][1])
    if is_revoked:
        lifecycle.cancel(connection, [rows[0][0]], BECAUSE.format(**row))
    return rows, is_revoked


def are_orphans(ids, parent_id):
    """Whether the run that started others was cancelled meanwhile; then these are revoked."""
    connection = caller()
    rows = execute(connection, f'SELECT {PARENT_CANCELLED.format(lock="")}', {'parent_id': parent_id})
    if not rows[0][0]:
        return False
    lifecycle.cancel(connection, ids, BECAUSE.format(parent_id=parent_id))
    return True


def refuse(app, name, options):
    """Let those who wait for the result of a run know that it was born revoked, and end what depends on it."""
    try:
        app.backend.mark_as_revoked(options['task_id'], 'revoked', as_request(options['task_id'], name, options))
    except Exception as exc:  # noqa: BLE001 - backends fail each in their own way
        logger.warning('The end of %s could not be stored in the result backend: %s', options['task_id'], exc)


def mark_parts(ids):
    """Mark those of some runs as cancelled that have ended, but whose chord may be going on at this moment.

    Returns:
        Whether there were any that had not been marked.
    """
    return bool(execute(caller(), MARK_PARTS, (list(ids),)))
