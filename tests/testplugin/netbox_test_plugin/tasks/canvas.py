"""Tasks that are steps of workflows."""
import os
import signal
import time
from contextlib import nullcontext

from celery import chain, chord, group, shared_task, signature
from celery.exceptions import Ignore, Reject
from django.db import connection, transaction

from netbox_celery.engine.store.database import get_connection
from netbox_celery.models import CeleryResult
from netbox_celery.tasks import CeleryBaseTask, TaskFailed, netbox_celery_task

from ..side import note, wait_at


@netbox_celery_task(name='netbox_test_plugin:add')
def add(self, task_id, *numbers):
    """Return a sum."""
    note(task_id, 'ran')
    return _total(numbers)


@netbox_celery_task(name='netbox_test_plugin:echo_list')
def echo_list(self, task_id, value):
    """Return the value, in a list if it is not one."""
    return value if isinstance(value, list) else [value]


def _total(value):
    return sum(map(_total, value)) if isinstance(value, list | tuple) else value


ENDS = {'failed': TaskFailed, 'ignored': Ignore, 'rejected': Reject}


@netbox_celery_task(name='netbox_test_plugin:break')
def break_(self, task_id, *args, how='error'):
    """Finish without success."""
    note(task_id, 'ran')
    if how == 'kill':
        os.kill(os.getpid(), signal.SIGKILL)
    if how == 'slow':
        time.sleep(30)
    raise ENDS.get(how, ValueError)('broken')


@netbox_celery_task(name='netbox_test_plugin:break_at_gate')
def break_at_gate(self, task_id, gate):
    """Wait at a gate, and fail."""
    wait_at(gate)
    raise ValueError('broken')


@netbox_celery_task(name='netbox_test_plugin:pass_gate')
def pass_gate(self, task_id, *args, gate):
    """Wait at a gate, and return 1."""
    note(task_id, 'ran')
    wait_at(gate)
    return 1


@shared_task(name='netbox_test_plugin:inline_errback', base=CeleryBaseTask)
def inline_errback(task_id, request, exc, traceback):
    """An error callback with three arguments, which Celery calls in the process of the failure."""
    note(request.id, f'inline {exc}')
    inline_errback.log(f'called back for {request.id}')


@netbox_celery_task(name='netbox_test_plugin:errback')
def errback(self, task_id, failed):
    """An error callback that takes the failed run's ID, which Celery sends as a task of its own."""
    note(failed, 'published')


@netbox_celery_task(name='netbox_test_plugin:lose_connection')
def lose_connection(self, task_id):
    """Let PostgreSQL close Django's connection, as a restart does."""
    execute = get_connection().execute
    with connection.cursor() as cursor:
        pid = cursor.connection.info.backend_pid
    execute('SELECT pg_terminate_backend(%s)', (pid,))
    return 1


@netbox_celery_task(name='netbox_test_plugin:replace_by')
def replace_by(self, task_id, *args, how, queue):
    """Replace itself with a workflow."""
    note(task_id, 'replaced')
    step = add.s(1).set(queue=queue)
    raise self.replace({
        'chain': lambda: chain(add.si(1).set(queue=queue), step),
        'group': lambda: group(step.clone(), step.clone()),
        'chord': lambda: chord([add.si(1).set(queue=queue), add.si(2).set(queue=queue)], step),
        'broken': lambda: chain(break_.si().set(queue=queue), step),
        'broken chord': lambda: chord([add.si(1).set(queue=queue), break_.si().set(queue=queue)], step),
        'stale': lambda: chain(lose_connection.si().set(queue=queue), step),
    }[how]())


