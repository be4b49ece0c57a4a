"""The only door to private names of Celery and Kombu, and what is changed in Celery's own modules.

Read in Celery 5.7 and Kombu 5.7: `tests/engine/test_internals.py` fails when one of these names is gone, or takes other
arguments, and when a module of ours uses another one. What our classes override of theirs is in `OVERRIDDEN`.
"""
import sys
import threading
from contextlib import contextmanager

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

#: Methods of theirs that our classes override: what they are called with.
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
#: Names of functions about waiting for results, which modules of Celery import from each other.
JOINING = {'allow_join_result', 'denied_join_result', 'task_join_will_block'}
#: What our classes use of theirs beside that.
USED = {
    'celery.app.base:Celery': ('_conf', '_preconf', '_tasks'),
    'celery.backends.base:KeyValueStoreBackend': ('_get_result_meta', '_set_with_state'),
    'celery.backends.redis:RedisBackend': ('_set',),
    'celery.concurrency.asynpool:AsynPool': ('_cache',),
    'celery.worker.request:Request': ('_context',),
    'kombu.transport.redis:Channel': ('_fanout_queues', '_qos'),
    'kombu.transport.redis:QoS': ('_delivered',),
}

#: The tasks that this thread executes, the innermost last.
task_stack = _state._task_stack
#: Says for the whole process whether its tasks may wait for results.
set_join_will_block = _state._set_task_join_will_block


#: The class of chains, of which `celery.chain` makes one.
chain_type = canvas._chain


def is_regenerated(value):
    """Whether a list is one of Celery's that a generator is about to fill."""
    return isinstance(value, functional._regen)


def crontab_fields(when):
    """Return the five fields of a `celery.schedules.crontab` as they were given, in the order of a crontab."""
    return (
        when._orig_minute, when._orig_hour, when._orig_day_of_month, when._orig_month_of_year, when._orig_day_of_week,
    )


def registered(app):
    """Return the tasks of an app by name, as they are: without making tasks of what decorators have collected."""
    return app._tasks


def call_options(task):
    """Return the options of a call that a task's own attributes give."""
    return task._get_exec_options()


def context_of(request):
    """Return what a worker's request of a task hands to the result backend."""
    return request._context


def is_protected(request):
    """Whether Celery has seen the body of a request begin."""
    return request._protected


def protect(request):
    """Note that the body of a request begins, as `Task.__call__` does."""
    request._protected = 1


def fixups(app):
    """Return the fixups of an app, of which Django's is one."""
    return app._fixups


def takes_exception(backend, errback):
    """Whether an error callback takes more than the ID of the failed run."""
    return backend._errback_arity_greater(errback, 1)


def key_of_queue(channel, queue, priority):
    """Return the key in Redis of the list that holds the messages of a queue with a priority."""
    return channel.global_keyprefix + channel._q_for_pri(queue, priority)


def forget_messages(backend, task_id):
    """Leave out what this process was told of the earlier end of a task, and has not read.

    Of Celery's Redis backend: what is on its way is read, and what nobody waits for is put aside.
    """
    consumer = backend.result_consumer
    if getattr(consumer, '_pubsub', None) is not None:
        with consumer._locked():
            while consumer._drain_one(consumer._pubsub, 0):
                pass
    if task_id in backend._pending_messages:
        backend._pending_messages.total -= len(backend._pending_messages.pop(task_id))


@contextmanager
def replaced(owner, name, value):
    """Let an attribute of an object be another one meanwhile."""
    is_there, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_there:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def producer_pool_replaced(app, pool):
    """Let an app send its messages by another pool of producers meanwhile."""
    return replaced(app.amqp, '_producer_pool', pool)


def backend_replaced(app, backend):
    """Let an app have another result backend meanwhile: that of the process, or this thread's."""
    is_shared = vars(app).get('_backend_cache') is not None
    return replaced(*((app, '_backend_cache') if is_shared else (app._local, 'backend')), backend)


def drop_default_app():
    """Forget the app that Celery has made for want of another one: it would be handed the tasks of all plugins."""
    made = _state.default_app
    if made is not None and type(made) is Celery and made.main == 'default':
        _state._deregister_app(made)


# Waiting for results

class _Thread(threading.local):
    #: Whether a task of this thread may not wait for results; `None`: what Celery says of the whole process.
    blocks = None


_thread = _Thread()
#: What Celery says of the whole process.
_process_join_will_block = _state.task_join_will_block


def _task_join_will_block():
    return _process_join_will_block() if _thread.blocks is None else _thread.blocks


@contextmanager
def _blocking(blocks):
    before, _thread.blocks = _thread.blocks, blocks
    try:
        yield
    finally:
        _thread.blocks = before


def _allow_join_result():
    return _blocking(False)


def _denied_join_result():
    return _blocking(True)


def join_by_thread():
    """Let each thread say for itself that it may wait for results, or may not.

    `allow_join_result()` and `denied_join_result()` of `celery.result` set one flag for the whole process. In a pool of
    threads, one that has put a chord together takes the permission of all others back: these then fail their chords.
    """
    ours = {
        result.allow_join_result: _allow_join_result, result.denied_join_result: _denied_join_result,
        _process_join_will_block: _task_join_will_block,
    }
    for name, module in list(sys.modules.items()):
        if name.partition('.')[0] == 'celery':
            for attribute in JOINING & vars(module).keys():
                setattr(module, attribute, ours.get(getattr(module, attribute), getattr(module, attribute)))
