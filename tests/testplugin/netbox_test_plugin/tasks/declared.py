"""Tasks that use Celery's own options, set in each way that Celery has."""
import os
import time

from celery import current_app, shared_task
from celery.exceptions import Retry
from celery.utils.log import get_task_logger

from netbox_celery.tasks import CeleryBaseTask, netbox_celery_task

from ..side import note, wait_at

logger = get_task_logger(__name__)


#
# Settings of a whole app
#

class AppWide(CeleryBaseTask):
    """The base class of tasks that name none."""
    abstract = True
    app_wide = True


if os.environ.get('NETBOX_TEST_APP_WIDE'):
    current_app.task_cls = AppWide
    current_app.gen_task_name = lambda name, module: f'generated:{module.rsplit(".", 1)[-1]}.{name}'


@shared_task
def nameless(*args):
    return list(args)


@shared_task(name='netbox_test_plugin:named', bind=True)
def named(self, *args):
    return [getattr(self, 'app_wide', False), *args]


def make(name, function, options, how):
    """Make a task whose options are in its decorator, in its base class, or in a class of its own."""
    name = f'netbox_test_plugin:{name}_by_{how}'
    if how == 'decorator':
        return shared_task(name=name, base=CeleryBaseTask, bind=True, **options)(function)
    if how == 'base':
        base = type('Base', (CeleryBaseTask,), {'abstract': True, **options})
        return shared_task(name=name, base=base, bind=True)(function)
    return current_app.register_task(type('Own', (CeleryBaseTask,), {'name': name, 'run': function, **options})())


#
# Retries
#

class Special(ValueError):
    """An error that is not retried."""


def fail(self, task_id, special=False):
    raise (Special if special else ValueError)('wrong')


#: Seconds between the attempts of tasks: by their options, and by the number of retries so far.
DELAYS = {
    'backoff': ({'retry_backoff': True, 'retry_jitter': False}, {0: 1, 1: 2, 2: 4, 3: 8, 9: 512, 10: 600}),
    'backoff_factor': ({'retry_backoff': 3, 'retry_jitter': False}, {0: 3, 1: 6, 2: 12, 3: 24, 8: 600}),
    'backoff_max': ({'retry_backoff': 2, 'retry_backoff_max': 5, 'retry_jitter': False}, {0: 2, 1: 4, 2: 5, 8: 5}),
    'delay_int': ({'default_retry_delay': 7}, {0: 7, 5: 7}),
    'delay_float': ({'default_retry_delay': 2.5}, {0: 2.5}),
    'delay_default': ({}, {0: 180}),
    'delay_kwargs': ({'retry_kwargs': {'countdown': 11}}, {0: 11}),
}
HOWS = ('decorator', 'base', 'class')

delayed = {
    (name, how): make(name, fail, {'autoretry_for': (ValueError,), 'max_retries': None, **options}, how)
    for name, (options, __) in DELAYS.items() for how in HOWS
}
jittered = make('jittered', fail, {'autoretry_for': (ValueError,), 'retry_backoff': 300, 'max_retries': None}, 'base')
limited = {
    how: make('limited', fail, {
        'autoretry_for': (ValueError,), 'dont_autoretry_for': (Special,), 'max_retries': 2, 'default_retry_delay': 0,
    }, how) for how in HOWS
}


@netbox_celery_task(
    name='netbox_test_plugin:unthrown', autoretry_for=(ValueError,), retry_kwargs={'throw': False, 'countdown': 0},
    max_retries=1,
)
def unthrown(self, task_id):
    """Its `retry()` returns the exception that it would raise."""
    raise ValueError('wrong')


@netbox_celery_task(
    name='netbox_test_plugin:limited_by_kwargs', autoretry_for=(ValueError,), retry_kwargs={'max_retries': 1},
    default_retry_delay=0, max_retries=9,
)
def limited_by_kwargs(self, task_id):
    raise ValueError('wrong')


@netbox_celery_task(name='netbox_test_plugin:retry_raised')
def retry_raised(self, task_id):
    """Raise Celery's `Retry`, and send nothing."""
    raise Retry('later')


#
# How a task is sent and run
#

def facts(self, task_id):
    """Return what a run knows about how it was sent."""
    request = self.request
    return {
        'priority': request.delivery_info['priority'], 'limits': list(request.timelimit), 'expires': request.expires,
        'ignored': request.ignore_result, 'routing_key': request.delivery_info['routing_key'],
    }


SENT = {
    'priority': 3, 'time_limit': 50, 'soft_time_limit': 40, 'expires': 600, 'ignore_result': True,
    'compression': 'gzip', 'serializer': 'json',
}


def facts_at_last(self, task_id):
    """Return the facts of two attempts: what differs was lost in the retry."""
    note(task_id, facts(self, task_id))
    if not self.request.retries:
        raise self.retry(countdown=0)
    return facts(self, task_id)


plain = make('plain', facts, {}, 'decorator')
plain_at_last = make('plain_at_last', facts_at_last, {}, 'decorator')
sent = {how: make('sent', facts, SENT, how) for how in HOWS}
contradicting = make('contradicting', facts, {'time_limit': 1, 'soft_time_limit': 2}, 'decorator')
unreadable = make('unreadable', facts, {'serializer': 'pickle'}, 'decorator')
stored = make('stored', facts, {'ignore_result': False}, 'decorator')
ignored = make('ignored', facts, {'ignore_result': True}, 'decorator')


def hold(self, task_id, gate=None):
    note(task_id, 'started')
    if gate:
        wait_at(gate)
    return 'held'


held = {how: make('held', hold, {'track_started': True}, how) for how in HOWS}
unseen = {how: make('unseen', hold, {'send_events': False}, how) for how in HOWS}
rated = {how: make('rated', hold, {'rate_limit': '4/s'}, how) for how in HOWS}


def sleep(self, task_id):
    note(task_id, 'started')
    time.sleep(30)


soft = {how: make('soft', sleep, {'soft_time_limit': 0.5, 'time_limit': 20}, how) for how in HOWS}
late = {how: make('late', hold, {'acks_late': True}, how) for how in HOWS}


@netbox_celery_task(name='netbox_test_plugin:spread')
def spread(self, task_id, calls):
    """Call tasks with this process's settings, given as pairs of a name and options; return their IDs."""
    return [current_app.tasks[name].apply_async(**options).id for name, options in calls]


@netbox_celery_task(name='netbox_test_plugin:routed')
def routed(self, task_id):
    return self.request.delivery_info['routing_key']


@netbox_celery_task(name='netbox_test_plugin:wait_inside')
def wait_inside(self, task_id, queue):
    """Wait for another task, which Celery forbids."""
    logger.info('about to wait')
    try:
        plain.apply_async(queue=queue).get(timeout=20)
    except RuntimeError as exc:
        return str(exc)
