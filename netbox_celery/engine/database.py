"""Connections of the engine's own, beside the ones that tasks and requests use.

What the engine writes for a run must be visible while the task's transaction is still open and must survive its
rollback, so it cannot share the task's connection. And it must be cheap: Celery's Django fixup closes Django's
connections around every task (`celery.fixups.django`), these it does not know and they stay open, a few for all
threads of a process. Nor do they come out of the pool that Django may be told to keep
(`DATABASES['default']['OPTIONS']['pool']`): who holds a connection for good would take those that there are, and the
tasks would wait for one in vain.
"""
import logging
import os
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress

from billiard.exceptions import SoftTimeLimitExceeded
from django.db import (
    DEFAULT_DB_ALIAS,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
    connection,
    connections,
    transaction,
)
from psycopg import Cursor

from . import greenlets

__all__ = (
    'EngineConnection',
    'execute',
    'get_connection',
    'now_or_on_commit',
    'without_pool',
)

logger = logging.getLogger(__name__)

# What is raised when PostgreSQL is gone, going or starting up; trying again makes sense.
UNAVAILABLE = (OperationalError, InterfaceError)
# Or it is there, and cannot be used at the moment: a table is away, a privilege is missing, a standby only reads.
UNUSABLE = (*UNAVAILABLE, ProgrammingError, InternalError)
# What interrupts a task from outside, wherever it is: a soft time limit, or the end of its greenlet.
INTERRUPTS = (SoftTimeLimitExceeded, *greenlets.INTERRUPTS)
# What leaves things to be written later: the database is away, or a task that writes itself is out of time.
LATER = (*UNAVAILABLE, *INTERRUPTS)

#: What to say if a table or a column is not there.
MIGRATE = 'Are all migrations applied (netbox migrate)?'


def execute(wrapper, sql, params=None):
    """Execute a statement of the engine's on a connection of Django's, and return its rows (`[]` if it has none).

    The same few statements run for every task, so PostgreSQL keeps them prepared: that takes two thirds off their
    cost. Behind a connection pooler that switches sessions between transactions they would be missing, or be those of
    another client; Django's setting for such poolers, `DISABLE_SERVER_SIDE_CURSORS`, says whether that is so. If it is
    not set at all, nothing is prepared behind any pooler.

    A kept connection may be broken without anybody's notice, as after a restart of PostgreSQL. Outside of a transaction
    the statement is then executed again on a new one: every statement of the engine is guarded so that a second
    execution changes nothing. In a transaction, what came before is lost with it, and the caller has to know.

    Args:
        wrapper: A connection of Django's, such as `django.db.connection`.
        sql: The statement, with psycopg's named or positional parameters.
        params: Their values.

    Raises:
        django.db.DatabaseError: As Django's own cursors do.
    """
    try:
        return _execute(wrapper, sql, params)
    except UNAVAILABLE:
        if wrapper.in_atomic_block or not wrapper.autocommit or wrapper.is_usable():
            raise
        wrapper.close()
    return _execute(wrapper, sql, params)


def _execute(wrapper, sql, params):
    wrapper.ensure_connection()
    connection = wrapper.connection
    threshold = connection.prepare_threshold
    with wrapper.wrap_database_errors, Cursor(connection) as cursor:
        prepare = _may_prepare(wrapper, cursor)
        try:
            if prepare:
                connection.prepare_threshold = 0  # Django's own cursors never prepare anything
            cursor.execute(sql, params, prepare=prepare)
        finally:
            connection.prepare_threshold = threshold
        return cursor.fetchall() if cursor.pgresult.nfields else []


#: Whether a connection pooler stands between this process and PostgreSQL; `None`: that is still to be found out.
_is_pooled = None


def _may_prepare(wrapper, cursor):
    global _is_pooled
    setting = wrapper.settings_dict.get('DISABLE_SERVER_SIDE_CURSORS')
    if setting is not None:
        return not setting
    if _is_pooled is None:
        # A pooler has told the client another ID than that of the session's process
        cursor.execute('SELECT pg_backend_pid()')
        _is_pooled = cursor.fetchone()[0] != cursor.connection.info.backend_pid
    return not _is_pooled


def now_or_on_commit(function):
    """Call a function at once, or, in a transaction, after its commit."""
    if connection.in_atomic_block:
        transaction.on_commit(function, robust=True)
    else:
        function()


def without_pool(wrapper):
    """Return a wrapper of the same database that makes a connection of its own, whatever pool Django keeps."""
    own = wrapper.copy()
    options = own.settings_dict.get('OPTIONS') or {}
    if options.get('pool'):
        own.settings_dict['OPTIONS'] = {name: value for name, value in options.items() if name != 'pool'}
    return own


