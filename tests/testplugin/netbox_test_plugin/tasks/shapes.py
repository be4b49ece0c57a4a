"""Tasks of every shape: bound or not, a lambda, an object, decorated, a class with handlers."""
import os
from functools import wraps

from celery import current_app, shared_task

from netbox_celery.tasks import CeleryBaseTask, netbox_celery_task

from ..side import note


@netbox_celery_task(name='netbox_test_plugin:echo')
def echo(self, task_id, *args, **kwargs):
    """Return what came in."""
    note(task_id, 'ran')
    return [list(args), kwargs]


@netbox_celery_task(name='netbox_test_plugin:echo_late', acks_late=True)
def echo_late(self, task_id, *args, **kwargs):
    """Return the arguments; the message is acknowledged after the body."""
    note(task_id, 'ran')
    return [list(args), kwargs]


@netbox_celery_task(name='netbox_test_plugin:echo_slowly', rate_limit='20/s')
def echo_slowly(self, task_id, *args):
    """Return the arguments, at most 20 times a second."""
    note(task_id, 'ran')
    return list(args)


@shared_task(name='netbox_test_plugin:unbound', base=CeleryBaseTask)
def unbound(task_id, first, second='two', *, third='three'):
    note(task_id, 'ran')
    return [task_id, first, second, third]


@netbox_celery_task(name='netbox_test_plugin:positional')
def positional(self, task_id, first, /, **rest):
    return [first, rest]


@shared_task(name='netbox_test_plugin:plain')
def plain(value):
    """A task without the plugin's base class."""
    return value


@shared_task(name='netbox_test_plugin:plain_failing')
def plain_failing():
    raise ValueError('plain')


#: A lambda that has been given a name.
anonymous = shared_task(name='netbox_test_plugin:lambda', base=CeleryBaseTask)(lambda task_id, x: x * 2)


class Doubler:
    """A callable object."""
    __name__ = 'doubler'

    def __call__(self, task_id, x):
        return x * 2


doubler = shared_task(name='netbox_test_plugin:object', base=CeleryBaseTask)(Doubler())


def noting(function):
    @wraps(function)
    def wrapper(self, task_id, *args, **kwargs):
        note(task_id, 'decorated')
        return function(self, task_id, *args, **kwargs)
    return wrapper


@netbox_celery_task(name='netbox_test_plugin:decorated')
@noting
@noting
def decorated(self, task_id):
    return 'decorated'


class Handlers(CeleryBaseTask):
    """Handlers of the author that do not call `super()`."""
    name = 'netbox_test_plugin:handlers'
    max_retries = 1
    default_retry_delay = 0

    def __init__(self):
        self.made_in = os.getpid()

    def before_start(self, task_id, args, kwargs):
        note(task_id, 'before_start')

    def run(self, task_id, how):
        if how == 'retry' and not self.request.retries:
            raise self.retry(exc=ValueError('once more'))
        if how == 'fail':
            raise ValueError(how)
        return how

    def on_success(self, retval, task_id, args, kwargs):
        note(task_id, f'on_success {retval} {args} {kwargs}')

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        note(task_id, f'on_failure {exc!r} {args} {kwargs} {type(einfo).__name__}')

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        note(task_id, f'on_retry {exc!r} {args} {kwargs} {type(einfo).__name__}')

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        note(task_id, f'after_return {status}')


handlers = current_app.register_task(Handlers())
