"""The result backend hears every end of a task before anyone can see it: so this is where the row gets its end.

`netbox_celery.engine.results.layers` puts these layers over whatever backend is configured. Celery calls
`mark_as_done`, `mark_as_failure`, `mark_as_retry` and `mark_as_revoked` in a worker's child (with the request that it
traced, which carries the claimed run) and in its parent (with a context of its own, for a lost child, a time limit, a
revoke), also when the result is ignored. The row is written first and the result second: what can be seen has been
recorded.
"""
import logging
import sys
import traceback as traceback_module

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
    untold,
    whole_number,
)
from ..store.recorder import recorder
from .rowresults import RowResultsMixin

__all__ = (
    'StoringMixin',
    'TrackingMixin',
    'is_of_another',
)

logger = logging.getLogger(__name__)

PLUGIN = "SELECT plugin FROM netbox_celery_celerytask WHERE name = %s AND plugin <> ''"

#: What Celery says of a task that a cold shutdown took from its process (`celery.worker.request.Request.cancel`).
CANCELLED_BY_CELERY = 'cancelled by Celery'

REVOKES = {'revoked': ENDS['revoked'], 'terminated': ENDS['terminated'], 'expired': ENDS['expired']}


class TrackingMixin:
    """Writes the ends of runs into their rows."""

    def __reduce__(self, args=(), kwargs=None):
        # A pickled backend becomes the app's again: its class was made at run time.
        return _app_backend, ()

    def mark_as_done(self, task_id, result, request=None, store_result=True, state=states.SUCCESS):
        run = get_run(request)
        if getattr(request, 'netbox_unclaimed', False):
            columns, __ = result_columns(result, get_config().payload_length)
            if not store_result:
                columns['exact_result'] = untold(columns.get('exact_result'))
            end_unclaimed(task_id, ENDS['returned_unclaimed'], in_backend=store_result, **columns)
        if run is None:
            return super().mark_as_done(task_id, result, request, store_result, state)
        columns, text = result_columns(self.prepare_value(result), get_config().payload_length)
        if text is None and (store_result or request.chord):
            # Celery decides whether this result can be stored; if not, this raises, and the task fails.
            self.encode(self.encode_result(result, state))
        # The row is enough, unless the backend holds an earlier state of the task that has to be replaced.
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
            status = self._end_claimed(
                run, end, error=error, traceback=_text(traceback), exact_result=self.exception_text(exc),
                in_backend=store_result
            )
            if status != end.status:
                return self._mark_as_ended(task_id, status, request, store_result)
        elif _goes_back(exc, request):
            give_back(
                task_id, ENDS['time_limit_given_back'], ENDS['time_limit'], attempt=_attempt(request),
                error=describe(exc)
            )
        elif getattr(request, 'netbox_unclaimed', False):
            end, error = failure_of(_raised(exc), by_body=True)
            end_unclaimed(
                task_id, end, error=error, traceback=_text(traceback),
                exact_result=self.exception_text(exc) if store_result else untold(None), in_backend=store_result
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
                exact_result=self.exception_text(exc) if store_result else untold(None), in_backend=store_result
            )
            status = reports.status_of(task_id) if row is None else None
            if status == Status.STATUS_REVOKED:
                # The body had said so before its process was lost
                return self._mark_as_ended(task_id, Status.STATUS_REVOKED, request, store_result)
            if status == Status.STATUS_COMPLETED and not isinstance(exc, WorkerLostError | TimeLimitExceeded):
                # Celery came to grief over a success that it has told already, as over a result without a text
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
                # The next attempt has begun already, and its states are later than this one. Or it was cancelled.
                return self._mark_as_ended(task_id, row and row[1], request, store_result)
            if isinstance(self, RowResultsMixin) and not getattr(request, 'netbox_stored', False):
                return exc  # the row says it
        elif isinstance(exc, Retry) and CANCELLED_BY_CELERY in str(exc):
            # It is acknowledged, so that nobody will deliver it again.
            end_from_outside(
                task_id, ENDS['shut_down'], attempt=_attempt(request),
                error='The worker was shut down while the task was running'
            )
        elif isinstance(exc, WorkerLostError):
            # `retry_on_worker_lost`: the parent has sent the next attempt.
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
            # By the body itself, in the row as well, or as soon as the database takes it
            return super().mark_as_revoked(task_id, reason, request=request, store_result=store_result, state=state)
        if reason == 'expired' and is_of_another(task_id, getattr(request, 'task', None)):
            return None
        # Only what was terminated was running. A copy of its message may be revoked, or expire, while it runs.
        row = end_from_outside(
            task_id, REVOKES.get(reason, ENDS['revoked']),
            attempt=_attempt(request) if reason == 'terminated' else None,
            error='' if reason in REVOKES else reason, in_backend=store_result
        )
        if row is None and reports.status_of(task_id) == Status.STATUS_RUNNING:
            return None
        return super().mark_as_revoked(task_id, reason, request=request, store_result=store_result, state=state)

    def exception_text(self, exc):
        """Return an exception as those who ask are told of it, as JSON text for a row, from which they may get it."""
        if exc is None or not isinstance(self, RowResultsMixin):
            return None
        try:
            text = dumps(told := self.prepare_exception(exc))
            if len(text) <= get_config().payload_length:
                return text
            return dumps({**told, 'exc_message': [describe(exc)]})
        except SoftTimeLimitExceeded:
            raise
        except Exception:  # noqa: BLE001 - an author's exception may raise anything
            return None

    def _mark_as_ended(self, task_id, status, request, store_result):
        """Tell Celery how a run has ended that did not end as its body did."""
        if status == Status.STATUS_REVOKED:
            return super().mark_as_revoked(task_id, 'revoked', request, store_result)
        # Whoever ended it, or holds it now, tells Celery.
        return None

    def store_result(self, task_id, result, state, traceback=None, request=None, **kwargs):
        if request is not None and getattr(request, 'id', None) == task_id:
            request.netbox_stored = True
            if spelling := other_spelling(request, task_id):
                # Who sent the message waits for a result of that name
                super().store_result(spelling, result, state, traceback=traceback, request=request, **kwargs)
        run = get_run(request)
        if run is None or run.task_id != task_id:
            return super().store_result(task_id, result, state, traceback=traceback, request=request, **kwargs)
        if state not in states.ALL_STATES:
            _record_custom_state(run, state, result)
        return super().store_result(task_id, result, state, traceback=traceback, request=request, **kwargs)

    def decode(self, payload):
        """Decode what the backend holds, also of a result that only looks like one of Kombu's type markers.

        Other results are on their way to this process, too: one that cannot be read would end the wait for them.
        """
        try:
            return super().decode(payload)
        except Exception as exc:
            if self.content_type != 'application/json':
                raise
            try:
                return read_value(bytes_to_str(decompress_payload(payload)))
            except Exception:  # noqa: BLE001 - it is wrong in another way, which has been said
                raise exc from None

    def _end_claimed(self, run, end, **values):
        """End a run of this process.

        Returns:
            Its status now: another one if it was cancelled, or another process or claim holds it; `None` if another
            claim has brought it to the same end.
        """
        if run.ended:
            return end.status
        row = end_claimed(run, end, **values)
        if row is not None:
            return row[1]
        found = lifecycle.explain(get_connection(), run.task_id)
        if found is None:
            return end.status
        status, *__, claims = found
        # The same end by the same claim is this one: its answer was lost with a connection, and it was written again.
        return status if claims == run.claims or status != end.status else None


