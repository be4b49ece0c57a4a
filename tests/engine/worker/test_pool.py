"""The pool of processes: a job that it cannot take, and a process that ends."""
import os
from types import SimpleNamespace
from unittest import mock

import pytest
from celery.concurrency import prefork
from kombu.asynchronous import Hub

from netbox_celery.engine.worker import pool


def test_job_that_cannot_be_pickled_is_forgotten(monkeypatch):
    """A pool that is joined does not wait for it."""
    jobs = {}
    the_pool = object.__new__(pool.Pool)
    the_pool._cache = jobs

    def apply_async(self, *args, correlation_id=None, **kwargs):
        jobs[1] = SimpleNamespace(
            correlation_id=correlation_id, accepted=lambda: False, discard=lambda: jobs.pop(1)
        )
        raise RecursionError
    monkeypatch.setattr(pool.asynpool.AsynPool, 'apply_async', apply_async)
    with pytest.raises(RecursionError):
        the_pool.apply_async(print, correlation_id='a')
    assert jobs == {}


@pytest.mark.parametrize('job', [
    {'correlation_id': 'another', 'is_accepted': False}, {'correlation_id': 'a', 'is_accepted': True}, None,
], ids=['another', 'accepted', 'none'])
def test_other_jobs_are_kept(monkeypatch, job):
    """A job is forgotten only if it is the one that the pool could not take."""
    discard = mock.Mock()
    the_pool = object.__new__(pool.Pool)
    the_pool._cache = {} if job is None else {1: SimpleNamespace(
        correlation_id=job['correlation_id'], accepted=lambda: job['is_accepted'], discard=discard
    )}
    monkeypatch.setattr(pool.asynpool.AsynPool, 'apply_async', mock.Mock(side_effect=ValueError('closed')))
    with pytest.raises(ValueError, match='closed'):
        the_pool.apply_async(print, correlation_id='a')
    assert not discard.called


def test_process_that_ends_is_watched_again():
    """When the worker reconnects, Celery's marker of an unwatched process is not mistaken for a file."""
    sentinel, other_end = os.pipe()
    proc, hub = SimpleNamespace(_popen=SimpleNamespace(sentinel=sentinel)), Hub()
    the_pool = object.__new__(pool.Pool)
    the_pool.event_process_exit = print
    try:
        for __ in range(2):
            the_pool._track_child_process(proc, hub)
            assert list(hub.readers) == [proc._sentinel_poll]
            the_pool._untrack_child_process(proc, hub)
            assert not hub.readers
            the_pool._untrack_child_process(proc, hub)
    finally:
        hub.close()
        os.close(sentinel)
        os.close(other_end)


def test_install(monkeypatch):
    monkeypatch.setattr(prefork.TaskPool, 'Pool', object)
    pool.install()
    assert prefork.TaskPool.Pool is pool.Pool
