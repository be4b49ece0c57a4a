"""Connections of the engine's own, beside the ones that tasks and requests use.

What the engine writes for a run must be visible while the task's transaction is still open and must survive its
rollback, so it cannot share the task's connection. And it must be cheap: Celery's Django fixup closes Django's
connections around every task (`celery.fixups.django`), these it does not know and they stay open. Nor do they come
out of the pool that Django may be told to keep (`DATABASES['default']['OPTIONS']['pool']`): who holds a connection for
good, as each thread of a worker does, would take all that there are, and the tasks would wait for one in vain.
"""
import logging
import os
import threading
import time
from contextlib import contextmanager, nullcontext

from billiard.exceptions import SoftTimeLimitExceeded
from django.db import (
    DEFAULT_DB_ALIAS,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
    connections,
    transaction,
)
from psycopg import Cursor
from psycopg.pq import TransactionStatus

from . import branches
from .exceptions import DatabaseReadOnly

__all__ = (
    'EngineConnection',
    'caller',
    'execute',
    'get_connection',
    'in_savepoint',
    'is_read_only',
    'now_or_on_commit',
    'on_commit',
    'refuse_read_only',
    'without_pool',
)

logger = logging.getLogger(__name__)

# What is raised when PostgreSQL is gone, going or starting up; trying again makes sense.
UNAVAILABLE = (OperationalError, InterfaceError)
# Or it is there, and cannot be used at the moment: a table is away, a privilege is missing, a standby only reads.
UNUSABLE = (*UNAVAILABLE, ProgrammingError, InternalError)
# What leaves things to be written later: the database is away, or a task that writes itself is out of time.
LATER = (*UNAVAILABLE, SoftTimeLimitExceeded)

#: PostgreSQL's code for "nothing can be written": on a standby, in a read-only transaction, in maintenance mode.
READ_ONLY = DatabaseReadOnly.sqlstate

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


def caller():
    """Return the connection of Django's on which a call is made: with what else its transaction does, if there is one.

    In a branch that is the branch's, while a transaction is open there. Its schema has no tables of ours: under their
    names, main's are found.
    """
    main = connections[DEFAULT_DB_ALIAS]
    if (alias := branches.alias()) is not None and (branch := connections[alias]).in_atomic_block:
        return branch
    return main


def in_savepoint():
    """Return a context manager that rolls back what is done in it on the connection of a call, and no more of that."""
    connection = caller()
    return transaction.atomic(using=connection.alias) if connection.in_atomic_block else nullcontext()


def on_commit(function, robust=False):
    """Call a function after the commit of the transaction in which a call is made; of both, if main has one as well."""
    connection, main = caller(), connections[DEFAULT_DB_ALIAS]
    if connection is main:
        transaction.on_commit(function, robust=robust)
        return

    def after_main():
        # Also if main's has begun later, and has ended before
        transaction.on_commit(function, robust=robust)

    transaction.on_commit(after_main, using=connection.alias, robust=robust)


class WritesRefused(OperationalError):
    """The engine's connection can read and not write. Whoever waits for a database that is away waits for this, too."""
    sqlstate = READ_ONLY


def is_read_only(exc):
    """Whether an exception says that the database takes no writes at the moment (SQLSTATE 25006)."""
    return READ_ONLY in (getattr(exc, 'sqlstate', None), getattr(exc.__cause__, 'sqlstate', None))


@contextmanager
def refuse_read_only(what):
    """Say in words that something cannot be done if, in the block, the database takes no writes.

    Args:
        what: Begins the sentence, as in "The run was not cancelled".

    Raises:
        DatabaseReadOnly: So it is.
    """
    try:
        yield
    except InternalError as exc:
        if isinstance(exc, DatabaseReadOnly) or not is_read_only(exc):
            raise
        raise DatabaseReadOnly(what) from exc


def now_or_on_commit(function):
    """Call a function at once, or, in a transaction, after its commit."""
    if caller().in_atomic_block:
        on_commit(function, robust=True)
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
                return self._execute(sql, params)
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

    def _execute(self, sql, params):
        try:
            return execute(self._connection(), sql, params)
        except InternalError as exc:
            if is_read_only(exc):
                # The next connection may be one that can write: to another server, or made after the setting was
                self.close()
                raise WritesRefused(*exc.args) from exc
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

        Raises:
            django.db.OperationalError: The database is away, or takes no writes: who holds a lock sends messages, and
                would send them again and again if it cannot write that it did.
        """
        holder = EngineConnection()
        wrapper = holder._connection()
        try:
            wrapper.set_autocommit(False)
            with wrapper.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_try_advisory_xact_lock(%s), current_setting('transaction_read_only'),"
                    " set_config('idle_in_transaction_session_timeout', %s, true)",
                    (key, f'{hung_after * 1000:.0f}ms')
                )
                locked, read_only, __ = cursor.fetchone()
            if read_only == 'on':
                raise WritesRefused('nothing can be written, the database is read-only')
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
        except InternalError as exc:
            if is_read_only(exc):
                self.close()
                raise WritesRefused(*exc.args) from exc
            raise

    def close(self):
        """Close the connection; the next statement opens a new one."""
        wrapper, self._wrapper = self._wrapper, None
        if wrapper is not None and self._pid == os.getpid():
            try:
                wrapper.close()
            except Exception:  # noqa: BLE001 - it is broken, that is why it is closed
                logger.debug('Closing a broken connection failed', exc_info=True)


_local = threading.local()


def get_connection():
    """Return the engine's connection of this thread."""
    try:
        return _local.connection
    except AttributeError:
        _local.connection = EngineConnection()
        return _local.connection
