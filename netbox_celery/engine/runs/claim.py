"""The claim: before a body runs, one statement assigns the run to this process, or refuses it.

A signal handler could not stop the body (Celery swallows its exceptions). So the claim is made in `before_start`, which
runs inside the tracer's `try`, and refuses the run by raising `Ignore`. Each registered task is wrapped for the claim,
and for `on_replace`, so that its row waits for the replacement.
"""
import logging
import time
from functools import partial, update_wrapper, wraps
from inspect import getattr_static
from types import FunctionType, MethodType
from weakref import WeakSet

from celery.app.task import get_actual_ignore_result
from celery.exceptions import Ignore
from django.db import DatabaseError
from kombu.exceptions import EncodeError

from ...choices import ResultStatusChoices as Status
from ..calls.arguments import call_text
from ..calls.options import begun_of
from ..calls.run import Run, enter
from ..exceptions import IgnoredByWindow
from ..identity import identity
from ..sending.admission import is_window_open
from ..sending.describe import is_tracked
from ..sending.replace import handing_over_row, opened_by
from ..sending.rows import INSERT, foreign_row, refused_row
from ..store import lifecycle
from ..store.branches import enter_run
from ..store.database import UNUSABLE, get_connection, is_read_only
from ..store.headers import HEADER
from ..store.payload import PayloadDecoder, dumps, is_named, is_uuid
from .ending import ENDS, end_claimed

__all__ = (
    'begin',
    'note_call',
    'track_all_tasks',
)

logger = logging.getLogger(__name__)

#: The wrappers of handlers: each handler is wrapped once, also if a class inherits it.
_wrappers: WeakSet[FunctionType] = WeakSet()
#: Seconds for which a run waits to be claimed if the database cannot be used.
PATIENCE = 5


def track_all_tasks(app):
    """Wrap each task so that it claims its run before the body and hands its row over on replace.

    The class of the task and its own handlers do not matter. Whether the run is tracked is decided at the claim: by the
    message's header, else by the setting `track`. Tasks that are registered later are wrapped as well.
    """
    app.tasks.on_register = _track
    for task in list(app.tasks.values()):
        _track(task)


def _track(task):
    for handler, wrap in (('before_start', _claiming), ('on_replace', _handing_over_row)):
        for owner in (type(task), task):
            # A class has its own handler or inherits one; the handler of an instance hides that of its class
            found = getattr_static(owner, handler) if owner is not task else vars(task).get(handler)
            if found is not None and not _is_wrapper(found):
                wrapper = _without_origin(wrap(_as_method(found, owner is task)))
                _wrappers.add(wrapper)
                setattr(owner, handler, MethodType(wrapper, task) if owner is task else wrapper)


def _is_wrapper(handler):
    handler = getattr(handler, '__func__', handler)
    return isinstance(handler, FunctionType) and handler in _wrappers


def _as_method(handler, is_bound):
    """Return a function `f(self, ...)` that calls a handler as Python does, with its decorators.

    Celery's `Task.add_around` would leave out the decorators.
    """
    if is_bound or not hasattr(handler, '__get__'):
        def method(self, *args):
            return handler(*args)
    elif isinstance(handler, FunctionType):
        return handler
    else:
        def method(self, *args):
            return handler.__get__(self, type(self))(*args)
    return update_wrapper(method, handler)


def _without_origin(wrapper):
    """Hide the wrapped function, which `Task.add_around` would otherwise use instead of the wrapper."""
    vars(wrapper).pop('__wrapped__', None)
    return wrapper


def begin(task):
    """Claim the run that `task` is about to execute; `self.request.netbox_run` then holds it.

    Raises:
        celery.exceptions.Ignore: According to the row, this message must not run.
        kombu.exceptions.EncodeError: A message without a row has arguments that no call could have.
    """
    request = task.request_stack.top
    if request is None or request.called_directly or request.is_eager or 'netbox_run' in request.__dict__:
        return
    request.netbox_run = None
    tracked_by_caller = request.get(HEADER)
    if not _is_tracked(task, request):
        return
    if not is_uuid(request.id):
        return
    try:
        claimed, refusal = _claim_patiently(task, request, tracked_by_caller)
    except DatabaseError:
        # The task is more important than its row
        logger.exception('Task %s is run without being tracked: it cannot be claimed', request.id)
        request.netbox_unclaimed = True
        return
    if claimed is None:
        _refuse(task, request)
    id, claims, attempt, user_id, request_id = claimed
    request.netbox_run = run = Run(
        request.id, id=id, claims=claims, attempt=attempt, user_id=user_id, request_id=request_id
    )
    run.call = _call(request, tracked_by_caller)
    run.begun = begun_of(tracked_by_caller)
    run.unreported = get_actual_ignore_result(task, request)
    enter(task, run)
    if claims > 1:
        run.lines = _lines_before(id)
    if refusal is not None:
        raise refusal
    if isinstance(tracked_by_caller, dict):
        _look_at_window(run, tracked_by_caller)


def _lines_before(id):
    """Return how many log lines a run has from earlier attempts: the limit applies to the whole run."""
    try:
        return lifecycle.count_lines(get_connection(), id)
    except DatabaseError:
        return 0  # log lines cannot be written, either


