"""The engine's own connections: they are reopened when they break, and are shared with nothing else."""
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from django.db import DatabaseError, DataError, OperationalError, connection, connections, transaction

from development.stack.processes import wait_until
from netbox_celery.celery import app
from netbox_celery.engine.store import database
from netbox_celery.engine.store.database import KEPT, EngineConnection, SharedConnection, execute, get_connection
from netbox_celery.models import CeleryResult
from tests.factories import HELLO_WORLD, make_result
from tests.support import in_thread, is_true_in_a_child

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def own():
    own = EngineConnection()
    yield own
    own.close()


def backend(own):
    return own.execute('SELECT pg_backend_pid()')[0][0]


def test_own_transaction(own):
    """The engine's writes are visible while the caller's transaction is open, and survive its rollback."""
    result = make_result('pending', name='before')
    with transaction.atomic():
        own.execute('UPDATE netbox_celery_celeryresult SET name = %s WHERE id = %s', ('after', result.pk))
        result.refresh_from_db()
        assert result.name == 'after'
        transaction.set_rollback(True)
    result.refresh_from_db()
    assert result.name == 'after'


def test_connection_is_kept(own):
    assert backend(own) == backend(own)


def test_broken_connection(own, services):
    """A connection that was closed meanwhile is opened again, and the statement executed once."""
    first = backend(own)
    with services.cluster.connect() as admin:
        admin.execute('SELECT pg_terminate_backend(%s)', (first,))
    assert backend(own) != first


@pytest.fixture
def stale(services):
    """Break Django's connection without its knowledge."""
    def end():
        pid = execute(connection, 'SELECT pg_backend_pid()')[0][0]
        with services.cluster.connect() as admin:
            admin.execute('SELECT pg_terminate_backend(%s)', (pid,))
        return pid
    return end


def test_stale_connection_of_djangos(stale):
    before = stale()
    assert execute(connection, 'SELECT pg_backend_pid()')[0][0] != before


def test_stale_connection_in_a_transaction(stale):
    """What the transaction did before is lost, so it fails."""
    with pytest.raises(OperationalError), transaction.atomic():
        before = make_result()
        stale()
        execute(connection, 'SELECT 1')
    assert not CeleryResult.objects.filter(pk=before.pk).exists()


@pytest.mark.parametrize('options', ({}, {'concurrency_key': 'stale'}), ids=('plain', 'policy'))
def test_call_with_a_stale_connection(stale, options):
    """A call whose connection is broken is tracked all the same."""
    stale()
    result = app.send_task(HELLO_WORLD, queue='nobody', **options)
    assert CeleryResult.objects.get(task_id=result.id).status == 'pending'


def test_many_calls_with_a_stale_connection(stale):
    """So are many concurrent calls."""
    stale()
    assert len(CeleryResult.enqueue_many(HELLO_WORLD, [(), ()], queue='nobody')) == 2


def test_errors_are_no_outage(own):
    """A statement's own error is raised immediately, and leaves the connection usable."""
    before = backend(own)
    with pytest.raises(DataError):
        own.execute("SELECT 'x'::text::int", patience=60)
    assert backend(own) == before


def test_patience(own, monkeypatch):
    """A statement waits for a database that is down, for as long as the caller says."""
    calls = []

    def refuse(self):
        calls.append(1)
        raise OperationalError('away')
    monkeypatch.setattr(EngineConnection, '_connection', refuse)
    with pytest.raises(OperationalError):
        own.execute('SELECT 1')
    assert len(calls) == 1
    with pytest.raises(OperationalError):
        own.execute('SELECT 1', patience=0.5)
    assert len(calls) > 4


@pytest.fixture
def shared():
    connection = SharedConnection()
    yield connection
    for each in connection._free:
        each.close()


def in_threads(number, function):
    """Call a function in so many threads at the same time, and return the results."""
    with ThreadPoolExecutor(number) as pool:
        return [future.result() for future in [pool.submit(function) for __ in range(number)]]


def test_shared_by_threads(shared):
    """One thread uses one connection, and many threads use a few, which stay open."""
    assert get_connection() is get_connection()
    assert len({backend(shared) for __ in range(20)}) == 1
    for __ in range(2):
        used = in_threads(5 * KEPT, lambda: [backend(shared) for __ in range(5)][-1])
    assert 1 <= len(set(used)) <= KEPT
    assert len(shared._free) == KEPT


def test_shared_with_blocked_statements(shared, services, monkeypatch):
    """Blocked statements that hold all connections cannot keep another one from being executed."""
    monkeypatch.setattr(database, 'WAIT_FOR_FREE', 0.2)
    with psycopg.connect(services.cluster.url('netbox')) as lock:
        lock.execute('SELECT pg_advisory_xact_lock(77)')
        with ThreadPoolExecutor(2 * KEPT) as pool:
            waits = [pool.submit(shared.execute, 'SELECT pg_advisory_xact_lock_shared(77)') for __ in range(2 * KEPT)]
            wait_until(lambda: not shared._free, 20)
            assert shared.execute('SELECT 1') == [(1,)]
            lock.rollback()
            assert all(future.result(20) for future in waits)
    assert len(shared._free) == KEPT
    in_use = sum(each._wrapper is not None and each._wrapper.connection is not None for each in shared._free)
    assert in_use <= KEPT


def test_shared_connection_that_is_given_back(shared, services):
    """A waiting thread gets the next free connection, and does not open another one."""
    with psycopg.connect(services.cluster.url('netbox')) as lock:
        lock.execute('SELECT pg_advisory_xact_lock(77)')
        with ThreadPoolExecutor(KEPT + 1) as pool:
            held = [pool.submit(
                shared.execute, 'SELECT pg_advisory_xact_lock_shared(77), pg_backend_pid()'
            ) for __ in range(KEPT)]
            wait_until(lambda: not shared._free, 20)
            late = pool.submit(backend, shared)
            wait_until(lambda: shared._waiting, 20)
            lock.rollback()
            assert late.result(20) in {future.result(20)[0][1] for future in held}


