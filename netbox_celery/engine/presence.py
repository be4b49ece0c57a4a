"""Who is alive: a worker's heartbeat, and what its parent process writes about runs of its children.

A worker's parent says every `heartbeat_interval` seconds that it is there, from a thread of its own: a busy pool or a
slow broker does not silence it. The same thread writes what the parent could not write at once because the database
was away. A second one sweeps for what was lost (`netbox_celery.engine.sweep`), for which it speaks to the broker too,
and sends what waited in line for the end of a run that the parent wrote.
"""
import logging
import os
import platform
import socket
import threading
import time
from collections import deque
from functools import cache, partial
from importlib.metadata import version
from queue import Empty, SimpleQueue
from uuid import uuid4

from django.db import close_old_connections, connections

from .. import host
from ..choices import ResultStatusChoices as Status
from ..config import get_config
from . import discovery, lifecycle
from .database import UNAVAILABLE, UNUSABLE, EngineConnection, get_connection, is_read_only
from .outcome import advance_line
from .recorder import recorder
from .run import OWN_THREADS

__all__ = (
    'Presence',
    'close_run',
    'identity',
    'requeue_run',
    'status_of',
)

logger = logging.getLogger(__name__)

REGISTER = f"""
    INSERT INTO {lifecycle.WORKERS}
        (key, name, host, pid, pool, concurrency, queues, versions, started, heartbeat)
    VALUES (%(key)s, %(name)s, %(host)s, %(pid)s, %(pool)s, %(concurrency)s, %(queues)s::jsonb, %(versions)s::jsonb,
        now(), now())
    ON CONFLICT (key) DO UPDATE SET heartbeat = now(), queues = EXCLUDED.queues, stopped = NULL,
        concurrency = EXCLUDED.concurrency, versions = EXCLUDED.versions
"""
BEAT = f'UPDATE {lifecycle.WORKERS} SET heartbeat = now() WHERE key = %s RETURNING id'
#: Whether workers can be registered.
LOOK = f'SELECT 1 FROM {lifecycle.WORKERS} LIMIT 1'
STOP = f'UPDATE {lifecycle.WORKERS} SET heartbeat = now(), stopped = now() WHERE key = %s'


class Identity:
    """Who this process is: the worker process group that it belongs to. Children inherit it, or are told of it."""

    def __init__(self):
        self.key = None
        self.name = ''
        self.pid = None
        self._last_beat = self._steady_since = float('-inf')

    def take(self, name):
        """Become a worker with a new key: what an earlier one of this name left is not this one's."""
        self.key, self.name, self.pid = uuid4(), name, os.getpid()

    def describe(self):
        """Return what another process needs to know to belong to this worker, `None` if this process is no worker's."""
        return self.key and (self.key, self.name, self.pid)

    def join(self, described):
        """Become a child of a worker."""
        self.key, self.name, self.pid = described

    def leave(self):
        """Be no worker any more: this process goes on as another program's."""
        self.__init__()

    @property
    def is_child(self):
        """Whether this is a process of a worker's pool."""
        return self.pid != os.getpid()

    def note_beat(self):
        """Note a heartbeat of this worker's that has reached the database."""
        now = time.monotonic()
        if now - self._last_beat > get_config().worker_lost_after / 2:
            self._steady_since = now
        self._last_beat = now

    @property
    def can_judge(self):
        """Whether this worker may take the silence of others for their death.

        When the database was away, everybody was silent: nobody is judged before all had the time to be heard again.
        """
        now, lost_after = time.monotonic(), get_config().worker_lost_after
        return now - self._last_beat <= lost_after / 2 and now - self._steady_since >= lost_after


identity = Identity()
#: Writes of the parent that wait for the database: IDs of runs, and functions to call with a connection.
_deferred = deque()
#: Concurrency keys of runs that the parent has ended; `None` wakes the thread that waits for them.
_freed: SimpleQueue = SimpleQueue()


