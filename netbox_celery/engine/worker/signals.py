"""Translates Celery's signals, in a worker's parent and children, into the lifecycle of runs.

Celery reports most ends of runs to the result backend (`netbox_celery.engine.results.backend`). The others are handled
here: `Ignore` and `Reject`, a retry whose result is ignored, messages that return to the queue, and the start and stop
of workers.
"""
import atexit
import ctypes
import gc
import logging
import os
import signal
import sys
import threading
from contextlib import contextmanager
from functools import partial
from typing import Any

import billiard
import click
from billiard.exceptions import WorkerLostError
from celery import bootsteps, signals, states
from celery._state import task_join_will_block
from celery.app.task import Context
from celery.exceptions import Ignore, TaskRevokedError
from django.db import ProgrammingError, connections
from kombu.exceptions import DecodeError

from ...choices import ResultStatusChoices as Status
from ..calls.hooks import report_failure
from ..calls.run import get_run, leave
from ..calls.visibility import warn_of_limits
from ..catalogue import discovery
from ..exceptions import BranchNotReady, IgnoredByWindow, RetryNotSent
from ..identity import identity
from ..internals import fixups, set_join_will_block
from ..results.backend import is_of_another
from ..runs.claim import note_call, track_all_tasks
from ..runs.ending import ENDS, describe, end_claimed, end_from_outside, failure_of, give_back, record_retry
from ..runs.interruption import is_interruption, report_interruption
from ..runs.loghandler import install_log_handler, remove_log_handler
from ..sending.describe import is_tracked
from ..sending.rows import INSERT, refused_row
from ..store import greenlets, lifecycle
from ..store.branches import leave_run, opened, warm_up
from ..store.database import MIGRATE, EngineConnection, close_connections, get_connection
from ..store.headers import HEADER
from ..store.payload import is_uuid
from ..store.recorder import recorder
from . import pool
from .presence import LOOK, Presence

__all__ = (
    'Heartbeat',
    'Registration',
    'Undecodable',
    'join',
)

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
#: How long a spawned process may take to set NetBox up before its worker considers it broken, seconds.
SPAWNING_TIME = 120


# Ends that Celery does not report to the result backend

@signals.task_postrun.connect
def on_postrun(sender=None, state=None, retval=None, **kwargs):
    """Record `Ignore`, `Reject` and exceptions that are not an `Exception`: the result backend does not see them."""
    request = sender.request_stack.top
    if state is None and is_interruption(exc := sys.exception()) and not request.is_eager:
        report_interruption(sender, request, exc)
    if not request.is_eager:
        _close_old_connections()  # or return them to a pool: an idle thread keeps none beyond its maximum age
    run = get_run(request)
    if run is None:
        return
    leave(run)
    if run.ended:
        return
    if state == states.IGNORED and not run.replaced:
        end = ENDS['ignored_at_start' if isinstance(retval, IgnoredByWindow) else 'ignored']
        end_claimed(run, end, error=_message(retval))
        sender.backend.end_ignored(request, retval or Ignore('ignored'))
    elif state == states.REJECTED and retval is not None:
        if retval.requeue and sender.acks_late:
            recorder.flush(run)
            lifecycle.requeue(get_connection(), run.task_id, by='body', claims=run.claims, error=describe(retval))
        else:
            end, error = failure_of(retval, by_body=True)
            end_claimed(run, end, error=error)
            sender.backend.end_dependents(request, retval)


@signals.task_postrun.connect
def on_left(sender=None, **kwargs):
    """Leave the branch of the run only now: what Celery does after the body, such as the next step, belongs to it."""
    leave_run(sender.request_stack.top)


def _message(exc):
    return str(exc) if exc is not None else ''


@signals.task_retry.connect
def on_retry(sender=None, request=None, reason=None, einfo=None, **kwargs):
    """Record a retry: with `ignore_result`, Celery does not report it to the backend."""
    run = get_run(request)
    if run is None or run.retried or run.ended:
        return
    traceback = str(einfo.traceback) if einfo else ''
    if run.continued:
        record_retry(run, describe(reason.exc), traceback)
    else:
        sender.backend.mark_as_failure(run.task_id, RetryNotSent(), traceback, request, store_result=False)


@signals.task_rejected.connect
def on_rejected(sender=None, message=None, exc=None, **kwargs):
    """Close the run of a message that Celery could not process."""
    from .messages import arguments_of, task_id_of  # needed in workers only

    task_id = task_id_of(message)
    name, args, kwargs = arguments_of(message)
    if task_id and is_uuid(task_id) and not is_of_another(task_id, name):
        if isinstance(exc, BranchNotReady):
            error, end = str(exc), ENDS['refused_in_branch']
        else:
            error = f'The message could not be read: {describe(exc)}' if exc else 'The message could not be read'
            exc, end = DecodeError(error), ENDS['unreadable']
        close = partial(end_from_outside, task_id, end, error=error)
        if close() or _insert_foreign(sender.app, message, task_id, name, args, kwargs) and close():
            sender.app.backend.report_end(task_id, exc, states.FAILURE)
            if task := sender.app.tasks.get(name):
                report_failure(task, task_id, args, kwargs, exc)


