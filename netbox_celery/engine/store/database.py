"""The engine's own database connections, separate from those that tasks and requests use.

What the engine writes for a run must be visible while the task's transaction is still open, and must survive its
rollback, so the engine cannot share the task's connection. It must also be cheap: Celery's Django fixup closes Django's
connections around every task (`celery.fixups.django`), but does not know these, so they stay open, a few for all
threads of a process. They do not come from the pool that Django may keep (`DATABASES['default']['OPTIONS']['pool']`):
connections that are never given back would exhaust the pool, and tasks would wait for one in vain.
"""
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import wraps
from typing import Any, Protocol
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
    'Connection',
    'EngineConnection',
    'Row',
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

# Raised while PostgreSQL is down, shutting down or starting up: trying again makes sense.
UNAVAILABLE = (OperationalError, InterfaceError)
# Also raised while PostgreSQL is up but unusable: a table or a privilege is missing, or a standby only allows reads.
UNUSABLE = (*UNAVAILABLE, ProgrammingError, InternalError)
# Interrupt a task from outside, wherever it is: a soft time limit, or the end of its greenlet.
INTERRUPTS = (SoftTimeLimitExceeded, *greenlets.INTERRUPTS)
# Postpone a write: the database is unavailable, or the task that writes is out of time.
LATER = (*UNAVAILABLE, *INTERRUPTS)

#: PostgreSQL's code for "cannot write": on a standby, in a read-only transaction, in maintenance mode.
READ_ONLY = DatabaseReadOnly.sqlstate

#: Hint for messages about a missing table or column.
MIGRATE = 'Are all migrations applied (netbox migrate)?'

#: A row that a statement returns.
type Row = tuple[Any, ...]
#: Parameters of a statement, by position or by name.
type Params = Sequence[Any] | Mapping[str, Any] | None


class Connection(Protocol):
    """What executes the engine's statements (see `get_connection`)."""

    def execute(self, sql: str, params: Params = None, patience: float = 0) -> list[Row]:
        """Execute one statement (see `EngineConnection.execute`)."""


def execute(wrapper: Any, sql: str, params: Params = None) -> list[Row]:
    """Execute one of the engine's statements on a connection of Django's, and return its rows (`[]` if it has none).

    The same few statements run for every task, so PostgreSQL keeps them prepared, which cuts their cost by two thirds.
    Behind a connection pooler that switches sessions between transactions, a prepared statement might be missing, or
    be one of another client. Django's setting for such poolers, `DISABLE_SERVER_SIDE_CURSORS`, tells whether there is
    one. If it is not set at all, nothing is prepared behind any pooler.

    A kept connection may be broken without notice, for example after a restart of PostgreSQL. Outside of a transaction
    the statement is then executed again on a new connection: every statement of the engine is guarded so that a second
    execution changes nothing. In a transaction, the earlier statements are lost with it, so the caller gets the error.

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


def _execute(wrapper: Any, sql: str, params: Params) -> list[Row]:
    wrapper.ensure_connection()
    connection = wrapper.connection
    threshold = connection.prepare_threshold
    with wrapper.wrap_database_errors, Cursor(connection) as cursor:
        prepare = _may_prepare(wrapper, cursor)
        try:
            if prepare:
                connection.prepare_threshold = 0  # Django's own cursors never prepare
            cursor.execute(sql, params, prepare=prepare)
        finally:
            connection.prepare_threshold = threshold
        return cursor.fetchall() if cursor.pgresult is not None and cursor.pgresult.nfields else []


#: Whether there is a connection pooler between this process and PostgreSQL; `None` until that is known.
_is_pooled: bool | None = None


def _may_prepare(wrapper: Any, cursor: Any) -> bool:
    global _is_pooled
    setting = wrapper.settings_dict.get('DISABLE_SERVER_SIDE_CURSORS')
    if setting is not None:
        return not setting
    if _is_pooled is None:
        # A pooler reports another process ID to the client than the session has
        cursor.execute('SELECT pg_backend_pid()')
        _is_pooled = cursor.fetchone()[0] != cursor.connection.info.backend_pid
    return not _is_pooled


def caller() -> Any:
    """Return Django's connection on which a call is made, so that its row is part of the caller's transaction.

    In a branch with an open transaction this is the branch's connection. A branch's schema has none of our tables, so
    their names lead to main's.
    """
    main = connections[DEFAULT_DB_ALIAS]
    if (alias := branches.alias()) is not None and (branch := connections[alias]).in_atomic_block:
        return branch
    return main


def in_savepoint() -> AbstractContextManager[Any]:
    """Return a context manager for a block on the caller's connection that can be rolled back by itself."""
    connection = caller()
    return transaction.atomic(using=connection.alias) if connection.in_atomic_block else nullcontext()


