"""The only access to private names of Celery and Kombu.

Read in Celery 5.7 and Kombu 5.7. `tests/engine/test_internals.py` fails if one of these names is missing or takes other
arguments, and if another module of ours uses a private name. `OVERRIDDEN` lists the methods that our classes override,
and `USED` the other private names that our classes use. `netbox_celery.celery` lists all patches of Celery's modules.
"""
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

from celery import Celery, _state, canvas, result
from celery.utils import functional

__all__ = (
    'OVERRIDDEN',
    'USED',
    'backend_replaced',
    'call_options',
    'chain_type',
    'context_of',
    'crontab_fields',
    'drop_default_app',
    'fixups',
    'forget_messages',
    'is_protected',
    'is_regenerated',
    'join_by_thread',
    'key_of_queue',
    'producer_pool_replaced',
    'protect',
    'registered',
    'replaced',
    'set_join_will_block',
    'takes_exception',
    'task_stack',
)

#: Methods of Celery's and Kombu's classes that ours override, with their signatures.
OVERRIDDEN = {
    'celery.app.base:Celery': {
        '_get_backend': '(self)',
        '_task_from_fun': '(self, fun, name=None, base=None, bind=False, pydantic=False, pydantic_strict=False, '
                          'pydantic_context=None, pydantic_dump_kwargs=None, **options)',
    },
    'celery.app.amqp:AMQP': {'_create_task_sender': '(self)'},
    'celery.backends.base:Backend': {
        '_call_task_errbacks': '(self, request, exc, traceback)',
        '_fail_chain': '(self, chain, exc, traceback=None, store_result=True, state=\'FAILURE\')',
    },
    'celery.backends.base:BaseKeyValueStoreBackend': {
        '_store_result': '(self, task_id, result, state, traceback=None, request=None, **kwargs)',
    },
    'celery.concurrency.asynpool:AsynPool': {'_untrack_child_process': '(self, proc, hub)'},
    'kombu.transport.redis:Channel': {
        '_brpop_read': '(self, **options)',
        '_create_client': '(self, asynchronous=False)',
        '_get_pool': '(self, asynchronous=False)',
        '_q_for_pri': '(self, queue, pri)',
    },
    'kombu.transport.virtual.base:Transport': {'_deliver': '(self, message, queue)'},
}
#: Functions about waiting for results, which modules import from each other.
JOINING = {'allow_join_result', 'denied_join_result', 'task_join_will_block'}
#: Other private names of theirs that our classes use.
USED = {
    'celery.app.base:Celery': ('_conf', '_preconf', '_tasks'),
    'celery.app.task:Task': ('_dump_pydantic_arguments',),
    'celery.backends.base:KeyValueStoreBackend': ('_get_result_meta', '_set_with_state'),
    'celery.backends.redis:RedisBackend': ('_set',),
    'celery.concurrency.asynpool:AsynPool': ('_cache', '_sentinel_poll'),
    'celery.worker.request:Request': ('_context',),
    'celery.worker.worker:WorkController': ('_quick_release',),
    'kombu.transport.redis:Channel': ('_fanout_queues', '_qos'),
    'kombu.transport.redis:QoS': ('_delivered',),
}

#: The tasks that this thread executes, the innermost last.
task_stack = _state._task_stack
#: Sets for the whole process whether its tasks may wait for results.
set_join_will_block = _state._set_task_join_will_block


#: The class of chains, which `celery.chain` creates.
chain_type = canvas._chain


def is_regenerated(value: object) -> bool:
    """Whether a list is one of Celery's that is filled from a generator."""
    return isinstance(value, functional._regen)


def crontab_fields(when: Any) -> tuple[Any, ...]:
    """Return the five fields of a `celery.schedules.crontab` as they were given, in the order of a crontab."""
    return (
        when._orig_minute, when._orig_hour, when._orig_day_of_month, when._orig_month_of_year, when._orig_day_of_week,
    )


def registered(app: Any) -> dict[str, Any]:
    """Return the tasks of an app by name, without finalizing those that decorators have collected."""
    return app._tasks


