"""Celery's pool of processes, so that a worker outlives the loss of its broker while one of them ends.

A process is out of the pool's sight as soon as its files are closed, and out of the pool when it has ended, seconds
later at the worst. Celery ends the whole worker if it connects to its broker again in between: it takes the mark that
the process is out of sight, `None`, for the file by which it is watched.
"""
from celery.concurrency import asynpool, prefork

__all__ = (
    'Pool',
    'install',
)


class Pool(asynpool.AsynPool):
    """Celery's own, which watches a process until it has ended."""

    def _untrack_child_process(self, proc, hub):
        super()._untrack_child_process(proc, hub)
        vars(proc).pop('_sentinel_poll', None)  # it is watched again after the next connect, until it is gone


def install():
    """Let workers use this pool."""
    prefork.TaskPool.Pool = Pool