@netbox_celery_task(name='netbox_test_plugin:replace_with')
def replace_with(self, task_id, *padding, how, fate, queue, gate=None, then=None, atomic=False):
    """Replace itself with something that finishes in a certain way, because of its first or last step."""
    note(task_id, 'replaced')
    what, __, place = fate.partition(' ')
    good = add.si(1)
    odd = {
        'completed': good, 'fails': break_.si(), 'lost': break_.si(how='kill'), 'gate': pass_gate.si(gate=gate),
        'refused': add.si(1).set(compression='nonsense'), 'nobody': add.si(1),
        'unknown': signature('netbox_test_plugin:unheard_of', immutable=True),
        'untracked': add.si(1).set(netbox_track=False), 'redacted': add.si(1).set(argsrepr='***'),
        'nested': replace_with.si(how=then, fate='completed', queue=queue),
        'retries': retry_once.si(), 'windowed': windowed.si(task_id), 'conflict': add.si(1).set(
            concurrency_key=gate, on_conflict='fail'
        ),
    }[what]
    first, last = (odd.clone(), good.clone()) if place == 'first' else (good.clone(), odd.clone())
    for step in (first, last):
        step.set(queue='nobody' if what == 'nobody' and (step is first) == (place == 'first') else queue)
    other = good.clone().set(queue=queue)
    with transaction.atomic() if atomic else nullcontext():
        raise self.replace({
            'task': lambda: last,
            'chain': lambda: chain(first, other, last),
            'chord': lambda: chord([first, other], last),
            'group': lambda: group(first, other),
        }[how]())


@netbox_celery_task(name='netbox_test_plugin:retry_once', default_retry_delay=0)
def retry_once(self, task_id, *args):
    """Fail the first time."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    return 1


@netbox_celery_task(
    name='netbox_test_plugin:windowed', ignore_task_after_success=True, ignore_task_timedelta=60,
)
def windowed(self, task_id, *args):
    """Open an ignore window of its own."""
    return 1


@netbox_celery_task(name='netbox_test_plugin:replace_or')
def replace_or(self, task_id, *, how, otherwise):
    """Return or retry if the replacement cannot be sent."""
    note(task_id, 'tried')
    step = add.si(1).set(compression='nonsense')
    try:
        self.replace({
            'task': lambda: step, 'chain': lambda: chain(step, add.si(1)), 'chord': lambda: chord([step], add.si(1)),
        }[how]())
    except Ignore:
        raise AssertionError('It was sent')
    except Exception as exc:
        if otherwise == 'retry' and not self.request.retries:
            raise self.retry(exc=exc, countdown=0)
        return 'otherwise'


@netbox_celery_task(name='netbox_test_plugin:replace_by_later')
def replace_by_later(self, task_id, *, how, queue, last):
    """Replace itself with something whose last step has times or a queue of its own."""
    first, last = add.si(1).set(queue=queue), add.si(1).set(**last)
    raise self.replace(
        {'task': lambda: last, 'chain': lambda: chain(first, last), 'chord': lambda: chord([first], last)}[how]()
    )


class Dying(CeleryBaseTask):
    """Loses its process while its replacement is being sent; or sends none."""

    def on_replace(self, sig):
        if self.request.kwargs['when'] == 'never':
            raise Ignore('nothing replaces it')
        if self.request.kwargs['when'] == 'after':
            sig.apply_async()
        os.kill(os.getpid() if self.request.kwargs['what'] == 'process' else os.getppid(), signal.SIGKILL)
        time.sleep(30)


@shared_task(name='netbox_test_plugin:die_in_replace', base=Dying, bind=True)
def die_in_replace(self, task_id, *, how, queue, when, what):
    """Replace itself, and die."""
    step = add.si(1).set(queue=queue)
    raise self.replace(step if how == 'task' else chain(step, step.clone()))


@netbox_celery_task(name='netbox_test_plugin:start_later')
def start_later(self, task_id, gate, queue, atomic=False, many=False):
    """Start another run after a gate, in a transaction if `atomic`."""
    note(task_id, 'ran')
    wait_at(gate)
    with transaction.atomic() if atomic else nullcontext():
        if many:
            CeleryResult.enqueue_many(add, [(1,)], queue=queue)
        else:
            add.apply_async((1,), queue=queue)