def on_commit(function: Callable[[], object], robust: bool = False) -> None:
    """Call a function after the caller's transaction was committed; after both, if main has an open one as well."""
    connection, main = caller(), connections[DEFAULT_DB_ALIAS]
    if connection is main:
        transaction.on_commit(function, robust=robust)
        return

    def after_main() -> None:
        # Main's transaction may have started later, or may be over by now
        transaction.on_commit(function, robust=robust)

    transaction.on_commit(after_main, using=connection.alias, robust=robust)


class WritesRefused(OperationalError):
    """The engine's connection can read but not write. Callers handle this like an unavailable database, and retry."""
    sqlstate = READ_ONLY


def is_read_only(exc: BaseException) -> bool:
    """Whether an exception means that the database allows no writes at the moment (SQLSTATE 25006)."""
    return READ_ONLY in (getattr(exc, 'sqlstate', None), getattr(exc.__cause__, 'sqlstate', None))


@contextmanager
def refuse_read_only(what: str) -> Generator[None]:
    """Raise an error that people understand if the database refuses writes in the block.

    Args:
        what: Start of the message, such as "The run was not cancelled".

    Raises:
        DatabaseReadOnly: The database is read-only.
    """
    try:
        yield
    except InternalError as exc:
        if isinstance(exc, DatabaseReadOnly) or not is_read_only(exc):
            raise
        raise DatabaseReadOnly(what) from exc


def now_or_on_commit(function: Callable[[], object]) -> None:
    """Call a function immediately or, in a transaction, after its commit."""
    if caller().in_atomic_block:
        on_commit(function, robust=True)
    else:
        function()


def without_pool(wrapper: Any) -> Any:
    """Return a wrapper for the same database that opens its own connection, even if Django keeps a pool."""
    own = wrapper.copy()
    options = own.settings_dict.get('OPTIONS') or {}
    if options.get('pool'):
        own.settings_dict['OPTIONS'] = {name: value for name, value in options.items() if name != 'pool'}
    return own


def database_name() -> str:
    """Return the name of the database, which differs from the one in the settings while Django's tests run."""
    return connections.settings[DEFAULT_DB_ALIAS]['NAME']


#: The engine's connections of this process.
_all: WeakSet['EngineConnection'] = WeakSet()


def close_connections() -> None:
    """Close the engine's connections of all threads. The next statement opens a new one."""
    for own in _existing():
        own.close_if_idle()


def _existing() -> list['EngineConnection']:
    while True:
        try:
            return list(_all)
        except RuntimeError:
            continue  # another thread made one meanwhile


def _let_go_after_fork() -> None:
    """Let a child use connections that other threads of the parent held at the fork: the child has no such threads."""
    for own in _existing():
        own._in_use = threading.RLock()


os.register_at_fork(after_in_child=_let_go_after_fork)


_before_dropping: list[Callable[[], object]] = []


def before_dropping(function: Callable[[], object]) -> None:
    """Register a function that writes what is pending before Django drops its test database."""
    _before_dropping.append(function)


def _close_before_dropping(creation: Any) -> None:
    """Close the engine's connections before Django drops its test database, which must have no connections then.

    Args:
        creation: The class whose method drops the database.
    """
    drop = creation.destroy_test_db
    if hasattr(drop, 'netbox_celery'):
        return

    @wraps(drop)
    def destroy_test_db(self: Any, *args: Any, **kwargs: Any) -> Any:
        for finish in _before_dropping:
            finish()
        close_connections()
        return drop(self, *args, **kwargs)

    setattr(destroy_test_db, 'netbox_celery', True)
    creation.destroy_test_db = destroy_test_db