class Presence:
    """The heartbeat of a worker's parent process, and what it does beside it."""

    def __init__(self, worker, duties=()):
        """
        Args:
            worker: Celery's `WorkController`.
            duties: Pairs of an interval in seconds and a function, called with a connection that often.
        """
        self.worker = worker
        self.connection = EngineConnection()
        self.duties = [[interval, function, 0.0] for interval, function in duties]
        #: What its row says that may change, as it was written last.
        self._said = None
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._beat, name=f'{OWN_THREADS}heartbeat', daemon=True),
            threading.Thread(target=self._work, name=f'{OWN_THREADS}sweep', daemon=True),
        ]

    def start(self):
        """Begin, unless that has been done."""
        for thread in self._threads:
            if thread.ident is None:
                thread.start()

    def stop(self):
        """Say goodbye. What this worker still holds is not held any more."""
        self._stopping.set()
        _freed.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=5)
        try:
            self.write_deferred()
            self.connection.execute(STOP, (identity.key,), patience=2)
        except UNUSABLE as exc:
            logger.warning('This worker could not sign off, it will be found lost: %s', exc)

    def register(self):
        """Write the worker's row, waiting for a database that is away: without it no claim would hold."""
        described = describe_worker(self.worker)
        self.connection.execute(REGISTER, described, patience=float('inf'))
        self._said = _changing(described)

    def _beat(self):
        while not self._stopping.is_set():
            try:
                if not self.connection.execute(BEAT, (identity.key,)):
                    self.register()  # somebody deleted the row
                elif _changing(describe_worker(self.worker)) != self._said:
                    self.register()  # its pool has grown or shrunk, or it consumes from another queue
                identity.note_beat()
                self.write_deferred()
            except UNUSABLE as exc:
                logger.warning('No heartbeat, or what waits to be written waits on: %s', exc)
            except Exception:
                logger.exception('The heartbeat failed')
            self._stopping.wait(get_config().heartbeat_interval)

    def _work(self):
        connection = EngineConnection()
        try:
            self._look_after(connection)
        finally:
            connection.close()
            connections.close_all()

    def _look_after(self, connection):
        while not self._stopping.is_set():
            close_old_connections()  # those of the duties, and of what hooks do: this thread has no requests
            for duty in self.duties:
                interval, function, due = duty
                if time.monotonic() < due:
                    continue
                duty[2] = time.monotonic() + interval
                try:
                    function(connection)
                except UNAVAILABLE as exc:
                    logger.warning('The sweep waits, the database is unavailable: %s', exc)
                except Exception as exc:
                    if is_read_only(exc):
                        logger.warning('The sweep waits, the database is read-only: %s', exc)
                        connections.close_all()  # the next ones may be able to write
                    else:
                        logger.exception('The sweep failed')
            close_old_connections()  # into Django's pool, if it keeps one, before this thread waits
            self._advance_lines(connection)

    def _advance_lines(self, connection):
        """Send what waited in line for the runs that the parent ends, until the duties are to be looked at again."""
        end = time.monotonic() + get_config().heartbeat_interval
        while not self._stopping.is_set() and (left := end - time.monotonic()) > 0:
            try:
                key = _freed.get(timeout=left)
                if key is not None:
                    advance_line(connection, key)
            except Empty:
                return
            except Exception:
                logger.exception('Who waits in line for a run that has ended waits for the next sweep')

    def write_deferred(self):
        while _deferred:
            task_id, function = _deferred[0]
            try:
                function(self.connection)
            except UNUSABLE:
                raise
            except Exception:
                # What cannot be written at all must not keep back what comes after it.
                logger.exception('What became of task %s could not be written', task_id)
            _deferred.popleft()


def describe_worker(worker):
    """Return the column values of a worker's row."""
    from .payload import dumps

    pool = worker.pool_cls if isinstance(worker.pool_cls, str) else worker.pool_cls.__module__
    pool = pool.split(':')[0].rsplit('.', 1)[-1]
    concurrency, autoscale = concurrency_of(worker, pool)
    return {
        'key': identity.key,
        'name': identity.name,
        'host': socket.gethostname(),
        'pid': os.getpid(),
        'pool': {'thread': 'threads'}.get(pool, pool),
        'concurrency': concurrency,
        'queues': dumps(sorted([*worker.app.amqp.queues.consume_from])),
        'versions': dumps(_versions() | {lifecycle.WORKER_STATE: {
            'autoscale': autoscale, 'not_loaded': [failure.as_dict() for failure in discovery.failures()],
        }}),
    }


