"""A call with an ID that was used before: a signature that was frozen and sent twice, a chord applied again.

To Celery that is a new call, and it runs. To a row it may be one of three things:

* **The same call once more.** A run that was lost, or is retried, sends what it had sent: the next step of its chain,
  or a call of its body with an ID that the body made. And of groups that follow each other in a chain, Celery lets each
  member of one send all of the next. That ran, or will: the row stays as it is.
* **A new call, and the first has finished.** The row is used again: it becomes that of the new call, with the history
  and the log of the earlier ones. Messages carry the number of the use that they belong to (`begun`), and the claim
  compares it, so that no message of an earlier call can claim the row. Claims count on: what is left of an earlier call
  cannot end this one.
* **A new call, and the first is active.** One ID cannot be two runs at a time. The caller gets a `TaskConflict`.

A message from another program with a used ID counts as a copy: a broker, or a program whose connection broke, sends
those too, and what a row says is done is not done again.
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
    'BEGIN_ANEW',
    'anew_statement',
    'conflict',
    'find',
    'find_earlier',
    'forget',
    'header_of',
    'made',
    'repeating',
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
#: Further columns that no call sets.
EMPTIED = (
    'result', 'exact_result', 'value', 'started', 'completed', 'cancelled', 'holder', 'sent',
    'concurrency_key', 'concurrency_limit', 'concurrency_slot', 'stale_after',
)


def anew_statement(**expressions):
    """Return the statement that turns a finished row into that of a new call; arguments as for `insert_statement`.

    GUARANTEE: of several calls that find the same end, one gets the row.
    """
    columns = {**CONSTANTS, **dict.fromkeys(COLUMNS), **expressions}
    changes = [f'{column} = EXCLUDED.{column}' for column in columns if column not in KEPT]
    changes += [f'{column} = NULL' for column in EMPTIED if column not in columns]
    return insert_statement(
        f'DO UPDATE SET {", ".join(changes)} WHERE run.completed = %(seen)s', **expressions
    )


BEGIN_ANEW = anew_statement()

#: From when on calls may have been sent before; `None`: they were not.
_repeating: ContextVar[datetime | None] = ContextVar('netbox_celery_repeating', default=None)


@contextmanager
def repeating(since=None):
    """Treat what is sent meanwhile as something that may have been sent before.

    Args:
        since: A run that ended before that time was another call; `None` if there was none.
    """
    token = _repeating.set(since or datetime.min.replace(tzinfo=UTC))
    try:
        yield
    finally:
        _repeating.reset(token)


def find(row, run, request):
    """Return what a new call has to know of the row with its ID; `None` if there is none, or it is that of the call.

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
        logger.info('Task %s[%s] was sent before by what sends it now', row['celery_name'], row['task_id'])
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
    """Return what the row of a step says if that ended before the workflow was called again; else `None`.

    Args:
        connection: The engine's connection.
        row: The column values of the step.
        run: The run that it comes after: `begun` as in `Run`, and `since`, when it was first claimed or called.
    """
    if not run.begun:
        return None
    found = _found(connection.execute(FIND, row, patience=5))
    if found is None or found.completed is None or found.header.get('caller', 0) == run.begun:
        return None
    return found if found.completed <= run.since else None  # in the one transaction of a test all times are the same


def made(row):
    """Return the row of a call, if the answer to its statement was lost with a broken connection.

    The statement was then executed again, and found the row there.

    Returns:
        A list: of its primary key, and whether it waits in line; empty if the row is that of another call.
    """
    return execute(caller(), MADE, row)


def _is_repeated(found, row, run, request):
    """Whether a call is one that the row has already."""
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
        return False  # that was sent by an earlier call of the caller's row
    if run.returned and is_related:
        return True  # of groups in a chain each member of one sends all of the next
    if not is_child:
        return False
    if found.reason == Reason.REASON_UPSTREAM_FAILED:
        return True  # the caller was taken for dead, and does not know
    return found.created.timestamp() < run.claimed_at and (run.returned or found.is_same)


def conflict(row, status='active'):
    """Return the exception for a call whose ID is that of a run which has not ended."""
    return TaskConflict(
        f'{row["celery_name"]}: the ID {row["task_id"]} is that of a run that is {status}; a new call can use it '
        'when that run has finished', row['task_id']
    )


def header_of(found, run, header):
    """Return what the message of a new call says of its run: which use of the row it is, and of the caller's row.

    Args:
        found: What `find` has returned.
        run: The run that makes the call, or `None`.
        header: What else it says, a dict or `True`.
    """
    begun = found.header.get('begun', 0)
    return {
        **(header if isinstance(header, dict) else {}),
        'begun': begun + 1 if type(begun) is int else 1, 'before': found.claims,
        **({'caller': run.begun} if run is not None and run.begun else {}),
    }


def forget(backend, task_id):
    """Let the result backend forget how an earlier call ended: code that waits for the new one must not get that."""
    try:
        backend.forget(task_id)
        if isinstance(backend, AsyncBackendMixin):
            forget_messages(backend, task_id)
    except Exception as exc:  # noqa: BLE001 - backends fail each in their own way, and some cannot
        logger.warning('The earlier result of %s could not be forgotten: %r', task_id, exc)
