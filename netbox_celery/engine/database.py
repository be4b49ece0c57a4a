"""Connections of the engine's own, beside the ones that tasks and requests use.

What the engine writes for a run must be visible while the task's transaction is still open and must survive its
rollback, so it cannot share the task's connection. And it must be cheap: Celery's Django fixup closes Django's
connections around every task (`celery.fixups.django`), these it does not know and they stay open. Nor do they come
out of the pool that Django may be told to keep (`DATABASES['default']['OPTIONS']['pool']`): who holds a connection for
good, as each thread of a worker does, would take all that there are, and the tasks would wait for one in vain.
"""
import logging
import os
import sys
import threading
import time
from contextlib import contextmanager, suppress
from functools import wraps
from weakref import WeakSet

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
from psycopg.pq import TransactionStatus

__all__ = (
    'CallersConnection',
    'EngineConnection',
    'close_connections',
    'execute',
    'get_connection',
    'now_or_on_commit',
    'use_connection',
    'without_pool',
)

logger = logging.getLogger(__name__)

# What is raised when PostgreSQL is gone, going or starting up; trying again makes sense.
UNAVAILABLE = (OperationalError, InterfaceError)
# Or it is there, and cannot be used at the moment: a table is away, a privilege is missing, a standby only reads.
UNUSABLE = (*UNAVAILABLE, ProgrammingError, InternalError)
# What leaves things to be written later: the database is away, or a task that writes itself is out of time.
LATER = (*UNAVAILABLE, SoftTimeLimitExceeded)

#: What to say if a table or a column is not there.
MIGRATE = 'Are all migrations applied (netbox migrate)?'


def execute(wrapper, sql, params=None):
    """Execute a statement of the engine's on a connection of Django's, and return its rows (`[]` if it has none).

    The same few statements run for every task, so PostgreSQL keeps them prepared: that takes two thirds off their
    cost. A connection pooler that switches sessions between transactions may not know of them; Django's setting for
    such poolers, `DISABLE_SERVER_SIDE_CURSORS`, turns it off.

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
    prepare = not wrapper.settings_dict.get('DISABLE_SERVER_SIDE_CURSORS')
    threshold = connection.prepare_threshold
    with wrapper.wrap_database_errors, Cursor(connection) as cursor:
        try:
            if prepare:
                connection.prepare_threshold = 0  # Django's own cursors never prepare anything
            cursor.execute(sql, params, prepare=prepare)
        finally:
            connection.prepare_threshold = threshold
        return cursor.fetchall() if cursor.pgresult.nfields else []


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


def database_name():
    """Return the name of the database: another one than that of the settings while Django tests."""
    return connections.settings[DEFAULT_DB_ALIAS]['NAME']


#: The engine's connections of this process.
_all = WeakSet()


def close_connections():
    """Close the engine's connections of all threads. Whoever goes on opens another one."""
    for own in list(_all):
        own.close_if_idle()


def _close_before_dropping(creation):
    """Let Django drop the database of its tests, to which nobody may be connected then.

    Args:
        creation: The class whose method drops it.
    """
    drop = creation.destroy_test_db
    if hasattr(drop, 'netbox_celery'):
        return

    @wraps(drop)
    def destroy_test_db(self, *args, **kwargs):
        from .recorder import recorder

        recorder.flush(timeout=1)
        close_connections()
        return drop(self, *args, **kwargs)

    destroy_test_db.netbox_celery = True
    creation.destroy_test_db = destroy_test_db


