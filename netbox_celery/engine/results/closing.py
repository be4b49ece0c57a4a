"""Closes steps that will never run: gives each of them a row that names the run that did not succeed.

A later step of a chain, or the body of a chord, has no row before its message is sent: its arguments are not known
yet, and a plain task should not pay for steps that may never run. A step is closed when a run that it depends on does
not succeed: it ends as `errored` with the reason `upstream_failed`.
"""
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, NamedTuple

from django.db import DatabaseError

from ...choices import ResultReasonChoices as Reason
from ...choices import ResultStatusChoices as Status
from ..calls.call import Call
from ..calls.ids import canonical, canonical_ids
from ..calls.options import Own, lift, split
from ..sending.admission import advance_line
from ..sending.describe import find_task, wants_row
from ..sending.rows import build_row, insert_statement
from ..sending.used import find_earlier, forget, header_of, reuse_statement
from ..store import lifecycle
from ..store.conditions import IN_GROUP
from ..store.database import get_connection
from ..store.payload import clean_text, is_uuid, repr_of, text_of
from ..workflows.canvas import root_of

__all__ = (
    'Blame',
    'close_step',
    'failed_member',
    'is_known_step',
    'is_tracked_step',
    'load_culprit',
)

CULPRIT = f"""
    SELECT name, status, reason, error, user_id, root_id::text, {lifecycle.BEGUN}, COALESCE(started, created)
    FROM {lifecycle.TABLE} WHERE task_id = %s
"""
FAILED_MEMBER = f"""
    SELECT task_id::text FROM {lifecycle.TABLE}
    WHERE {IN_GROUP} AND completed IS NOT NULL AND status <> 'completed'
    ORDER BY completed LIMIT 1
"""
EXISTING = f'SELECT status, reason FROM {lifecycle.TABLE} WHERE task_id = %s'
#: Options of a step that mean nothing once it will never run.
LAPSED = ('eta', 'countdown', 'expires')


class Blame(NamedTuple):
    """Why steps are closed."""
    #: ID of the run that did not succeed, or `None` if there is no such run.
    task_id: str | None
    #: The request of the run whose end started this, or `None`.
    request: Any
    #: The exception.
    exc: BaseException | None


# GUARANTEE: a step that was sent is not closed: its own run decides its end. (`lifecycle.close_replaced` closes the row
# of a task that replaced itself.)
CLOSED = {
    'reason': "'upstream_failed'", 'error': '%(error)s', 'completed': 'now()', 'exact_result': '%(exact_result)s',
    'in_backend': '%(in_backend)s',
}
CLOSE, CLOSE_REUSED = insert_statement(**CLOSED), reuse_statement(**CLOSED)


def _own_of(task, signature):
    """Return the keyword arguments, the options and the `Own` options of a single step."""
    options, own = split(signature.get('options') or {})
    kwargs, own = lift(task, signature.get('kwargs') or {}, own)
    return kwargs, options, Own.merge(task, own)


def is_tracked_step(app: Any, signature: Any) -> bool:
    """Whether a single step has a row after it was sent."""
    task = find_task(app, signature['task'])
    return wants_row(task, _own_of(task, signature)[-1])


