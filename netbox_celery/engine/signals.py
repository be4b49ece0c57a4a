"""Celery's signals, in a worker's parent and children, translated into the lifecycle of runs.

The result backend (`netbox_celery.engine.backend`) hears most ends; here is what it does not hear: the claim before
the body, `Ignore` and `Reject`, a retry whose result is ignored, messages that go back to the queue, and the start and
stop of workers. Signal handlers can stop nothing (Celery swallows their exceptions), so the claim is not one: it is
taken in `before_start`, which runs inside the tracer's `try`, and refuses by raising `Ignore`.
"""
import atexit
import ctypes
import gc
import logging
import os
import signal
import sys
import threading
import time
from functools import wraps

from billiard.exceptions import WorkerLostError
from celery import bootsteps, signals, states
from celery.exceptions import Ignore
from django.db import DatabaseError, close_old_connections, connections
from kombu.exceptions import DecodeError

from ..choices import ResultReasonChoices as Reason
from ..choices import ResultStatusChoices as Status
from . import lifecycle, pool
from .admission import is_window_open
from .backend import describe, describe_failure
from .database import UNUSABLE, get_connection
from .enqueue import is_tracked
from .exceptions import IgnoredByWindow, RetryNotSent
from .loghandler import install_log_handler
from .options import HEADER
from .outcome import finish_run, retry_run
from .payload import is_uuid
from .presence import Presence, close_run, identity, requeue_run
from .recorder import recorder
from .rows import INSERT, foreign_row
from .run import Run, get_run
from .upstream import end_dependents, end_ignored, tell_backend
from .visibility import warn_of_limits

__all__ = (
    'Undecodable',
    'begin',
)

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
#: For how long a run waits to be claimed if the database is there, and cannot be used, seconds.
PATIENCE = 5


# The claim

def begin(task):
    """Claim the run that `task` is about to execute; `self.request.netbox_run` then holds it.

    Raises:
        celery.exceptions.Ignore: The row says that this message must not run.
    """
    request = task.request_stack.top
    if request is None or request.called_directly or request.is_eager or 'netbox_run' in request.__dict__:
        return
    request.netbox_run = None
    tracked_by_caller = request.get(HEADER)
    if not tracked_by_caller and (tracked_by_caller is False or not is_tracked(task)):
        return
    if not is_uuid(request.id):
        return
    try:
        claimed = _claim_patiently(task, request, tracked_by_caller)
    except DatabaseError:
        # The task is worth more than its row.
        logger.exception('Task %s is run without being tracked: it cannot be claimed', request.id)
        request.netbox_unclaimed = True
        return
    if claimed is None:
        _refuse(task, request)
    id, claims, attempt, user_id, request_id = claimed
    request.netbox_run = run = Run(
        request.id, id=id, claims=claims, attempt=attempt, user_id=user_id, request_id=request_id
    )
    if claims > 1:
        run.lines = _lines_before(id)
    if isinstance(tracked_by_caller, dict):
        _look_at_window(run, tracked_by_caller)


def _lines_before(id):
    """Return how many lines of its log a run has from earlier attempts: the limit is the run's."""
    try:
        return lifecycle.count_lines(get_connection(), id)
    except DatabaseError:
        return 0  # nor can lines be written


def _look_at_window(run, header):
    """Go no further if the task has succeeded since the call."""
    run.window = header.get('window')
    if header.get('length'):
        run.opens = (run.window, header['length'])
    if run.window and is_window_open(get_connection().execute, run.window, run.task_id):
        raise IgnoredByWindow('Not run: it succeeded only a short time ago')


def _claim_patiently(task, request, tracked_by_caller):
    """Claim a run, making its row if it comes without one; a database that is away is waited for."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            claimed = _claim(request)
            if claimed is None and not tracked_by_caller:
                get_connection().execute(INSERT, foreign_row(task, request), patience=float('inf'))
                claimed = _claim(request)
            return claimed
        except UNUSABLE as exc:
            if time.monotonic() >= deadline:
                raise
            logger.warning('Task %s cannot be claimed, trying again: %s', request.id, exc)
            time.sleep(0.5)


def _claim(request):
    return lifecycle.claim(
        get_connection(), task_id=request.id, attempt=request.retries + 1, nesting=request.replaced_task_nesting or 0,
        worker=identity.name or request.hostname or '', holder=identity.key
    )


def _refuse(task, request):
    run = Run(request.id)
    run.refused = True
    request.netbox_run = run
    found = lifecycle.explain(get_connection(), request.id)
    if found is None:
        why = 'its row was deleted'
    elif found[0] == Status.STATUS_RUNNING:
        why = f'{found[2]} is running it'
    else:
        why = f'it is {found[0]}' + (f' ({found[1]})' if found[1] else '')
    logger.warning('Task %s is not run: %s', request.id, why)
    if found is not None and found[0] == Status.STATUS_REVOKED:
        # Celery may have written since that it has started, or will be retried.
        task.backend.mark_as_revoked(request.id, 'revoked', request)
    raise Ignore(f'not run: {why}')


def _claiming(before_start):
    """Wrap a task's `before_start`: the claim comes first."""
    @wraps(before_start)
    def before_start_after_claim(self, task_id, args, kwargs):
        begin(self)
        return before_start(self, task_id, args, kwargs)
    return before_start_after_claim