class EngineConnection:
    """A connection in autocommit mode that is opened on first use and again after it broke.

    One thread uses it at a time; whoever shares it between threads locks.
    """

    def __init__(self):
        self._wrapper = None
        self._pid = None

    def _connection(self):
        if self._wrapper is None or self._pid != os.getpid():
            # After a fork the parent's socket is not ours to close: forget it.
            self._wrapper = without_pool(connections[DEFAULT_DB_ALIAS])
            self._wrapper.inc_thread_sharing()
            self._pid = os.getpid()
        self._wrapper.ensure_connection()
        return self._wrapper

    def execute(self, sql, params=None, patience=0):
        """Execute one statement, which is a transaction of its own, and return its rows (`[]` if it has none).

        Args:
            sql: The statement.
            params: Its parameters.
            patience: For how long to try to reach a database that is unavailable, seconds.

        Raises:
            django.db.OperationalError: The database stayed unavailable.
        """
        deadline = time.monotonic() + patience
        wait = 0.1
        while True:
            try:
                return execute(self._connection(), sql, params)
            except UNAVAILABLE as exc:
                self.close()
                if time.monotonic() >= deadline:
                    raise
                logger.warning('The database is unavailable, trying again in %.1f s: %s', wait, exc)
                time.sleep(wait)
                wait = min(wait * 2, 5)
            except INTERRUPTS:
                self._abandon()
                raise

    def _abandon(self):
        """Stop the statement that was interrupted, as by a soft time limit, and close the connection.

        PostgreSQL would carry it out all the same when it gets to it, and who was interrupted would not know. So it is
        cancelled, and its end is waited for: what is looked at next stays as it is.
        """
        if self._wrapper is not None:
            greenlets.stop_statement(self._wrapper)
        self.close()

    @contextmanager
    def advisory_lock(self, key, hung_after):
        """Hold a transaction that holds an advisory lock, on a connection of its own; yields whether it got it.

        The lock is gone with the transaction, whatever becomes of this process.

        Args:
            key: The lock's number.
            hung_after: After how long PostgreSQL takes who holds the lock for hung and gives it to the next, seconds.
                So it only saves work: what is done under it must be safe without it.
        """
        holder = EngineConnection()
        wrapper = holder._connection()
        try:
            wrapper.set_autocommit(False)
            with wrapper.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_try_advisory_xact_lock(%s), set_config('idle_in_transaction_session_timeout', %s, true)",
                    (key, f'{hung_after * 1000:.0f}ms')
                )
                locked = cursor.fetchone()[0]
            yield locked
        finally:
            with suppress(*UNUSABLE):
                wrapper.rollback()  # a connection pooler would take a transaction that is left open for a broken one
            holder.close()

    def copy(self, sql, rows):
        """Execute `COPY ... FROM STDIN` with the given rows, in one transaction."""
        wrapper = self._connection()
        try:
            with wrapper.wrap_database_errors, wrapper.cursor() as cursor, cursor.copy(sql) as copy:
                for row in rows:
                    copy.write_row(row)
        except INTERRUPTS:
            self._abandon()
            raise

    def close(self):
        """Close the connection; the next statement opens a new one."""
        wrapper, self._wrapper = self._wrapper, None
        if wrapper is not None and self._pid == os.getpid():
            try:
                wrapper.close()
            except Exception:  # noqa: BLE001 - it is broken, that is why it is closed
                logger.debug('Closing a broken connection failed', exc_info=True)


class SharedConnection:
    """The engine's connections that all threads of a process share: each takes one for a statement, and gives it back.

    Where there is one thread, that is always the same connection. Where there are many, as in a pool of threads or of
    greenlets, which come and go with each run, a few are enough, and stay open.

    A statement may have to wait for the transaction of a run that wants to execute one itself before it ends. So who
    has waited for long gets a connection more; it is closed when as many as are kept have been given back.
    """

    def __init__(self):
        self._reset()

    def _reset(self):
        """Start anew: at first, and in a child after a fork (the parent's connections are the parent's)."""
        # The last one that was given back is taken first: those that are never needed are never opened
        self._free = deque(EngineConnection() for __ in range(KEPT))
        self._given_back = threading.Condition()
        self._waiting = 0

    def execute(self, sql, params=None, patience=0):
        """Execute one statement; see `EngineConnection.execute`."""
        connection = self._take()
        try:
            return connection.execute(sql, params, patience)
        finally:
            self._give_back(connection)

    def _take(self):
        try:
            return self._free.pop()
        except IndexError:
            return self._wait()

    def _wait(self):
        deadline = time.monotonic() + WAIT_FOR_FREE
        with self._given_back:
            self._waiting += 1
            try:
                while (left := deadline - time.monotonic()) > 0:
                    # One may have been given back before it was known that somebody waits
                    if self._free or self._given_back.wait(left):
                        try:
                            return self._free.pop()
                        except IndexError:
                            continue  # another thread was faster
            finally:
                self._waiting -= 1
        return EngineConnection()

    def _give_back(self, connection):
        if len(self._free) >= KEPT:
            connection.close()
            return
        self._free.append(connection)
        if self._waiting:
            with self._given_back:
                self._given_back.notify()


#: Connections that a process keeps open, at the most.
KEPT = 8
#: How long a thread waits for one of them to be free before it makes another, seconds.
WAIT_FOR_FREE = 1

_shared = SharedConnection()
os.register_at_fork(after_in_child=_shared._reset)
greenlets.let_others_go_on()


def get_connection():
    """Return the engine's connection of this process, which all of its threads may use at the same time."""
    return _shared