def _look_at_window(run, header):
    """Refuse the run if the task has succeeded since the call."""
    run.window = header.get('window')
    run.opens = opened_by(header)
    if run.window and is_window_open(get_connection().execute, run.window, run.task_id):
        raise IgnoredByWindow('Not run: the task succeeded within the ignore window')


def _claim_patiently(task, request, tracked_by_caller):
    """Claim a run, and insert its row if there is none; wait for a database that is unavailable.

    GUARANTEE: no body runs while the database is read-only: its row would stay in a waiting status forever, and the
    sweep would send it again.

    Returns:
        The value that `lifecycle.claim` returns, and the exception for a message without a row whose arguments are
        refused, or `None`.
    """
    deadline, refusal = time.monotonic() + PATIENCE, None
    while True:
        try:
            call = _call(request, tracked_by_caller)
            claimed = _claim(request, call)
            if claimed is None and not tracked_by_caller:
                try:
                    row = foreign_row(task, request)
                except EncodeError as exc:
                    # The row has them only as text, with which the message is not compared
                    row, refusal, call = refused_row(task, request), exc, None
                get_connection().execute(INSERT, row, patience=float('inf'))
                claimed = _claim(request, call)
            if claimed is None and call and not _differs(request):
                # Only the JSON text differed
                claimed = _claim(request)
            return claimed, refusal
        except UNUSABLE as exc:
            read_only = is_read_only(exc)
            if time.monotonic() >= deadline and not read_only:
                raise
            logger.warning('Task %s cannot be claimed, trying again: %s', request.id, exc)
            time.sleep(5 if read_only and time.monotonic() >= deadline else 0.5)


def _is_tracked(task, request):
    """Whether a run has or gets a row: decided by the message's header, or without one by the task."""
    header = request.get(HEADER)
    return bool(header) or header is not False and is_tracked(task)


def note_call(task, request):
    """Note the arguments of a message before handlers of `task_prerun` get them and may modify them in place."""
    if _is_tracked(task, request):
        request.netbox_call = call_text(request.args, request.kwargs)


def _call(request, tracked_by_caller):
    """Return a message's arguments as JSON text, for comparison with the row's; `None`: they are not compared."""
    if isinstance(tracked_by_caller, dict) and tracked_by_caller.get('differs'):
        return None
    if 'netbox_call' not in vars(request):
        request.netbox_call = call_text(request.args, request.kwargs)
    return request.netbox_call


def _claim(request, call=None):
    return lifecycle.claim(
        get_connection(), task_id=request.id, attempt=request.retries + 1, nesting=request.replaced_task_nesting or 0,
        worker=identity.name or request.hostname or '', holder=identity.key, name=request.task, call=call,
        begun=begun_of(request.get(HEADER))
    )


def _differs(request):
    """Whether a message is another call than its row's, and not only another JSON text. `False` if that is unknown."""
    call = lifecycle.call_of(get_connection(), request.id)
    if call is None:
        return False
    try:
        name, *of_row = call
        of_message = _arguments(request)
        return not is_named(request.task, name) or (of_row != of_message and dumps(of_row) != dumps(of_message))
    except Exception:  # noqa: BLE001 - authors' types may raise anything
        return False


def _arguments(request):
    """Return the arguments of a message as it was received."""
    if call := vars(request).get('netbox_call'):
        return PayloadDecoder().decode(call)
    return [list(request.args or ()), request.kwargs or {}]


def _refuse(task, request):
    run = Run(request.id)
    run.refused = True
    request.netbox_run = run
    found = lifecycle.explain(get_connection(), request.id)
    if found is None:
        why = 'its row was deleted'
    elif found[0] in Status.WAITING and _differs(request):
        why = f'its row is that of another call ({_describe(request)})'
    elif found[0] == Status.STATUS_RUNNING:
        why = f'{found[2]} is running it'
    else:
        why = f'it is {found[0]}' + (f' ({found[1]})' if found[1] else '')
    logger.warning('Task %s is not run: %s', request.id, why)
    if found is not None and found[0] in Status.FINISHED and not request.get(HEADER):
        task.backend.end_unknown(request, Ignore(f'its ID is that of a run that {why.removeprefix("it ")}'))
    if found is None:
        # No other process notifies code that waits for it
        task.backend.mark_as_revoked(request.id, 'deleted', request)
    elif found[0] == Status.STATUS_REVOKED:
        # Celery may have reported since that it has started, or will be retried
        task.backend.mark_as_revoked(request.id, 'revoked', request)
    raise Ignore(f'not run: {why}')


def _describe(request):
    """Return a text about how a row differs from the message with its ID."""
    call = lifecycle.call_of(get_connection(), request.id)
    if call is not None and not is_named(request.task, call[0]):
        return f'of {call[0]}, and the message is of {request.task}'
    return f'of {request.task} with other arguments'


def _handing_over_row(on_replace):
    return handing_over_row(on_replace, partial(end_claimed, end=ENDS['replaced_untracked']))


def _claiming(before_start):
    """Wrap a task's `before_start`: the claim comes first."""
    @wraps(before_start)
    def before_start_after_claim(self, task_id, args, kwargs):
        begin(self)
        enter_run(self)
        return before_start(self, task_id, args, kwargs)
    return before_start_after_claim