def call_options(task: Any) -> dict[str, Any]:
    """Return the options of a call that come from the task's own attributes."""
    return task._get_exec_options()


def context_of(request: Any) -> Any:
    """Return the context that a worker's request passes to the result backend."""
    return request._context


def is_protected(request: Any) -> bool:
    """Whether Celery has started the body of a request."""
    return request._protected


def protect(request: Any) -> None:
    """Record that the body of a request starts, as `Task.__call__` does."""
    request._protected = 1


def fixups(app: Any) -> list[Any]:
    """Return the fixups of an app; Django's is one of them."""
    return app._fixups


def takes_exception(backend: Any, errback: Any) -> bool:
    """Whether an error callback takes more arguments than the ID of the failed run."""
    return backend._errback_arity_greater(errback, 1)


def key_of_queue(channel: Any, queue: str, priority: int) -> str:
    """Return the Redis key of the list that holds a queue's messages of one priority."""
    return channel.global_keyprefix + channel._q_for_pri(queue, priority)


def forget_messages(backend: Any, task_id: str) -> None:
    """Drop messages about the earlier end of a task that this process has received and not used.

    Celery's Redis backend receives them on a channel, and keeps those for which no code waits yet.
    """
    consumer = backend.result_consumer
    if getattr(consumer, '_pubsub', None) is not None:
        with consumer._locked():
            while consumer._drain_one(consumer._pubsub, 0):
                pass
    if task_id in backend._pending_messages:
        backend._pending_messages.total -= len(backend._pending_messages.pop(task_id))


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Generator[None]:
    """Replace an attribute of an object within the block."""
    is_there, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_there:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def producer_pool_replaced(app: Any, pool: Any) -> AbstractContextManager[None]:
    """Let an app send its messages through another pool of producers within the block."""
    return replaced(app.amqp, '_producer_pool', pool)


def backend_replaced(app: Any, backend: Any) -> AbstractContextManager[None]:
    """Replace an app's result backend, of the process or of this thread, within the block."""
    is_shared = vars(app).get('_backend_cache') is not None
    return replaced(*((app, '_backend_cache') if is_shared else (app._local, 'backend')), backend)


def drop_default_app() -> None:
    """Drop the app that Celery created because there was none: otherwise it would get the tasks of all plugins."""
    made = _state.default_app
    if made is not None and type(made) is Celery and made.main == 'default':
        _state._deregister_app(made)


# Waiting for results

class _Thread(threading.local):
    #: Whether waiting for results is denied in this thread; `None`: Celery's flag for the process applies.
    blocks: bool | None = None


_thread = _Thread()
#: Celery's function that returns the flag for the process.
_process_join_will_block = _state.task_join_will_block


def _task_join_will_block() -> bool:
    return _process_join_will_block() if _thread.blocks is None else _thread.blocks


@contextmanager
def _blocking(blocks: bool) -> Generator[None]:
    before, _thread.blocks = _thread.blocks, blocks
    try:
        yield
    finally:
        _thread.blocks = before


def _allow_join_result():
    return _blocking(False)


def _denied_join_result():
    return _blocking(True)


#: Celery's functions about waiting for results, with ours that replace them.
BY_THREAD: dict[Any, Callable[..., Any]] = {
    result.allow_join_result: _allow_join_result, result.denied_join_result: _denied_join_result,
    _process_join_will_block: _task_join_will_block,
}


def join_by_thread() -> None:
    """Allow or deny each thread separately to wait for results.

    `allow_join_result()` and `denied_join_result()` of `celery.result` set one flag for the whole process. In a pool of
    threads, a thread that has collected the results of a chord then resets the flag for all others, and their chords
    fail. Celery's own functions, in a module of a plugin that imported them earlier, would no longer have an effect in
    a thread that has a flag of its own, such as one that executes `apply()`: they are replaced there as well.
    """
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            for attribute in JOINING & vars(module).keys():
                for theirs, ours in BY_THREAD.items():
                    if vars(module)[attribute] is theirs:
                        setattr(module, attribute, ours)
