"""The share of the machine that other processes use during a measurement."""

import os
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = (
    'shares',
    'times',
    'watched',
)

#: Of the rounds that counted in the latest measurement: 0 is nothing, 1 is the whole machine.
shares = []


@contextmanager
def watched():
    """
    Yield a function that returns, after the block, the share of the machine that others used.
    """
    busy, ours = machine(), own()
    result = []
    yield lambda: result[0]
    elapsed = [after - before for after, before in zip(machine(), busy)]
    result.append(max(0, elapsed[0] - (own() - ours)) / max(elapsed[1], 1e-9))


def machine():
    """
    Return the busy time and the total time of the processors, in seconds.
    """
    # user, nice, system, idle, iowait, irq, softirq, steal
    values = [int(value) / tick() for value in Path('/proc/stat').read_text().split('\n', 1)[0].split()[1:9]]
    return sum(values) - values[3] - values[4], sum(values)


def own():
    """
    Return the time used by this process, its children, and children that have ended since, in seconds.
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
    Return the children of each process, and the time used by each and its ended children, in seconds.
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