def _making_way(on_replace):
    """Wrap a task's `on_replace`: its row waits for the task that takes over."""
    @wraps(on_replace)
    def on_replace_after_row(self, sig):
        request = self.request_stack.top
        run = get_run(request)
        if run is not None:
            recorder.flush(run)
            try:
                lifecycle.replace(
                    get_connection(), run.task_id, claims=run.claims, nesting=(request.replaced_task_nesting or 0) + 1
                )
                run.replaced = True
            except DatabaseError:
                # It is worth more than the row, which ends here. What depends on the run is told by what replaces it.
                logger.exception('What replaces task %s is run without being tracked', run.task_id)
                finish_run(run, Status.STATUS_IGNORED, error='Replaced by a task that is not tracked')
        return on_replace(self, sig)
    return on_replace_after_row


# Ends that the result backend does not hear

@signals.task_postrun.connect
def on_postrun(sender=None, state=None, retval=None, **kwargs):
    """`Ignore` and `Reject` leave no trace in the result backend."""
    request = sender.request_stack.top
    run = get_run(request)
    if run is None or run.ended:
        return
    if state is None and not identity.is_child:
        # A thread that leaves by `sys.exit()`: there is no parent to tell of it, and Celery does not.
        finish_run(run, Status.STATUS_ERRORED, error=describe(sys.exception()))
    elif state == states.IGNORED and not run.replaced:
        reason = Reason.REASON_IGNORE_WINDOW if isinstance(retval, IgnoredByWindow) else ''
        finish_run(run, Status.STATUS_IGNORED, reason=reason, error=_message(retval))
        end_ignored(sender.backend, request, retval or Ignore('ignored'))
    elif state == states.REJECTED and retval is not None:
        if retval.requeue and sender.acks_late:
            recorder.flush(run)
            lifecycle.requeue(get_connection(), run.task_id, by='body', claims=run.claims, error=describe(retval))
        else:
            status, reason, error = describe_failure(retval)
            finish_run(run, status, reason=reason, error=error)
            end_dependents(sender.backend, request, retval)


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
    task_id = (getattr(message, 'headers', None) or {}).get('id')
    if is_uuid(task_id):
        error = f'The message could not be read: {describe(exc)}' if exc else 'The message could not be read'
        if close_run(task_id, Status.STATUS_ERRORED, reason=Reason.REASON_REJECTED, error=error):
            tell_backend(sender.app, task_id, DecodeError(error), states.FAILURE)


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
                request.task.backend.mark_as_revoked(request.id, 'revoked')
            else:
                request.task.backend.mark_as_failure(request.id, WorkerLostError(lost))
        return reject(log, errors, requeue)
    request.on_reject = on_reject


# Workers

@signals.task_prerun.connect
def on_prerun(sender=None, **kwargs):
    """Keep Django's connections as long as NetBox's `CONN_MAX_AGE` says, instead of for one task."""
    if not sender.request_stack.top.is_eager:
        close_old_connections()


_presence = None


@signals.celeryd_after_setup.connect
def on_worker_setup(instance=None, **kwargs):
    """Prepare a worker before its pool forks. One that cannot be prepared ends: its claims would not hold.

    Raises:
        SystemExit: Celery swallows any other exception.
    """
    try:
        _prepare(instance)
    except Exception as exc:
        logger.critical('This worker ends, since it could not be registered: %s', exc, exc_info=exc)
        raise SystemExit(os.EX_SOFTWARE) from None


def _prepare(worker):
    from .sweep import duties

    global _presence
    identity.take(worker.hostname)
    _track_all_tasks(worker.app)
    warn_of_limits(worker.app)
    pool.install()
    _keep_connections(worker.app)
    install_log_handler()
    presence = Presence(worker, duties(worker.app))
    presence.register()  # its row must exist before it claims anything
    _presence = presence
    atexit.register(on_worker_shutdown)  # a cold shutdown sends no signal
    # NetBox's hundreds of thousands of objects stay for good: the children's garbage collector need not look at them.
    gc.collect()
    gc.freeze()


@signals.worker_ready.connect
def on_worker_ready(**kwargs):
    """Begin the heartbeat."""
    if _presence is not None:
        _presence.start()


@signals.worker_shutdown.connect
def on_worker_shutdown(**kwargs):
    """Sign off, and let go of what was not finished."""
    from .sweep import release

    global _presence
    presence, _presence = _presence, None
    if presence is not None and not identity.is_child:
        presence.stop()
        release(presence.connection, presence.worker.app)


@signals.worker_process_init.connect
def on_worker_process_init(**kwargs):
    """Let a child die with its parent: a run whose worker is lost may be run again by another one.

    Linux means the thread that made the child, so this is for those that the parent's main thread has made: all of
    them, where the broker is one that Celery has an event loop for.
    """
    if sys.platform == 'linux' and identity.is_child and threading.current_thread().name == 'MainThread':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@signals.worker_process_shutdown.connect
def on_worker_process_shutdown(**kwargs):
    recorder.close()


def _track_all_tasks(app):
    """Let every task claim its run first, and make way for what replaces it, whatever its class and its own handlers.

    Whether it is tracked is decided at the claim: by the message's header, else by the setting `track`.
    """
    for task in app.tasks.values():
        cls = type(task)
        for handler, wrap in (('before_start', _claiming), ('on_replace', _making_way)):
            if not getattr(getattr(cls, handler), 'tracks', False):
                cls.add_around(handler, wrap)
                getattr(cls, handler).tracks = True


def _keep_connections(app):
    """Stop Celery's Django fixup from closing connections around every task: `on_prerun` does better.

    A kept connection may be broken by the time of the next task: Django then looks before it uses it for the first
    time in a task (`CONN_HEALTH_CHECKS`), which costs those alone that do use it.
    """
    for alias in connections:
        connections.settings[alias]['CONN_HEALTH_CHECKS'] = True
    for fixup in app._fixups:
        if worker_fixup := getattr(fixup, 'worker_fixup', None):
            worker_fixup.db_reuse_max = sys.maxsize
