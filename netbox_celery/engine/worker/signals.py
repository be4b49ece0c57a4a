"""Celery's signals, in a worker's parent and children, translated into the lifecycle of runs.

The result backend (`netbox_celery.engine.results.backend`) hears most ends; here is what it does not hear: `Ignore` and
`Reject`, a retry whose result is ignored, messages that go back to the queue, and the start and stop of workers.
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

import billiard
import click
from billiard.exceptions import WorkerLostError
from celery import bootsteps, signals, states
from celery._state import task_join_will_block
from celery.app.task import Context
from celery.exceptions import Ignore, TaskRevokedError
from django.db import ProgrammingError, connections
from kombu.exceptions import DecodeError

from ...choices import ResultReasonChoices as Reason
from ...choices import ResultStatusChoices as Status
from ..calls.hooks import tell_of_failure
from ..calls.run import get_run, leave
from ..calls.visibility import warn_of_limits
from ..catalogue import discovery
from ..exceptions import BranchNotReady, IgnoredByWindow, RetryNotSent
from ..identity import identity
from ..internals import fixups, set_join_will_block
from ..results.backend import describe, describe_failure, is_of_another
from ..runs.claim import note_call, track_all_tasks
from ..runs.interruption import is_interruption, tell_of_interruption
from ..runs.loghandler import install_log_handler, remove_log_handler
from ..runs.outcome import finish_run, retry_run
from ..runs.reports import close_run, requeue_run
from ..sending.enqueue import is_tracked
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
#: How long a process that is spawned may need to set NetBox up before its worker takes it for broken, seconds.
SPAWNING_TIME = 120


# Ends that the result backend does not hear

@signals.task_postrun.connect
def on_postrun(sender=None, state=None, retval=None, **kwargs):
    """`Ignore` and `Reject` leave no trace in the result backend, nor does what is no `Exception`."""
    request = sender.request_stack.top
    if state is None and is_interruption(exc := sys.exception()) and not request.is_eager:
        tell_of_interruption(sender, request, exc)
    if not request.is_eager:
        _close_old_connections()  # or back into a pool: a thread that is idle keeps none for longer than it may
    run = get_run(request)
    if run is None:
        return
    leave(run)
    if run.ended:
        return
    if state == states.IGNORED and not run.replaced:
        reason = Reason.REASON_IGNORE_WINDOW if isinstance(retval, IgnoredByWindow) else ''
        finish_run(run, Status.STATUS_IGNORED, reason=reason, error=_message(retval))
        sender.backend.end_ignored(request, retval or Ignore('ignored'))
    elif state == states.REJECTED and retval is not None:
        if retval.requeue and sender.acks_late:
            recorder.flush(run)
            lifecycle.requeue(get_connection(), run.task_id, by='body', claims=run.claims, error=describe(retval))
        else:
            status, reason, error = describe_failure(retval, by_body=True)
            finish_run(run, status, reason=reason, error=error)
            sender.backend.end_dependents(request, retval)


@signals.task_postrun.connect
def on_left(sender=None, **kwargs):
    """What Celery does after the body, as sending the next step, still belongs to the branch of the run."""
    leave_run(sender.request_stack.top)


def _message(exc):
    return str(exc) if exc is not None else ''


@signals.task_retry.connect
def on_retry(sender=None, request=None, reason=None, einfo=None, **kwargs):
    """With `ignore_result`, Celery does not tell the backend of a retry."""
    run = get_run(request)
    if run is None or run.retried or run.ended:
        return
    traceback = str(einfo.traceback) if einfo else ''
    if run.continued:
        retry_run(run, describe(reason.exc), traceback)
    else:
        sender.backend.mark_as_failure(run.task_id, RetryNotSent(), traceback, request, store_result=False)


@signals.task_rejected.connect
def on_rejected(sender=None, message=None, exc=None, **kwargs):
    """A message that Celery could not make a task of."""
    from .messages import arguments_of, task_id_of  # whoever is no worker needs none of it

    task_id = task_id_of(message)
    name, args, kwargs = arguments_of(message)
    if is_uuid(task_id) and not is_of_another(task_id, name):
        if isinstance(exc, BranchNotReady):
            error, status, reason = str(exc), Status.STATUS_FAILED, Reason.REASON_BRANCH_NOT_READY
        else:
            error = f'The message could not be read: {describe(exc)}' if exc else 'The message could not be read'
            exc, status, reason = DecodeError(error), Status.STATUS_ERRORED, Reason.REASON_REJECTED
        close = partial(close_run, task_id, status, reason=reason, error=error)
        if close() or _insert_foreign(sender.app, message, task_id, name, args, kwargs) and close():
            sender.app.backend.tell_end(task_id, exc, states.FAILURE)
            if task := sender.app.tasks.get(name):
                tell_of_failure(task, task_id, args, kwargs, exc)


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
        logger.exception('Task %s[%s] was rejected, and has no row', name, task_id)
        return False


class Undecodable(bootsteps.Step):
    """Lets a worker send Celery's signal `task_rejected` of what it cannot decode as well.

    Celery itself only writes it to its log, and acknowledges the message.
    """

    def __init__(self, consumer, **kwargs):
        super().__init__(consumer, **kwargs)
        said = consumer.on_decode_error

        def on_decode_error(message, exc):
            said(message, exc)
            signals.task_rejected.send(sender=consumer, message=message, exc=exc)
        consumer.on_decode_error = on_decode_error


@signals.task_received.connect
def on_received(request=None, **kwargs):
    """Write that a run goes back to the queue before the broker delivers its message again.

    A worker's parent rejects a late-acknowledged message whose child died (`reject_on_worker_lost`) without any signal.
    """
    if not request.task.acks_late or not is_uuid(request.id):
        return
    reject = request.on_reject

    def on_reject(log, errors, requeue=False):
        if requeue and (ended := requeue_run(
            request.id, attempt=(request.request_dict.get('retries') or 0) + 1, reason=Reason.REASON_WORKER_LOST,
            error=(lost := 'The process that ran it was lost')
        )):
            requeue = False
            if ended == Status.STATUS_REVOKED:
                request.task.app.backend.tell_end(request.id, TaskRevokedError('revoked'), states.REVOKED)
            else:
                exc = WorkerLostError(lost)
                request.task.app.backend.tell_end(request.id, exc, states.FAILURE)
                tell_of_failure(request.task, request.id, request.args, request.kwargs, exc)
        return reject(log, errors, requeue)
    request.on_reject = on_reject


# Workers

@signals.task_prerun.connect
def on_prerun(sender=None, **kwargs):
    """Keep Django's connections as long as NetBox's `CONN_MAX_AGE` says, instead of for one task."""
    request = sender.request_stack.top
    if not request.is_eager:
        note_call(sender, request)
        _close_old_connections()


def _close_old_connections():
    """Do what Django does of this name, but for a connection in a transaction: a test may run the task in its own."""
    for wrapper in opened():
        if not wrapper.in_atomic_block:
            wrapper.close_if_unusable_or_obsolete()


#: The heartbeat of this process, and its workers that have been started: those of one process are one to the others.
_presence = None
_workers = []


class Registration(bootsteps.StartStopStep):
    """Prepares a worker before its pool forks, and signs it off when its pool has stopped, whoever starts and stops it.

    Of Celery's signals only the command line's worker sends all. One that another program runs, such as a test
    (`celery.contrib.testing`), is stopped without any.
    """

    #: Whether Celery keeps this process from waiting for results, also while it has no worker.
    _would_block = True

    def __init__(self, worker, **kwargs):
        super().__init__(worker, **kwargs)
        Registration._would_block &= task_join_will_block()
        with _ending():
            # What keeps it from being registered, who makes it hears at once: it may be started in a thread
            connection = EngineConnection()
            try:
                connection.execute(LOOK, patience=float('inf'))
            finally:
                connection.close()

    def include(self, worker):
        worker.steps.insert(0, self)  # the first to be started, and the last to be stopped
        return True

    def start(self, worker):
        if why := _why_not(worker):
            logger.critical('This worker ends: %s', why)
            raise SystemExit(os.EX_CONFIG)
        with _ending():
            _prepare(worker)

    def stop(self, worker):
        _sign_off(worker)
        if not _workers:
            set_join_will_block(self._would_block)  # who waits for a result now is no task of a worker's

    terminate = stop


class Heartbeat(bootsteps.StartStopStep):
    """Begins a worker's heartbeat once its consumer is there: its pool has been forked, without any threads."""

    requires = ('celery.worker.consumer:Tasks',)

    def start(self, consumer):
        if _presence is not None:
            _presence.start()

    def stop(self, consumer):
        pass  # a consumer is stopped when the broker is away, too

    terminate = stop


