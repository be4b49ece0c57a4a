"""
Starting, recognising and stopping processes.

A process is known by its id together with the moment at which it was born, for ids are used again. That is enough to
find, after `kill -9` of whoever started it, what is still there, and never to stop a stranger.
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
    """Something that the person at the keyboard can do something about: shown without a traceback."""


@dataclass
class Process:
    """
    A process that was started here, now or by an earlier command.

    Args:
        name: What it is called in messages, and its log file
        pid: Its id; it is the leader of a process group of its own
        birth: Its identity beside the id: see `birth_of()`
        stop_signal: The name of the signal that makes it end in an orderly way
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
            log: The file that takes its output
            identity: What goes before the command so that another user runs it
            env: Variables to set, beside the present ones
            die_with_parent: End it when this process ends, however that happens
        """
        # A change of user forgets whose death is to be told, so it comes first
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
        Make it end, gently if it can be done within `timeout` seconds, and its children with it.
        """
        self.stop_together([self], timeout)

    @classmethod
    def stop_together(cls, processes, timeout=20):
        """
        Do so with several processes at the same time.
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
        End it, and all of its children, at once.
        """
        if not self.running and (birth_of(self.pid) or not self.birth.startswith(boot_id())):
            # It is gone, and its id is, or may be, somebody else's
            return
        # Children that outlived it, or all of them
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        wait_until(lambda: not self.running, 5)

    def to_dict(self):
        return asdict(self)


def bond_with_parent(stop_signal):
    """
    Return what goes before a command so that the signal is sent to it when this process ends; nothing if the system
    can't do that. Of a parent that has ended before this is arranged nothing is told: then it does not start at all.
    """
    if not (setpriv := shutil.which('setpriv')):
        return ()
    return setpriv, '--pdeathsig', stop_signal[3:], 'sh', '-c', '[ "$PPID" = "$0" ] && exec "$@"', os.getpid()


def birth_of(pid):
    """
    Return what tells a process from others that have had, or will have, the same id; nothing if it is not running.
    """
    try:
        stat = Path(f'/proc/{pid}/stat').read_text()
    except OSError:
        return ''
    # The name in brackets may contain anything
    state, *fields = stat.rpartition(')')[2].split()
    # As long as it has threads, which may outlive the first one by a moment, its ports are taken
    ended = state == 'X' or state == 'Z' and int(fields[16]) <= 1
    return '' if ended else f'{boot_id()}:{fields[18]}'


def boot_id():
    return Path('/proc/sys/kernel/random/boot_id').read_text().strip()


def free_port(preferred=None):
    """
    Return a TCP port of 127.0.0.1 that nobody listens on: the preferred one, if it is free.

    It is below those that the system gives to outgoing connections: one of these could take the port of a server that
    is being restarted; even a client that tries to reach the server, which then speaks to itself.
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
    Hold a lock for the duration of a block. The system lets go of it when the process ends, however that happens.

    Yields whether the lock was taken, which without `wait` it may not be.
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
    Write a file in one step, never to be seen half written or by others.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f'{path.name}.{os.getpid()}')
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), 'w') as handle:
        json.dump(data, handle, indent=2)
        handle.write('\n')
    draft.replace(path)