def _insert_foreign(app, message, task_id, name, args, kwargs):
    """Insert the row of a run whose message came without one and was rejected. Returns whether it was inserted."""
    task, headers = app.tasks.get(name), message.headers if isinstance(message.headers, dict) else {}
    if task is None or headers.get(HEADER) is not None or not is_tracked(task):
        return False
    request = Context({
        **headers, 'id': task_id, 'args': args, 'kwargs': kwargs, 'delivery_info': message.delivery_info
    })
    try:
        return bool(get_connection().execute(INSERT, refused_row(task, request)))
    except Exception:
        logger.exception('Task %s[%s] was rejected, and its row could not be written', name, task_id)
        return False


class Undecodable(bootsteps.Step):
    """Makes a worker send Celery's signal `task_rejected` for messages that it cannot decode as well.

    Celery itself only logs and acknowledges them.
    """

    def __init__(self, consumer, **kwargs):
        super().__init__(consumer, **kwargs)
        original = consumer.on_decode_error

        def on_decode_error(message, exc):
            original(message, exc)
            signals.task_rejected.send(sender=consumer, message=message, exc=exc)
        consumer.on_decode_error = on_decode_error


@signals.task_received.connect
def on_received(request=None, **kwargs):
    """Record that a run returns to the queue before the broker delivers its message again.

    A worker's parent rejects a late-acknowledged message whose child died (`reject_on_worker_lost`) without a signal.
    """
    if not request.task.acks_late or not is_uuid(request.id):
        return
    reject = request.on_reject

    def on_reject(log, errors, requeue=False):
        if requeue and (ended := give_back(
            request.id, ENDS['process_lost_given_back'], ENDS['process_lost_too_often'],
            attempt=(request.request_dict.get('retries') or 0) + 1, error=(lost := 'The process that ran it was lost')
        )):
            requeue = False
            if ended == Status.STATUS_REVOKED:
                request.task.app.backend.report_end(request.id, TaskRevokedError('revoked'), states.REVOKED)
            else:
                exc = WorkerLostError(lost)
                request.task.app.backend.report_end(request.id, exc, states.FAILURE)
                report_failure(request.task, request.id, request.args, request.kwargs, exc)
        return reject(log, errors, requeue)
    request.on_reject = on_reject


# Workers

@signals.task_prerun.connect
def on_prerun(sender=None, **kwargs):
    """Keep Django's connections for NetBox's `CONN_MAX_AGE`, instead of for one task."""
    request = sender.request_stack.top
    if not request.is_eager:
        note_call(sender, request)
        _close_old_connections()


def _close_old_connections():
    """As Django's function of this name, except for connections in a transaction: a test may run the task in its own.
    """
    for wrapper in opened():
        if not wrapper.in_atomic_block:
            wrapper.close_if_unusable_or_obsolete()


#: The heartbeat of this process, and its started workers, which share one identity.
_presence: Presence | None = None
_workers: list[Any] = []


class Registration(bootsteps.StartStopStep):
    """Prepares a worker before its pool forks, and signs it off when its pool has stopped, however it is started.

    Only a worker of the command line sends all of Celery's signals. One that another program runs, such as a test
    (`celery.contrib.testing`), is stopped without signals.
    """

    #: Whether Celery keeps this process from waiting for results even while it has no worker.
    _would_block = True

    def __init__(self, worker, **kwargs):
        super().__init__(worker, **kwargs)
        Registration._would_block &= task_join_will_block()
        with _ending():
            # Fail here, where the worker is made, if it cannot be registered: it may be started in a thread
            connection = EngineConnection()
            try:
                connection.execute(LOOK, patience=float('inf'))
            finally:
                connection.close()

    def include(self, worker):
        worker.steps.insert(0, self)  # started first, and stopped last
        return True

    def start(self, worker):
        if why := _why_not(worker):
            logger.critical('This worker stops: %s', why)
            raise SystemExit(os.EX_CONFIG)
        with _ending():
            _prepare(worker)

    def stop(self, worker):
        _sign_off(worker)
        if not _workers:
            set_join_will_block(self._would_block)  # code that waits for a result now is not a task of a worker

    terminate = stop


class Heartbeat(bootsteps.StartStopStep):
    """Starts a worker's heartbeat after its consumer: its pool has to fork before there are threads."""

    requires = ('celery.worker.consumer:Tasks',)

    def start(self, consumer):
        if _presence is not None:
            _presence.start()

    def stop(self, consumer):
        pass  # a consumer is also stopped when the broker is unavailable

    terminate = stop


@contextmanager
def _ending():
    """Stop a worker that cannot be prepared: its claims would not hold.

    Raises:
        SystemExit: The worker was started from the command line.
        Exception: The worker is part of another program.
    """
    try:
        yield
    except Exception as exc:
        if isinstance(exc, ProgrammingError):
            logger.critical('This worker stops, since it could not be registered: %s %s', exc, MIGRATE)
        else:
            logger.critical('This worker stops, since it could not be registered: %s', exc, exc_info=exc)
        if click.get_current_context(silent=True) is None:
            raise
        raise SystemExit(os.EX_SOFTWARE) from None


