"""Bodies that raise something other than an `Exception`: `sys.exit()`, an interrupt, `asyncio.CancelledError`.

Celery's tracer does not catch these: it notifies neither the result backend nor hooks, and in a pool of threads the run
would never finish. Here, such a run finishes as failed. Code that waits for it gets a stand-in (`BodyInterrupted`):
`SystemExit`, raised in a program that waits for the result, would end that program.

Two kinds are handled elsewhere. An order to stop the worker or a process concerns the process and not the run: the
process that finds the run later decides how it ends. And `sys.exit()` in a process of a pool ends that process, as with
plain Celery: its parent reports the run as lost, with the traceback that the process leaves behind.
"""
import logging
from traceback import format_exception

from billiard.common import terminate_handler_fired
from billiard.einfo import ExceptionInfo
from celery import signals, states
from celery.app.task import get_actual_ignore_result
from celery.exceptions import WorkerShutdown, WorkerTerminate

from ..calls.hooks import tell
from ..exceptions import BodyInterrupted
from ..identity import identity
from ..store import greenlets

__all__ = (
    'is_interruption',
    'is_order',
    'report_interruption',
)

logger = logging.getLogger(__name__)


def is_order(exc):
    """Whether an exception in a body is an order to stop the worker, the process or the greenlet."""
    return isinstance(exc, WorkerShutdown | WorkerTerminate) or terminate_handler_fired() or greenlets.is_order(exc)


def is_interruption(exc):
    """Whether a body was left with an exception that is not an `Exception` and that only its own process can report."""
    if isinstance(exc, Exception | None) or is_order(exc):
        return False
    return not (identity.is_child and isinstance(exc, SystemExit | KeyboardInterrupt))


def report_interruption(task, request, exc):
    """Finish a run as Celery finishes a failed one, and notify dependent steps, waiting code, and hooks.

    Args:
        task: The task.
        request: Its current request.
        exc: The exception that its body raised.
    """
    stand_in = BodyInterrupted(exc).with_traceback(exc.__traceback__)
    stores = not get_actual_ignore_result(task, request) or task.store_errors_even_if_ignored
    logger.error('The body of task %s[%s] was left by %s', task.name, request.id, stand_in, exc_info=exc)
    try:
        task.backend.mark_as_failure(request.id, stand_in, ''.join(format_exception(exc)), request, stores)
    except Exception:
        logger.exception('The end of task %s[%s] could not be fully reported', task.name, request.id)
    info = ExceptionInfo((BodyInterrupted, stand_in, exc.__traceback__))
    tell(task, 'on_failure', stand_in, request.id, request.args, request.kwargs, info)
    tell(task, 'after_return', states.FAILURE, stand_in, request.id, request.args, request.kwargs, info)
    signals.task_failure.send(
        sender=task, task_id=request.id, exception=stand_in, args=request.args, kwargs=request.kwargs,
        traceback=exc.__traceback__, einfo=info
    )
