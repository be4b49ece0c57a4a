"""A call becomes a row, and then a message.

Everything that starts a task (`delay`, canvas, retries, beat, `send_task`) calls `app.send_task`, which calls `send()`.
In a transaction, the row is part of the transaction and the message is sent on commit; otherwise the message follows
the row immediately. If a row has no `sent`, its message may not have been sent: the sweep sends it (again), and the
claim makes sure that it runs once.

The call is described once (`describe`) and does not change. A `Draft` holds what sending adds to it.
"""
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from celery import states
from celery.exceptions import CeleryError, Ignore
from celery.result import EagerResult
from django.db import DatabaseError, InternalError

from ... import host
from ..calls.call import Call
from ..calls.options import detached, tag
from ..calls.policies import policy_of
from ..exceptions import DatabaseReadOnly, TaskConflict
from ..store.database import (
    UNAVAILABLE,
    caller,
    execute,
    in_savepoint,
    is_read_only,
    now_or_on_commit,
    on_commit,
    refuse_read_only,
)
from ..store.recorder import recorder
from ..workflows.canvas import as_request
from ..workflows.family import are_orphans, insert_child, refuse
from .admission import admit, advance, is_under_way
from .control import cancel_many
from .describe import describe
from .publish import note_refusal
from .replace import INSERT_OR_TAKE_OVER, find_replaced, inherited, message_of, send_next
from .rows import INSERT, build_row, check_payload, copied, exact_call, options_columns, payload_columns
from .used import REUSE, conflict, find, forget, header_of, made

__all__ = (
    'send',
)

logger = logging.getLogger(__name__)

#: Seconds for which a worker waits for the database before it sends a call of a task without a row.
PATIENCE = 60


class Draft(NamedTuple):
    """The row and the message of a call: as planned, and, once `id` is set, as written."""
    call: Call
    #: Celery's own `send_task`.
    publish: Callable[..., Any]
    #: The engine's header of the message (see `with_header`); `None`: it gets none.
    header: Any = None
    #: The column values; empty if there is no row.
    row: Mapping[str, Any] | None = None
    #: Whether the row is that of a task which replaced itself; `None`: not checked.
    takes_over: bool | None = None
    #: Primary key of the row, once it is written.
    id: int | None = None
    #: Whether the row was revoked when it was written, because the run that makes the call was cancelled.
    is_revoked: bool = False


def send(app, publish, name, args, kwargs, options):
    """Send a task: what `NetBoxCelery.send_task` does.

    Args:
        app: The Celery app.
        publish: Celery's own `send_task`.
        name: Name of the task.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        options: Execution options, Celery's and `netbox_*`; they are not modified.

    Returns:
        An `AsyncResult`.
    """
    call = describe(app, name, args, kwargs, options)
    if call.continues:
        return send_next(call, publish)
    if call.run is not None and call.run.replaced:
        call.run.continued = True  # a replacement is sent
    if not call.is_tracked:
        return _send_untracked(call, publish)
    result, id = _send_tracked(call, publish)
    # Without a row of its own, the call has joined an existing run
    result.netbox_joined = id is None
    return result


def _send_untracked(call, publish):
    if call.options.get('serializer') in (None, 'json'):
        check_payload(call.name, call.args, call.kwargs, call.options)
    if policy_of(call.task, call.args, call.kwargs, call.settings):
        raise CeleryError(f'{call.name}: unique, concurrency keys and ignore windows need a row, and the call has none')
    return _send_now(Draft(call, publish, False if call.own.track is False else call.header))


def _send_tracked(call, publish):
    """Insert the row, and send the message: on commit, if there is a transaction.

    Returns:
        `(result, id)`: the `AsyncResult`, and the primary key of the call's own row, or `None`.
    """
    if host.is_in_maintenance():
        raise DatabaseReadOnly(_not_sent(call))
    row = build_row(call)
    if caller().in_atomic_block:
        # The message is sent later, and must agree with the row even if the caller modifies its dicts until then
        args, kwargs = copied(call.name, (call.args, call.kwargs))
        call = call._replace(args=args, kwargs=kwargs, options=detached(call.options))
    draft = Draft(call, publish, call.header, row)
    policy = policy_of(call.task, call.args, call.kwargs, call.settings, row['branch'])
    if policy is not None:
        return _send_if_admitted(draft, policy)
    deadline = time.monotonic() + (PATIENCE if call.parent is not None else 0)
    try:
        # If the row cannot be inserted, the caller's transaction stays usable
        with in_savepoint():
            if row['nesting']:
                draft = _patiently(partial(_as_replacement, draft), call, deadline)
            draft = _patiently(partial(_insert, draft, INSERT), call, deadline)
    except DatabaseError as exc:
        if is_read_only(exc):
            # A worker could neither claim the run nor write its end
            raise DatabaseReadOnly(_not_sent(call)) from exc
        # The task is more important than its row
        logger.exception('Task %s[%s] is sent without being tracked', call.name, call.task_id)
        if not row['nesting']:  # a replacement may have the row of the replaced task, and has to finish that
            draft = draft._replace(header=False)
    return _send(draft), draft.id


