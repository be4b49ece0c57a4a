"""Steps that will never run, because what they depend on did not succeed: they get rows, which name the culprit.

A later step of a chain, or the body of a chord, has no row before its message is sent: its arguments are not known
yet, and a plain task should not pay for what may never come. The message of each run holds what depends on it. So
whoever ends a run without success - the child, its parent, the sweep, a cancel - closes from there what will not
come: `errored` with the reason `upstream_failed`. Celery tells the result backend of most of these steps; of the
others (after a revoke, within groups, a chord that is a part of another) it is told here, so that nobody waits for what
will not come.
"""
import logging
import re
import sys
import threading
from contextlib import contextmanager, suppress
from types import SimpleNamespace

from celery import states
from celery.exceptions import TaskRevokedError
from celery.utils.functional import maybe_list
from django.db import DatabaseError
from kombu.exceptions import EncodeError

from ...choices import ResultReasonChoices as Reason
from ...choices import ResultStatusChoices as Status
from ..calls.call import Call
from ..calls.exact import options_of
from ..calls.ids import canonical, canonical_ids
from ..calls.options import Own, lift, split
from ..runs.errbacks import note_errbacks
from ..sending.admission import advance_line
from ..sending.describe import find_task, wants_row
from ..sending.rows import build_row, insert_statement
from ..sending.used import anew_statement, find_earlier, forget, header_of
from ..store import lifecycle
from ..store.conditions import IN_GROUP
from ..store.database import get_connection
from ..store.payload import clean_text, is_uuid, repr_of, sorted_text, text_of
from ..workflows.canvas import as_request, leaves, root_of, unsent
from ..workflows.requests import load_requests

__all__ = (
    'UpstreamMixin',
    'is_tracked_step',
)

logger = logging.getLogger(__name__)

CULPRIT = f"""
    SELECT name, status, reason, error, user_id, root_id::text, {lifecycle.BEGUN}, COALESCE(started, created)
    FROM {lifecycle.TABLE} WHERE task_id = %s
"""
FAILED_MEMBER = f"""
    SELECT task_id::text FROM {lifecycle.TABLE}
    WHERE {IN_GROUP} AND completed IS NOT NULL AND status <> 'completed'
    ORDER BY completed LIMIT 1
"""
# The body of a chord that failed, which was a part of another one
CALLED_BACK = f"""
    SELECT body.options::text, body.exact_call FROM {lifecycle.TABLE} AS body
    JOIN {lifecycle.TABLE} AS part ON part.task_id = body.parent_id
    WHERE body.task_id = %s AND body.reason = '{Reason.REASON_UPSTREAM_FAILED}' AND body.options ? 'link_error'
        AND strpos(part.options ->> 'chord', body.task_id::text) > 0
"""
EXISTING = f'SELECT status, reason FROM {lifecycle.TABLE} WHERE task_id = %s'

#: Options of a step that mean nothing once it will never run.
LAPSED = ('eta', 'countdown', 'expires')
#: What Celery says of a chord whose header failed.
DEPENDENCY = re.compile(r'^Dependency ([0-9a-f-]{36}) raised')


class _Thread(threading.local):
    #: ID of the run that is at fault for what is closed now.
    culprit = None
    #: The request from whose end this began.
    request = None
    #: IDs of steps whose rows have just been closed, and of which Celery is still to be told.
    closing = frozenset()
    #: IDs of those of whose end it has been told: better than a second time, which knows less.
    told = frozenset()
    #: Where to note of whom it is told meanwhile, a set.
    telling = None


_thread = _Thread()


@contextmanager
def _noting(**values):
    """Let some values hold for this thread meanwhile."""
    before = {name: getattr(_thread, name) for name in values}
    _thread.__dict__.update(values)
    try:
        yield
    finally:
        _thread.__dict__.update(before)


def _blaming(task_id, request=None):
    """Say which run is at fault for what is closed meanwhile."""
    return _noting(culprit=task_id, request=_thread.request or request)


