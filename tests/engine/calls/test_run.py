"""Which run a thread works for."""
import threading
from contextvars import Context
from types import SimpleNamespace
from uuid import uuid4

import pytest
from celery.utils.threads import LocalStack

from netbox_celery.engine.calls.run import Run, current_run, enter, leave, run_of
from netbox_celery.engine.identity import OWN_THREADS


@pytest.fixture
def make():
    """Let a run be executed in a thread, until the end of the test."""
    over, started = threading.Event(), []

    def make(name):
        task, run = SimpleNamespace(name=name, request_stack=LocalStack()), Run(str(uuid4()))
        entered = threading.Event()

        def execute():
            enter(task, run)
            entered.set()
            over.wait(20)
            leave(run)
        started.append(threading.Thread(target=execute))
        started[-1].start()
        assert entered.wait(20)
        return task, run

    make.end = lambda: (over.set(), [thread.join(20) for thread in started])
    yield make
    make.end()


def seen(ask, thread_name=None):
    """Return what a function returns in a thread without a context."""
    found = []
    thread = threading.Thread(target=Context().run, args=(lambda: found.append(ask()),), name=thread_name)
    thread.start()
    thread.join(20)
    return found[0]


def test_only_run(make):
    task, run = make('tests:a')
    other = SimpleNamespace(name='tests:b', request_stack=LocalStack())
    assert seen(current_run) is run
    assert seen(lambda: run_of(task)) is run
    assert seen(lambda: run_of(other)) is None
    # The worker's main thread, and those of the engine, work for no run
    assert Context().run(current_run) is None
    assert seen(current_run, OWN_THREADS + 'sweep') is None
    make.end()
    assert seen(current_run) is None


def test_one_of_several(make):
    """Only what is certain counts: a task's run is found if it is that task's only one."""
    (task_a, run_a), (task_b, __), __ = make('tests:a'), make('tests:b'), make('tests:b')
    assert seen(current_run) is None
    assert seen(lambda: run_of(task_a)) is run_a
    assert seen(lambda: run_of(task_b)) is None


def test_copy_of_the_context():
    """A copy outlives the run, and then belongs to none."""
    task, run = SimpleNamespace(name='tests:a', request_stack=LocalStack()), Run(str(uuid4()))
    other = SimpleNamespace(name='tests:b', request_stack=LocalStack())
    context = Context()
    context.run(enter, task, run)
    assert context.copy().run(run_of, task) is run
    assert context.copy().run(run_of, other) is None
    assert context.copy().run(current_run) is run
    copy = context.copy()
    context.run(leave, run)
    assert copy.run(current_run) is None