def _why_not(worker):
    """Return in words why runs cannot be tracked in a worker's pool, or `None`."""
    if worker.pool.is_green and not greenlets.are_threads():
        return (
            'its pool comes from the setting worker_pool, which is too late: Celery has to patch Python for '
            'greenlets before anything else. Set the pool on the command line, as in -P gevent.'
        )
    if worker.pool_start_method == 'fork' and billiard.get_start_method() == 'forkserver':
        return (
            'set_start_method of billiard was called with "forkserver", which Celery does not support. The setting '
            'worker_pool_start_method takes "fork" and "spawn".'
        )
    return None


def _prepare(worker):
    from .messages import end_for
    from .sweep import duties

    global _presence
    discovery.log_failures()
    track_all_tasks(worker.app)
    warn_of_limits(worker.app)
    pool.install()
    if worker.pool.is_green:
        greenlets.prepare(worker.pool, end_for)
    if 'spawn' in (worker.pool_start_method, billiard.get_start_method()):
        conf = worker.app.conf
        conf.worker_proc_alive_timeout = max(conf.worker_proc_alive_timeout, SPAWNING_TIME)
    if worker.pool.is_green or threading.current_thread() is threading.main_thread():
        # The connections of a thread that ends would stay open; those of a greenlet are closed with it
        _check_connections()
    warm_up()
    install_log_handler()
    if _presence is None:
        identity.take(worker.hostname)
        _presence = Presence(worker, duties(worker.app))
    _workers.append(worker)
    _presence.register()  # the worker's row must exist before the worker claims anything
    atexit.register(on_worker_shutdown)  # the process may end without stopping the worker
    # NetBox's hundreds of thousands of objects are permanent: the children's garbage collector need not scan them
    gc.collect()
    gc.freeze()


#: The app, in a spawned process of a worker's pool.
_joined: Any = None


def join(app, of_worker):
    """Make a spawned process, which inherits nothing, part of a worker's pool (`worker_pool_start_method`).

    Args:
        app: The Celery app of this process.
        of_worker: What `Identity.describe` returned in the worker's process; `None` if that was not a worker.
    """
    global _joined
    if of_worker is None or identity.key is not None:
        return
    identity.join(of_worker)
    track_all_tasks(app)  # before Celery prepares them to be executed
    _joined = app


@signals.worker_ready.connect
def on_worker_ready(sender=None, **kwargs):
    """Make signals to the worker end a pool of greenlets, once Celery has installed its own handlers."""
    if sender.controller.pool.is_green:
        greenlets.prepare_signals(sender.controller.pool)


def _sign_off(worker):
    """Sign a worker off, and release the runs that it has not finished. The process may continue, or start another one.
    """
    from .sweep import release

    global _presence
    if worker not in _workers or identity.is_child:
        return
    _workers.remove(worker)
    if not _workers:
        presence, _presence = _presence, None
        assert presence is not None  # there is one as long as there are workers
        presence.stop()
        try:
            release(presence.connection, worker.app)
        finally:
            presence.connection.close()
            identity.leave()
            remove_log_handler()
    _close_connections(worker.app)
    gc.unfreeze()


@signals.worker_shutdown.connect
def on_worker_shutdown(sender=None, **kwargs):
    """Sign off workers that end without being stopped, such as one that did not fully start."""
    for worker in list(_workers):
        if sender in (None, worker):
            _sign_off(worker)


@signals.worker_process_init.connect
def on_worker_process_init(**kwargs):
    """Make a child die with its parent: the run of a lost worker may be run again by another worker.

    On Linux the child dies with the thread that forked it. So this is for children of the parent's main thread, which
    are all of them if Celery has an event loop for the broker.
    """
    if _joined is not None:
        _check_connections()
        install_log_handler()
    # A pool without processes sends this as well, before the worker has an identity
    if identity.pid is None:
        return
    if sys.platform == 'linux' and identity.is_child and threading.current_thread().name == 'MainThread':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@signals.worker_process_shutdown.connect
def on_worker_process_shutdown(**kwargs):
    recorder.close()


def _check_connections():
    """Let Django check a connection before a task uses it for the first time (`CONN_HEALTH_CHECKS`).

    The setting `CELERY_DB_REUSE_MAX` keeps connections from one task to the next, and they may break in between. The
    check costs only those tasks that use a connection.
    """
    for alias in connections:
        connections.settings[alias]['CONN_HEALTH_CHECKS'] = True


def _close_connections(app):
    """Close the connections of a stopped worker whose process continues: tests drop the database then.

    And stop Celery's Django fixup, which does not know that a worker stops, from closing other connections.
    """
    recorder.flush(timeout=2)
    close_connections()
    for wrapper in opened():
        if not wrapper.in_atomic_block:
            wrapper.close()
    gc.collect()  # closes those of threads that have ended
    for fixup in fixups(app):
        if _workers or not (worker_fixup := getattr(fixup, 'worker_fixup', None)):
            continue
        signals.task_prerun.disconnect(worker_fixup.on_task_prerun)
        signals.task_postrun.disconnect(worker_fixup.on_task_postrun)
