"""Lets the result backend close the steps that depend on a run that did not succeed.

The message of each run contains the steps that depend on it. So the process that ends a run without success (the child,
its parent, the sweep, a cancel) can close these steps (`closing`). Celery reports most of these steps to the result
backend. The others (after a revoke, within groups, a chord that is a part of another one) are reported here, so that
no code waits for them forever.
"""
import logging
import re
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from celery import states
from celery.exceptions import TaskRevokedError
from celery.utils.functional import maybe_list
from django.db import DatabaseError
from kombu.exceptions import EncodeError

from ...choices import ResultReasonChoices as Reason
from ..runs.errbacks import note_errbacks
from ..store import lifecycle
from ..store.database import get_connection
from ..store.payload import is_uuid, options_of, sorted_text
from ..workflows.canvas import as_request, leaves, unsent
from ..workflows.requests import load_requests
from .closing import Blame, close_step, failed_member, is_known_step, load_culprit

# `layers` combines this class with that of a backend
if TYPE_CHECKING:
    from celery.backends.base import Backend
else:
    Backend = object

__all__ = (
    'UpstreamMixin',
)

logger = logging.getLogger(__name__)

# The body of a failed chord that was a part of another one
CALLED_BACK = f"""
    SELECT body.options::text, body.exact_call FROM {lifecycle.TABLE} AS body
    JOIN {lifecycle.TABLE} AS part ON part.task_id = body.parent_id
    WHERE body.task_id = %s AND body.reason = '{Reason.REASON_UPSTREAM_FAILED}' AND body.options ? 'link_error'
        AND strpos(part.options ->> 'chord', body.task_id::text) > 0
"""
#: Celery's message for a chord whose header failed.
DEPENDENCY = re.compile(r'^Dependency ([0-9a-f-]{36}) raised')


class _Thread(threading.local):
    #: ID of the run that causes steps to be closed now.
    culprit: str | None = None
    #: The request of the run whose end started this.
    request: Any = None
    #: IDs of steps whose rows were just closed, and which are not yet reported to Celery.
    closing: set[str] | frozenset[str] = frozenset()
    #: IDs of steps whose end was reported to Celery: a second report would contain less.
    reported: set[str] | frozenset[str] = frozenset()
    #: Collects the IDs of the steps that are reported now, if it is a set.
    reporting: set[str] | None = None


_thread = _Thread()


@contextmanager
def _setting(**values):
    """Set some of this thread's values within the block."""
    before = {name: getattr(_thread, name) for name in values}
    _thread.__dict__.update(values)
    try:
        yield
    finally:
        _thread.__dict__.update(before)


def _blaming(task_id, request=None):
    """Name the run that causes steps to be closed within the block."""
    return _setting(culprit=task_id, request=_thread.request or request)


def _blame(exc):
    return Blame(_thread.culprit, _thread.request, exc)


