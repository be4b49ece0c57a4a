"""`self.replace()`: what happens to the row of a task that replaces itself, each way in one table.

If a single task is the replacement, it takes over the row immediately. If a chain is, its last step takes over the row;
if a chord is (or a group, which Celery turns into a chord), its body does. This last call has the ID of the task that
was replaced, and another process sends it later. So:

* Until that call is sent, the row has no message, and nothing sends it again: `AWAITS_REPLACEMENT`. If a step before
  it does not succeed, the result backend closes the row (`netbox_celery.engine.results.upstream`).
* While the replacement is being sent, the worker holds the row. If the replacement cannot be sent, the run continues
  as if nothing had been tried; if the worker dies, the sweep settles the row (`settle`).
* The row stores the ignore window that the success of the run opens. The call that takes over the row reads it there
  (`find_replaced`, `inherited`).

Elsewhere: `runs.claim` wraps `on_replace` of each task, `describe` and `enqueue` send the replacement in the same steps
as any other call, and `store.lifecycle` has the statements.
"""
import json
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps

from celery.exceptions import Ignore
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from kombu.exceptions import EncodeError

from ...choices import ResultReasonChoices as Reason
from ...choices import ResultStatusChoices as Status
from ..calls.arguments import call_text
from ..calls.options import sent_options, start_time
from ..calls.queues import delivered_to
from ..calls.run import get_run
from ..exceptions import DatabaseReadOnly
from ..store import lifecycle
from ..store.branches import alias as branch_alias
from ..store.database import UNUSABLE, CallersConnection, caller, execute, get_connection, is_read_only, without_pool
from ..store.headers import HEADER
from ..store.payload import dumps
from ..store.recorder import recorder
from .rows import build_row, check_payload, insert_statement