def test_shared_after_a_fork():
    """A child has its own connections."""
    before = backend(get_connection())
    assert is_true_in_a_child(lambda: backend(get_connection()) != before)
    assert backend(get_connection()) == before


def test_closed_while_it_is_used(own, monkeypatch):
    """A worker of this process that stops does not close a connection that is about to be used."""
    inner = EngineConnection._connection

    def connection_while_others_close(self):
        wrapper = inner(self)
        thread = threading.Thread(target=database.close_connections)
        thread.start()
        thread.join()
        return wrapper
    pid = backend(own)
    with monkeypatch.context() as patch:
        patch.setattr(EngineConnection, '_connection', connection_while_others_close)
        assert backend(own) == pid
    database.close_connections()
    assert wait_until(lambda: not is_connected(pid), 5)


def test_closed_while_others_are_made(own, monkeypatch):
    class Changing(list):
        is_changed = False

        def __iter__(self):
            if not self.is_changed:
                self.is_changed = True
                raise RuntimeError('Set changed size during iteration')
            return super().__iter__()
    pid = backend(own)
    monkeypatch.setattr(database, '_all', Changing([own]))
    database.close_connections()
    assert wait_until(lambda: not is_connected(pid), 5)


def test_fork_while_it_is_used(own):
    """A child does not wait for its parent's thread, which it does not have."""
    taken, done = threading.Event(), threading.Event()

    def use():
        with own._in_use:
            taken.set()
            done.wait(20)
    thread = threading.Thread(target=use)
    thread.start()
    taken.wait(20)
    assert is_true_in_a_child(lambda: own._in_use.acquire(timeout=5) and own.execute('SELECT 1'))
    done.set()
    thread.join()


def test_no_state_of_sessions():
    """No statement of the plugin depends on a session: a pooler may use another one for each transaction."""
    state = re.compile(
        r'pg_(?:try_)?advisory_(?:lock|unlock)|\bLISTEN |\bTEMP(?:ORARY)? TABLE|\bSET SESSION|WITH HOLD|\bPREPARE '
        r'|set_config\([^)]*false\)'
    )
    for text in ('pg_try_advisory_lock(1)', "set_config('x', 'y', false)"):
        assert state.search(text)
    package = Path(database.__file__).parents[1]
    found = {path.name: match[0] for path in package.rglob('*.py') if (match := state.search(path.read_text()))}
    assert found == {}


def test_fork(own):
    """A child opens its own connection and leaves its parent's alone."""
    before = backend(own)
    assert is_true_in_a_child(lambda: backend(own) != before)
    assert backend(own) == before


def test_advisory_lock(own):
    """There is one holder at a time; the lock is released with the block."""
    other = EngineConnection()
    with own.advisory_lock(42, 60) as first, other.advisory_lock(42, 60) as second:
        assert (first, second) == (True, False)
    with other.advisory_lock(42, 60) as again:
        assert again
    other.close()


def test_advisory_lock_of_a_hanging_holder(own):
    """PostgreSQL releases the lock, also if the holder's connection stays open."""
    def is_free():
        with own.advisory_lock(42, 60) as locked:
            return locked

    with own.advisory_lock(42, 0.5) as first:
        assert first
        assert wait_until(is_free, 20)
    assert is_free()


def test_odd_parameters(own):
    """Per cent signs, quotes and prepared statements do no harm."""
    for __ in range(10):
        assert own.execute("SELECT %s || '%%', %s", ("'; --", None)) == [("'; --%", None)]
    assert own.execute('SELECT 1 WHERE false') == []
    assert own.execute('CREATE TEMPORARY TABLE x (a int)') == []


def test_djangos_connection_prepares_nothing_else():
    """The engine's statements on Django's connection leave its settings as they were."""
    connection.ensure_connection()
    before = connection.connection.prepare_threshold
    assert execute(connection, 'SELECT %s::int', (5,)) == [(5,)]
    assert connection.connection.prepare_threshold == before


def test_thread_ends():
    """A thread's own connection is closed when the thread ends, without garbage collection."""
    pids = []
    thread = threading.Thread(target=lambda: pids.append(backend(EngineConnection())))
    thread.start()
    thread.join()
    assert wait_until(lambda: not is_connected(pids[0]), 5)


def test_another_database(own, monkeypatch):
    """Django's tests switch databases: a connection to the earlier one is not used."""
    assert own.execute('SELECT current_database()') == [('netbox',)]
    with monkeypatch.context() as patch:
        patch.setitem(connections.settings['default'], 'NAME', 'postgres')
        assert own.execute('SELECT current_database()') == [('postgres',)]
    assert own.execute('SELECT current_database()') == [('netbox',)]


def test_test_database_is_dropped(own, monkeypatch):
    """Before Django drops its test database, the engine's connections of all threads are closed."""
    monkeypatch.setattr(type(connection.creation), '_destroy_test_db', lambda *args: None)
    pid = backend(own)
    # Django then closes the connection of another thread, which it must not
    __, found = in_thread(connection.creation.destroy_test_db, verbosity=0)
    assert wait_until(lambda: not is_connected(pid), 5)
    assert backend(own) != pid
    assert not found or isinstance(found[0], DatabaseError)


def is_connected(pid):
    return bool(execute(connection, 'SELECT 1 FROM pg_stat_activity WHERE pid = %s', (pid,)))
