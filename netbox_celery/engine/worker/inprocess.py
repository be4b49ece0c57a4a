"""Runs of tasks in the process and thread that calls them, without a broker, a result backend and a worker.

`netbox_celery.testing` is made of it. All else is what a worker does: the call makes a row and a message, the message
becomes a request of Celery's, its run is claimed, recorded and ended. What would go to the broker is kept here.
"""
import logging
import threading
from contextlib import ExitStack, contextmanager

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

#: Who executes the runs, in their rows.
NODE = 'in-process@test'


class Producer:
    """Takes the messages that tasks are sent by, in the place of a producer of Kombu's."""

    supports_batch_publish = False

    def __init__(self, pool):
        self.connection = pool.connections.connection  # which is opened by whoever uses it; nobody does
        self._messages = pool.messages

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        pass

    @contextmanager
    def batch(self, **options):
        yield self

    def publish(self, body, headers=None, serializer=None, exchange='', routing_key='', **properties):
        if headers and 'task' in headers:  # and no event
            content_type, content_encoding, data = dumps(body, serializer)
            self._messages.append(Message(
                body=data, headers=dict(headers), content_type=content_type, content_encoding=content_encoding,
                properties={name: properties.get(name) for name in ('correlation_id', 'reply_to', 'priority')},
                delivery_info={'exchange': exchange, 'routing_key': routing_key}, accept=[content_type],
            ))


class Pool:
    """A worker's pool that executes at once what it is given. It has no time limits."""

    @staticmethod
    def apply_async(target, args, *, callback, accept_callback, **options):
        apply_target(target, args, callback=callback, accept_callback=accept_callback)


class ProducerPool:
    """Stands before the pool of producers of an app for one thread."""

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
    """Be a worker of the app for a while, in the transaction of the caller if there is one.

    Yields:
        A list to which each message is added that is sent, a `kombu.Message`.
    """
    messages = []
    with ExitStack() as stack:
        if connection.in_atomic_block:
            own = stack.enter_context(use_connection(CallersConnection()))
            stack.enter_context(recorder.writing_with(own))
        registry.registered_tasks()  # has imported the modules of all plugins
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


def commit(since):
    """Do what is to be done on commit, if the transaction is one that is never committed.

    Args:
        since: How many functions had been registered before; those are not ours.
    """
    while connection.in_atomic_block and len(connection.run_on_commit) > since:
        __, function, robust = connection.run_on_commit.pop(since)
        try:
            function()
        except Exception:
            if not robust:
                raise
            logger.exception('What was to be done on commit has failed')


def execute_message(app, message):
    """Execute a message as a worker does: its request is claimed, traced and ended.

    Returns:
        The exception that the attempt has ended by, or `None`.
    """
    task = app.tasks[message.headers['task']]
    outcome, left_by = [], []

    def trace(*args, **kwargs):
        try:
            outcome.append(trace_task_ret(*args, app=app, **kwargs))
        except BaseException as exc:
            left_by.append(exc)  # the pool keeps it to itself
            raise
        return outcome[0]

    cls = create_request_cls(tolerant(Request), task, Pool, NODE, None, trace=trace, app=app)
    with replaced(task, '__trace__', build_tracer(task.name, task, app=app)), denied_join_result():
        try:
            cls(message, app=app, hostname=NODE, task=task).execute_using_pool(Pool)
        except (TaskRevokedError, SystemExit) as exc:
            return exc
    if left_by:
        return left_by[0]
    failed, info, __ = outcome[0] if outcome else (0, None, None)
    exc = info.exception if failed and isinstance(info, ExceptionInfo) else None
    return exc.exc if isinstance(exc, ExceptionWithTraceback) else exc