__all__ = (
    'INSERT_OR_TAKE_OVER',
    'ON_ITS_WAY',
    'TAKE_OVER_COLUMNS',
    'WAYS',
    'Way',
    'find_replaced',
    'handing_over_row',
    'inherited',
    'message_of',
    'opened_by',
    'remember',
    'send_next',
    'settle',
    'take_over_statement',
    'takes_over',
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Way:
    """An event in the life of a row whose task replaces itself, and the state of the row after it."""
    status: str
    reason: str
    #: Whether the worker of the task that was replaced holds the row.
    is_held: bool
    #: Whether the row has the message of the call that takes it over, so that the sweep can send it.
    has_message: bool
    #: Name of the statement in `store.lifecycle`, in this module or in `admission`.
    statement: str


_PENDING, _ERRORED, _REPLACED = Status.STATUS_PENDING, Status.STATUS_ERRORED, Reason.REASON_REPLACED

#: All events. Those that finish the run are in `runs.ending`, too.
WAYS = {
    # While the task replaces itself
    'waits': Way(_PENDING, _REPLACED, True, False, 'REPLACE'),
    'was_cancelled': Way(Status.STATUS_REVOKED, Reason.REASON_CANCELLED, True, False, 'REPLACE'),
    'cannot_wait': Way(Status.STATUS_IGNORED, '', True, False, 'FINISH_BY'),
    'remembers': Way(_PENDING, _REPLACED, True, True, 'REMEMBER'),
    'continues': Way(Status.STATUS_RUNNING, '', True, False, 'TAKE_BACK'),
    'is_released': Way(_PENDING, _REPLACED, False, False, 'RELEASE'),
    # The call that takes the row over
    'is_taken_over': Way(_PENDING, _REPLACED, False, True, 'INSERT_OR_TAKE_OVER'),
    'is_taken_over_with_a_key': Way(_PENDING, _REPLACED, False, True, 'TAKE'),
    'waits_in_line': Way(_PENDING, Reason.REASON_QUEUED, False, True, 'LINE_UP'),
    # The replacement fails before its last call is sent, or is lost
    'is_closed': Way(_ERRORED, Reason.REASON_UPSTREAM_FAILED, False, False, 'CLOSE_REPLACED'),
    'is_cancelled': Way(Status.STATUS_REVOKED, Reason.REASON_CANCELLED, False, False, 'CANCEL'),
    'is_sent_again': Way(_PENDING, _REPLACED, False, True, 'RESEND_REPLACEMENT'),
    'is_lost': Way(_ERRORED, Reason.REASON_WORKER_LOST, True, False, 'CLOSE_REPLACED'),
}

#: Columns that the row of a replaced task gets from the call that takes it over.
TAKE_OVER_COLUMNS = ('message', 'queue', 'status', 'scheduled', 'expires', 'sent', 'last_updated')


def take_over_statement(*columns, **expressions):
    """Return the statement for a call that may finish a replacement: it takes over the replaced task's row, or inserts.

    A row that was claimed since is not taken over.

    Args:
        *columns: Columns that the row gets from the call.
        **expressions: SQL for the values of further columns.
    """
    changes = ', '.join(f'{column} = EXCLUDED.{column}' for column in (*expressions, *columns))
    return insert_statement(
        f'DO UPDATE SET {changes} WHERE run.nesting = EXCLUDED.nesting AND run.attempt = 0 AND run.completed IS NULL',
        **expressions
    )


INSERT_OR_TAKE_OVER = take_over_statement(*TAKE_OVER_COLUMNS)
FIND = f"""
    SELECT options #>> '{{headers,{HEADER}}}' FROM {lifecycle.TABLE}
    WHERE task_id = %s AND nesting = %s AND attempt = 0 AND completed IS NULL
"""
#: Rows whose replacement is being sent by a worker, which holds them until then.
ON_ITS_WAY = f"{lifecycle.WAITING} AND nesting > 0 AND reason = 'replaced' AND holder IS NOT NULL"
#: The keys that `used.header_of` sets.
USE_OF_ROW = ('begun', 'before', 'caller')


# The task that replaces itself

def handing_over_row(on_replace, end):
    """Wrap a task's `on_replace`, so that its row waits for the replacement.

    Args:
        on_replace: The method of the task.
        end: Finishes a run whose row cannot wait; called with the run and `error`.
    """
    @wraps(on_replace)
    def on_replace_after_row(self, sig):
        run = get_run(self.request_stack.top)
        if run is None:
            return on_replace(self, sig)
        with _handing_over(self, run, end), _outside_of_transactions():
            return on_replace(self, sig)
    return on_replace_after_row


@contextmanager
def _handing_over(task, run, end):
    """Make the row of a run wait for the replacement, which the block sends. If the block fails, the run continues."""
    before = _begin(task, run, end)
    try:
        yield
    except Ignore:
        # Celery raises this after it has sent the replacement. An author's own `on_replace` may not have sent anything
        if before is not None and not run.continued:
            _take_back(run, before)
        raise
    except BaseException:
        if before is not None:
            _take_back(run, before)
        raise
    finally:
        if before is not None and run.replaced:
            _release(run)


def _begin(task, run, end):
    """Make the row of a run wait. Returns what `lifecycle.take_back` needs; `None`: there is nothing to take back."""
    request = task.request_stack.top
    nesting = (request.replaced_task_nesting or 0) + 1
    recorder.flush(run)
    try:
        found = lifecycle.replace(
            get_connection(), run.task_id, claims=run.claims, nesting=nesting,
            header=json.dumps({**_use_of_row(request.get(HEADER)), 'opens': run.opens}) if run.opens else None
        )
    except DatabaseError as exc:
        if is_read_only(exc):
            raise DatabaseReadOnly(f'Task {run.task_id} was not replaced') from exc
        # The replacement is more important than the row, which finishes here, and informs what depends on the run
        logger.exception('The replacement of task %s is sent without being tracked', run.task_id)
        end(run, error='Replaced by a task that is not tracked')
        return None
    run.replaced = True
    return found[2] if found is not None and found[1] == Status.STATUS_PENDING else None


def _take_back(run, before):
    try:
        if lifecycle.take_back(
            get_connection(), run.task_id, claims=run.claims, attempt=run.attempt, before=before
        ):
            run.replaced = run.continued = False
    except DatabaseError:
        logger.exception('Task %s waits for a replacement that could not be sent', run.task_id)


def _release(run):
    release = partial(lifecycle.release, task_id=run.task_id, claims=run.claims)
    try:
        release(get_connection())
    except UNUSABLE as exc:
        logger.error('Cannot record yet that the replacement of task %s was sent: %s', run.task_id, exc)
        recorder.end_later(run.task_id, partial(release, patience=0))


@contextmanager
def _outside_of_transactions():
    """Keep calls in this block out of a transaction of the body.

    Celery leaves the body with an exception, which rolls the transaction back; the replacement must not be rolled back.
    """
    if isinstance(get_connection(), CallersConnection):
        yield
        return
    own = {alias: connections[alias] for alias in (DEFAULT_DB_ALIAS, branch_alias()) if alias is not None}
    others = {alias: without_pool(wrapper) for alias, wrapper in own.items() if wrapper.in_atomic_block}
    for alias, wrapper in others.items():
        connections[alias] = wrapper
    try:
        yield
    finally:
        for alias, wrapper in others.items():
            connections[alias] = own[alias]
            wrapper.close()


# The calls that continue under the ID of the run: the replacement, and also the next attempt

def send_next(call, publish):
    """Send the next attempt or the replacement of the current run, whose row exists."""
    run, request = call.run, call.request
    if call.options.get('serializer') in (None, 'json'):
        check_payload(call.name, call.args, call.kwargs, call.options)
    if not call.is_tracked:
        return publish(call.name, call.args, call.kwargs, **call.message_options(False))
    # The next attempt may start immediately in another process: the log lines of this one are written first
    recorder.flush(run)
    run.next_eta = start_time(call.options)
    header = request.get(HEADER) or True
    if call.replaces or run.remembered or call.queue != delivered_to(call.app, request.delivery_info) or (
        not _is_same_call(call)
    ):
        if not remember(call, header):
            # The claim then does not compare the message with the row
            header = {**(header if isinstance(header, dict) else {}), 'differs': True}
        run.remembered = True
    run.continued = True
    result = publish(call.name, call.args, call.kwargs, **call.message_options(header))
    if call.replaces:
        recorder.sent(run.id)
    return result


def _is_same_call(call):
    """Whether the next attempt of a run is the call that its row stores. The body may have changed the arguments."""
    request = call.request
    if call.name != (request.task or call.parent.name):
        return False
    if call.run.call is not None:
        return call.run.call == call_text(call.args, call.kwargs)
    return (list(call.args or ()), call.kwargs or {}) == (list(request.args or ()), request.kwargs or {})


def message_of(name, args, kwargs, options):
    """Return the value of the row's `message`, from which a message is sent again that differs from the row's call."""
    return dumps([list(args or ()), kwargs or {}, name, sent_options(options, None)])


def remember(call, header):
    """Store the message of the next attempt, or of a single task that is the replacement, in the row.

    Args:
        call: The `Call`.
        header: The engine's header of the message (see `with_header`).

    Returns:
        Whether the row has it. If not, the message has to say so.
    """
    run = call.run
    options = call.message_options(header)
    try:
        row = build_row(call._replace(options={**options, 'task_id': run.task_id}))
        lifecycle.remember(
            get_connection(), run.task_id, message_of(call.name, call.args, call.kwargs, options), claims=run.claims,
            queue=row['queue'], scheduled=row['scheduled'], expires=row['expires']
        )
    except (DatabaseError, EncodeError, LookupError, TypeError, ValueError):
        # Whether it can be sent now depends only on the broker
        logger.exception('Task %s[%s] could not be sent again, if that was necessary', call.name, run.task_id)
        return False
    return True


# The call that takes the row over

def takes_over(options):
    """Whether a call finishes the replacement of a tracked task. It then finishes that task's row, tracked or not."""
    return bool(options.get('replaced_task_nesting') and options.get('task_id')) and bool(
        execute(caller(), f'SELECT 1 FROM {lifecycle.TABLE} WHERE task_id = %s', (options['task_id'],))
    )


def find_replaced(task_id, nesting):
    """Return whether a row waits for a call with its ID, and the engine's header of the messages of that run."""
    rows = execute(caller(), FIND, (task_id, nesting))
    return bool(rows), json.loads(rows[0][0]) if rows and rows[0][0] else None


def inherited(own, header):
    """Return the header of a call that takes over a run's row: its success opens the ignore windows of that run.

    Args:
        own: The engine's header of the call so far (see `with_header`).
        header: The header of that run's messages.
    """
    if not isinstance(header, dict):
        return own
    opens, beginning = opened_by(header), _use_of_row(header)
    if not opens and not beginning:
        return own
    own = own if isinstance(own, dict) else {}
    return {**own, **beginning, 'opens': opens | opened_by(own)}


def _use_of_row(header):
    """Return the part of a message's header that says which use of the row it belongs to (see `used`)."""
    return {key: header[key] for key in USE_OF_ROW if key in header} if isinstance(header, dict) else {}


def opened_by(header):
    """Return the ignore windows that a success opens, from the header of a message: seconds by key."""
    opens = header.get('opens')
    opens = dict(opens) if isinstance(opens, dict) else {}
    if header.get('window') and header.get('length'):
        opens[header['window']] = header['length']
    return opens


# The sweep

def settle(connection, task_id, claims, error):
    """Settle a run whose worker was lost while it sent the replacement: if the row has the message, it is sent again.

    Returns:
        The value that `lifecycle.close_replaced` returns, or `None` if the run continues.
    """
    if lifecycle.resend_replacement(connection, task_id, claims=claims):
        logger.warning('The replacement of task %s will be sent again: %s', task_id, error)
        return None
    return lifecycle.close_replaced(connection, task_id, error, reason=Reason.REASON_WORKER_LOST)
