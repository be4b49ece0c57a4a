"""Runs tasks in the process and thread of the caller, without a broker, a result backend or a worker.

`netbox_celery.testing` is built on it. Everything else is as in a worker: the call makes a row and a message, the
message becomes a request of Celery's, its run is claimed, recorded and finished. Messages are kept here instead of
being sent.
"""
import logging
import threading
from contextlib import ExitStack, contextmanager
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.app.trace import build_tracer, trace_task_ret
from celery.backends.cache import CacheBackend
from celery.concurrency.base import apply_target
from celery.exceptions import TaskRevokedError
from celery.result import denied_join_result
from celery.worker.request import Request, create_request_cls
from django.db import connection
from kombu.message import Message
from kombu.serialization import dumps

from ..catalogue import registry
from ..identity import identity
from ..internals import backend_replaced, producer_pool_replaced, replaced
from ..results.layers import tracked_backend
from ..runs import claim, loghandler
from ..store.database import CallersConnection, use_connection
from ..store.recorder import recorder
from .messages import tolerant

__all__ = (
    'commit',
    'execute_message',
    'in_process',
)

logger = logging.getLogger(__name__)

#: Name of the worker in the rows of such runs.
NODE = 'in-process@test'


class Producer:
    """Collects the messages of tasks, in place of a producer of Kombu's."""

    supports_batch_publish = False

    def __init__(self, pool):
        self.connection = pool.connections.connection  # opened on first use, and never used
        self._messages = pool.messages

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        pass

    @contextmanager
    def batch(self, **options):
        yield self

    def publish(self, body, headers=None, serializer=None, exchange='', routing_key='', **properties):
        if headers and 'task' in headers:  # not an event
            content_type, content_encoding, data = dumps(body, serializer)
            self._messages.append(Message(
                body=data, headers=dict(headers), content_type=content_type, content_encoding=content_encoding,
                properties={name: properties.get(name) for name in ('correlation_id', 'reply_to', 'priority')},
                delivery_info={'exchange': exchange, 'routing_key': routing_key}, accept=[content_type],
            ))


class Pool:
    """A worker's pool that executes each request immediately. It has no time limits."""

    @staticmethod
    def apply_async(target, args, *, callback, accept_callback, **options):
        apply_target(target, args, callback=callback, accept_callback=accept_callback)


class ProducerPool:
    """Replaces the pool of producers of an app for one thread."""

    def __init__(self, pool, messages):
        self._pool = pool
        self._thread = threading.get_ident()
        self.messages = messages

    def __getattr__(self, name):
        return getattr(self._pool, name)

    def acquire(self, *args, **kwargs):
        if threading.get_ident() != self._thread:
            return self._pool.acquire(*args, **kwargs)
        return Producer(self)


@contextmanager
def in_process(app):
    """Act as a worker of the app, in the transaction of the caller if there is one.

    Yields:
        A list to which each sent message is added, a `kombu.Message`.
    """
    messages: list[Message] = []
    with ExitStack() as stack:
        if connection.in_atomic_block:
            own = stack.enter_context(use_connection(CallersConnection()))
            stack.enter_context(recorder.writing_with(own))
        registry.registered_tasks()  # imports the modules of all plugins
        claim.track_all_tasks(app)
        if identity.key is None:
            identity.take(NODE)
            loghandler.install_log_handler()
            stack.callback(identity.leave)
            stack.callback(loghandler.remove_log_handler)
        stack.enter_context(producer_pool_replaced(app, ProducerPool(app.producer_pool, messages)))
        backend = tracked_backend(CacheBackend)(app=app, url='memory://')
        stack.enter_context(backend_replaced(app, backend))
        yield messages


def commit(since: int) -> None:
    """Call the functions that wait for the commit, if the transaction is one that is never committed.

    Args:
        since: How many functions were registered before; those are not ours.
    """
    while connection.in_atomic_block and len(connection.run_on_commit) > since:
        __, function, robust = connection.run_on_commit.pop(since)
        try:
            function()
        except Exception:
            if not robust:
                raise
            logger.exception('A function to be called on commit failed')


def execute_message(app: Any, message: Message) -> BaseException | None:
    """Execute a message as a worker does: its request is claimed, traced and finished.

    Returns:
        The exception with which the attempt ended, or `None`.
    """
    task = app.tasks[message.headers['task']]
    traced: list[tuple[int, Any, float]] = []
    raised: list[BaseException] = []

    def trace(*args, **kwargs):
        try:
            traced.append(trace_task_ret(*args, app=app, **kwargs))
        except BaseException as exc:
            raised.append(exc)  # the pool does not pass it on
            raise
        return traced[0]

    cls = create_request_cls(tolerant(Request), task, Pool, NODE, None, trace=trace, app=app)
    with replaced(task, '__trace__', build_tracer(task.name, task, app=app)), denied_join_result():
        try:
            cls(message, app=app, hostname=NODE, task=task).execute_using_pool(Pool)
        except (TaskRevokedError, SystemExit) as exc:
            return exc
    if raised:
        return raised[0]
    failed, info = traced[0][:2] if traced else (0, None)
    error = info.exception if failed and isinstance(info, ExceptionInfo) else None
    return error.exc if isinstance(error, ExceptionWithTraceback) else error
