"""Celery's pool of processes, corrected so that a worker survives the loss of its broker while a process ends.

The pool stops watching a process as soon as the files of the process are closed, and removes it when it has exited,
which may be seconds later. If the worker reconnects to its broker in between, Celery stops the whole worker: it
mistakes the mark of a process that is not watched, `None`, for the file by which it watches the process.

And the pool forgets a job that cannot be pickled for a process (`netbox_celery.engine.worker.messages` finishes its
run).
"""
from celery.concurrency import asynpool, prefork

__all__ = (
    'Pool',
    'install',
)


class Pool(asynpool.AsynPool):
    """Celery's pool, which watches a process until it has exited, and forgets a job that it could not accept."""

    def apply_async(self, *args, correlation_id=None, **kwargs):
        try:
            return super().apply_async(*args, correlation_id=correlation_id, **kwargs)
        except Exception:
            # The pool noted the job before it pickled it, and a stopping worker waits for all jobs that are noted
            job = next(reversed(self._cache.values()), None)
            if job is not None and job.correlation_id == correlation_id and not job.accepted():
                job.discard()
            raise

    def _untrack_child_process(self, proc, hub):
        super()._untrack_child_process(proc, hub)
        vars(proc).pop('_sentinel_poll', None)  # it is watched again after the next connect, until it has exited


def install() -> None:
    """Make workers use this pool."""
    prefork.TaskPool.Pool = Pool
