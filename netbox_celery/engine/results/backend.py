"""Writes the end of each run into its row, because Celery reports every end to the result backend first.

`netbox_celery.engine.results.layers` puts these layers over the configured backend. Celery calls `mark_as_done`,
`mark_as_failure`, `mark_as_retry` and `mark_as_revoked` in a worker's child (with the request that it traced, which
carries the claimed run) and in its parent (with a different context, for a lost child, a time limit, a revoke), also if
the result is ignored. The row is written before the result, so every visible result is recorded.
"""
import logging
import sys
import traceback as traceback_module
from typing import TYPE_CHECKING

from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery import states
from celery.backends.base import decompress_payload
from celery.exceptions import (
    NotRegistered,
    Retry,
)
from django.db import DatabaseError
from kombu.utils.encoding import bytes_to_str

from ...choices import ResultStatusChoices as Status
from ...config import get_config
from ..app import get_app
from ..calls.ids import other_spelling
from ..calls.run import get_run
from ..catalogue import discovery
from ..exceptions import (
    RetryNotSent,
)
from ..runs import reports
from ..runs.ending import (
    ENDS,
    describe,
    end_claimed,
    end_from_outside,
    end_unclaimed,
    failure_of,
    give_back,
    record_retry,
)
from ..runs.errbacks import note_errbacks
from ..store import lifecycle
from ..store.database import get_connection
from ..store.payload import (
    cut_text,
    dumps,
    is_named,
    is_uuid,
    read_value,
    result_columns,
    shown_jsonb,
    text_of,
    unreported,
    whole_number,
)
from ..store.recorder import recorder
from .rowresults import RowResultsMixin

# `layers` combines these classes with that of a backend
if TYPE_CHECKING:
    from celery.backends.base import KeyValueStoreBackend
else:
    KeyValueStoreBackend = object

__all__ = (
    'StoringMixin',
    'TrackingMixin',
    'is_of_another',
)

logger = logging.getLogger(__name__)

PLUGIN = "SELECT plugin FROM netbox_celery_celerytask WHERE name = %s AND plugin <> ''"

#: Celery's message for a task that a cold shutdown cancelled (`celery.worker.request.Request.cancel`).
CANCELLED_BY_CELERY = 'cancelled by Celery'

REVOKES = {'revoked': ENDS['revoked'], 'terminated': ENDS['terminated'], 'expired': ENDS['expired']}


