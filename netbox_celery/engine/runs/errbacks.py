"""Logs which error callbacks (`link_error`) Celery calls in the process of the failed run.

Callbacks that Celery sends to a worker are runs of their own.
"""
import logging
from functools import partial

from ..calls.run import Run, get_run
from ..internals import takes_exception
from ..store import lifecycle
from ..store.database import UNUSABLE, get_connection
from ..store.payload import is_uuid
from ..store.recorder import recorder

__all__ = (
    'note_errbacks',
)

logger = logging.getLogger(__name__)

ID_OF = f'SELECT id, attempt FROM {lifecycle.TABLE} WHERE task_id = %s'


def note_errbacks(backend, request):
    """Write into a failed run's log which of its error callbacks are called here; the others are runs of their own.

    The lines are written before the end of the run, while people may follow the log. A cancelled run gets none, since
    its failure is not reported.

    Args:
        backend: The result backend.
        request: The request of the run, or the request that a worker's parent has.
    """
    errbacks = getattr(request, 'errbacks', None)
    if not errbacks or getattr(request, 'netbox_noted', False):
        return
    names = [errback.name for errback in map(backend.app.signature, errbacks) if _is_inline(backend, errback)]
    if not names:
        return
    run = get_run(request)
    try:
        if run is None and is_uuid(request.id) and (rows := get_connection().execute(ID_OF, (request.id,))):
            run = Run(request.id, id=rows[0][0], attempt=rows[0][1] or 1)
        if run is None or lifecycle.is_cancelled(get_connection(), run.id):
            return
        for name in names:
            recorder.log(run, f'Error callback: {name}')
        recorder.flush(run)
        request.netbox_noted = True
    except UNUSABLE:
        logger.exception('The error callbacks of %s could not be logged', request.id)


def _is_inline(backend, errback):
    """Whether Celery calls an error callback in the process of the failure (`Backend._call_task_errbacks`)."""
    try:
        header = getattr(errback.type, '__header__', None)
        return header is not None and not isinstance(header, partial) and takes_exception(backend, errback)
    except Exception:  # noqa: BLE001 - the task is unknown here: its message goes to another worker
        return False
