"""Results from rows: Redis tells those who wait that a task is done, and need not hold the result a second time.

Celery's Redis backend stores each result under a key and publishes it on a channel of that name. A run that completed
has its result in its row, for longer than Redis would keep it. So for those only the publishing is done, which halves
what a result costs, and whoever asks later gets it from the row. A retry is told by the row alone, since what Redis
is told of it could come after the end. Redis holds what a row cannot: states of untracked tasks and custom states,
exceptions, results too large for a row, and results with children.
"""
import json
import logging
import threading
from datetime import UTC, datetime
from functools import cached_property

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
from ..store.payload import UNTOLD, is_uuid, read_value, result_of

__all__ = (
    'RowResultsMixin',
)

logger = logging.getLogger(__name__)

TOLD = f"""
    SELECT task_id::text, status, reason, result::text, exact_result, error, traceback, last_updated
    FROM {lifecycle.TABLE}
    WHERE task_id = ANY(%s::uuid[]) AND (
        status = 'retrying'
        -- What the backend holds too, and better, it may be about to get. Later on, it has lost it.
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


#: What code is not told of a run whose result is ignored: Celery leaves it at `PENDING`.
HIDDEN = (states.SUCCESS, states.FAILURE, states.RETRY)


class _Thread(threading.local):
    #: Whether results of the parts of a chord are put together for its body.
    joins = False


_thread = _Thread()


def _exception_for(status, reason, error):
    """Return the exception for an end that an earlier version, or somebody by SQL, has written without one."""
    if status == Status.STATUS_FAILED:
        return TaskFailed(error)
    return WorkerLostError(error) if reason == Reason.REASON_WORKER_LOST else Exception(error)


def _exception_of(text):
    """Return the exception that a row keeps as Redis would hold it (`exception_text`), or `None`."""
    told = read_value(text) if text and text.startswith('{') else None
    return told if isinstance(told, dict) and 'exc_type' in told else None


def _query(ids):
    """Read rows with the caller's connection; in a worker, whose parent keeps none of Django's, with the engine's.

    What cannot be read is as good as unknown: no task fails for it.
    """
    try:
        if identity.key is not None:
            return get_connection().execute(TOLD, (ids,), patience=5)
        return execute(connection, TOLD, (ids,))
    except UNUSABLE as exc:
        logger.warning('Results cannot be read from rows: %s', exc)
        return []


# A run that was ignored has ended. With Celery alone, who waits for its result waits for ever.
states.READY_STATES |= {states.IGNORED}


class RowResultsMixin:
    """Lets a Redis backend find results in rows, and publish results without storing them."""

    READY_STATES = states.READY_STATES

    def can_publish(self, request):
        """Whether a row holds all that Celery would store of a success: it knows nothing of children."""
        return not request.children and self._is_plain

    @cached_property
    def _is_plain(self):
        """Whether results are what Celery makes of them if nobody says anything else."""
        return not self.app.conf.result_extended and not getattr(self, 'compression', None)

    def publish_result(self, task_id, result, request):
        """Tell those who wait that a task was successful; its row holds the result.

        Args:
            task_id: ID of the run.
            result: Its result as JSON text, which is not encoded a second time.
            request: The request of the run.
        """
        message = f'{json.dumps(self._meta(task_id, states.SUCCESS, request))[:-1]}, "result": {result}}}'
        self.ensure(self.client.publish, (self.get_key_for_task(task_id), message))

    def tell_ignored(self, task_id, request):
        """Tell those who wait that a task was ignored, for which Celery has no end.

        A Redis that is away is not waited for, as Celery would for 20 seconds: the row tells whoever asks later.
        """
        value = self.encode(self._meta(task_id, states.IGNORED, request) | {'result': None})
        try:
            # It may hold that the task has started
            tell = self._set if getattr(request, 'netbox_stored', False) else self.client.publish
            self.ensure(tell, (self.get_key_for_task(task_id), value), max_retries=1)
        except self.connection_errors as exc:
            logger.warning('Nobody could be told that task %s was ignored: %s', task_id, exc)

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
        # The body gets the results of parts that ignore them
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
        """Whether what Redis holds is how a task ended: of others, a row may know the end.

        Anybody can give a task a state of his own at any time, as `AbortableAsyncResult.abort()` does.
        """
        if value is None or not self.key_t(key).startswith(self.task_keyprefix):
            return value is not None
        return self.decode(value).get('status') in states.READY_STATES

    def _from_rows(self, values):
        """Return what rows tell of runs that have ended or will be retried, encoded as Redis would hold it.

        Args:
            values: What Redis holds, by key; where rows tell nothing, that stays.
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
        if exact_result and exact_result.startswith(UNTOLD) and not _thread.joins and state in HIDDEN:
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
