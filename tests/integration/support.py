"""Real workers for tests, and functions that wait for what they do."""
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from development.stack.processes import tail
from netbox_celery.celery import app
from netbox_celery.models import CeleryLogEntry, CeleryResult, CeleryWorker

__all__ = (
    'Beat',
    'Worker',
    'ended',
    'lines',
    'row',
    'settled',
    'speaking_to',
    'until',
    'waiting',
)

CELERY = Path(sys.executable).with_name('celery')


def until(condition, timeout=20, what=None):
    """Return the first true value of `condition()`; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f'Still not after {timeout} s: {what() if callable(what) else what or condition}')
        time.sleep(0.02)
    return value


def id_of(run):
    return getattr(run, 'task_id', None) or getattr(run, 'id', None) or run


def row(run):
    """Return the row of a run, given by itself, by its `AsyncResult` or by its ID."""
    return CeleryResult.objects.get(task_id=id_of(run))


def waiting(run, *statuses, timeout=20):
    """Wait until a run has a row, with one of the statuses, and return it."""
    runs = CeleryResult.objects.filter(task_id=id_of(run))
    return until(
        lambda: runs.filter(status__in=statuses).first(), timeout,
        lambda: f'{run} is {list(runs.values_list("status", "reason", "error"))}, not {" or ".join(statuses)}',
    )


def ended(run, timeout=20):
    """Wait until a run has finished, and return its row."""
    return waiting(run, 'completed', 'failed', 'errored', 'revoked', 'ignored', timeout=timeout)


def settled(run, timeout=20):
    """Wait until a run and each of its attempts has finished, and return its row.

    The next attempt is sent before the end of the one before is written, and may overtake that.
    """
    return until(
        lambda: (found := ended(run, timeout)) and all(attempt['ended'] for attempt in found.attempts) and found,
        timeout, lambda: f'{run}: {row(run).attempts}'
    )


def lines(run):
    """Return the messages of a run's log, in order."""
    return list(CeleryLogEntry.objects.filter(result__task_id=row(run).task_id).order_by('pk').values_list(
        'message', flat=True
    ))


@contextmanager
def speaking_to(broker_url, **settings):
    """Let this process send to another broker, with other settings of Celery."""
    def renew():
        # As Celery does after a fork: what it has worked out from the settings, and its connections, are forgotten
        app._after_fork()
        app.__dict__.pop('amqp', None)

    settings = {'broker_url': broker_url, 'broker_read_url': None, 'broker_write_url': None, **settings}
    before = {name: app.conf.changes[name] for name in settings if name in app.conf.changes}
    app.conf.update(settings)
    renew()
    try:
        yield
    finally:
        for name in settings:
            del app.conf.changes[name]
        app.conf.update(before)
        renew()


class Program:
    """A real process of Celery in a session of its own, with its output in a file."""

    def __init__(self, instance, log, command, *, env=None, cwd='/'):
        self.log = Path(log)
        # Another one of this name, which a test before this one had, may have written there that it is ready
        self.log.unlink(missing_ok=True)
        self.command = command
        self.env = {**os.environ, **instance.environ, **(env or {})}
        self.cwd = cwd
        self.process = None
        self._began_at = 0
        self._forgotten = 0

    def start(self):
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open('ab') as output:
            self._began_at = output.tell()
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=self.env,
                cwd=self.cwd, start_new_session=True,
            )
        return self

    @property
    def output(self):
        """What it has written, without what was forgotten."""
        return self.log.read_bytes()[self._forgotten:].decode(errors='replace')

    def forget(self):
        """Leave what it has written so far, in other tests, out of `output`."""
        self._forgotten = self.log.stat().st_size

    @property
    def pid(self):
        return self.process.pid

    def says(self, text, timeout=90):
        """Wait until it has written a text, and return all of its output."""
        return until(lambda: text in self.output and self.output, timeout,
                     lambda: f'{text!r} is not in:\n{tail(self.log, 40)}')

    def signal(self, number):
        os.kill(self.pid, number)

    def wait(self, timeout=60):
        """Wait until it has stopped by itself; returns its exit code."""
        return self.process.wait(timeout)

    def kill(self):
        """Kill its main process, as a power failure would; its children are left to themselves."""
        self.signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self):
        """Stop it, gently if possible, and everything that it left."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10)


class Beat(Program):
    """A real beat: `celery -A netbox_celery beat`."""

    def __init__(self, instance, directory, name, **options):
        super().__init__(instance, Path(directory) / f'{name}.log', [
            CELERY, '-A', 'netbox_celery', 'beat', '-l', 'INFO',
        ], **options)

    @property
    def is_leader(self):
        return 'this one is active' in self.output

    @property
    def is_standby(self):
        return not self.is_leader and 'this one is on standby' in self.output


class Worker(Program):
    """A real worker process: `celery -A netbox_celery worker`, with its own queue unless another is named."""

    def __init__(self, instance, directory, name, *, queue=None, pool='prefork', concurrency=2, options=(), **program):
        self.name = name
        self.pool = pool
        self.queue = queue or name
        super().__init__(instance, Path(directory) / f'{name}.log', [
            CELERY, '-A', 'netbox_celery', 'worker', '-E', '-l', 'INFO', '-P', pool, '-c', str(concurrency),
            '-n', f'{name}@%h', '-Q', self.queue, *options,
        ], **program)

    @property
    def is_ready(self):
        """Whether it has logged that it is ready since its latest start."""
        return b' ready.\n' in self.log.read_bytes()[self._began_at:]

    def ready(self, timeout=90):
        until(
            lambda: self.is_ready or self.process.poll() is not None, timeout,
            lambda: f'{self.name} is not ready:\n{tail(self.log, 40)}'
        )
        assert self.process.poll() is None, f'{self.name} has ended:\n{tail(self.log, 40)}'
        return self

    @property
    def children(self):
        with suppress(FileNotFoundError):
            return [int(pid) for pid in Path(f'/proc/{self.pid}/task/{self.pid}/children').read_text().split()]
        return []

    @property
    def row(self):
        """The worker's own row: that of its latest start."""
        return CeleryWorker.objects.filter(name__startswith=f'{self.name}@').order_by('-started').first()

    def send(self, task, *args, **options):
        """Send a task to this worker's queue; `kwargs` are among the options."""
        return task.apply_async(args, options.pop('kwargs', None), queue=self.queue, **options)

    def run(self, task, *args, timeout=20, **options):
        """Send a task to this worker's queue and return its row when it has finished."""
        return ended(self.send(task, *args, **options), timeout)

    def control(self, command, **arguments):
        """Send it a command of Celery's remote control until it answers, and return the answer.

        A worker that has just said that it is ready may not listen yet: Redis keeps no such message for later.
        """
        name = self.row.name
        answer, = until(lambda: app.control.broadcast(
            command, arguments=arguments, destination=[name], reply=True, timeout=3
        ))
        return answer[name]

    def tracebacks(self):
        """Return the lines of its output that report errors of the engine."""
        return re.findall(r'^.*netbox_celery\.engine.*(?:ERROR|CRITICAL).*$', self.output, re.M)