@contextmanager
def _ending():
    """End a worker that cannot be prepared: its claims would not hold.

    Raises:
        SystemExit: It is a program of its own.
        Exception: It is part of another program.
    """
    try:
        yield
    except Exception as exc:
        if isinstance(exc, ProgrammingError):
            logger.critical('This worker ends, since it could not be registered: %s %s', exc, MIGRATE)
        else:
            logger.critical('This worker ends, since it could not be registered: %s', exc, exc_info=exc)
        if click.get_current_context(silent=True) is None:
            raise
        raise SystemExit(os.EX_SOFTWARE) from None


def _why_not(worker):
    """Return in words why runs cannot be tracked in a worker's pool, or `None`."""
    if worker.pool.is_green and not greenlets.are_threads():
        return (
            'its pool was named by the setting worker_pool, which is too late: Celery has to prepare Python for '
            'greenlets before anything else. Name the pool on the command line, such as -P gevent.'
        )
    if worker.pool_start_method == 'fork' and billiard.get_start_method() == 'forkserver':
        return (
            'billiard was told to start processes by "forkserver" (set_start_method), which Celery cannot do. The '
            'setting worker_pool_start_method takes "fork" and "spawn".'
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
        # Those of a thread that ends would stay open; those of a greenlet are closed with it
        _check_connections()
    warm_up()
    install_log_handler()
    if _presence is None:
        identity.take(worker.hostname)
        _presence = Presence(worker, duties(worker.app))
    _workers.append(worker)
    _presence.register()  # its row must exist before it claims anything
    atexit.register(on_worker_shutdown)  # the process may end without stopping it
    # NetBox's hundreds of thousands of objects stay for good: the children's garbage collector need not look at them.
    gc.collect()
    gc.freeze()


#: The app, in a process that a worker's parent has not forked.
_joined = None


def join(app, of_worker):
    """Become a process of a worker's pool that has inherited nothing: `worker_pool_start_method` is `spawn`.

    Args:
        app: The Celery app of this process.
        of_worker: What `Identity.describe` has returned in the worker; `None` if that was none.
    """
    global _joined
    if of_worker is None or identity.key is not None:
        return
    identity.join(of_worker)
    track_all_tasks(app)  # before Celery prepares them to be executed
    _joined = app


@signals.worker_ready.connect
def on_worker_ready(sender=None, **kwargs):
    """Let a pool of greenlets end by the signals of its worker, once Celery has installed its own handlers."""
    if sender.controller.pool.is_green:
        greenlets.prepare_signals(sender.controller.pool)


def _sign_off(worker):
    """Sign a worker off, and let go of what was not finished. The process may go on, or start another one."""
    from .sweep import release

    global _presence
    if worker not in _workers or identity.is_child:
        return
    _workers.remove(worker)
    if not _workers:
        presence, _presence = _presence, None
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
    """Sign off workers that end without having been stopped, such as one that was not fully started."""
    for worker in list(_workers):
        if sender in (None, worker):
            _sign_off(worker)


@signals.worker_process_init.connect
def on_worker_process_init(**kwargs):
    """Let a child die with its parent: a run whose worker is lost may be run again by another one.

    Linux means the thread that made the child, so this is for those that the parent's main thread has made: all of
    them, where the broker is one that Celery has an event loop for.
    """
    if _joined is not None:
        _check_connections()
        install_log_handler()
    # A pool that is no process sends this as well, before the worker has taken an identity
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
    """Close what a worker leaves open whose process goes on: whoever drops its database, as tests do, waits for none.

    And stop Celery's Django fixup, which knows no end of a worker, from closing connections of the rest of the process.
    """
    recorder.flush(timeout=2)
    close_connections()
    for wrapper in opened():
        if not wrapper.in_atomic_block:
            wrapper.close()
    gc.collect()  # and those of threads that have ended
    for fixup in fixups(app):
        if _workers or not (worker_fixup := getattr(fixup, 'worker_fixup', None)):
            continue
        signals.task_prerun.disconnect(worker_fixup.on_task_prerun)
        signals.task_postrun.disconnect(worker_fixup.on_task_postrun)
