"""Folders that last as long as the process that made them, and secrets that last as long as the checkout's state."""

import json
import os
import secrets
import shutil
from contextlib import contextmanager
from itertools import count

from .paths import STATE
from .postgres import Cluster
from .processes import locked, write_json

__all__ = (
    'scratch',
    'secret',
)

# Held while a folder is created and locked, so that no process considers it abandoned
GATE = STATE / 'scratch.lock'

numbers = count(1)


@contextmanager
def scratch(purpose):
    """
    Create a folder for the duration of a block, and remove those whose owner was killed.

    A cluster in it must be called `postgres`.
    """
    folder = STATE / f'{purpose}-{os.getpid()}-{next(numbers)}'
    with locked(GATE):
        sweep()
        folder.mkdir(parents=True)
        lock = locked(folder / 'lock')
        lock.__enter__()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.__exit__(None, None, None)


def sweep():
    for path in STATE.glob('*-*-*/lock'):
        with locked(path, wait=False) as abandoned:
            if abandoned:
                Cluster(path.parent / 'postgres', '').evict()
                shutil.rmtree(path.parent, ignore_errors=True)


def secret(name, length=24):
    """
    Return a secret of this checkout, which is created when it is first needed.
    """
    path = STATE / 'secrets.json'
    with locked(STATE / 'secrets.lock'):
        known = json.loads(path.read_text()) if path.exists() else {}
        if name not in known:
            known[name] = secrets.token_hex(length // 2)
            write_json(path, known)
    return known[name]