class TrackingMixin(KeyValueStoreBackend):
    """Writes the ends of runs into their rows."""

    def __reduce__(self, args=(), kwargs=None):
        # Unpickle as the backend of the app, because this class is created at run time
        return _app_backend, ()

    def mark_as_done(self, task_id, result, request=None, store_result=True, state=states.SUCCESS):
        run = get_run(request)
        if getattr(request, 'netbox_unclaimed', False):
            columns, __ = result_columns(result, get_config().payload_length)
            if not store_result:
                columns['exact_result'] = unreported(columns.get('exact_result'))
            end_unclaimed(task_id, ENDS['returned_unclaimed'], in_backend=store_result, **columns)
        if run is None:
            return super().mark_as_done(task_id, result, request, store_result, state)
        columns, text = result_columns(self.prepare_value(result), get_config().payload_length)
        if text is None and (store_result or request.chord):
            # Celery decides whether this result can be stored; if not, this raises, and the task fails
            self.encode(self.encode_result(result, state))
        # The row is enough, unless the backend holds an earlier state of the task that must be replaced
        row_is_enough = (
            store_result and text is not None and not run.ended and run.claims == 1
            and not getattr(request, 'netbox_stored', False) and other_spelling(request, task_id) is None
            and isinstance(self, RowResultsMixin) and self.can_publish(request)
        )
        status = self._end_claimed(
            run, ENDS['returned'], in_backend=store_result and not row_is_enough, **columns
        )
        if status != Status.STATUS_COMPLETED:
            return self._mark_as_ended(task_id, status, request, store_result)
        if row_is_enough:
            self.publish_result(task_id, text, request)
        return super().mark_as_done(task_id, result, request, store_result and not row_is_enough, state)

    def mark_as_failure(
        self, task_id, exc, traceback=None, request=None, store_result=True, call_errbacks=True, state=states.FAILURE
    ):
        run = get_run(request)
        if call_errbacks:
            note_errbacks(self, request)
        if run is not None:
            end, error = failure_of(_raised(exc), by_body=True)
            row_status = self._end_claimed(
                run, end, error=error, traceback=_text(traceback), exact_result=self.exception_text(exc),
                in_backend=store_result
            )
            if row_status != end.status:
                return self._mark_as_ended(task_id, row_status, request, store_result)
        elif _goes_back(exc, request):
            give_back(
                task_id, ENDS['time_limit_given_back'], ENDS['time_limit'], attempt=_attempt(request),
                error=describe(exc)
            )
        elif getattr(request, 'netbox_unclaimed', False):
            end, error = failure_of(_raised(exc), by_body=True)
            end_unclaimed(
                task_id, end, error=error, traceback=_text(traceback),
                exact_result=self.exception_text(exc) if store_result else unreported(None), in_backend=store_result
            )
        elif isinstance(exc, NotRegistered) and is_of_another(
            task_id, getattr(request, 'task', None) or getattr(request, 'name', None)
        ):
            return None
        elif not getattr(request, 'is_eager', False):
            end, error = failure_of(exc)
            if isinstance(exc, NotRegistered) and (why := why_not_here(exc)):
                error = cut_text(f'{error}. {why}', get_config().log_message_length)
            row = end_from_outside(
                task_id, end, attempt=_attempt(request), error=error,
                traceback=_text(traceback or getattr(request, 'netbox_traceback', None), exc),
                exact_result=self.exception_text(exc) if store_result else unreported(None), in_backend=store_result
            )
            row_status = reports.status_of(task_id) if row is None else None
            if row_status == Status.STATUS_REVOKED:
                # The body was revoked before its process was lost
                return self._mark_as_ended(task_id, Status.STATUS_REVOKED, request, store_result)
            if row_status == Status.STATUS_COMPLETED and not isinstance(exc, WorkerLostError | TimeLimitExceeded):
                # Celery failed after it had reported a success, for example over a result whose `repr()` raises
                return None
        return super().mark_as_failure(
            task_id, exc, traceback=traceback, request=request, store_result=store_result,
            call_errbacks=call_errbacks, state=state
        )

    def mark_as_retry(self, task_id, exc, traceback=None, request=None, store_result=True, state=states.RETRY):
        run = get_run(request)
        if run is not None and not run.continued:
            return self.mark_as_failure(task_id, RetryNotSent(), traceback, request, store_result)
        if run is not None:
            row = record_retry(run, describe(exc), _text(traceback), self.exception_text(exc))
            if row is None or row[1] != Status.STATUS_RETRYING:
                # The next attempt has already started, so its states are newer than this one; or it was cancelled
                return self._mark_as_ended(task_id, row and row[1], request, store_result)
            if isinstance(self, RowResultsMixin) and not getattr(request, 'netbox_stored', False):
                return exc  # the row is enough
        elif isinstance(exc, Retry) and CANCELLED_BY_CELERY in str(exc):
            # The message is acknowledged, so the broker will not redeliver it
            end_from_outside(
                task_id, ENDS['shut_down'], attempt=_attempt(request),
                error='The worker was shut down while the task was running'
            )
        elif isinstance(exc, WorkerLostError):
            # `retry_on_worker_lost`: the parent has sent the next attempt
            give_back(
                task_id, ENDS['process_lost_retried'], ENDS['process_lost_too_often'], attempt=_attempt(request),
                error=describe(exc)
            )
        return super().mark_as_retry(
            task_id, exc, traceback=traceback, request=request, store_result=store_result, state=state
        )

    def mark_as_revoked(self, task_id, reason='', request=None, store_result=True, state=states.REVOKED):
        run = get_run(request)
        if run is not None and run.ended:
            # By the body itself; the row has it as well, or gets it as soon as the database is available
            return super().mark_as_revoked(task_id, reason, request=request, store_result=store_result, state=state)
        if reason == 'expired' and is_of_another(task_id, getattr(request, 'task', None)):
            return None
        # Only a terminated task was running. While a run is running, a copy of its message may be revoked, or expire
        row = end_from_outside(
            task_id, REVOKES.get(reason, ENDS['revoked']),
            attempt=_attempt(request) if reason == 'terminated' else None,
            error='' if reason in REVOKES else reason, in_backend=store_result
        )
        if row is None and reports.status_of(task_id) == Status.STATUS_RUNNING:
            return None
        return super().mark_as_revoked(task_id, reason, request=request, store_result=store_result, state=state)

    def exception_text(self, exc):
        """Return an exception as JSON text for the row, in the form in which Celery's clients get it; or `None`."""
        if exc is None or not isinstance(self, RowResultsMixin):
            return None
        try:
            text = dumps(prepared := self.prepare_exception(exc))
            if len(text) <= get_config().payload_length:
                return text
            return dumps({**prepared, 'exc_message': [describe(exc)]})
        except SoftTimeLimitExceeded:
            raise
        except Exception:  # noqa: BLE001 - an author's exception may raise anything
            return None

    def _mark_as_ended(self, task_id, status, request, store_result):
        """Report to Celery the end of a run whose row has another end than its body."""
        if status == Status.STATUS_REVOKED:
            return super().mark_as_revoked(task_id, 'revoked', request, store_result)
        # The process that finished the run, or holds it now, reports to Celery
        return None

    def store_result(self, task_id, result, state, traceback=None, request=None, **kwargs):
        if request is not None and getattr(request, 'id', None) == task_id:
            request.netbox_stored = True
            if spelling := other_spelling(request, task_id):
                # The sender of the message waits for a result under that spelling of the ID
                super().store_result(spelling, result, state, traceback=traceback, request=request, **kwargs)
        run = get_run(request)
        if run is None or run.task_id != task_id:
            return super().store_result(task_id, result, state, traceback=traceback, request=request, **kwargs)
        if state not in states.ALL_STATES:
            _record_custom_state(run, state, result)
        return super().store_result(task_id, result, state, traceback=traceback, request=request, **kwargs)

    def decode(self, payload):
        """Decode what the backend holds, also if a result only looks like one of Kombu's type markers.

        A result that cannot be decoded would end this process's wait for all other results, too.
        """
        try:
            return super().decode(payload)
        except Exception as exc:
            if self.content_type != 'application/json':
                raise
            try:
                return read_value(bytes_to_str(decompress_payload(payload)))
            except Exception:  # noqa: BLE001 - it is invalid for another reason, which the first exception names
                raise exc from None

    def _end_claimed(self, run, end, **values):
        """Finish a run of this process.

        Returns:
            The status in its row now: a different one if the run was cancelled, or another process holds it; `None` if
            another claim has finished it with the same status.
        """
        if run.ended:
            return end.status
        row = end_claimed(run, end, **values)
        if row is not None:
            return row[1]
        found = lifecycle.explain(get_connection(), run.task_id)
        if found is None:
            return end.status
        row_status, *__, claims = found
        # The same status by the same claim is this end: the answer was lost with a connection, and it was written again
        return row_status if claims == run.claims or row_status != end.status else None