class EngineConnection:
    """A connection in autocommit mode that is opened on first use, and again after it broke.

    One thread at a time can use it; code that shares it between threads must lock.
    """

    #: Whether a body is in a block that it may roll back: never here, since no body uses this connection.
    is_nested = False

    def __init__(self) -> None:
        self._wrapper: Any = None
        self._pid: int | None = None
        #: Held while the connection is in use, so that no other thread closes it.
        self._in_use = threading.RLock()
        _all.add(self)

    def __del__(self) -> None:
        # After the end of its thread, Django's wrapper would keep it open until its reference cycles are collected
        if self._wrapper is not None:
            with suppress(Exception):  # the interpreter may be shutting down
                self.close()

    def _connection(self) -> Any:
        if self._wrapper is not None and self._wrapper.settings_dict['NAME'] != database_name():
            self.close()
        if self._wrapper is None or self._pid != os.getpid():
            # After a fork the socket belongs to the parent: do not close it, only forget it
            self._wrapper = without_pool(connections[DEFAULT_DB_ALIAS])
            if 'django.test.utils' in sys.modules:
                _close_before_dropping(type(self._wrapper.creation))
            self._wrapper.inc_thread_sharing()
            self._pid = os.getpid()
        self._wrapper.ensure_connection()
        return self._wrapper

    def execute(self, sql: str, params: Params = None, patience: float = 0) -> list[Row]:
        """Execute one statement, which is a transaction of its own, and return its rows (`[]` if it has none).

        Args:
            sql: The statement.
            params: Its parameters.
            patience: How long to try to reach a database that is unavailable, seconds.

        Raises:
            django.db.OperationalError: The database stayed unavailable.
        """
        with self._in_use:
            return self._execute_patiently(sql, params, patience)

    def _execute_patiently(self, sql: str, params: Params, patience: float) -> list[Row]:
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

    def _execute(self, sql: str, params: Params) -> list[Row]:
        try:
            return execute(self._connection(), sql, params)
        except InternalError as exc:
            if is_read_only(exc):
                # A new connection may be able to write: to another server, or after a change of the settings
                self.close()
                raise WritesRefused(*exc.args) from exc
            raise

    def _abandon(self) -> None:
        """Stop a statement that was interrupted, for example by a soft time limit, and close the connection.

        Otherwise PostgreSQL might still execute it later, unknown to the interrupted code. So this cancels the
        statement and waits for its end: after that, the statement changes nothing any more.
        """
        if self._wrapper is not None:
            greenlets.stop_statement(self._wrapper)
        self.close()

    @contextmanager
    def advisory_lock(self, key: int, hung_after: float) -> Generator[bool]:
        """Hold an advisory lock in a transaction on a separate connection; yields whether the lock was acquired.

        PostgreSQL releases the lock when the transaction ends, even if this process is killed.

        Args:
            key: The lock's number.
            hung_after: Seconds after which PostgreSQL considers an idle holder hung and releases its lock. So the lock
                only saves work: what is done under it must be safe without it.

        Raises:
            django.db.OperationalError: The database is unavailable or read-only. The holder of a lock sends messages,
                and would send them repeatedly if it could not record that it did.
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
                wrapper.rollback()  # a connection pooler would consider a connection with an open transaction broken
            holder.close()

    def copy(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute `COPY ... FROM STDIN` with the given rows, in one transaction."""
        with self._in_use:
            self._copy(sql, rows)

    def _copy(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
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

    def close(self) -> None:
        """Close the connection; the next statement opens a new one."""
        wrapper, self._wrapper = self._wrapper, None
        if wrapper is not None and self._pid == os.getpid():
            try:
                wrapper.close()
            except Exception:  # noqa: BLE001 - it is closed because it is broken
                logger.debug('Closing a broken connection failed', exc_info=True)

    def close_if_idle(self) -> None:
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
    """Django's connection of this thread in place of the engine's own: the engine writes within its transaction.

    So a run can be created and executed within a transaction that is invisible to others, such as that of a test. The
    engine sets a savepoint after each of its statements. If the body then breaks the transaction, it is rolled back to
    that savepoint, and what the engine has written is kept.
    """

    def __init__(self) -> None:
        self._depth = len(connection.savepoint_ids)
        with connection.wrap_database_errors:
            self._run(f'SAVEPOINT {SAVEPOINT}')

    @property
    def is_nested(self) -> bool:
        """Whether the body is in a block of its own (`transaction.atomic()`), which it may roll back."""
        return len(connection.savepoint_ids) > self._depth

    def execute(self, sql: str, params: Params = None, patience: float = 0) -> list[Row]:
        """Execute one statement (see `EngineConnection.execute`)."""
        with self._kept():
            return execute(connection, sql, params)

    def copy(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute `COPY ... FROM STDIN` with the given rows."""
        with self._kept(), connection.cursor() as cursor, cursor.copy(sql) as copy:
            for row in rows:
                copy.write_row(row)

    @contextmanager
    def _kept(self) -> Generator[None]:
        """Keep what a statement writes if it succeeds; if it fails, undo only that statement."""
        with connection.wrap_database_errors:
            broken = connection.connection.pgconn.transaction_status == TransactionStatus.INERROR
            if broken and not self.is_nested:
                self._run(f'ROLLBACK TO SAVEPOINT {SAVEPOINT}')
                connection.needs_rollback = False
            with connection.connection.transaction():
                yield
            self._run(f'SAVEPOINT {SAVEPOINT}')

    @staticmethod
    def _run(sql: str) -> None:
        # Not through Django's cursor, with which tests count queries
        with Cursor(connection.connection) as cursor:
            cursor.execute(sql)

    def close(self) -> None:
        """Do nothing: the connection is the caller's."""


#: Savepoint to which a broken transaction of the caller is rolled back.
SAVEPOINT = 'netbox_celery'


class SharedConnection:
    """The engine's connections that all threads of a process share: a thread takes one for the time of a statement.

    A single thread always uses the same connection. For many threads, as in a pool of threads or greenlets that come
    and go with each run, a few connections are enough, and they stay open.

    A statement may wait for the transaction of a run that itself needs a connection before it can finish. So a thread
    that has waited too long gets an additional connection, which is closed when it is given back to a full stock.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        """Start with new connections: at first, and in a child after a fork (the old ones belong to the parent)."""
        # The connection that was given back last is taken first, so that those that are never needed stay closed
        self._free = deque(EngineConnection() for __ in range(KEPT))
        self._given_back = threading.Condition()
        self._waiting = 0

    def execute(self, sql: str, params: Params = None, patience: float = 0) -> list[Row]:
        """Execute one statement (see `EngineConnection.execute`)."""
        connection = self._take()
        try:
            return connection.execute(sql, params, patience)
        finally:
            self._give_back(connection)

    def close(self) -> None:
        """Close the connections that no thread is using; the next statement opens a new one."""
        for own in list(self._free):
            own.close_if_idle()

    def _take(self) -> EngineConnection:
        try:
            return self._free.pop()
        except IndexError:
            return self._wait()

    def _wait(self) -> EngineConnection:
        deadline = time.monotonic() + WAIT_FOR_FREE
        with self._given_back:
            self._waiting += 1
            try:
                while (left := deadline - time.monotonic()) > 0:
                    # A connection may have been given back before this thread was counted as waiting
                    if self._free or self._given_back.wait(left):
                        try:
                            return self._free.pop()
                        except IndexError:
                            continue  # another thread was faster
            finally:
                self._waiting -= 1
        return EngineConnection()

    def _give_back(self, connection: EngineConnection) -> None:
        if len(self._free) >= KEPT:
            connection.close()
            return
        self._free.append(connection)
        if self._waiting:
            with self._given_back:
                self._given_back.notify()


#: Connections that a process keeps open, at most.
KEPT = 8
#: How long a thread waits for a free one before it opens another, seconds.
WAIT_FOR_FREE = 1

_shared = SharedConnection()
os.register_at_fork(after_in_child=_shared._reset)
greenlets.let_others_go_on()
_local = threading.local()


@contextmanager
def use_connection[T: Connection](own: T) -> Generator[T]:
    """Let the engine use another connection in this thread, within the block."""
    before = getattr(_local, 'connection', None)
    _local.connection = own
    try:
        yield own
    finally:
        _local.connection = before


def get_connection() -> Connection:
    """Return the connection that the engine uses in this thread.

    That is the process's shared one, which all threads can use at the same time, unless `use_connection` is in effect.
    """
    return getattr(_local, 'connection', None) or _shared
