"""Tasks with a concurrency key or an ignore window, and tasks that record which hooks are called."""
import os
import signal
from datetime import timedelta

from celery import chain
from celery.exceptions import Ignore, SoftTimeLimitExceeded

from netbox_celery.tasks import CeleryBaseTask, TaskFailed, netbox_celery_task

from ..side import note, wait_at

__all__ = (
    'Telling',
    'become_keyed',
    'fresh',
    'keyed',
    'manual',
    'nameless',
    'own_key',
    'telling',
    'unique',
)


@netbox_celery_task(name='netbox_test_plugin:unique', unique=True, stale_time_limit=timedelta(minutes=5))
def unique(self, task_id, how='', gate=None, **kwargs):
    """Run once at a time, and finish in one way or another."""
    note(task_id, 'started')
    if gate:
        wait_at(gate)
    if how == 'fail':
        raise TaskFailed('no')
    if how == 'ignore':
        raise Ignore('no')
    if how == 'kill':
        os.kill(os.getpid(), signal.SIGKILL)
    if how == 'soft':
        raise SoftTimeLimitExceeded()
    if how == 'retry' and self.request.retries < 2:
        raise self.retry(countdown=0.3)
    if how == 'again':
        chain(unique.si(how).set(queue='nobody'), unique.si(how)).apply_async()
    return how


@netbox_celery_task(name='netbox_test_plugin:nameless', unique=True)
def nameless(self, task_id):
    """Lacks a `stale_time_limit`."""


def by_device(task, prefix, task_args, task_kwargs):
    """Make the key from the device alone."""
    return f'{prefix}-{task.name}-{(*task_args, *task_kwargs.values())[0]}'


@netbox_celery_task(
    name='netbox_test_plugin:own_key', unique=True, stale_time_limit=300, unique_key_generator=by_device
)
def own_key(self, task_id, device, gate=None):
    """Have a key without all of the arguments."""
    if gate:
        wait_at(gate)


@netbox_celery_task(
    name='netbox_test_plugin:keyed', concurrency_key='device-{device}', limit=1, on_conflict='queue'
)
def keyed(self, task_id, device, gate=None, how=''):
    """Wait in the waiting line of the device."""
    note(task_id, 'started')
    if gate:
        wait_at(gate)
    if how == 'kill':
        os.kill(os.getpid(), signal.SIGKILL)
    note(task_id, 'ended')
    return device


@netbox_celery_task(name='netbox_test_plugin:become_keyed')
def become_keyed(self, task_id, device, **options):
    """Be replaced by a task with a concurrency key."""
    raise self.replace(keyed.si(device).set(**options))


@netbox_celery_task(
    name='netbox_test_plugin:fresh', ignore_task_after_success=True, ignore_task_timedelta=timedelta(seconds=3)
)
def fresh(self, task_id, what='', gate=None):
    """Be ignored for three seconds after it has succeeded."""
    note(task_id, 'started')
    if gate:
        wait_at(gate)
    if what == 'fail':
        raise TaskFailed('no')
    return what


@netbox_celery_task(name='netbox_test_plugin:manual', ignore_task_timedelta=60)
def manual(self, task_id, length=None, fail=False, gate=None):
    """Open its ignore window by hand."""
    note(task_id, 'started')
    if gate:
        wait_at(gate)
    if length is None or length > 0:
        self.set_ignore_task(length)
    if fail:
        raise TaskFailed('no')


class Telling(CeleryBaseTask):
    """Records which hooks are called: those of the call in a list of this process, `heard`."""

    heard: list = []

    def on_invocation_apply(self, invocation_id, args, kwargs, options, result):
        self.heard.append(('apply', invocation_id, args, kwargs, result.id))

    def on_invocation_trigger(self, invocation_id, args, kwargs, task_id, options, result):
        self.heard.append(('trigger', invocation_id, args, kwargs, task_id))
        assert result.id == task_id and options is not None

    def on_invocation_unique(self, invocation_id, args, kwargs, task_id, options, result):
        self.heard.append(('unique', invocation_id, args, kwargs, task_id))

    def on_invocation_ignored(self, invocation_id, args, kwargs, task_id, options, result):
        self.heard.append(('ignored', invocation_id, args, kwargs, task_id))

    def on_invocation_timeout(self, invocation_id, args, kwargs, task_id, ex, options, result):
        self.heard.append(('timeout', invocation_id, args, kwargs, task_id, type(ex).__name__))

    def on_task_start(self, task_id, args, kwargs):
        note(task_id, f'start {list(args)} {kwargs}')

    def on_task_retry(self, task_id, args, kwargs, exc, eta):
        note(task_id, f'retry {list(args)} {kwargs} {exc!r} {eta.tzinfo is not None}')

    def on_task_failure(self, task_id, args, kwargs, exc, einfo):
        note(task_id, f'failure {list(args or ())} {kwargs} {type(exc).__name__} {type(einfo).__name__}')

    def on_task_success(self, task_id, args, kwargs, retval):
        note(task_id, f'success {list(args)} {kwargs} {retval}')


@netbox_celery_task(name='netbox_test_plugin:telling', base=Telling, time_limit=20)
def telling(self, task_id, how='', **kwargs):
    """Finish in one way or another."""
    if how == 'retry' and not self.request.retries:
        raise self.retry(exc=ValueError('once more'), countdown=0.5)
    if how == 'fail':
        raise ValueError('wrong')
    if how == 'kill':
        os.kill(os.getpid(), signal.SIGKILL)
    if how == 'long':
        wait_at('never', 30)
    return how


@netbox_celery_task(name='netbox_test_plugin:telling_late', base=Telling, acks_late=True, reject_on_worker_lost=True)
def telling_late(self, task_id, how=''):
    """Be requeued when its process is killed."""
    return telling.run(task_id, how)


@netbox_celery_task(
    name='netbox_test_plugin:telling_twice', base=Telling, unique=True, stale_time_limit=60,
    ignore_task_after_success=True, ignore_task_timedelta=60,
)
def telling_twice(self, task_id, gate=None):
    """Be unique, with an ignore window."""
    if gate:
        wait_at(gate)


class Raising(Telling):
    """All of its hooks fail."""


def _raise(self, *args):
    raise RuntimeError('a hook that fails')


for _name in [name for name in vars(Telling) if name.startswith('on_')]:
    setattr(Raising, _name, _raise)


@netbox_celery_task(name='netbox_test_plugin:raising', base=Raising, unique=True, stale_time_limit=60)
def raising(self, task_id, how=''):
    """Have hooks that fail."""
    if how:
        raise ValueError(how)
    return 'done'
