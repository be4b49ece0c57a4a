"""What is different where threads are greenlets: in pools of gevent and eventlet, and in web servers that use them.

Each run has a greenlet of its own, which is gone with it; so must be the connections that Django made for it. What
ends a greenlet, or is out of patience with it, is raised in it wherever it waits, also in the middle of a statement,
and is no `Exception`.

psycopg waits for PostgreSQL as gevent wants it, by itself; of eventlet it knows nothing, and would stop all greenlets.
"""
import logging
import signal
import sys
from contextvars import ContextVar

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


def _classes():
    """Return what the libraries in use raise in a greenlet: to end it, and when a time is up."""
    found = [('greenlet', 'GreenletExit'), ('gevent', 'Timeout'), ('eventlet', 'Timeout')]
    return tuple(getattr(sys.modules[module], name) for module, name in found if hasattr(sys.modules.get(module), name))


#: Celery patches before it imports anything, as web servers do.
INTERRUPTS = _classes()

#: The hard time limit of the run in this greenlet, seconds.
_limit: ContextVar = ContextVar('netbox_celery_limit', default=None)


def are_threads():
    """Whether threads of this process are greenlets: it was patched for them when it started."""
    gevent, eventlet = sys.modules.get('gevent.monkey'), sys.modules.get('eventlet.patcher')
    return bool(gevent and gevent.is_module_patched('threading') or eventlet and eventlet.is_monkey_patched('thread'))


def is_order(exc):
    """Whether an exception in a body is Celery's word that the run shall end: whoever has raised it tells of the end.

    A time that is up is so if the run has a hard time limit, since Celery takes every one for that.
    """
    if not isinstance(exc, INTERRUPTS):
        return False
    return type(exc).__name__ == 'GreenletExit' or bool(_limit.get())


def let_others_go_on():
    """Let psycopg wait for PostgreSQL as eventlet wants it: other greenlets go on meanwhile."""
    patcher = sys.modules.get('eventlet.patcher')
    if patcher is not None and patcher.is_monkey_patched('select') and waiting.wait is getattr(waiting, 'wait_c', None):
        waiting.wait = waiting.wait_select


def stop_statement(wrapper):
    """Let PostgreSQL stop the statement that a connection of Django's waits for, as it does after an interruption.

    It would carry it out all the same, and for as long as that takes, though the connection is closed.
    """
    connection = wrapper.connection
    if connection is None or connection.closed or connection.pgconn.transaction_status != TransactionStatus.ACTIVE:
        return
    try:
        connection.cancel_safe(timeout=5)
        while connection.pgconn.get_result() is not None:
            pass
    except Exception:  # noqa: BLE001 - the connection is closed in any case
        logger.warning('A statement that was interrupted could not be cancelled', exc_info=True)


def prepare(pool, on_error):
    """Let a worker's pool of greenlets close the connections that Django has made in each of them.

    Args:
        pool: Celery's pool; it has not started yet.
        on_error: Called with a request and what Celery raised beside the body, of which nobody else would hear.
    """
    class Pool(pool.Pool):
        def spawn(self, function, *args, **kwargs):
            return super().spawn(_execute, function, on_error, *args, **kwargs)

    pool.Pool = Pool


def _execute(function, on_error, *args, timeout=None, **kwargs):
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


def prepare_signals(pool):
    """Let a worker wait in what it does about a signal: where the signal arrives, among greenlets, nothing may wait.

    A cold shutdown writes of each run that it is given up, and a soft one waits before.

    Args:
        pool: Celery's pool; the worker's handlers are in place.
    """
    for number in (signal.SIGTERM, signal.SIGQUIT):
        handler = signal.getsignal(number)
        if callable(handler):
            signal.signal(number, lambda *args, handler=handler: pool.spawn_n(handler, *args))
