"""Tasks that end with an exception of any troublesome kind."""
import asyncio
import threading

from billiard.exceptions import WorkerLostError
from celery import shared_task
from celery.exceptions import NotRegistered, TaskRevokedError

from netbox_celery.tasks import CeleryBaseTask, TaskFailed, netbox_celery_task

from ..side import note


class Unpicklable(Exception):
    """Holds a lock, which cannot be pickled."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class UnpicklableFailure(TaskFailed):
    """Takes other arguments than it passes to its base: it can be pickled, but not unpickled."""

    def __init__(self, device, port):
        super().__init__(f'{device} has no port {port}')


class Unprintable(Exception):

    def __str__(self):
        raise RuntimeError('no text')

    __repr__ = __str__


def _local_exception():
    class Local(ValueError):
        pass
    return Local('made in a function')


ERRORS = {
    'value': lambda: ValueError('wrong value'),
    'failed': lambda: TaskFailed('the switch said no'),
    'unpicklable': lambda: Unpicklable('has a lock'),
    'unpicklable_failure': lambda: UnpicklableFailure('sw1', 7),
    'unprintable': Unprintable,
    'local': _local_exception,
    'odd': lambda: ValueError('nul \x00 surrogate \ud800 end'),
    'huge': lambda: ValueError('x' * 2_000_000),
    'empty': KeyError,
    'expected': lambda: LookupError('as expected'),
    'exit': lambda: SystemExit(3),
    'interrupt': lambda: KeyboardInterrupt(),
    'revoked': lambda: TaskRevokedError('the other one'),
    'lost': lambda: WorkerLostError('the other one'),
    'unregistered': lambda: NotRegistered('the other one'),
}


@netbox_celery_task(name='netbox_test_plugin:fail', throws=LookupError)
def fail(self, task_id, how):
    """End with an exception."""
    self.log('about to fail')
    raise ERRORS[how]()


class _Noting(CeleryBaseTask):
    """Records which handlers are called for a failure."""
    abstract = True

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        note(task_id, f'on_failure {type(exc).__name__}: {exc}')

    def on_task_failure(self, task_id, args, kwargs, exc, einfo):
        note(task_id, f'on_task_failure {type(exc).__name__}: {exc}')

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        note(task_id, f'after_return {status}')


INTERRUPTIONS = {
    'cancelled': asyncio.CancelledError,
    'exit': lambda: SystemExit(3),
    'interrupt': KeyboardInterrupt,
    'generator': GeneratorExit,
    'own': lambda: type('OwnInterrupt', (BaseException,), {})('by hand'),
    'memory': lambda: MemoryError('no more of it'),
}


def _leave(how):
    raise INTERRUPTIONS[how]()


@netbox_celery_task(name='netbox_test_plugin:leave', base=_Noting)
def leave(self, task_id, how, own_end=False):
    """End with a `BaseException` that is not an `Exception`, or without memory."""
    note(task_id, 'ran')
    if own_end:
        self.celery_result.success('its own')
    _leave(how)


@netbox_celery_task(name='netbox_test_plugin:leave_late', base=_Noting, acks_late=True)
def leave_late(self, task_id, how):
    """Likewise; the message is acknowledged after the body."""
    note(task_id, 'ran')
    _leave(how)


@shared_task(name='netbox_test_plugin:plain_leave')
def plain_leave(how):
    """Likewise, untracked."""
    _leave(how)


@netbox_celery_task(name='netbox_test_plugin:late_echo', base=_Noting, acks_late=True)
def late_echo(self, task_id, *args, **kwargs):
    """Return the arguments, and record which handlers are called."""
    note(task_id, 'ran')
    return [list(args), kwargs]
