"""What is changed in Celery's modules does what it is to do, and is still there to be changed."""
import threading

import pytest
from celery import _state, result
from celery.backends import redis
from celery.result import allow_join_result, assert_will_not_block, denied_join_result


@pytest.fixture
def blocks():
    """Be in a process of a worker's pool, where tasks must not wait for results."""
    before = _state.task_join_will_block()
    _state._set_task_join_will_block(True)
    yield
    _state._set_task_join_will_block(before)


def in_thread(function):
    heard = []
    thread = threading.Thread(target=lambda: heard.append(function()))
    thread.start()
    thread.join()
    return heard[0]


def test_join_by_thread(blocks):
    """A thread that may wait, and no longer may, changes nothing for the others."""
    inside, leave = threading.Event(), threading.Event()

    def other():
        with allow_join_result():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    with pytest.raises(RuntimeError, match='Never call result.get'):
        assert_will_not_block()
    with allow_join_result():
        leave.set()
        thread.join()
        assert_will_not_block()
        with denied_join_result():
            assert redis.task_join_will_block()
            assert in_thread(result.task_join_will_block)
        assert_will_not_block()
    assert in_thread(result.task_join_will_block)
    with pytest.raises(RuntimeError):
        assert_will_not_block()


def test_what_celery_says_of_the_process(blocks):
    """It holds for each thread that says nothing else."""
    with allow_join_result():
        pass
    assert result.task_join_will_block()
    _state._set_task_join_will_block(False)
    assert_will_not_block()
    with denied_join_result():
        assert result.task_join_will_block()
    assert not result.task_join_will_block()


def test_still_there():
    """Celery's own functions look the flag up where it is changed."""
    for function in (allow_join_result, denied_join_result):
        names = function.__wrapped__.__code__.co_names
        assert {'task_join_will_block', '_set_task_join_will_block'} <= set(names)
        assert function.__wrapped__.__globals__ is vars(result)
    assert 'task_join_will_block' in redis.RedisBackend.on_task_call.__code__.co_names
