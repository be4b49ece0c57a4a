"""Reads results from rows: Redis only notifies those who wait for a task, and need not store the result again.

Celery's Redis backend stores each result under a key and publishes it on a channel of the same name. The row of a
completed run holds its result for longer than Redis would. So a success is only published, which halves the cost of a
result, and code that asks later gets it from the row. A retry is recorded only in the row, because in Redis it could
arrive after the end. Redis stores what a row cannot hold: the states of untracked tasks, custom states, exceptions,
results that are too large for a row, and results with children.
"""
import json
import logging
import threading
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from billiard.exceptions import WorkerLostError
from celery import states
from celery.exceptions import TaskRevokedError
from celery.utils.time import timezone
from django.db import connection
from kombu.utils.encoding import bytes_to_str

from ...choices import ResultReasonChoices as Reason
from ...choices import ResultStatusChoices as Status
from ..calls.ids import canonical
from ..exceptions import TaskFailed
from ..identity import identity
from ..store import lifecycle
from ..store.database import UNUSABLE, execute, get_connection
from ..store.payload import UNREPORTED, is_uuid, read_value, result_of

# `layers` combines this class with that of a backend
if TYPE_CHECKING:
    from celery.backends.redis import RedisBackend
else:
    RedisBackend = object

__all__ = (
    'RowResultsMixin',
)

logger = logging.getLogger(__name__)

ENDS = f"""
    SELECT task_id::text, status, reason, result::text, exact_result, error, traceback, last_updated
    FROM {lifecycle.TABLE}
    WHERE task_id = ANY(%s::uuid[]) AND (
        status = 'retrying'
        -- If the backend is to hold more than the row, it may get that in a moment; after a minute, it has lost it
        OR completed IS NOT NULL AND (NOT in_backend OR completed < now() - interval '1 minute')
    )
"""

STATES = {
    Status.STATUS_RETRYING: states.RETRY,
    Status.STATUS_COMPLETED: states.SUCCESS,
    Status.STATUS_FAILED: states.FAILURE,
    Status.STATUS_ERRORED: states.FAILURE,
    Status.STATUS_REVOKED: states.REVOKED,
    Status.STATUS_IGNORED: states.IGNORED,
}


#: States that code does not see of a run with `ignore_result`: Celery reports `PENDING` instead.
HIDDEN = (states.SUCCESS, states.FAILURE, states.RETRY)


class _Thread(threading.local):
    #: Whether this thread collects the results of a chord's parts for its body.
    joins = False


_thread = _Thread()


def _exception_for(status, reason, error):
    """Return an exception for an end that was written without one, by an earlier version or by SQL."""
    if status == Status.STATUS_FAILED:
        return TaskFailed(error)
    return WorkerLostError(error) if reason == Reason.REASON_WORKER_LOST else Exception(error)


def _exception_of(text):
    """Return the exception in a row, in the form in which Redis would hold it (`exception_text`), or `None`."""
    stored = read_value(text) if text and text.startswith('{') else None
    return stored if isinstance(stored, dict) and 'exc_type' in stored else None


def _query(ids):
    """Read rows with the caller's connection; in a worker, whose parent keeps none of Django's, with the engine's.

    Rows that cannot be read count as unknown: no task must fail because of them.
    """
    try:
        if identity.key is not None:
            return get_connection().execute(ENDS, (ids,), patience=5)
        return execute(connection, ENDS, (ids,))
    except UNUSABLE as exc:
        logger.warning('Results cannot be read from rows: %s', exc)
        return []


# An ignored run is finished. With Celery alone, code that waits for its result would wait forever
states.READY_STATES |= {states.IGNORED}


