"""Files by which tasks and tests communicate outside NetBox: they outlive any server that a test kills.

The folder named by `NETBOX_TEST_SIDE` holds a file for each run, with a line for each thing that its body did, and
the gates at which bodies wait until the test opens them.
"""
import os
import time
from pathlib import Path

__all__ = (
    'note',
    'noted',
    'notes',
    'open_gate',
    'wait_at',
)


def folder():
    return Path(os.environ['NETBOX_TEST_SIDE'])


def note(task_id, what):
    """Record that the body of a run did something. Lines are short enough to be written in one piece."""
    with (folder() / str(task_id)).open('a') as file:
        file.write(f'{os.getpid()} {what}\n')


def notes(task_id):
    """Return what the body of a run has done so far, in order: pairs of a process ID and a text."""
    try:
        lines = (folder() / str(task_id)).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [(int(pid), what) for pid, __, what in (line.partition(' ') for line in lines)]


def noted(task_id):
    """Return what the body of a run has done so far, in order, in whichever process."""
    return [what for __, what in notes(task_id)]


def open_gate(name):
    (folder() / f'gate-{name}').touch()


def wait_at(name, timeout=60):
    """Wait until the test opens a gate."""
    deadline = time.monotonic() + timeout
    while not (folder() / f'gate-{name}').exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f'The gate {name} stayed shut')
        time.sleep(0.01)