def close_step(
    app: Any, signature: Any, blame: Blame, exact_result: str | None = None, in_backend: bool = False
) -> bool:
    """Close a single step.

    Args:
        app: The Celery app.
        signature: The step.
        blame: Why it is closed.
        exact_result: The exception as the result backend reports it, as JSON text.
        in_backend: Whether the backend is about to get the end, too: before that, the row does not show it to code.

    Returns:
        `False` if the step was sent.
    """
    name = signature['task']
    task = find_task(app, name)
    kwargs, options, own = _own_of(task, signature)
    options = canonical_ids(options)
    task_id: Any = options.get('task_id')
    if not is_uuid(task_id):
        return True
    culprit = load_culprit(blame)
    if not wants_row(task, own):
        # It has no row, unless it is the last step of the replacement of a tracked task
        _free(lifecycle.close_replaced(
            get_connection(), task_id, culprit.sentence, exact_result=exact_result, in_backend=in_backend
        ))
        return True
    options = {option: value for option, value in options.items() if option not in LAPSED} | {
        'root_id': culprit.root_id or options.get('root_id'), 'parent_id': options.get('parent_id') or culprit.task_id
    }
    end = {
        'status': Status.STATUS_ERRORED, 'message': None, 'error': clean_text(culprit.sentence),
        'exact_result': exact_result, 'in_backend': in_backend,
    }
    call = Call(app, name, signature.get('args'), kwargs, options, own, task=task)
    row = build_row(call, culprit) | end
    connection = get_connection()
    if connection.execute(CLOSE, row, patience=5):
        return True
    if found := find_earlier(connection, row, culprit):
        reused = call._replace(options=call.message_options(header_of(found, culprit, True)))
        row = build_row(reused, culprit) | end
        if connection.execute(CLOSE_REUSED, row | {'seen': found.completed}, patience=5):
            forget(app.backend, task_id)
            return True
    if closed := lifecycle.close_replaced(
        connection, task_id, culprit.sentence, exact_result=exact_result, in_backend=in_backend
    ):
        _free(closed)
        return True
    found = connection.execute(EXISTING, (task_id,), patience=5)
    return not found or found[0][1] in (Reason.REASON_UPSTREAM_FAILED, Reason.REASON_PUBLISH_FAILED)


def _free(closed):
    """Let the runs start that wait in line for a run that was closed."""
    if closed is not None and closed[1]:
        advance_line(get_connection(), closed[1])


def load_culprit(blame: Blame) -> SimpleNamespace:
    """Return the run that causes steps to be closed: `task_id`, `root_id`, `user_id`, and the error that names it.

    And `begun` and `since`, for `find_earlier`.
    """
    task_id, request, exc = blame
    blamed = task_id or getattr(request, 'id', None)
    rows = get_connection().execute(CULPRIT, (blamed,), patience=5) if is_uuid(blamed) else []
    name, status, reason, error, user_id, root_id, begun, since = rows[0] if rows else (None,) * 8
    if task_id is None:
        sentence = f'Not run: {type(exc).__name__}: {text_of(exc)}'
    elif not rows:
        sentence = f'Not run, because [{task_id}] did not succeed: {repr_of(exc)}'
    elif reason == Reason.REASON_UPSTREAM_FAILED:
        sentence = error  # it names the run that failed
    else:
        what = f'{status} ({reason})' if reason else status
        sentence = f'Not run, because {name} [{task_id}] is {what}' + (f': {error}' if error else '')
    return SimpleNamespace(
        task_id=blamed, root_id=root_id or _root_of(request), user_id=user_id, sentence=sentence,
        begun=int(begun) if begun and begun.isdecimal() else 0, since=since,
    )


def failed_member(request: Any) -> str | None:
    """Return the ID of a part of the chord that did not succeed: Celery does not name it if there are groups in it."""
    group, root_id = canonical(getattr(request, 'group', None)), _root_of(request)
    if not is_uuid(group) or not is_uuid(root_id):
        return None
    with suppress(DatabaseError):
        member = {'root_id': root_id, 'group_id': group}
        for (task_id,) in get_connection().execute(FAILED_MEMBER, member, patience=5):
            return task_id
    return None


def _root_of(request):
    """Return the root of the workflow of a request whose run has no row."""
    if request is None:
        return None
    if request.root_id and request.root_id != request.id:
        return request.root_id
    return root_of({'group_id': request.group, 'chain': request.chain, 'chord': request.chord}) or request.root_id


def is_known_step(app: Any, step: Any) -> bool:
    """Whether a step was sent or closed, or may have been because it is not tracked."""
    task_id = (step.get('options') or {}).get('task_id')
    if not is_uuid(task_id) or not is_tracked_step(app, step):
        return True
    return bool(get_connection().execute(EXISTING, (task_id,), patience=5))