class UpstreamMixin(Backend):
    """Lets a result backend close the steps that will never run."""

    def mark_as_failure(
        self, task_id, exc, traceback=None, request=None, store_result=True, call_errbacks=True, state=states.FAILURE
    ):
        fail = super().mark_as_failure
        if request is not None and not hasattr(request, 'chain'):
            # For a task that it does not know, a worker does not pass on what depends on it
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
            # Celery itself would let code wait for the end of the chain forever
            self._fail_chain(request.chain, TaskRevokedError(reason))
        return result

    @contextmanager
    def _closing_rows(self, request, exc):
        """Close what depends on a run even if the backend itself, to which Celery reports first, is unavailable."""
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
        steps = self._close_steps(_as_chain(chain), exc, to_report=exc if store_result else None)
        return self._fail_steps(steps, exc, traceback, store_result, state)

    def _fail_steps(self, steps, exc, traceback=None, store_result=True, state=states.FAILURE, reported=frozenset()):
        """Report the end of closed steps to the code that waits for them, and to the chords that they are parts of.

        Args:
            steps: Single steps.
            exc: Why they were closed.
            reported: IDs of steps whose end was already reported to the backend.
        """
        closing = {(step.get('options') or {}).get('task_id') for step in steps}
        with _setting(closing=closing, reported=reported):
            return super()._fail_chain(steps, exc, traceback=traceback, store_result=store_result, state=state)

    def store_result(self, task_id, result, state, *args, **kwargs):
        if task_id in _thread.reported:
            return result
        if _thread.reporting is not None:
            _thread.reporting.add(task_id)
        return super().store_result(task_id, result, state, *args, **kwargs)

    def get_state(self, task_id):
        # Celery assumes that the chord of a failed step was notified, which is not so for a row that was just closed
        if task_id in _thread.closing:
            _thread.closing = _thread.closing - {task_id}  # other callers get the real state
            return states.PENDING
        return super().get_state(task_id)

    def _close_steps(self, steps, exc, to_report=None):
        """Close the steps of a signature, and return those that did not run, as single steps.

        Args:
            steps: The signature.
            exc: Why.
            to_report: The exception that the caller will report to the backend, if it does: the row does not show it
                before that.
        """
        text, blame = self.exception_text(to_report), _blame(exc)
        try:
            # A step that was sent ends by itself, and closes what comes after it
            return unsent(steps, lambda step: close_step(self.app, step, blame, text, in_backend=to_report is not None))
        except (DatabaseError, EncodeError, LookupError, RecursionError, TypeError, ValueError):
            logger.exception('The steps after %s could not be closed', _thread.culprit)
            return leaves(steps)

    def on_chord_part_return(self, request, state, result, **kwargs):
        # A body may be refused although all parts succeeded: then no run is the culprit
        with _blaming(_thread.culprit, request):
            return super().on_chord_part_return(request, state, result, **kwargs)

    def chord_error_from_stack(self, callback, exc=None):
        found = DEPENDENCY.match(str(exc))
        with _blaming(found.group(1) if found else _thread.culprit or failed_member(_thread.request)):
            # Only the exception that is being handled tells why a body could not be sent
            real = getattr(exc, '__cause__', None)
            # For the tasks of a group Celery reports the original exception, for others that the chord has failed
            to_report = real if real is not None and callback.task == 'celery.group' else exc or sys.exception()
            closed = self._close_steps(callback, real or sys.exception() or exc, to_report)
            with _setting(reporting=set()):
                result = super().chord_error_from_stack(_once_called(callback, _thread.culprit), exc)
                reported = _thread.reporting
            # If the body is a part of an outer chord, Celery itself would let that one wait forever
            self._fail_steps(closed, to_report, reported=reported)
            return result

    def _call_task_errbacks(self, request, exc, traceback):
        # Celery reports a hard time limit to a worker's parent twice
        if getattr(request, 'netbox_called_back', False):
            return
        request.netbox_called_back = True
        note_errbacks(self, request)  # those of a chord's body, which had no row before
        if not request.root_id:
            # Celery considers the body of a chord a workflow of its own
            with suppress(DatabaseError):
                request.root_id = load_culprit(_blame(exc)).root_id
        # Some callbacks are called right here: what their code closes does not depend on this run
        with _setting(culprit=None, request=None, closing=frozenset()):
            super()._call_task_errbacks(request, exc, traceback)

    # Ends that no worker reports

    def end_dependents(self, request, exc):
        """End what depends on a run whose end Celery does not report, for example because it was rejected."""
        if _has_dependents(request):
            with _blaming(request.id, request):
                if request.chord:
                    self.on_chord_part_return(request, states.FAILURE, exc)
                self._fail_chain(request.chain, exc)

    def end_unknown(self, request, exc):
        """End the later steps of a chain in a refused message, if none of them has a row.

        The run with the message's ID has finished. If the message were a copy of that run's own, the next step would
        have a row by now.

        Args:
            request: The request of the message.
            exc: Why it is refused.
        """
        try:
            steps = leaves(_as_chain(request.chain)) if request.chain else []
            if steps and not any(is_known_step(self.app, step) for step in steps):
                with _blaming(None, request):
                    self._fail_chain(request.chain, exc)
        except (DatabaseError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            logger.exception('The steps after %s could not be closed', request.id)

    def end_ignored(self, request, exc):
        """End what depends on an ignored run, and report the end of the run itself."""
        self.end_dependents(request, exc)
        self.tell_ignored(request.id, request)

    def tell_ignored(self, task_id, request):
        """Publish that a run was ignored; an outer layer does so for backends that can."""

    def close_dependents(self, name, options, exc, except_id=None):
        """Close what depends on a call whose message was refused.

        This is not reported to the backend, which may be the same server as the broker: the caller gets the exception.

        Args:
            name: Name of the task.
            options: Options of the call.
            exc: Why the message was refused.
            except_id: ID of the run that makes the call: its own end decides about that run and the steps after it.
        """
        chain = options.get('chain') or []
        with _blaming(options['task_id'], as_request(options['task_id'], name, options)):
            try:
                for leaf in [leaf for step in reversed(chain) for leaf in leaves(step)]:
                    if except_id is not None and (leaf.get('options') or {}).get('task_id') == except_id:
                        break
                    close_step(self.app, leaf, _blame(exc))
            except (DatabaseError, EncodeError, LookupError, RecursionError, TypeError, ValueError):
                logger.exception('The steps after %s[%s] could not be closed', name, options['task_id'])

    def report_end(self, task_id, exc, state):
        """Report the end of a run to the code that waits for its result, and end what depends on it."""
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
    """Return the body of a failed chord without the error callbacks that a chord among its parts has already called.

    `chord.link_error()` also links a callback to the chords within its header. Celery itself calls it once, because it
    lets the outer chord wait. A callback that takes the ID of the failed run (`errback.s()`) is called for each chord.
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
        logger.exception('The error callbacks that were called for %s are unknown', culprit)
        return callback
    if len(left) == len(errbacks):
        return callback
    callback = callback.clone()
    callback.options['link_error'] = left
    return callback


def _as_chain(rest):
    """Return the rest of a chain, which a message holds with the last step first, as a signature."""
    return rest and {'task': 'celery.chain', 'kwargs': {'tasks': rest[::-1]}}


def _has_dependents(request):
    return bool(getattr(request, 'chain', None) or getattr(request, 'chord', None))


def _complete(task_id, request):
    """Return the request of a run from its row, if something depends on it."""
    try:
        return load_requests([task_id]).get(task_id, request) if is_uuid(task_id) else request
    except DatabaseError:
        logger.exception('The steps that depend on %s could not be closed', task_id)
        return request