def _marked(draft, **values):
    """Return a draft with a header that says that the run has a row, and with other values as given."""
    return draft._replace(header=draft.header if isinstance(draft.header, dict) else True, **values)


# The row

def _insert(draft, statement):
    """Insert the row of a draft with the caller's connection.

    Returns:
        The draft as written, with a header that says so; its `id` is `None` if the row was not inserted.
    """
    if statement is INSERT and draft.row['nesting']:
        statement = INSERT_OR_TAKE_OVER
    rows, is_revoked = _execute(statement, draft.row)
    if not rows and statement is INSERT:
        rows = made(draft.row)
        if not rows and (reused := _reuse_row(draft)):
            draft = reused
            rows, is_revoked = _execute(REUSE, draft.row)
            rows = rows or made(draft.row)
            if not rows:
                raise conflict(draft.row)  # another call was faster
    if not rows:
        return _marked(draft)
    id, call = rows[0][0], draft.call
    if 'seen' in draft.row:
        now_or_on_commit(partial(forget, call.app.backend, call.task_id))
    if call.own.tags and not draft.takes_over:
        tag([id], call.own.tags)
    return _marked(draft, id=id, is_revoked=is_revoked)


def _execute(statement, row):
    """Execute a statement for a row. Returns its rows, and whether the row was revoked: its parent was cancelled.
    """
    if row['parent_id'] is None:
        return execute(caller(), statement, row), False
    return insert_child(statement, row)


def _patiently(step, call, deadline):
    """Execute a step although the caller's connection is broken; a worker waits for an unavailable database.

    A task is sent without a row rather than not at all. But a call that a task in a worker makes, such as the next step
    of its chain, can wait just as the end of that task can, which is written next. If the database is read-only, that
    step waits without limit: it must neither run without a row nor be lost.
    """
    wait = 0.0
    while True:
        try:
            return step()
        except (*UNAVAILABLE, InternalError) as exc:
            read_only = is_read_only(exc)
            can_wait = read_only and call.parent is not None if isinstance(exc, InternalError) else True
            if not can_wait or caller().in_atomic_block:
                raise
            if wait and time.monotonic() >= deadline and not (read_only and call.is_next_step):
                raise
            caller().close()
            if wait:
                logger.warning('The database is unavailable, trying again in %.1f s: %s', wait, exc)
            time.sleep(wait)
            wait = min(wait * 2, 5) or 0.1


def _reuse_row(draft):
    """Return a draft that reuses the row of an earlier call with its ID (see `used`), or `None`.

    Raises:
        TaskConflict: The run of that call has not finished.
    """
    call = draft.call
    if not call.id_is_given or draft.row['nesting']:
        return None
    found = find(draft.row, call.run, call.request)
    if found is None:
        return None
    draft = _with_header(draft, header_of(found, call.run, draft.header))
    return draft._replace(row={**draft.row, 'seen': found.completed})


def _with_header(draft, header):
    """Return a draft with a header in its message, and in its row, from which the message may be sent again."""
    call = draft.call
    options = call.message_options(header)
    columns = options_columns(call.name, options, call.task)
    row = {**draft.row, 'options': columns['options']}
    if columns['exact_options']:
        payload = payload_columns(call.name, list(call.args or ()), dict(call.kwargs or {}), options)
        row['exact_call'] = exact_call(payload['exact_call'], columns['exact_options'])
    return draft._replace(header=header, row=row)


def _as_replacement(draft):
    """Return the draft of a call that may finish the replacement of a task, with the header from that task's row."""
    call = draft.call
    takes_over, header = find_replaced(call.task_id, draft.row['nesting'])
    draft = _marked(draft._replace(header=inherited(draft.header, header)), takes_over=takes_over)
    message = message_of(call.name, call.args, call.kwargs, call.message_options(draft.header))
    return draft._replace(row={**draft.row, 'message': message})


# Policies

