"""What differs where threads are greenlets; tests/neighbours/test_greenlets.py uses real pools."""
import subprocess
import sys

import pytest

from netbox_celery.engine.store import greenlets

PATCHED = """
import sys
{patch}
import greenlet
from netbox_celery.engine.store import greenlets
from psycopg import waiting
{check}
"""
#: What a process does that Celery has prepared for each of the pools.
PATCHES = {
    'gevent': 'import gevent.monkey; gevent.monkey.patch_all(); timeout = gevent.Timeout',
    'eventlet': 'import eventlet; eventlet.monkey_patch(); timeout = eventlet.Timeout',
}


def run(patch, check):
    code = PATCHED.format(patch=PATCHES[patch], check=check)
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_without():
    """Without greenlets nothing differs."""
    assert not greenlets.are_threads()
    assert not greenlets.is_order(KeyboardInterrupt())


@pytest.mark.parametrize('library', PATCHES)
def test_orders(library):
    """The exit of a greenlet is Celery's order; a timeout is one only if the run has a limit."""
    pytest.importorskip(library)
    run(library, """
assert greenlets.are_threads()
assert set(greenlets.INTERRUPTS) == {greenlet.GreenletExit, timeout}
assert greenlets.is_order(greenlet.GreenletExit())
assert not greenlets.is_order(timeout(1)) and not greenlets.is_order(KeyboardInterrupt())
greenlets._limit.set(5)
assert greenlets.is_order(timeout(1))
""")


@pytest.mark.parametrize('library', PATCHES)
def test_waiting(library):
    """psycopg does not wait in C, where no other greenlet could run."""
    pytest.importorskip(library)
    run(library, """
greenlets.let_others_go_on()
assert waiting.wait is not waiting.wait_c
""")


@pytest.mark.parametrize('library', PATCHES)
def test_tasks_of_the_app_alone(library):
    """The app that Celery makes while it prepares the process gets no tasks."""
    pytest.importorskip(library)
    code = f"""
import sys
sys.argv = ['celery', '-P', '{library}']
import celery
celery.maybe_patch_concurrency()
from netbox_celery.celery import app
from celery import _state
assert set(_state._apps) == {{app}}, set(_state._apps)
assert _state.get_current_app() is app
"""
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
