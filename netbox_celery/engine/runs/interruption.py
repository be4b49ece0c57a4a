"""Bodies that are left by what is not an `Exception`: `sys.exit()`, an interrupt, `asyncio.CancelledError`.

Celery's tracer lets those pass: it tells neither the result backend nor a hook, and in a pool of threads the run would
never be heard of again. Here such a run ends as failed. Code that waits for it gets a stand-in (`BodyInterrupted`):
`SystemExit`, raised where a program waits for the result, would end that program.

Two kinds are handled elsewhere. An order to stop, to the worker or to a process, concerns the process and not the run:
whatever finds the run then decides how it ends. And `sys.exit()` in a process of a pool ends that process, as it does
with Celery: its parent reports the run as lost with it, with the traceback that the process leaves behind.
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
    'tell_of_interruption',
)

logger = logging.getLogger(__name__)


def is_order(exc):
    """Whether an exception in a body is an order to stop: its worker, the process or the greenlet."""
    return isinstance(exc, WorkerShutdown | WorkerTerminate) or terminate_handler_fired() or greenlets.is_order(exc)


def is_interruption(exc):
    """Whether a body was left by an exception that is not an `Exception`, which only its own process can report."""
    if isinstance(exc, Exception | None) or is_order(exc):
        return False
    return not (identity.is_child and isinstance(exc, SystemExit | KeyboardInterrupt))


def tell_of_interruption(task, request, exc):
    """End a run as Celery ends one that has failed: its row, what depends on it, code that waits, and hooks.

    Args:
        task: The task.
        request: Its current request.
        exc: What its body has raised.
    """
    told = BodyInterrupted(exc).with_traceback(exc.__traceback__)
    stores = not get_actual_ignore_result(task, request) or task.store_errors_even_if_ignored
    logger.error('The body of task %s[%s] was left by %s', task.name, request.id, told, exc_info=exc)
    try:
        task.backend.mark_as_failure(request.id, told, ''.join(format_exception(exc)), request, stores)
    except Exception:
        logger.exception('The end of task %s[%s] could not be reported to all', task.name, request.id)
    info = ExceptionInfo((BodyInterrupted, told, exc.__traceback__))
    tell(task, 'on_failure', told, request.id, request.args, request.kwargs, info)
    tell(task, 'after_return', states.FAILURE, told, request.id, request.args, request.kwargs, info)
    signals.task_failure.send(
        sender=task, task_id=request.id, exception=told, args=request.args, kwargs=request.kwargs,
        traceback=exc.__traceback__, einfo=info
    )
