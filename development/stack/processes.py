"""
Starting, recognizing and stopping processes.

A process is identified by its id together with the time of its start, since ids are reused. That is enough to find
processes that are left after a `kill -9` of their parent, and never to stop an unrelated process.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path

from .paths import ROOT

__all__ = (
    'Process',
    'StackError',
    'free_port',
    'locked',
    'tail',
    'wait_until',
    'write_json',
)


class StackError(Exception):
    """An error that the user can fix: shown without a traceback."""


@dataclass
class Process:
    """
    A process that was started here, now or by an earlier command.

    Args:
        name: Name in messages, and of its log file
        pid: Its id; it is the leader of a process group of its own
        birth: Identifies it together with the id: see `birth_of()`
        stop_signal: Name of the signal for an orderly stop
    """
    name: str
    pid: int
    birth: str
    stop_signal: str = 'SIGTERM'

    @classmethod
    def start(
        cls, name, command, log, *, identity=(), env=None, cwd=ROOT, stop_signal='SIGTERM', die_with_parent=False,
    ):
        """
        Start a command in the background, in its own process group, so that Ctrl-C in the terminal does not reach it.

        Args:
            log: File for its output
            identity: Prefix of the command that runs it as another user
            env: Variables to set, in addition to the current ones
            die_with_parent: End it when this process ends, however that happens
        """
        # A change of user resets the signal on the parent's death, so it comes first
        bond = bond_with_parent(stop_signal) if die_with_parent else ()
        log = Path(log)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open('ab') as output:
            process = subprocess.Popen(
                [str(argument) for argument in (*identity, *bond, *command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        return cls(name=name, pid=process.pid, birth=birth_of(process.pid), stop_signal=stop_signal)

    @property
    def running(self):
        with suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        return bool(self.birth) and birth_of(self.pid) == self.birth

    def stop(self, timeout=20):
        """
        Stop it and its children, gracefully if possible within `timeout` seconds.
        """
        self.stop_together([self], timeout)

    @classmethod
    def stop_together(cls, processes, timeout=20):
        """
        Stop several processes at the same time.
        """
        for process in processes:
            if process.running:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.Signals[process.stop_signal])
        wait_until(lambda: not any(process.running for process in processes), timeout)
        for process in processes:
            process.kill()

    def kill(self):
        """
        End it, and all of its children, immediately.
        """
        if not self.running and (birth_of(self.pid) or not self.birth.startswith(boot_id())):
            # It has ended, and its id is, or may be, that of another process
            return
        # Children that are left, or all of them
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        wait_until(lambda: not self.running, 5)

    def to_dict(self):
        return asdict(self)


def bond_with_parent(stop_signal):
    """
    Return the prefix of a command that makes the system send it the signal when this process ends; nothing if the
    system does not support that. If the parent has ended before this takes effect, the command does not start at all.
    """
    if not (setpriv := shutil.which('setpriv')):
        return ()
    return setpriv, '--pdeathsig', stop_signal[3:], 'sh', '-c', '[ "$PPID" = "$0" ] && exec "$@"', os.getpid()


def birth_of(pid):
    """
    Return what distinguishes a process from earlier and later ones with the same id; nothing if it is not running.
    """
    try:
        stat = Path(f'/proc/{pid}/stat').read_text()
    except OSError:
        return ''
    # The name in brackets may contain anything
    state, *fields = stat.rpartition(')')[2].split()
    # Its threads may outlive the first one for a moment; until then its ports are in use
    ended = state == 'X' or state == 'Z' and int(fields[16]) <= 1
    return '' if ended else f'{boot_id()}:{fields[18]}'


def boot_id():
    return Path('/proc/sys/kernel/random/boot_id').read_text().strip()


def free_port(preferred=None):
    """
    Return a free TCP port of 127.0.0.1: the preferred one, if it is free.

    The port is below those that the system uses for outgoing connections: one of these could take the port of a server
    that is being restarted, even a client of that server, which would then be connected to itself.
    """
    for port in (preferred, *random.sample(range(15_000, 32_000), 200)):
        if port is None:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(('127.0.0.1', port))
                return port
    raise StackError('No TCP port of 127.0.0.1 is free')


def wait_until(condition, timeout, interval=0.05):
    """
    Return the first true value of `condition()`, or its last one after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(interval)
    return value


def tail(path, lines=15):
    """
    Return the last lines of a log file, to be shown with an error.
    """
    try:
        return '\n'.join(Path(path).read_text(errors='replace').splitlines()[-lines:])
    except OSError:
        return ''


@contextmanager
def locked(path, *, shared=False, wait=True):
    """
    Hold a lock for the duration of a block. The system releases it when the process ends, in any way.

    Yields whether the lock was acquired, which can fail only without `wait`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a') as handle:
        try:
            flock(handle, (LOCK_SH if shared else LOCK_EX) | (0 if wait else LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def write_json(path, data, mode=0o600):
    """
    Write a file as JSON, atomically; by default only its owner can read it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f'{path.name}.{os.getpid()}')
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), 'w') as handle:
        json.dump(data, handle, indent=2)
        handle.write('\n')
    draft.replace(path)