class EngineConnection:
    """A connection in autocommit mode that is opened on first use and again after it broke.

    One thread uses it at a time; whoever shares it between threads locks.
    """

    def __init__(self):
        self._wrapper = None
        self._pid = None
        _all.add(self)

    def __del__(self):
        # That of a thread which has ended: Django's wrapper would keep it open until its reference cycles are collected
        if self._wrapper is not None:
            with suppress(Exception):  # the interpreter may be on its way out
                self.close()

    def _connection(self):
        if self._wrapper is not None and self._wrapper.settings_dict['NAME'] != database_name():
            self.close()
        if self._wrapper is None or self._pid != os.getpid():
            # After a fork the parent's socket is not ours to close: forget it.
            self._wrapper = without_pool(connections[DEFAULT_DB_ALIAS])
            if 'django.test.utils' in sys.modules:
                _close_before_dropping(type(self._wrapper.creation))
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
            except SoftTimeLimitExceeded:
                self._abandon()
                raise

    def _abandon(self):
        """Stop the statement that a soft time limit has interrupted, and close the connection.

        PostgreSQL would carry it out all the same when it gets to it, and who was interrupted would not know. So it is
        cancelled, and its end is waited for: what is looked at next stays as it is.
        """
        connection = self._wrapper and self._wrapper.connection
        if connection and connection.pgconn.transaction_status == TransactionStatus.ACTIVE:
            try:
                connection.cancel_safe(timeout=5)
                while connection.pgconn.get_result() is not None:
                    pass
            except Exception:  # noqa: BLE001 - the connection is closed in any case
                logger.warning('A statement that was interrupted could not be cancelled', exc_info=True)
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
            holder.close()

    def copy(self, sql, rows):
        """Execute `COPY ... FROM STDIN` with the given rows, in one transaction."""
        wrapper = self._connection()
        try:
            with wrapper.wrap_database_errors, wrapper.cursor() as cursor, cursor.copy(sql) as copy:
                for row in rows:
                    copy.write_row(row)
        except SoftTimeLimitExceeded:
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

    def close_if_idle(self):
        """Close the connection from another thread, unless a statement is being executed."""
        connection = self._wrapper and self._wrapper.connection
        if connection and connection.lock.acquire(blocking=False):
            try:
                self.close()
            finally:
                connection.lock.release()


class CallersConnection:
    """Django's connection of this thread, used as the engine uses its own: what it writes is part of the transaction.

    So a run can be made and executed inside a transaction that nobody else sees into, such as that of a test. After
    each statement of the engine's there is a savepoint. If the body then breaks the transaction, it goes back there,
    and what the engine has written stays.
    """

    def __init__(self):
        self._depth = len(connection.savepoint_ids)
        with connection.wrap_database_errors:
            self._run(f'SAVEPOINT {SAVEPOINT}')

    @property
    def is_nested(self):
        """Whether the body is in a block of its own (`transaction.atomic()`), which it may roll back."""
        return len(connection.savepoint_ids) > self._depth

    def execute(self, sql, params=None, patience=0):
        """Execute one statement (see `EngineConnection.execute`)."""
        with self._kept():
            return execute(connection, sql, params)

    def copy(self, sql, rows):
        """Execute `COPY ... FROM STDIN` with the given rows."""
        with self._kept(), connection.cursor() as cursor, cursor.copy(sql) as copy:
            for row in rows:
                copy.write_row(row)

    @contextmanager
    def _kept(self):
        """Undo a statement that fails, and nothing else; keep one that does not."""
        with connection.wrap_database_errors:
            broken = connection.connection.pgconn.transaction_status == TransactionStatus.INERROR
            if broken and not self.is_nested:
                self._run(f'ROLLBACK TO SAVEPOINT {SAVEPOINT}')
                connection.needs_rollback = False
            with connection.connection.transaction():
                yield
            self._run(f'SAVEPOINT {SAVEPOINT}')

    @staticmethod
    def _run(sql):
        # Past Django's own cursor, by which tests count queries
        with Cursor(connection.connection) as cursor:
            cursor.execute(sql)

    def close(self):
        """Nothing: it is the caller's."""


#: What a broken transaction of the caller's goes back to.
SAVEPOINT = 'netbox_celery'

_local = threading.local()


@contextmanager
def use_connection(own):
    """Let the engine use another connection in this thread for a while."""
    before = get_connection()
    _local.connection = own
    try:
        yield own
    finally:
        _local.connection = before


def get_connection():
    """Return the engine's connection of this thread."""
    try:
        return _local.connection
    except AttributeError:
        _local.connection = EngineConnection()
        return _local.connection
