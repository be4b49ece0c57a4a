"""Handles greenlets that take the place of threads: in pools of gevent and eventlet, and in web servers that use them.

Each run has its own greenlet, and the connections that Django opened in it must be closed when it ends. Exceptions that
end a greenlet, or enforce its time limit, are raised wherever it waits, also in the middle of a statement, and do not
inherit from `Exception`.

psycopg supports gevent by itself. It does not know eventlet: while it waits for PostgreSQL, all greenlets would stop.
"""
import logging
import signal
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from psycopg import waiting
from psycopg.pq import TransactionStatus

from . import branches

__all__ = (
    'INTERRUPTS',
    'are_threads',
    'is_order',
    'let_others_go_on',
    'prepare',
    'prepare_signals',
    'stop_statement',
)

logger = logging.getLogger(__name__)


def _classes() -> tuple[type[BaseException], ...]:
    """Return the exceptions by which the libraries in use end a greenlet, or enforce its time limit."""
    found = [('greenlet', 'GreenletExit'), ('gevent', 'Timeout'), ('eventlet', 'Timeout')]
    return tuple(getattr(sys.modules[module], name) for module, name in found if hasattr(sys.modules.get(module), name))


#: Celery and web servers apply these libraries' patches before they import anything else.
INTERRUPTS = _classes()

#: The hard time limit of the run in this greenlet, seconds.
_limit: ContextVar[float | None] = ContextVar('netbox_celery_limit', default=None)


def are_threads() -> bool:
    """Whether the threads of this process are greenlets, because it was patched when it started."""
    gevent, eventlet = sys.modules.get('gevent.monkey'), sys.modules.get('eventlet.patcher')
    return bool(gevent and gevent.is_module_patched('threading') or eventlet and eventlet.is_monkey_patched('thread'))


def is_order(exc: BaseException) -> bool:
    """Whether an exception in a body is an order of Celery's to end the run. The code that raised it reports the end.

    A timeout is such an order if the run has a hard time limit, because Celery then takes every timeout for that limit.
    """
    if not isinstance(exc, INTERRUPTS):
        return False
    return type(exc).__name__ == 'GreenletExit' or bool(_limit.get())


def let_others_go_on() -> None:
    """Let psycopg wait for PostgreSQL in a way that eventlet supports, so that other greenlets continue meanwhile."""
    patcher = sys.modules.get('eventlet.patcher')
    if patcher is not None and patcher.is_monkey_patched('select') and waiting.wait is getattr(waiting, 'wait_c', None):
        waiting.wait = waiting.wait_select


def stop_statement(wrapper: Any) -> None:
    """Cancel the statement that a connection of Django's was waiting for when it was interrupted.

    Otherwise PostgreSQL would execute it to its end, even after the connection was closed.
    """
    connection = wrapper.connection
    if connection is None or connection.closed or connection.pgconn.transaction_status != TransactionStatus.ACTIVE:
        return
    try:
        connection.cancel_safe(timeout=5)
        while connection.pgconn.get_result() is not None:
            pass
    except Exception:  # noqa: BLE001 - the connection is closed in any case
        logger.warning('An interrupted statement could not be cancelled', exc_info=True)


def prepare(pool: Any, on_error: Callable[[Any, Exception], Any]) -> None:
    """Let a worker's pool close the connections that Django opened in each of its greenlets.

    Args:
        pool: Celery's pool, before its start.
        on_error: Called with a request and an exception that Celery raised outside of the body: nothing else reports
            it.
    """
    base: Any = pool.Pool

    class Pool(base):
        def spawn(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return super().spawn(_execute, function, on_error, *args, **kwargs)

    pool.Pool = Pool


def _execute(
    function: Callable[..., Any], on_error: Callable[[Any, Exception], Any], *args: Any, timeout: float | None = None,
    **kwargs: Any
) -> Any:
    """Execute a run in its greenlet: `function` is Celery's `apply_target`, or `apply_timeout` if there is a limit."""
    if timeout:
        _limit.set(timeout)
        kwargs['timeout'] = timeout
    try:
        return function(*args, **kwargs)
    except Exception as exc:  # noqa: BLE001 - a greenlet's exceptions are only printed
        __, __, __, callback, *__ = args
        return on_error(callback.__self__, exc)
    finally:
        opened = branches.opened()
        for each in opened:
            stop_statement(each)
        for each in opened:
            each.close()


def prepare_signals(pool: Any) -> None:
    """Run a worker's signal handlers in greenlets of their own, because a handler itself must not wait.

    In a cold shutdown, the handler records for each run that it was given up; in a soft one, it waits before that.

    Args:
        pool: Celery's pool, after the worker has installed its handlers.
    """
    for number in (signal.SIGTERM, signal.SIGQUIT):
        handler = signal.getsignal(number)
        if callable(handler):
            signal.signal(number, lambda *args, handler=handler: pool.spawn_n(handler, *args))
