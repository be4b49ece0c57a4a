"""A call with an ID that was used before: a signature that was frozen and sent twice, a chord applied again.

For Celery this is a new call, and it runs. For a row there are three cases:

* **The same call again.** A run that was lost, or is retried, repeats its calls: the next step of its chain, or a call
  of its body with an ID that the body generated. And if groups follow each other in a chain, each member of one group
  sends the whole next group. Such a call ran already, or will run: the row does not change.
* **A new call, and the first has finished.** The row is reused: it becomes that of the new call, with the history and
  the log of the earlier ones. Messages carry the number of the use that they belong to (`begun`), and the claim
  compares it, so that no message of an earlier call can claim the row. The count of claims continues, so that no
  process of an earlier call can finish this one.
* **A new call, and the first is active.** One ID cannot be two runs at a time. The caller gets a `TaskConflict`.

A message from another program with a used ID counts as a copy: a broker, or a program whose connection broke, sends
copies too, and a run that the row records as finished does not run again.
"""
import json
import logging
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import SimpleNamespace

from celery.backends.asynchronous import AsyncBackendMixin

from ...choices import ResultReasonChoices as Reason
from ..exceptions import TaskConflict
from ..internals import forget_messages
from ..store.database import caller, execute
from ..store.headers import HEADER
from ..store.lifecycle import TABLE
from .rows import COLUMNS, CONSTANTS, insert_statement

__all__ = (
    'REUSE',
    'conflict',
    'find',
    'find_earlier',
    'forget',
    'header_of',
    'made',
    'repeating',
    'reuse_statement',
)

logger = logging.getLogger(__name__)

FIND = f"""
    SELECT status, reason, completed, claims, created, parent_id::text, root_id::text,
        options #>> '{{headers,{HEADER}}}',
        celery_name = %(celery_name)s AND args IS NOT DISTINCT FROM %(args)s::jsonb
            AND kwargs IS NOT DISTINCT FROM %(kwargs)s::jsonb
    FROM {TABLE} WHERE task_id = %(task_id)s
"""

MADE = f'''
    SELECT id, concurrency_slot IS NOT DISTINCT FROM 0 FROM {TABLE}
    WHERE task_id = %(task_id)s AND created = %(created)s
'''

#: Columns that a row keeps from earlier calls.
KEPT = {'task_id', 'custom_field_data', 'attempts', 'claims'}
#: Columns that no call sets.
EMPTIED = (
    'result', 'exact_result', 'value', 'started', 'completed', 'cancelled', 'holder', 'sent',
    'concurrency_key', 'concurrency_limit', 'concurrency_slot', 'stale_after',
)


def reuse_statement(**expressions):
    """Return the statement that turns a finished row into that of a new call; arguments as for `insert_statement`.

    GUARANTEE: of several calls that find the same end, one gets the row.
    """
    columns = {**CONSTANTS, **dict.fromkeys(COLUMNS), **expressions}
    changes = [f'{column} = EXCLUDED.{column}' for column in columns if column not in KEPT]
    changes += [f'{column} = NULL' for column in EMPTIED if column not in columns]
    return insert_statement(
        f'DO UPDATE SET {", ".join(changes)} WHERE run.completed = %(seen)s', **expressions
    )


REUSE = reuse_statement()

#: Start of the time in which calls may have been sent before; `None`: they were not.
_repeating: ContextVar[datetime | None] = ContextVar('netbox_celery_repeating', default=None)


@contextmanager
def repeating(since=None):
    """Treat calls in this block as ones that may have been sent before.

    Args:
        since: A run that finished before this time was another call; `None`: there was no other call.
    """
    token = _repeating.set(since or datetime.min.replace(tzinfo=UTC))
    try:
        yield
    finally:
        _repeating.reset(token)


def find(row, run, request):
    """Return what a new call needs to know of the row with its ID; `None` if there is none, or it is the call's own.

    Args:
        row: The column values of the call.
        run: The run that makes it, or `None`.
        request: The request of the task that makes it, or `None`.

    Raises:
        TaskConflict: The run with that ID has not finished.
    """
    found = _found(execute(caller(), FIND, row))
    if found is None:
        return None
    if _is_repeated(found, row, run, request):
        logger.info('Task %s[%s] was sent before by the same run', row['celery_name'], row['task_id'])
        return None
    if found.completed is None:
        raise conflict(row, found.status)
    return found


def _found(rows):
    if not rows:
        return None
    names = ('status', 'reason', 'completed', 'claims', 'created', 'parent_id', 'root_id', 'header', 'is_same')
    found = SimpleNamespace(**dict(zip(names, rows[0])))
    header = json.loads(found.header) if found.header else None
    found.header = header if isinstance(header, dict) else {}
    return found


def find_earlier(connection, row, run):
    """Return what `find` returns for a step that finished before the workflow was called again; else `None`.

    Args:
        connection: The engine's connection.
        row: The column values of the step.
        run: The run that precedes it: `begun` as in `Run`, and `since`, when it was first claimed or called.
    """
    if not run.begun:
        return None
    found = _found(connection.execute(FIND, row, patience=5))
    if found is None or found.completed is None or found.header.get('caller', 0) == run.begun:
        return None
    return found if found.completed <= run.since else None  # within the transaction of a test all times are equal


def made(row):
    """Return the row of a call, if the response to its statement was lost with a broken connection.

    The statement was then executed again, and found its own row.

    Returns:
        A list with its primary key, and whether it waits in line; empty if the row belongs to another call.
    """
    return execute(caller(), MADE, row)


def _is_repeated(found, row, run, request):
    """Whether a call is the one that the row already has."""
    if since := _repeating.get():
        return found.completed is None or found.completed >= since
    if row['parent_id'] is None:
        return False
    is_child, is_related = found.parent_id == row['parent_id'], found.root_id == row['root_id']
    if run is None:
        if request is None or not is_child:
            return request is not None and is_related
        return bool(request.retries or (request.delivery_info or {}).get('redelivered'))
    if found.header.get('caller', 0) != run.begun:
        return False  # an earlier use of the caller's row has sent it
    if run.returned and is_related:
        return True  # each member of a group in a chain sends the whole next group
    if not is_child:
        return False
    if found.reason == Reason.REASON_UPSTREAM_FAILED:
        return True  # the caller was considered lost, and does not know that
    return found.created.timestamp() < run.claimed_at and (run.returned or found.is_same)


def conflict(row, status='active'):
    """Return the exception for a call whose ID belongs to an unfinished run."""
    return TaskConflict(
        f'{row["celery_name"]}: the ID {row["task_id"]} is that of a run that is {status}; a new call can use it '
        'when that run has finished', row['task_id']
    )


def header_of(found, run, header):
    """Return the engine's header of a new call: which use of the row it is, and which use of the caller's row makes it.

    Args:
        found: The value that `find` returned.
        run: The run that makes the call, or `None`.
        header: The rest of the header: a dict or `True`.
    """
    begun = found.header.get('begun', 0)
    return {
        **(header if isinstance(header, dict) else {}),
        'begun': begun + 1 if type(begun) is int else 1, 'before': found.claims,
        **({'caller': run.begun} if run is not None and run.begun else {}),
    }


def forget(backend, task_id):
    """Make the result backend forget the end of an earlier call: code that waits for the new one must not get it."""
    try:
        backend.forget(task_id)
        if isinstance(backend, AsyncBackendMixin):
            forget_messages(backend, task_id)
    except Exception as exc:  # noqa: BLE001 - backends fail each in their own way, and some cannot
        logger.warning('The earlier result of %s could not be forgotten: %r', task_id, exc)