class UpstreamMixin:
    """The part of the result backend that hears of steps which will never run."""

    def mark_as_failure(
        self, task_id, exc, traceback=None, request=None, store_result=True, call_errbacks=True, state=states.FAILURE
    ):
        fail = super().mark_as_failure
        if request is not None and not hasattr(request, 'chain'):
            # Of a task that it does not know, a worker says nothing about what depends on it
            request = _complete(task_id, request)
        options = {'traceback': traceback, 'request': request, 'store_result': store_result,
                   'call_errbacks': call_errbacks, 'state': state}
        if not _has_dependents(request):
            return fail(task_id, exc, **options)
        with _blaming(task_id, request), self._closing_rows(request, exc):
            return fail(task_id, exc, **options)

    def mark_as_revoked(self, task_id, reason='', request=None, store_result=True, state=states.REVOKED):
        revoke = super().mark_as_revoked
        if not _has_dependents(request):
            return revoke(task_id, reason, request=request, store_result=store_result, state=state)
        with _blaming(task_id, request), self._closing_rows(request, TaskRevokedError(reason)):
            result = revoke(task_id, reason, request=request, store_result=store_result, state=state)
            # Celery itself leaves those who wait for the end of the chain waiting
            self._fail_chain(request.chain, TaskRevokedError(reason))
        return result

    @contextmanager
    def _closing_rows(self, request, exc):
        """Close what depends on a run also if the backend itself, which is told first, cannot be reached."""
        try:
            yield
        except Exception:
            for steps in (_as_chain(request.chain), request.chord):
                if steps:
                    self._close_steps(steps, exc)
            raise

    def _fail_chain(self, chain, exc, traceback=None, store_result=True, state=states.FAILURE):
        if not isinstance(chain, list | tuple) or not chain:
            return super()._fail_chain(chain, exc, traceback=traceback, store_result=store_result, state=state)
        steps = self._close_steps(_as_chain(chain), exc, told=exc if store_result else None)
        return self._fail_steps(steps, exc, traceback, store_result, state)

    def _fail_steps(self, steps, exc, traceback=None, store_result=True, state=states.FAILURE, told=frozenset()):
        """Tell those who wait for single steps that were closed of their end, and the chords that they are parts of.

        Args:
            told: IDs of those of whose end the backend has been told already.
        """
        closing = {(step.get('options') or {}).get('task_id') for step in steps}
        with _noting(closing=closing, told=told):
            return super()._fail_chain(steps, exc, traceback=traceback, store_result=store_result, state=state)

    def store_result(self, task_id, result, state, *args, **kwargs):
        if task_id in _thread.told:
            return result
        if _thread.telling is not None:
            _thread.telling.add(task_id)
        return super().store_result(task_id, result, state, *args, **kwargs)

    def get_state(self, task_id):
        # Celery takes a step that has failed for one that its chord knows of; a row that was just closed is no such
        if task_id in _thread.closing:
            _thread.closing.discard(task_id)  # whoever else asks gets the truth
            return states.PENDING
        return super().get_state(task_id)

    def _close_steps(self, steps, exc, told=None):
        """Close what a signature is made of, and return what of it did not run, as single steps.

        Args:
            exc: Why.
            told: The exception that the backend is about to be told, if it is: until then the row tells nobody.
        """
        text = self.exception_text(told)
        try:
            # What was sent, and what comes after it, is its own affair
            return unsent(steps, lambda step: _close(self.app, step, exc, text, in_backend=told is not None))
        except (DatabaseError, EncodeError, LookupError, RecursionError, TypeError, ValueError):
            logger.exception('The steps after %s could not be closed', _thread.culprit)
            return leaves(steps)

    def on_chord_part_return(self, request, state, result, **kwargs):
        # After parts that all were successful, a body may be refused: nobody is to blame for that
        with _blaming(_thread.culprit, request):
            return super().on_chord_part_return(request, state, result, **kwargs)

    def chord_error_from_stack(self, callback, exc=None):
        found = DEPENDENCY.match(str(exc))
        with _blaming(found.group(1) if found else _thread.culprit or _failed_member()):
            # Why a body could not be sent stands in no other place than the exception that is being handled
            real = getattr(exc, '__cause__', None)
            # Of the tasks of a group Celery tells what has been raised, of others that the chord has failed
            told = real if real is not None and callback.task == 'celery.group' else exc or sys.exception()
            closed = self._close_steps(callback, real or sys.exception() or exc, told)
            with _noting(telling=set()):
                result = super().chord_error_from_stack(_once_called(callback, _thread.culprit), exc)
                telling = _thread.telling
            # Celery itself leaves the chord around this one, whose part its body is, waiting
            self._fail_steps(closed, told, told=telling)
            return result

    def _call_task_errbacks(self, request, exc, traceback):
        # Of a hard time limit a worker's parent hears twice
        if getattr(request, 'netbox_called_back', False):
            return
        request.netbox_called_back = True
        note_errbacks(self, request)  # those of a chord's body: there was nothing to note them in before
        if not request.root_id:
            # Celery takes the body of a chord for a workflow of its own
            with suppress(DatabaseError):
                request.root_id = _load_culprit(exc).root_id
        # Some are called here and now: what an author's code does is not closed for this run
        with _noting(culprit=None, request=None, closing=frozenset()):
            super()._call_task_errbacks(request, exc, traceback)

    # Ends that no worker reports

    def end_dependents(self, request, exc):
        """End what depends on a run that Celery leaves without an end: as one that was rejected."""
        if _has_dependents(request):
            with _blaming(request.id, request):
                if request.chord:
                    self.on_chord_part_return(request, states.FAILURE, exc)
                self._fail_chain(request.chain, exc)

    def end_unknown(self, request, exc):
        """End the later steps of a chain that a refused message brings along, and of which nobody knows.

        Its run has ended. Had the message been a copy of that run's, the next step would have its row by now.

        Args:
            request: The request of the message.
            exc: Why it is refused.
        """
        try:
            steps = leaves(_as_chain(request.chain)) if request.chain else []
            if steps and not any(_is_known(self.app, step) for step in steps):
                with _blaming(None, request):
                    self._fail_chain(request.chain, exc)
        except (DatabaseError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            logger.exception('The steps after %s could not be ended', request.id)

    def end_ignored(self, request, exc):
        """End what depends on a run that was ignored, and tell those who wait for the run itself."""
        self.end_dependents(request, exc)
        self.tell_ignored(request.id, request)

    def tell_ignored(self, task_id, request):
        """Tell those who wait for a run that it was ignored: a layer above does, of a backend that can."""

    def close_dependents(self, name, options, exc, except_id=None):
        """Write that what depends on a call will never run, since its message was refused. The broker may be the result
        backend, too, so that is not told: the caller gets the exception.

        Args:
            except_id: ID of the run that makes the call: that and what comes after it depend on how it ends.
        """
        chain = options.get('chain') or []
        with _blaming(options['task_id'], as_request(options['task_id'], name, options)):
            try:
                for leaf in [leaf for step in reversed(chain) for leaf in leaves(step)]:
                    if except_id is not None and (leaf.get('options') or {}).get('task_id') == except_id:
                        break
                    _close(self.app, leaf, exc)
            except (DatabaseError, EncodeError, LookupError, RecursionError, TypeError, ValueError):
                logger.exception('The steps after %s[%s] could not be closed', name, options['task_id'])

    def tell_end(self, task_id, exc, state):
        """Let those who wait for the result of a run know of its end, and end what depends on it."""
        task_id = str(task_id)
        try:
            request = load_requests([task_id]).get(task_id)
            if request is None:
                self.store_result(task_id, exc, state)
            elif state == states.REVOKED:
                self.mark_as_revoked(task_id, str(exc), request)
            else:
                self.mark_as_failure(task_id, exc, request=request)
        except Exception as error:  # noqa: BLE001 - backends fail each in their own way
            logger.warning('The end of %s could not be stored in the result backend: %s', task_id, error)


def _once_called(callback, culprit):
    """Return the body of a failed chord without those error callbacks that a chord among its parts has called.

    `chord.link_error()` links a callback to the chords within its header as well. Celery itself leaves the outer one
    waiting, and calls it once. One that takes the ID of the failed run (`errback.s()`) is called for each of them.
    """
    errbacks = maybe_list(callback.options.get('link_error')) or []
    if not errbacks or not is_uuid(culprit):
        return callback
    try:
        called = [
            sorted_text(errback) for row in get_connection().execute(CALLED_BACK, (culprit,), patience=5)
            for errback in maybe_list(options_of(row[1], row[0]).get('link_error')) or []
        ]
        left = [errback for errback in errbacks if not errback.get('immutable') or sorted_text(errback) not in called]
    except (DatabaseError, TypeError, ValueError):
        logger.exception('Which error callbacks of %s have been called cannot be told', culprit)
        return callback
    if len(left) == len(errbacks):
        return callback
    callback = callback.clone()
    callback.options['link_error'] = left
    return callback


def _as_chain(rest):
    """Return the rest of a chain, as a message holds it (the last step first), as a signature."""
    return rest and {'task': 'celery.chain', 'kwargs': {'tasks': rest[::-1]}}


# GUARANTEE: a step that was sent keeps what becomes of it. (`lifecycle.close_replaced` closes the row of a task that
# replaced itself.)
CLOSED = {
    'reason': "'upstream_failed'", 'error': '%(error)s', 'completed': 'now()', 'exact_result': '%(exact_result)s',
    'in_backend': '%(in_backend)s',
}
CLOSE, CLOSE_ANEW = insert_statement(**CLOSED), anew_statement(**CLOSED)


def _own_of(task, signature):
    """Return the keyword arguments, the options and the `Own` of a single step."""
    options, own = split(signature.get('options') or {})
    kwargs, own = lift(task, signature.get('kwargs') or {}, own)
    return kwargs, options, Own.merge(task, own)


def is_tracked_step(app, signature):
    """Whether a single step has a row once it was sent."""
    task = find_task(app, signature['task'])
    return wants_row(task, _own_of(task, signature)[-1])


def _close(app, signature, exc, exact_result=None, in_backend=False):
    """Write that a single step will never run. Returns `False` if it was sent."""
    name = signature['task']
    task = find_task(app, name)
    kwargs, options, own = _own_of(task, signature)
    options = canonical_ids(options)
    task_id = options.get('task_id')
    if not is_uuid(task_id):
        return True
    culprit = _load_culprit(exc)
    if not wants_row(task, own):
        # It has no row, unless it is what ends the replacement of a task that has one
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
        anew = call._replace(options=call.message_options(header_of(found, culprit, True)))
        row = build_row(anew, culprit) | end
        if connection.execute(CLOSE_ANEW, row | {'seen': found.completed}, patience=5):
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
    """Let those begin that wait in line for a run that was closed."""
    if closed is not None and closed[1]:
        advance_line(get_connection(), closed[1])


def _load_culprit(exc):
    """Return who is to blame: `task_id`, `root_id`, `user_id`, and the sentence that names the run.

    And `begun` and `since`, for `find_earlier`.
    """
    task_id, request = _thread.culprit, _thread.request
    blamed = task_id or getattr(request, 'id', None)
    rows = get_connection().execute(CULPRIT, (blamed,), patience=5) if is_uuid(blamed) else []
    name, status, reason, error, user_id, root_id, begun, since = rows[0] if rows else (None,) * 8
    if task_id is None:
        sentence = f'Not run: {type(exc).__name__}: {text_of(exc)}'
    elif not rows:
        sentence = f'Not run, because [{task_id}] did not succeed: {repr_of(exc)}'
    elif reason == Reason.REASON_UPSTREAM_FAILED:
        sentence = error  # it names who was at fault
    else:
        what = f'{status} ({reason})' if reason else status
        sentence = f'Not run, because {name} [{task_id}] is {what}' + (f': {error}' if error else '')
    return SimpleNamespace(
        task_id=blamed, root_id=root_id or _root_of(request), user_id=user_id, sentence=sentence,
        begun=int(begun) if begun and begun.isdecimal() else 0, since=since,
    )


def _failed_member():
    """Return the ID of a part of the chord that did not succeed: Celery names none if there are groups among them."""
    group, root_id = canonical(getattr(_thread.request, 'group', None)), _root_of(_thread.request)
    if not is_uuid(group) or not is_uuid(root_id):
        return None
    with suppress(DatabaseError):
        member = {'root_id': root_id, 'group_id': group}
        for (task_id,) in get_connection().execute(FAILED_MEMBER, member, patience=5):
            return task_id
    return None


def _root_of(request):
    """Return the root of the workflow that a request belongs to whose run has no row."""
    if request is None:
        return None
    if request.root_id and request.root_id != request.id:
        return request.root_id
    return root_of({'group_id': request.group, 'chain': request.chain, 'chord': request.chord}) or request.root_id


def _has_dependents(request):
    return bool(getattr(request, 'chain', None) or getattr(request, 'chord', None))


def _complete(task_id, request):
    """Return the request of a run as its row has it, if something depends on it."""
    try:
        return load_requests([task_id]).get(task_id, request) if is_uuid(task_id) else request
    except DatabaseError:
        logger.exception('What depends on %s could not be ended', task_id)
        return request


def _is_known(app, step):
    """Whether a step was sent or closed, as far as can be told: one that makes no row may have been."""
    task_id = (step.get('options') or {}).get('task_id')
    if not is_uuid(task_id) or not is_tracked_step(app, step):
        return True
    return bool(get_connection().execute(EXISTING, (task_id,), patience=5))
