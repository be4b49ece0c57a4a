"""Celery's pool of processes, so that a worker outlives the loss of its broker while one of them ends.

A process is out of the pool's sight as soon as its files are closed, and out of the pool when it has ended, seconds
later at the worst. Celery ends the whole worker if it connects to its broker again in between: it takes the mark that
the process is out of sight, `None`, for the file by which it is watched.

What cannot be pickled for a process is no job of the pool's (`netbox_celery.engine.worker.messages` ends it).
"""
from celery.concurrency import asynpool, prefork

__all__ = (
    'Pool',
    'install',
)


class Pool(asynpool.AsynPool):
    """Celery's own, which watches a process until it has ended, and forgets a job that it could not take."""

    def apply_async(self, *args, correlation_id=None, **kwargs):
        try:
            return super().apply_async(*args, correlation_id=correlation_id, **kwargs)
        except Exception:
            # It was noted before it was pickled, and a worker that stops waits for what is noted
            job = next(reversed(self._cache.values()), None)
            if job is not None and job.correlation_id == correlation_id and not job.accepted():
                job.discard()
            raise

    def _untrack_child_process(self, proc, hub):
        super()._untrack_child_process(proc, hub)
        vars(proc).pop('_sentinel_poll', None)  # it is watched again after the next connect, until it is gone


def install():
    """Let workers use this pool."""
    prefork.TaskPool.Pool = Pool