@cache
def _versions():
    return {
        'netbox-celery': version('netbox-celery'), 'netbox': host.netbox_version(), 'celery': version('celery'),
        'kombu': version('kombu'), 'python': platform.python_version(),
    }


def _changing(described):
    return {name: described[name] for name in ('concurrency', 'queues', 'versions')}


def concurrency_of(worker, pool):
    """Return how many tasks a worker can run at a time, and the limits of its autoscaler.

    Args:
        worker: Celery's `WorkController`, whose pool may not have been made yet.
        pool: The name of the pool.

    Returns:
        A number, and a dict of `min` and `max`, or `None` without an autoscaler.
    """
    if pool == 'solo':
        return 1, None
    if getattr(worker, 'autoscale', None):
        scaler = getattr(worker, 'autoscaler', None)
        most, least = (scaler.max_concurrency, scaler.min_concurrency) if scaler else worker.autoscale
        return max(most, 1), {'min': least, 'max': most}
    try:
        number = worker.pool.num_processes
    except (AttributeError, NotImplementedError):  # it has not started, or does not say
        number = worker.concurrency
    return max(number or 1, 1), None


def _write(task_id, function):
    """Write for a run from a worker's parent, at once or, while the database is away, from the heartbeat thread.

    Order is kept: what waits goes first. The parent also moves messages, so it must not wait long; and an error in it
    would end the worker. A child, which comes here if it could not claim a run, has no heartbeat: its recorder writes.
    """
    if identity.is_child or not _deferred:
        try:
            return function(get_connection())
        except UNUSABLE as exc:
            logger.warning('What became of task %s cannot be written yet: %s', task_id, exc)
        except Exception:
            logger.exception('What became of task %s could not be written', task_id)
            return None
    if identity.is_child:
        recorder.end_later(task_id, function)
    else:
        _deferred.append((task_id, function))
    return None


def close_run(
    task_id, status, *, attempt=None, reason='', error='', traceback='', exact_result=None, in_backend=False
):
    """End a run from outside the process that runs it: one that nobody claimed, or one that this worker holds.

    Args:
        attempt: The attempt that this worker holds, if it may be ended too.
        exact_result: The exception, as Celery's result backend tells it.
        in_backend: Whether Celery's result backend is told as well.
    """
    def write(connection):
        end = partial(
            _finish, connection, task_id, status, reason=reason, error=error, traceback=traceback,
            exact_result=exact_result, in_backend=in_backend
        )
        row = None
        if identity.key is not None and attempt is not None:
            row = end(holder=identity.key, attempt=attempt)
        return row or end()
    return _write(task_id, write)


def _finish(connection, task_id, status, **values):
    """End a run, and send what waited in line for that.

    A worker's parent leaves the sending to its thread: a slow broker must not hold it up.
    """
    row = lifecycle.finish(connection, task_id, status, **values, patience=0)
    if row is not None and row[3]:
        if identity.is_child:
            advance_line(connection, row[3])
        else:
            _freed.put(row[3])
    return row


def requeue_run(task_id, *, attempt, reason='', error=''):
    """Put a run that this worker holds back into the queue, before the broker delivers its message again.

    Returns:
        How the run ended, if the message must not go back: it was cancelled, or has been given back too often.
    """
    def write(connection):
        row = lifecycle.requeue(
            connection, task_id, by='holder', holder=identity.key, attempt=attempt, reason=reason, error=error,
            patience=0
        )
        if row is not None:
            return row[1] if row[1] != Status.STATUS_PENDING else None
        row = _finish(
            connection, task_id, Status.STATUS_ERRORED, holder=identity.key, attempt=attempt, reason=reason,
            error=f'{error}. It is not run again after {lifecycle.MOST_LOSSES} times'
        )
        return row and row[1]
    return _write(task_id, write)


def status_of(task_id):
    """Return the status of a run, as far as can be told at once; `None` if it cannot, or there is none."""
    try:
        found = lifecycle.explain(get_connection(), task_id)
    except UNUSABLE:
        return None
    return found and found[0]
