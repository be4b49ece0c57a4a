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
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager, nullcontext, suppress
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

from ..exceptions import DatabaseReadOnly
from . import branches, greenlets

__all__ = (
    'CallersConnection',
    'EngineConnection',
    'before_dropping',
    'caller',
    'close_connections',
    'execute',
    'get_connection',
    'in_savepoint',
    'is_read_only',
    'now_or_on_commit',
    'on_commit',
    'refuse_read_only',
    'use_connection',
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

#: PostgreSQL's code for "nothing can be written": on a standby, in a read-only transaction, in maintenance mode.
READ_ONLY = DatabaseReadOnly.sqlstate

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


def database_name():
    """Return the name of the database: another one than that of the settings while Django tests."""
    return connections.settings[DEFAULT_DB_ALIAS]['NAME']


#: The engine's connections of this process.
_all = WeakSet()


def close_connections():
    """Close the engine's connections of all threads. Whoever goes on opens another one."""
    for own in _existing():
        own.close_if_idle()


def _existing():
    while True:
        try:
            return list(_all)
        except RuntimeError:
            continue  # another thread made one meanwhile


def _let_go_after_fork():
    """Let a child use connections that other threads of the parent used: those threads it has not."""
    for own in _existing():
        own._in_use = threading.RLock()


os.register_at_fork(after_in_child=_let_go_after_fork)


_before_dropping: list = []


def before_dropping(function):
    """Let a function be called before Django drops the database of its tests, for what is still to be written."""
    _before_dropping.append(function)


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
        for finish in _before_dropping:
            finish()
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
        #: Held while it is used, so that nobody else closes it meanwhile.
        self._in_use = threading.RLock()
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
        with self._in_use:
            return self._execute_patiently(sql, params, patience)

    def _execute_patiently(self, sql, params, patience):
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
            except INTERRUPTS:
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
            with suppress(*UNUSABLE):
                wrapper.rollback()  # a connection pooler would take a transaction that is left open for a broken one
            holder.close()

    def copy(self, sql, rows):
        """Execute `COPY ... FROM STDIN` with the given rows, in one transaction."""
        with self._in_use:
            self._copy(sql, rows)

    def _copy(self, sql, rows):
        wrapper = self._connection()
        try:
            with wrapper.wrap_database_errors, wrapper.cursor() as cursor, cursor.copy(sql) as copy:
                for row in rows:
                    copy.write_row(row)
        except INTERRUPTS:
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

    def close_if_idle(self):
        """Close the connection from another thread, unless a statement is being executed."""
        if not self._in_use.acquire(blocking=False):
            return
        try:
            connection = self._wrapper and self._wrapper.connection
            if connection and connection.lock.acquire(blocking=False):
                try:
                    self.close()
                finally:
                    connection.lock.release()
        finally:
            self._in_use.release()


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

    def close(self):
        """Close the connections that no thread uses at the moment; the next statement opens a new one."""
        for own in list(self._free):
            own.close_if_idle()

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
_local = threading.local()


@contextmanager
def use_connection(own):
    """Let the engine use another connection in this thread for a while."""
    before = getattr(_local, 'connection', None)
    _local.connection = own
    try:
        yield own
    finally:
        _local.connection = before


def get_connection():
    """Return the engine's connection of this process, which all of its threads may use at the same time.

    Or the one that this thread uses instead (see `use_connection`).
    """
    return getattr(_local, 'connection', None) or _shared
