"""`celery multi`: workers that it starts in the background, restarts and stops."""
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from netbox_test_plugin import tasks
from netbox_test_plugin.side import notes, open_gate

from netbox_celery.models import CeleryWorker

from .support import CELERY, ended, lines, row, until

NODES = 'multi-a', 'multi-b'


class Multi:
    """Two workers in the background, each with a queue of its own name."""

    def __init__(self, instance, folder):
        self.instance = instance
        self.folder = folder

    def begin(self, command):
        queues = (option for number, node in enumerate(NODES, 1) for option in (f'-Q:{number}', node))
        with (self.folder / f'{command}.txt').open('w') as output:
            return subprocess.Popen(
                [CELERY, 'multi', command, *NODES, '-A', 'netbox_celery', '-l', 'INFO', '-c', '2', *queues,
                 f'--pidfile={self.folder}/%n.pid', f'--logfile={self.folder}/%n%I.log'],
                env={**os.environ, **self.instance.environ, 'PYTHONUNBUFFERED': '1'}, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, cwd=self.folder,
            )

    def __call__(self, command):
        assert self.begin(command).wait(120) == 0, self.says(command)

    def says(self, command):
        return (self.folder / f'{command}.txt').read_text()

    @property
    def pids(self):
        return {path.stem: int(path.read_text()) for path in self.folder.glob('*.pid')}

    @property
    def rows(self):
        """The rows of running workers."""
        return {
            worker.name.partition('@')[0]: worker
            for worker in CeleryWorker.objects.filter(name__startswith='multi-', stopped=None) if worker.is_alive
        }

    def ready(self):
        return until(lambda: self.rows.keys() == set(NODES) and self.rows, 90)

    @property
    def output(self):
        return ''.join(path.read_text() for path in sorted(self.folder.glob('*.log')))

    def kill(self):
        for pid in self.pids.values():
            with suppress(OSError):
                # Its ID may belong to another process by now
                if str(self.folder).encode() in Path(f'/proc/{pid}/cmdline').read_bytes():
                    os.killpg(os.getpgid(pid), signal.SIGKILL)


@pytest.fixture
def multi(instance, side, tmp_path):
    made = Multi(instance, tmp_path)
    yield made
    made.kill()


def test_start_restart_and_stop(multi, gate):
    """Each start of a worker has its row, with the time when it stopped, and runs finish before that."""
    multi('start')
    first = multi.ready()
    assert {name: worker.pid for name, worker in first.items()} == multi.pids
    assert {name: (worker.queues, worker.concurrency) for name, worker in first.items()} == {
        name: ([name], 2) for name in NODES
    }
    for name in NODES:
        assert ended(tasks.echo.apply_async(queue=name)).worker == first[name].name

    held = tasks.hold.apply_async((gate, 2), queue=NODES[0])
    until(lambda: notes(held.id))
    restart = multi.begin('restart')
    until(lambda: f'TERM -> {first[NODES[0]].pid}' in multi.says('restart'))
    waits = [tasks.echo.apply_async((number,), queue=name) for number, name in enumerate(NODES)]
    assert row(held).status == 'running'
    open_gate(gate)
    assert ended(held).status == 'completed'
    assert restart.wait(120) == 0, multi.says('restart')
    second = until(lambda: not {worker.key for worker in first.values()} & {
        worker.key for worker in multi.ready().values()
    } and multi.rows, 60)
    assert {name: worker.pid for name, worker in second.items()} == multi.pids
    assert CeleryWorker.objects.filter(pk__in=[worker.pk for worker in first.values()], stopped=None).count() == 0
    assert lines(held) == ['line 0', 'line 1', 'after the gate']
    for run in waits:
        assert (ended(run, 60).status, len(notes(run.id))) == ('completed', 1)

    multi('stopwait')
    assert multi.rows == multi.pids == {}
    assert 'netbox_celery.engine' not in multi.output
