"""How much of the machine others use while something is measured."""

import os
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = (
    'shares',
    'times',
    'watched',
)

#: Of the rounds that counted, in the latest measurement: 0 is nothing, 1 is the whole machine.
shares = []


@contextmanager
def watched():
    """
    Yields a function that says, after the block, what share of the machine others had.
    """
    busy, ours = machine(), own()
    result = []
    yield lambda: result[0]
    elapsed = [after - before for after, before in zip(machine(), busy)]
    result.append(max(0, elapsed[0] - (own() - ours)) / max(elapsed[1], 1e-9))


def machine():
    """
    Return how long the processors were busy, and how long they have been there, in seconds.
    """
    # user, nice, system, idle, iowait, irq, softirq, steal
    values = [int(value) / tick() for value in Path('/proc/stat').read_text().split('\n', 1)[0].split()[1:9]]
    return sum(values) - values[3] - values[4], sum(values)


def own():
    """
    Return what this process, those that it has started, and those that have ended since, have used, in seconds.
    """
    children, used = times()
    found, total = [os.getpid()], 0
    while found:
        pid = found.pop()
        total += used.get(pid, 0)
        found += children.get(pid, ())
    return total


def times():
    """
    Return the children of each process, and what each has used itself and by children that have ended, in seconds.
    """
    children, used = {}, {}
    for path in Path('/proc').glob('[0-9]*/stat'):
        with suppress(OSError):
            # The name in brackets may contain anything
            __, parent, *fields = path.read_text().rpartition(')')[2].split()
            pid = int(path.parent.name)
            children.setdefault(int(parent), []).append(pid)
            used[pid] = sum(map(int, fields[9:13])) / tick()
    return children, used


def tick():
    return os.sysconf('SC_CLK_TCK')