class StoringMixin(KeyValueStoreBackend):
    """Stores the result of a claimed run without reading an earlier one.

    Celery's key-value backends read their current value before they write, so that a copy of a message cannot overwrite
    a success. The claim rules that out already, so this saves a round trip per task.
    """

    def _store_result(self, task_id, result, state, traceback=None, request=None, **kwargs):
        run = get_run(request)
        if run is None or run.task_id != task_id:
            return super()._store_result(task_id, result, state, traceback=traceback, request=request, **kwargs)
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta['task_id'] = bytes_to_str(task_id)
        self._set_with_state(self.get_key_for_task(task_id), self.encode(meta), state)
        return result


def _app_backend():
    return get_app().backend


def _attempt(request):
    retries = getattr(request, 'retries', 0)
    return (retries if isinstance(retries, int) else 0) + 1


def _goes_back(exc, request):
    """Whether the parent is about to requeue the message of a task that exceeded its time limit (`acks_on_timeout`)."""
    if not isinstance(exc, TimeLimitExceeded):
        return False
    task = get_app().tasks.get(getattr(request, 'task', None))
    return task is not None and task.acks_late and not task.acks_on_timeout


def why_not_here(exc):
    """Return why a worker has no task of this name, or an empty string: its plugin may have failed to import."""
    if not discovery.failures():
        return ''
    name = str(exc.args[0]) if exc.args else ''
    try:
        rows = get_connection().execute(PLUGIN, (name,))
    except DatabaseError:
        rows = []
    why = discovery.why_unregistered(name, rows[0][0] if rows else None)
    return f'This worker could not import {why}' if why else ''


def is_of_another(task_id, name):
    """Whether the row with a message's ID belongs to another task than the message."""
    try:
        call = lifecycle.call_of(get_connection(), task_id) if is_uuid(task_id) else None
    except DatabaseError:
        return False
    if not name or call is None or is_named(name, call[0]):
        return False
    logger.warning('A message with the ID of %s[%s] is for %s, and no worker can run it', call[0], task_id, name)
    return True


def _raised(exc):
    """Return the exception that the body raised: Celery passes a substitute for one that cannot be pickled."""
    original = sys.exception()
    return exc if original is None or isinstance(exc, RetryNotSent) or type(original) is type(exc) else original


def _record_custom_state(run, state, meta):
    """Set the row's progress from a custom state (`update_state("PROGRESS", meta={...})`)."""
    if not isinstance(meta, dict):
        return
    value, value_max = meta.get('current'), meta.get('total')
    if value is None:
        value = meta.get('percent')
        value_max = value_max if whole_number(value) is None else 100
    step = meta.get('step') or meta.get('status')
    recorder.progress(
        run, value=value, value_max=value_max, data=shown_jsonb(meta, get_config().payload_length),
        step=step if step is not None else (state if state != 'PROGRESS' else None),
    )


def _text(traceback, exc=None):
    """Return a traceback as text: the one that Celery passes, or the exception's own."""
    if not traceback and getattr(exc, '__traceback__', None) is not None:
        traceback = ''.join(traceback_module.format_exception(exc))
    return cut_text(text_of(traceback or ''), get_config().payload_length)
