"""The environment of the measurements: a durable PostgreSQL, a Redis, workers and probes."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis

from ..stack.instance import executable
from ..stack.paths import ROOT, STATE
from ..stack.processes import Process, StackError, tail
from .others import times

__all__ = (
    'BARE_DATABASE',
    'PLUGINS_CONFIG',
    'Probe',
    'Stage',
    'Worker',
)

#: Of Redis: 0 and 1 are NetBox's.
BARE_DATABASE = 2

PLUGINS_CONFIG = {'netbox_celery': {'celery': {'include': ['development.bench.tracked']}}}

LOGS = STATE / 'log'

APPS = {
    'tracked': 'netbox_celery',
    'bare': 'development.bench.bare',
}


class Stage:
    """
    Args:
        services: The running `Services`
        quick: Whether to take shorter measurements
    """

    def __init__(self, services, quick=False):
        self.services = services
        self.quick = quick
        self.database = services.cluster.connect('netbox')
        self.redis = {
            'tracked': Redis.from_url(services.redis.url(0)),
            'bare': Redis.from_url(services.redis.url(BARE_DATABASE)),
        }

    def environ(self, kind, instance=None):
        path = {'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': '1'}
        if kind == 'bare':
            return {**path, 'BENCH_REDIS': self.services.redis.url(BARE_DATABASE)}
        return {**path, **(instance or self.services.instance).environ}

    def query(self, sql, *parameters):
        return self.database.execute(sql, parameters).fetchone()

    @contextmanager
    def worker(self, kind):
        """
        Run a worker with two processes; yields a `Worker`.
        """
        with self.celery(
            kind, 'worker', '--pool', 'prefork', '--concurrency', '2', '--loglevel', 'WARNING',
            '--hostname', f'bench-{kind}@%h',
        ) as worker:
            yield worker

    @contextmanager
    def beat(self):
        """
        Run a beat; yields it, as a `Worker` without a pool, once it has the lead.
        """
        with self.celery('tracked', 'beat', '--loglevel', 'INFO') as process:
            self.wait(lambda: 'this one is active' in process.log.read_text(errors='replace'), process)
            yield process

    @contextmanager
    def celery(self, kind, command, *options):
        log = LOGS / f'bench-{kind}.log'
        log.unlink(missing_ok=True)
        started = time.time()
        process = Process.start(f'{command} ({kind})', [
            executable('celery'), '-A', APPS[kind], command, *options,
        ], log, env=self.environ(kind), die_with_parent=True)

        try:
            yield Worker(kind, process, started, log)
        finally:
            process.stop()

    @contextmanager
    def probe(self, kind, instance=None):
        with Probe(kind, self.environ(kind, instance)) as probe:
            yield probe

    def queued(self, kind):
        """
        Return how many messages wait.
        """
        return self.redis[kind].llen('netbox_celery:celery' if kind == 'tracked' else 'celery')

    def cpu_time(self, worker):
        """
        Return the processor time that a worker's main process, its children, PostgreSQL and Redis have used so far,
        in seconds.
        """
        return cpu_time(worker.process.pid, self.services.cluster.process.pid, self.services.redis.process.pid)

    def wait(self, condition, worker, timeout=180, interval=0.2):
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            worker.check()
            if time.monotonic() > deadline:
                raise StackError('The worker makes no progress: see the logs in development/.state/log')
            time.sleep(interval)
        return value

    def forget(self):
        """
        Empty the queues and the tables.
        """
        for client in self.redis.values():
            client.flushdb()
        # Nothing but what PostgreSQL itself cleans up over time
        self.database.execute(
            'TRUNCATE netbox_celery_celeryresult, netbox_celery_celerylogentry, netbox_celery_celeryworker CASCADE'
        )


@dataclass
class Worker:
    """
    A running worker.

    Args:
        started: Start, in seconds of wall-clock time
    """
    kind: str
    process: Process
    started: float
    log: Path

    def check(self):
        if not self.process.running:
            raise StackError(
                f'The {self.kind} worker has ended. Its log, {self.log}, ends with:\n\n{tail(self.log, 30)}'
            )


def cpu_time(worker, postgresql, redis):
    children, used = times()
    return {
        'main': used[worker],
        'pool': sum(used[pid] for pid in children.get(worker, ())),
        'postgresql': used[postgresql] + sum(used[pid] for pid in children.get(postgresql, ())),
        'redis': used[redis],
    }


class Probe:
    """
    A warm process that executes commands.

        probe.do('delay', number=500)       returns what `probe.py` answers
    """

    def __init__(self, kind, environ):
        self.kind = kind
        self.environ = environ

    def __enter__(self):
        self.log = LOGS / f'bench-probe-{self.kind}.log'
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open('w') as log:
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'development.bench.probe', self.kind],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT,
                env={**os.environ, **self.environ},
            )
        return self

    def do(self, what, **arguments):
        try:
            self.process.stdin.write(json.dumps([what, arguments]) + '\n')
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        if not (line := self.process.stdout.readline()):
            raise StackError(f'{what} failed. The log, {self.log}, ends with:\n\n{tail(self.log, 30)}')
        return json.loads(line)

    def __exit__(self, *exception):
        self.process.stdin.close()
        if exception[0] is not None:
            self.process.kill()
        self.process.wait()
