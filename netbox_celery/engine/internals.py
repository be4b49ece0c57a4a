"""The door to private names of Celery, and what we change in its modules: each with the version in which it was read.

`tests/engine/test_internals.py` fails when Celery changes what is used here.
"""
import threading

from celery import _state, result
from celery.backends import redis

__all__ = (
    'join_by_thread',
)


class _Thread(threading.local):
    #: Whether a task of this thread may not wait for results; `None`: what Celery says of the whole process.
    blocks = None


_thread = _Thread()


def _task_join_will_block():
    return _state.task_join_will_block() if _thread.blocks is None else _thread.blocks


def _set_task_join_will_block(blocks):
    _thread.blocks = None if blocks == _state.task_join_will_block() else blocks


def join_by_thread():
    """Let each thread have a flag of its own that says whether it may wait for results (Celery 5.7).

    `allow_join_result()` and `denied_join_result()` of `celery.result` set one flag for the whole process. In a pool of
    threads, one that has put a chord together takes the permission of all others back: these then fail their chords.
    """
    result.task_join_will_block = redis.task_join_will_block = _task_join_will_block
    result._set_task_join_will_block = _set_task_join_will_block
