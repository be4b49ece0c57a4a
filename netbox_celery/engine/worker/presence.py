"""The heartbeat of a worker, and the thread for its other duties.

A worker's parent process writes a heartbeat every `heartbeat_interval` seconds, from a thread of its own: neither a
busy pool nor a slow broker delays it. The same thread writes what the parent could not write while the database was
unavailable (`netbox_celery.engine.runs.reports`). A second thread, which also uses the broker, sweeps for lost runs and
messages (`netbox_celery.engine.worker.sweep`), and advances the waiting line of a run whose end the parent wrote.
"""
import logging
import os
import platform
import socket
import threading
import time
from functools import cache
from importlib.metadata import version
from typing import Any

from django.db import close_old_connections, connections

from ... import host
from ...config import get_config
from ..catalogue import discovery
from ..identity import OWN_THREADS, identity
from ..runs import reports
from ..store import lifecycle
from ..store.database import UNAVAILABLE, UNUSABLE, EngineConnection, is_read_only
from ..store.payload import dumps

__all__ = (
    'Presence',
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
#: Fails unless workers can be registered.
LOOK = f'SELECT 1 FROM {lifecycle.WORKERS} LIMIT 1'
STOP = f'UPDATE {lifecycle.WORKERS} SET heartbeat = now(), stopped = now() WHERE key = %s'


class Presence:
    """The heartbeat of a worker's parent process, and its other duties."""

    def __init__(self, worker, duties=()):
        """
        Args:
            worker: Celery's `WorkController`.
            duties: Pairs of an interval in seconds and a function that is called at this interval, with a connection.
        """
        self.worker = worker
        self.connection = EngineConnection()
        self.duties = [[interval, function, 0.0] for interval, function in duties]
        #: The columns of its row that may change, as last written.
        self._written: dict[str, Any] | None = None
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._beat, name=f'{OWN_THREADS}heartbeat', daemon=True),
            threading.Thread(target=self._work, name=f'{OWN_THREADS}sweep', daemon=True),
        ]

    def start(self) -> None:
        """Start the threads, unless they have been started."""
        for thread in self._threads:
            if thread.ident is None:
                thread.start()

    def stop(self) -> None:
        """Sign off. From now on this worker counts as the holder of no run."""
        self._stopping.set()
        reports.stop_waiting()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=5)
        try:
            reports.write_deferred(self.connection)
            self.connection.execute(STOP, (identity.key,), patience=2)
        except UNUSABLE as exc:
            logger.warning('This worker could not sign off, and will be considered lost: %s', exc)

    def register(self) -> None:
        """Write the worker's row, waiting for an unavailable database: without the row no claim would hold."""
        described = describe_worker(self.worker)
        self.connection.execute(REGISTER, described, patience=float('inf'))
        self._written = _changing(described)

    def _beat(self):
        while not self._stopping.is_set():
            try:
                if not self.connection.execute(BEAT, (identity.key,)):
                    self.register()  # the row was deleted
                elif _changing(describe_worker(self.worker)) != self._written:
                    self.register()  # its pool has grown or shrunk, or it consumes from different queues
                identity.note_beat()
                reports.write_deferred(self.connection)
            except UNUSABLE as exc:
                logger.warning('The heartbeat, or what is still to be written, has to wait: %s', exc)
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
            close_old_connections()  # those of the duties and of hooks: this thread has no requests
            for duty in self.duties:
                interval, function, due = duty
                if time.monotonic() < due:
                    continue
                duty[2] = time.monotonic() + interval
                try:
                    function(connection)
                except UNAVAILABLE as exc:
                    logger.warning('The sweep has to wait, the database is unavailable: %s', exc)
                except Exception as exc:
                    if is_read_only(exc):
                        logger.warning('The sweep has to wait, the database is read-only: %s', exc)
                        connections.close_all()  # new ones may be able to write
                    else:
                        logger.exception('The sweep failed')
            close_old_connections()  # back to Django's pool, if there is one, before this thread waits
            self._advance_lines(connection)

    def _advance_lines(self, connection):
        """Advance the waiting lines of runs whose end the parent writes, until the next round of duties."""
        end = time.monotonic() + get_config().heartbeat_interval
        while not self._stopping.is_set() and (left := end - time.monotonic()) > 0:
            try:
                if not reports.advance_next(connection, timeout=left):
                    return
            except Exception:
                logger.exception('The waiting line of a finished run has to wait for the next sweep')


def describe_worker(worker: Any) -> dict[str, Any]:
    """Return the column values of a worker's row."""
    pool = worker.pool_cls if isinstance(worker.pool_cls, str) else worker.pool_cls.__module__
    pool = pool.split(':')[0].rsplit('.', 1)[-1]
    concurrency, autoscale = concurrency_of(worker, pool)
    config = get_config()
    return {
        'key': identity.key,
        'name': identity.name,
        'host': socket.gethostname(),
        'pid': os.getpid(),
        'pool': {'thread': 'threads'}.get(pool, pool),
        'concurrency': concurrency,
        'queues': dumps(sorted([*worker.app.amqp.queues.consume_from])),
        'versions': dumps(_versions() | {lifecycle.WORKER_STATE: {
            'autoscale': autoscale, 'lost_after': config.worker_lost_after, 'interval': config.heartbeat_interval,
            'not_loaded': [failure.as_dict() for failure in discovery.failures()],
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


def concurrency_of(worker: Any, pool: str) -> tuple[int, dict[str, int] | None]:
    """Return how many tasks a worker can run at a time, and the limits of its autoscaler.

    Args:
        worker: Celery's `WorkController`, whose pool may not exist yet.
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
    except (AttributeError, NotImplementedError):  # the pool has not started, or does not know it
        number = worker.concurrency
    return max(number or 1, 1), None
