"""A body that leaves by an exception that is no `Exception`: `sys.exit()`, an interrupt, `asyncio.CancelledError`.

Celery's tracer lets those pass: it tells neither the result backend nor a hook, and in a pool of threads nobody ever
hears of the run again. Here such a run ends as one that has failed. What waits for it is told of a stand-in
(`BodyInterrupted`): raised where a program waits for the result, `SystemExit` would end that program.

Two kinds are left to others. An order to end, to the worker or to a process, is about its process and not about the
run: whoever finds the run says what becomes of it. And `sys.exit()` in a process of a pool ends that process, as Celery
has it: its parent reports the run as lost with it, with the traceback that the process leaves behind.
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
    """Whether an exception in a body is an order to end, to its worker, to the process or to the greenlet."""
    return isinstance(exc, WorkerShutdown | WorkerTerminate) or terminate_handler_fired() or greenlets.is_order(exc)


def is_interruption(exc):
    """Whether a body has left by what is no `Exception`, and nobody but its own process will say so."""
    if isinstance(exc, Exception | None) or is_order(exc):
        return False
    return not (identity.is_child and isinstance(exc, SystemExit | KeyboardInterrupt))


def tell_of_interruption(task, request, exc):
    """End a run as Celery ends one that has failed: the row, what depends on it, who waits, and hooks.

    Args:
        task: The task.
        request: Its current request.
        exc: What its body has raised.
    """
    told = BodyInterrupted(exc).with_traceback(exc.__traceback__)
    stores = not get_actual_ignore_result(task, request) or task.store_errors_even_if_ignored
    logger.error('Task %s[%s] was left by %s', task.name, request.id, told, exc_info=exc)
    try:
        task.backend.mark_as_failure(request.id, told, ''.join(format_exception(exc)), request, stores)
    except Exception:
        logger.exception('The end of task %s[%s] could not be told to all', task.name, request.id)
    info = ExceptionInfo((BodyInterrupted, told, exc.__traceback__))
    tell(task, 'on_failure', told, request.id, request.args, request.kwargs, info)
    tell(task, 'after_return', states.FAILURE, told, request.id, request.args, request.kwargs, info)
    signals.task_failure.send(
        sender=task, task_id=request.id, exception=told, args=request.args, kwargs=request.kwargs,
        traceback=exc.__traceback__, einfo=info
    )