class StoringMixin:
    """Stores the result of a claimed run without asking for an earlier one.

    Celery's key-value backends fetch what they hold of a task before they write, lest a copy of a message overwrite a
    success. The row has ruled that out, which saves a round trip for each task.
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
    """Whether the parent is about to give the message of a task back that ran out of time (`acks_on_timeout`)."""
    if not isinstance(exc, TimeLimitExceeded):
        return False
    task = get_app().tasks.get(getattr(request, 'task', None))
    return task is not None and task.acks_late and not task.acks_on_timeout


def why_not_here(exc):
    """Return in words why a worker has no task of a name, or an empty string: its plugin could not be imported."""
    if not discovery.failures():
        return ''
    name = str(exc.args[0]) if exc.args else ''
    try:
        found = get_connection().execute(PLUGIN, (name,))
    except DatabaseError:
        found = None
    why = discovery.why_unregistered(name, found and found[0][0])
    return f'This worker could not import {why}' if why else ''


def is_of_another(task_id, name):
    """Whether the row with the ID of a message is that of another task than the one that the message names."""
    try:
        call = lifecycle.call_of(get_connection(), task_id) if is_uuid(task_id) else None
    except DatabaseError:
        return False
    if not name or call is None or is_named(name, call[0]):
        return False
    logger.warning('A message with the ID of %s[%s] is of %s, and no worker can run it', call[0], task_id, name)
    return True


def _raised(exc):
    """Return what the body raised: Celery hands over a stand-in for exceptions that cannot be pickled."""
    original = sys.exception()
    return exc if original is None or isinstance(exc, RetryNotSent) or type(original) is type(exc) else original


def _record_custom_state(run, state, meta):
    """Let a custom state (`update_state("PROGRESS", meta={...})`) move the row's progress."""
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
    """Return a traceback as text: the one that Celery hands over, or the exception's own."""
    if not traceback and getattr(exc, '__traceback__', None) is not None:
        traceback = ''.join(traceback_module.format_exception(exc))
    return cut_text(text_of(traceback or ''), get_config().payload_length)
