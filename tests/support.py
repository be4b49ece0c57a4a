"""What several test modules share: values that are hard to store or send, rows as they are now, threads."""
import os
import threading
import warnings
from contextlib import contextmanager
from datetime import timedelta

from celery.signals import before_task_publish
from django.db import connection
from django.utils import timezone

from netbox_celery.engine.store import database

__all__ = (
    'Shared',
    'Unprintable',
    'ago',
    'call_in_thread',
    'in_thread',
    'is_true_in_a_child',
    'nested',
    'nested_json',
    'now',
    'published',
)


class Shared:
    """The test's own connection in place of the engine's, so that what a test does is rolled back at its end."""

    def execute(self, sql, params=None, patience=0):
        return database.execute(connection, sql, params)


class Unprintable(Exception):
    """An exception whose text cannot be made."""

    def __str__(self):
        raise RuntimeError('no text')


def ago(seconds):
    return timezone.now() - timedelta(seconds=seconds)


def now(row):
    """Return a row as the database has it now."""
    row.refresh_from_db()
    return row


@contextmanager
def published():
    """Collect the bodies of messages that are sent meanwhile: arguments, keyword arguments, and what goes with them."""
    bodies = []

    def note(body=None, **kwargs):
        bodies.append(body)
    before_task_publish.connect(note, weak=False)
    try:
        yield bodies
    finally:
        before_task_publish.disconnect(note)


def is_true_in_a_child(check):
    """Return whether a function returns something true in a process that is forked from this one."""
    with warnings.catch_warnings():
        # Python warns of the threads of this process
        warnings.simplefilter('ignore', DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if check() else 1
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def nested(depth, innermost=None):
    """Return a value in so many lists, one in another."""
    value = innermost
    for __ in range(depth):
        value = [value]
    return value


def nested_json(depth):
    """Return the JSON of so many lists, one in another, which Python's encoder cannot write beyond a certain depth."""
    return '[' * depth + ']' * depth


def in_thread(function, *args, **kwargs):
    """Call a function in a thread, on a database connection of its own.

    Returns the thread, and a list that gets what the function returns, or the exception that it raises.
    """
    def call():
        try:
            found.append(function(*args, **kwargs))
        except Exception as exc:  # noqa: BLE001 - for the test to look at
            found.append(exc)
        finally:
            connection.close()
    found = []
    thread = threading.Thread(target=call)
    thread.start()
    return thread, found


def call_in_thread(function):
    """Return what a function returns in another thread."""
    thread, found = in_thread(function)
    thread.join(20)
    return found[0]