def _send_if_admitted(draft, policy):
    """Apply a policy. Without a row there is no guarantee: so if the row cannot be inserted, nothing is sent."""
    call = draft.call
    if policy.window:
        draft = _with_header(draft, {'window': policy.window, 'length': policy.window_length})
    else:
        draft = _marked(draft)
    if draft.row['nesting']:
        draft = _as_replacement(draft)
    admission = _admit(draft, policy)
    if admission.is_refused:
        try:
            if reused := _reuse_row(draft):
                draft = reused
                admission = _admit(draft, policy)
                if admission.is_refused:
                    raise conflict(draft.row)  # another call was faster
        except TaskConflict:
            if policy.on_conflict != 'join' or not is_under_way(policy, call.task_id):
                raise
            return _call_hooks(call, _promise(call), 'unique'), None  # it joins the run that has the requested ID
    draft = admission.written or draft
    if admission.joined:
        return _call_hooks(call, _promise(call, admission.joined), 'unique'), None
    if admission.ignored:
        if call.id_is_known:
            request = as_request(call.task_id, call.name, call.options)
            now_or_on_commit(partial(call.app.backend.end_ignored, request, Ignore(admission.ignored)))
        result = EagerResult(call.task_id, None, states.IGNORED, name=call.name)
        return _call_hooks(call, result, 'ignored' if admission.in_window else 'unique'), draft.id
    if not admission.waits:
        return _send(draft), draft.id
    result = _call_hooks(call, _promise(call))
    now_or_on_commit(partial(_line_up, draft, policy.key))
    return result, draft.id


def _admit(draft, policy):
    """Ask for admission; if the database is read-only, the next step of a workflow waits for it."""
    call = draft.call

    def insert(statement, row):
        return _insert(draft._replace(row=row), statement)

    while True:
        try:
            with refuse_read_only(_not_sent(call)), in_savepoint():
                admission = admit(
                    policy, draft.row, insert, cancel_many, id_is_known=call.id_is_known, predecessor=call.predecessor,
                )
                if admission.is_refused and (rows := made(draft.row)):
                    id, waits = rows[0]
                    return replace(admission, written=draft._replace(id=id), waits=waits)
                return admission
        except DatabaseReadOnly as exc:
            if caller().in_atomic_block or not call.is_next_step:
                raise
            caller().close()
            logger.warning('Trying again in 5 s: %s', exc)
            time.sleep(5)


def _line_up(draft, key):
    """Send the message if it is the run's turn, and the messages of other runs whose turn it is."""
    if advance(draft.call.app, partial(execute, caller()), key, except_id=draft.id):
        _send_later(draft)


# The message

def _send(draft):
    if not caller().in_atomic_block:
        return _send_now(draft)
    result = _call_hooks(draft.call, _promise(draft.call))
    on_commit(partial(_send_later, draft))
    return result


def _send_now(draft):
    """Send the message. If the broker refuses it, this is recorded in the row, and the caller gets the exception."""
    call = draft.call
    if draft.is_revoked:
        refuse(call.app, call.name, call.options)
        return _promise(call)
    if call.invocation:
        _call_hooks(call, _result(call))
    try:
        result = draft.publish(call.name, call.args, call.kwargs, **call.message_options(draft.header))
    except Exception as exc:
        if draft.id is not None:
            note_refusal([draft.id], exc)
            # The run that makes the call has not finished: it may end in another way, or continue
            call.app.backend.close_dependents(
                call.name, call.options, exc, except_id=call.run and call.run.task_id
            )
        raise
    _note_sent(draft, result)
    return result


def _send_later(draft):
    """Send the message after the call was made: on commit, or when it is the run's turn."""
    call = draft.call
    try:
        parent_id = call.options.get('parent_id')
        if draft.id is not None and parent_id and are_orphans([draft.id], parent_id):
            return refuse(call.app, call.name, call.options)
        result = draft.publish(
            call.name, call.args, call.kwargs, add_to_parent=False,
            **call.message_options(draft.header, is_deferred=True)
        )
    except Exception as exc:  # noqa: BLE001 - the caller's transaction is committed, no caller could handle it
        logger.error('Task %s[%s] could not be sent, it will be sent again: %s', call.name, call.task_id, exc)
    else:
        _note_sent(draft, result)


def _note_sent(draft, result):
    if draft.id is not None:
        recorder.sent(draft.id)
    if invocation := draft.call.invocation:
        invocation.tell('trigger', result)


# What the caller gets

def _result(call, task_id=None):
    """Return an `AsyncResult` of the run of a call, or of another one."""
    result = (call.options.get('result_cls') or call.app.AsyncResult)(task_id or call.task_id)
    result.ignored = call.options.get('ignore_result')
    return result


def _promise(call, task_id=None):
    """Return the result that `send_task` would have returned."""
    result = _result(call, task_id)
    if call.parent is not None and call.options.get('add_to_parent', True):
        call.parent.add_trail(result)
    return result


def _call_hooks(call, result, *what):
    """Call the task's hooks with a result: the one for the call, and those for `what`. Returns the result."""
    if call.invocation:
        for name in ('apply', *what):
            call.invocation.tell(name, result)
    return result


def _not_sent(call):
    return f'{call.name}[{call.task_id}] was not sent'