class RowResultsMixin(RedisBackend):
    """Lets a Redis backend find results in rows, and publish results without storing them."""

    READY_STATES = states.READY_STATES

    def can_publish(self, request):
        """Whether a row holds everything that Celery would store for a success; it does not hold children."""
        return not request.children and self._is_plain

    @cached_property
    def _is_plain(self):
        """Whether results have Celery's default form."""
        return not self.app.conf.result_extended and not getattr(self, 'compression', None)

    def publish_result(self, task_id, result, request):
        """Publish the success of a task whose row holds the result.

        Args:
            task_id: ID of the run.
            result: Its result as JSON text, which is not encoded again.
            request: The request of the run.
        """
        message = f'{json.dumps(self._meta(task_id, states.SUCCESS, request))[:-1]}, "result": {result}}}'
        self.ensure(self.client.publish, (self.get_key_for_task(task_id), message))

    def tell_ignored(self, task_id, request):
        """Publish that a task was ignored, which Celery itself does not report.

        If Redis is unavailable, this does not wait for it, as Celery would for 20 seconds: the row has the end.
        """
        value = self.encode(self._meta(task_id, states.IGNORED, request) | {'result': None})
        try:
            # If Redis holds an earlier state, such as `STARTED`, that must be replaced
            report = self._set if getattr(request, 'netbox_stored', False) else self.client.publish
            self.ensure(report, (self.get_key_for_task(task_id), value), max_retries=1)
        except self.connection_errors as exc:
            logger.warning('The end of the ignored task %s could not be published: %s', task_id, exc)

    @staticmethod
    def _meta(task_id, state, request):
        meta = {
            'status': state, 'traceback': None, 'children': [], 'date_done': datetime.now(UTC).isoformat(),
            'task_id': task_id,
        }
        if request.group:
            meta['group_id'] = request.group
        if request.parent_id:
            meta['parent_id'] = request.parent_id
        return meta

    def on_chord_part_return(self, *args, **kwargs):
        # The body also gets the results of parts with `ignore_result`
        _thread.joins = True
        try:
            return super().on_chord_part_return(*args, **kwargs)
        finally:
            _thread.joins = False

    def get_many(self, *args, **kwargs):
        return super().get_many(*args, **{'READY_STATES': self.READY_STATES} | kwargs)

    def get(self, key):
        value = super().get(key)
        return value if self._is_last(key, value) else self._from_rows({key: value})[key]

    def mget(self, keys):
        values = super().mget(keys)
        open_ends = {key: value for key, value in zip(keys, values) if not self._is_last(key, value)}
        found = self._from_rows(open_ends) if open_ends else {}
        return [found.get(key, value) for key, value in zip(keys, values)]

    def _is_last(self, key, value):
        """Whether Redis holds the final state of a task. Otherwise its row may have it.

        Any code can set a custom state at any time, as `AbortableAsyncResult.abort()` does.
        """
        if value is None or not self.key_t(key).startswith(self.task_keyprefix):
            return value is not None
        return self.decode(value).get('status') in states.READY_STATES

    def _from_rows(self, values):
        """Return the states of finished and retrying runs from their rows, encoded as Redis would hold them.

        Args:
            values: What Redis holds, by key. It is returned for keys without such a row.
        """
        by_id = {
            canonical(bytes_to_str(self.key_t(key))[len(self.task_keyprefix):]): key for key in values
            if self.key_t(key).startswith(self.task_keyprefix)
        }
        ids = [id for id in by_id if is_uuid(id)]
        rows = _query(ids) if ids else []
        return values | {by_id[row[0]]: self.encode(meta) for row in rows if (meta := self._meta_from_row(*row))}

    def _meta_from_row(self, task_id, status, reason, result, exact_result, error, traceback, when):
        state = STATES[status]
        if exact_result and exact_result.startswith(UNREPORTED) and not _thread.joins and state in HIDDEN:
            return None
        if state in (states.FAILURE, states.RETRY):
            result = _exception_of(exact_result) or self.prepare_exception(_exception_for(status, reason, error))
        elif state == states.REVOKED:
            result = _exception_of(exact_result) or self.prepare_exception(TaskRevokedError(error or 'revoked'))
        else:
            is_kept, result = result_of(result, exact_result)
            if not is_kept:
                return None
        return {
            'status': state, 'result': result, 'traceback': traceback or None, 'children': [],
            'date_done': when.astimezone(timezone.utc).isoformat(), 'task_id': task_id,
        }
