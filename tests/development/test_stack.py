"""The development stack leaves nothing behind, and never touches what is not its own."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from development.stack import scratch
from development.stack.demo import Demo
from development.stack.paths import ROOT
from development.stack.postgres import Cluster
from development.stack.processes import Process, birth_of, free_port, wait_until


@pytest.fixture
def sleeper(tmp_path):
    process = Process.start('sleeper', ['sleep', '60'], tmp_path / 'log')
    yield process
    process.stop()


def test_a_process_ends_with_its_children(tmp_path):
    """Processes that a process has started end with it, even if they ignore the signal."""
    process = Process.start(
        'family', ['sh', '-c', 'trap "" TERM; sleep 60 & echo $!; while :; do wait; done'], tmp_path / 'log'
    )
    child = int(wait_until(lambda: (tmp_path / 'log').read_text().strip(), 20))

    process.stop(timeout=0.2)

    assert not process.running
    assert wait_until(lambda: not birth_of(child), 20)


def test_a_stranger_with_the_same_id_is_left_alone(sleeper):
    """Process IDs are reused: a recorded one may belong to another process by now."""
    namesake = Process(name='old', pid=sleeper.pid, birth=f'{sleeper.birth}0')

    assert not namesake.running
    namesake.stop()

    assert sleeper.running


def test_a_process_runs_as_long_as_it_has_threads(tmp_path):
    """A server's other threads may outlive its first one by a moment, and hold its port for that long."""
    code = """
        import ctypes, platform, socket, threading, time
        server = socket.create_server(('127.0.0.1', 0))
        print(server.getsockname()[1], flush=True)
        threading.Thread(target=time.sleep, args=(60,)).start()
        ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[platform.machine()], 0)  # exit() of this thread alone
    """
    process = Process.start('threads', [sys.executable, '-c', textwrap.dedent(code)], tmp_path / 'log')
    port = int(wait_until(lambda: (tmp_path / 'log').read_text().strip(), 20))
    assert wait_until(lambda: is_zombie(process.pid), 20)

    assert process.running
    assert free_port(port) != port
    os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: not process.running, 20)
    assert free_port(port) == port


@pytest.fixture
def parent(tmp_path):
    """Start a process that starts `sleep 60` to die with it; returns both, the second one by its ID."""
    code = (
        'import time; from development.stack.processes import Process;'
        f'print(Process.start("x", ["sleep", "60"], "{tmp_path}/log", die_with_parent=True).pid, flush=True);'
        'time.sleep(60)'
    )
    started = []

    def start(**env):
        started.append(subprocess.Popen(
            [sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, **env}
        ))
        return started[-1], int(started[-1].stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_process_dies_with_its_parent(parent):
    """Nothing outlives a test session, even if that is killed."""
    process, child = parent()
    assert wait_until(lambda: name_of(child) == 'sleep', 20)

    process.kill()
    process.wait()

    assert wait_until(lambda: not birth_of(child), 20)


def test_a_process_dies_with_its_parent_immediately(parent, tmp_path):
    """Even if the parent is killed before the system knows that they belong together."""
    slow = tmp_path / 'bin' / 'setpriv'
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nsleep 1\nexec {shutil.which("setpriv")} "$@"\n')
    slow.chmod(0o755)
    process, child = parent(PATH=f'{slow.parent}:{os.environ["PATH"]}')
    assert name_of(child) == 'setpriv'

    process.kill()
    process.wait()

    assert wait_until(lambda: not birth_of(child), 20)


def test_a_copy_leaves_the_original_alone(tmp_path):
    """A copied checkout has the original's records, but does not stop its processes."""
    demo = Demo()
    demo.ledger = tmp_path / 'processes.json'
    own, others = (Process.start('x', ['sleep', '60'], tmp_path / 'log', cwd=place) for place in (ROOT, tmp_path))
    try:
        demo.state, demo.processes = {}, {'own': own, 'others': others}
        demo.save()
        demo.load()
        assert demo.processes == {'own': own}
    finally:
        own.stop()
        others.stop()


def test_a_copy_of_a_server_in_use(services):
    """A checkout is copied while its demo runs: both run, each on its own data."""
    with services.cluster.connect('netbox') as connection:
        connection.execute('CHECKPOINT')
    copied = Cluster(services.directory / 'copied' / 'postgres', services.cluster.password, durable=False)
    copied.copy(services.cluster.directory)
    assert (copied.directory / 'postmaster.pid').exists()
    try:
        copied.start(services.directory / 'log' / 'copied.log')
        with copied.connect('netbox') as connection, services.cluster.connect('netbox') as original:
            assert connection.execute('SHOW data_directory').fetchone() == (str(copied.directory),)
            assert original.execute('SHOW data_directory').fetchone() == (str(services.cluster.directory),)
            connection.execute('SELECT count(*) FROM netbox_celery_celeryresult')
    finally:
        copied.stop()
        shutil.rmtree(copied.directory)


def test_an_id_of_another_process(services):
    """After a crash, the server's process ID may belong to any process, which is not touched."""
    cluster = Cluster(services.directory / 'crashed' / 'postgres', services.cluster.password, durable=False)
    cluster.initialise()
    try:
        cluster.start(services.directory / 'log' / 'crashed.log')
        lock = (cluster.directory / 'postmaster.pid').read_text()
        cluster.process.kill()
        (cluster.directory / 'postmaster.pid').write_text(
            lock.replace(lock.splitlines()[0], str(services.cluster.process.pid), 1)
        )
        cluster.start(services.directory / 'log' / 'crashed.log')
        assert cluster.answers()
        assert services.cluster.answers()
    finally:
        cluster.stop()
        shutil.rmtree(cluster.directory)


def test_abandoned_folders_are_swept(tmp_path, monkeypatch):
    """A folder without a running owner is removed at the next start; one in use stays."""
    monkeypatch.setattr(scratch, 'STATE', tmp_path)
    monkeypatch.setattr(scratch, 'GATE', tmp_path / 'gate')
    (tmp_path / 'test-1-1').mkdir()
    (tmp_path / 'test-1-1' / 'lock').touch()

    with scratch.scratch('test') as first, scratch.scratch('test') as second:
        assert not (tmp_path / 'test-1-1').exists()
        assert first.exists()
        assert second.exists()
    assert not first.exists()
    assert not second.exists()


def test_a_port_that_is_taken_is_not_chosen(services):
    assert free_port(services.redis.port) != services.redis.port


def test_secrets_are_for_their_owner_alone(services):
    configuration = services.instance.root / 'conf' / 'configuration.py'
    assert configuration.stat().st_mode & 0o077 == 0


def name_of(pid):
    with open(f'/proc/{pid}/comm') as handle:
        return handle.read().strip()


def is_zombie(pid):
    with open(f'/proc/{pid}/stat') as handle:
        return handle.read().rpartition(')')[2].split()[0] == 'Z'
