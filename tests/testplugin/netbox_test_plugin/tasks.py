"""Tasks that misbehave. `side.note()` says what their bodies really did."""
import asyncio
import logging
import os
import signal
import threading
import time
from functools import wraps
from uuid import UUID

import billiard
from billiard.exceptions import WorkerLostError
from celery import current_app, shared_task
from celery.exceptions import Ignore, NotRegistered, Reject, SoftTimeLimitExceeded, TaskRevokedError
from celery.utils.log import get_task_logger
from django.db import connection, transaction

from dcim.models import Site
from netbox_celery.tasks import CeleryBaseTask, TaskFailed, netbox_celery_task

from . import branches, canvas, chaos, declared, policies, threads, waiting  # noqa: F401 - more tasks
from .side import note, notes, wait_at

task_logger = get_task_logger(__name__)
plugin_logger = logging.getLogger(__name__)
foreign_logger = logging.getLogger('somebody.else')

# As a plugin might: how a worker makes its processes
if method := os.environ.get('NETBOX_TEST_START_METHOD'):
    billiard.set_start_method(method, force=True)


#
# Shapes of a task
#

@netbox_celery_task(name='netbox_test_plugin:echo')
def echo(self, task_id, *args, **kwargs):
    """Return what came in."""
    note(task_id, 'ran')
    return [list(args), kwargs]


@shared_task(name='netbox_test_plugin:unbound', base=CeleryBaseTask)
def unbound(task_id, first, second='two', *, third='three'):
    note(task_id, 'ran')
    return [task_id, first, second, third]


@netbox_celery_task(name='netbox_test_plugin:positional')
def positional(self, task_id, first, /, **rest):
    return [first, rest]


@shared_task(name='netbox_test_plugin:plain')
def plain(value):
    """A task without the base class."""
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
    """Handlers of the author's own, none of which calls `super()`."""
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


#
# Waiting
#

@netbox_celery_task(name='netbox_test_plugin:hold')
def hold(self, task_id, gate, lines=0):
    """Wait at a gate; the message is acknowledged before."""
    return _hold(self, task_id, gate, lines)


@netbox_celery_task(name='netbox_test_plugin:hold_late', acks_late=True)
def hold_late(self, task_id, gate, lines=0):
    """Wait at a gate; the message is acknowledged after."""
    return _hold(self, task_id, gate, lines)


@netbox_celery_task(name='netbox_test_plugin:hold_rejecting', acks_late=True, reject_on_worker_lost=True)
def hold_rejecting(self, task_id, gate, lines=0):
    """Wait at a gate; the message goes back if the process dies."""
    return _hold(self, task_id, gate, lines)


@netbox_celery_task(name='netbox_test_plugin:hold_retrying', acks_late=True, max_retries=3)
def hold_retrying(self, task_id, gate):
    """Wait at a gate in the second attempt, which has other arguments than the first."""
    note(task_id, f'attempt {self.request.retries + 1} {gate}')
    if not self.request.retries:
        raise self.retry(args=(f'{gate}-second',), countdown=0)
    wait_at(gate)
    return gate


@netbox_celery_task(name='netbox_test_plugin:hold_and_fail')
def hold_and_fail(self, task_id, gate, lines=0):
    """Wait at a gate, and fail."""
    _hold(self, task_id, gate, lines)
    raise ValueError('after the gate')


@netbox_celery_task(name='netbox_test_plugin:hold_and_retry', max_retries=2)
def hold_and_retry(self, task_id, gate):
    """Wait at a gate, and be tried again."""
    if self.request.retries:
        return self.request.retries + 1
    note(task_id, 'started')
    wait_at(gate)
    raise self.retry(exc=ValueError('once more'), countdown=1)


@netbox_celery_task(name='netbox_test_plugin:retry_on_lost', retry_on_worker_lost=True, default_retry_delay=0)
def retry_on_lost(self, task_id):
    """Celery itself retries it when its process dies."""
    note(task_id, 'ran')
    if not self.request.retries:
        os.kill(os.getpid(), signal.SIGKILL)
    return 'survived'


def _hold(self, task_id, gate, lines):
    note(task_id, 'started')
    for number in range(lines):
        self.log(f'line {number}')
    wait_at(gate)
    self.log('after the gate')
    note(task_id, 'ended')
    return gate


@netbox_celery_task(name='netbox_test_plugin:cooperate')
def cooperate(self, task_id):
    """Look whether it has been cancelled, as long tasks should."""
    note(task_id, 'started')
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if self.is_cancelled():
            note(task_id, 'cancelled')
            return 'cancelled'
        time.sleep(0.05)
    return 'not cancelled'


@netbox_celery_task(name='netbox_test_plugin:look')
def look(self, task_id, gate, turns=40):
    """Look whether it has been cancelled, before a gate and at each turn of a loop after it."""
    before = self.is_cancelled()
    note(task_id, 'started')
    wait_at(gate)
    seen = []
    for __ in range(turns):
        seen.append(self.is_cancelled())
        time.sleep(0.05)
    note(task_id, 'ended')
    wait_at(f'{gate}-end')
    time.sleep(0.6)  # longer than an answer holds
    return [before, any(seen), self.is_cancelled()]


@netbox_celery_task(name='netbox_test_plugin:read')
def read(self, task_id, gate):
    """Read its row before a gate and after it."""
    before = self.celery_result.celery_name
    note(task_id, 'started')
    wait_at(gate)
    row = self.celery_result
    after = row.celery_name
    row.refresh_from_db()
    again = row.celery_name
    note(task_id, 'ended')
    return [before, after, again, row.pk, str(row.task_id)]


#
# Ends
#

class Unpicklable(Exception):
    """Made of a lock, which cannot be pickled."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class UnpicklableFailure(TaskFailed):
    """Takes other arguments than it passes on: what is pickled cannot be read back."""

    def __init__(self, device, port):
        super().__init__(f'{device} has no port {port}')


class Unprintable(Exception):

    def __str__(self):
        raise RuntimeError('no text')

    __repr__ = __str__


class UnprintableResult:
    __repr__ = Unprintable.__str__


class EncodedResult:
    """Nobody can write it as JSON, or as text."""

    def __init__(self, value=None):
        self.value = value

    def __json__(self):
        if self.value is None:
            raise KeyError('encoder')
        return self.value

    def __repr__(self):
        raise KeyError('text')


def nested(depth):
    value = 'the end'
    for __ in range(depth):
        value = [value]
    return value


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


@netbox_celery_task(name='netbox_test_plugin:kill_self')
def kill_self(self, task_id):
    """Be killed, as by a want of memory."""
    note(task_id, 'ran')
    os.kill(os.getpid(), signal.SIGKILL)


@netbox_celery_task(name='netbox_test_plugin:kill_once', acks_late=True, reject_on_worker_lost=True)
def kill_once(self, task_id):
    """Be killed the first time."""
    first = not notes(task_id)
    note(task_id, 'ran')
    if first:
        os.kill(os.getpid(), signal.SIGKILL)
    return 'survived'


@netbox_celery_task(name='netbox_test_plugin:kill_always', acks_late=True, reject_on_worker_lost=True)
def kill_always(self, task_id):
    """Kill every process that it gets."""
    note(task_id, 'ran')
    os.kill(os.getpid(), signal.SIGKILL)


RESULTS = {
    'none': lambda: None,
    'set': lambda: {1},
    'object': object,
    'unprintable': UnprintableResult,
    'huge': lambda: 'x' * 2_000_000,
    'odd': lambda: {'nul \x00': 'surrogate \ud800', 'number': float('nan')},
    'uuid': lambda: UUID(int=1),
    'floats': lambda: [1e23, 1e16, -0.0, 1.5, 10 ** 30],
    'order': lambda: {'z': 1, 'a': {'y': 1, 'x': 2}},
    'marker': lambda: {'__type__': 'nothing', '__value__': 1},
    'deep': lambda: nested(750),
    'digits': lambda: 10 ** 5000,
    'encoder': EncodedResult,
    'silent encoder': lambda: EncodedResult(1),
    'exception': lambda: ValueError('returned, not raised'),
}


@netbox_celery_task(name='netbox_test_plugin:answer')
def answer(self, task_id, what):
    """Return something that a row or a backend may not like."""
    return RESULTS[what]()


@netbox_celery_task(name='netbox_test_plugin:go_deep', max_retries=2)
def go_deep(self, task_id, how, value=None):
    """Hand on what is nested too deeply, from the body."""
    note(task_id, 'ran')
    deep = nested(750)
    if how == 'retry':
        raise self.retry(args=[how, deep], countdown=0)
    if how == 'retry header':
        raise self.retry(countdown=0, headers={'x': deep})
    if how == 'replace':
        raise self.replace(answer.s(deep))
    if how == 'call':
        answer.delay(deep)
    if how == 'data':
        self.celery_result.update(data=deep)
    if how == 'state':
        self.update_state(state='MINE', meta={'x': deep, 'step': deep, 'current': 10 ** 30})
        self.update_state(state='PROGRESS', meta={'x': deep, 'current': 3})
    if how == 'success':
        self.celery_result.success(deep)
    if how == 'log':
        self.log(deep, level=deep, grouping=EncodedResult(), obj=deep)
        self.progress(EncodedResult(), value_max=10 ** 5000, step=EncodedResult())
        self.celery_result.update_value(EncodedResult(), value_step=1)
        self.log_info(EncodedResult())
    return 'done'


@netbox_celery_task(name='netbox_test_plugin:soft', soft_time_limit=1)
def soft(self, task_id, catch=False):
    """Run into its soft time limit."""
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        if not catch:
            raise
        return 'tidied up'


@netbox_celery_task(name='netbox_test_plugin:hard', time_limit=1)
def hard(self, task_id):
    """Run into its hard time limit."""
    self.log('before the limit')
    time.sleep(30)


@netbox_celery_task(name='netbox_test_plugin:hard_late', time_limit=1, acks_late=True, acks_on_timeout=False)
def hard_late(self, task_id):
    """Run into its hard time limit the first time; the message then goes back."""
    first = not notes(task_id)
    note(task_id, 'ran')
    if first:
        time.sleep(30)
    return 'in time'


@netbox_celery_task(name='netbox_test_plugin:reject')
def reject(self, task_id, requeue=False):
    """Reject its message, which has been acknowledged already."""
    note(task_id, 'ran')
    raise Reject('not for me', requeue=requeue)


@netbox_celery_task(name='netbox_test_plugin:reject_late', acks_late=True)
def reject_late(self, task_id, times=0):
    """Reject its message: back to the queue so often, or for good."""
    note(task_id, 'ran')
    if not times:
        raise Reject('not for me', requeue=False)
    if len(notes(task_id)) <= times:
        raise Reject('come again', requeue=True)
    return 'taken'


@netbox_celery_task(name='netbox_test_plugin:ignore')
def ignore(self, task_id, why=None):
    """Choose not to run."""
    note(task_id, 'ran')
    raise Ignore(why) if why else Ignore


@netbox_celery_task(name='netbox_test_plugin:ignore_started', track_started=True)
def ignore_started(self, task_id):
    """Choose not to run, after Celery told the backend that it has started."""
    raise Ignore('nothing to do')


@netbox_celery_task(name='netbox_test_plugin:replace')
def replace(self, task_id, how='task', **options):
    """Let another task take its place."""
    self.log('before the replacement')
    note(task_id, 'replaced')
    if how == 'chain':
        raise self.replace(echo.si('first').set(**options) | echo.si('last').set(**options))
    if how == 'failing':
        raise self.replace(fail.si('value').set(**options))
    if how == 'self':
        raise self.replace(replace.si('task', **options).set(**options))
    if how == 'unsent':
        raise self.replace(echo.si('x').set(connection=current_app.connection('redis://127.0.0.1:1/0'), retry=False))
    raise self.replace(echo.si('replacement').set(**options))


@shared_task(name='netbox_test_plugin:plain_replace', bind=True)
def plain_replace(self, value):
    raise self.replace(plain.si(value).set(queue=self.request.delivery_info['routing_key']))


@netbox_celery_task(name='netbox_test_plugin:replace_at')
def replace_at(self, task_id, gate):
    """Let another task take its place when the gate is open."""
    note(task_id, 'started')
    wait_at(gate)
    raise self.replace(noted.si(task_id).set(queue=self.request.delivery_info['routing_key']))


@netbox_celery_task(name='netbox_test_plugin:noted')
def noted(self, task_id, other):
    note(other, 'replaced')
    return other


@netbox_celery_task(name='netbox_test_plugin:replace_late', acks_late=True)
def replace_late(self, task_id, gate, **options):
    raise self.replace(hold_late.si(gate).set(**options))


#
# Retries
#

@netbox_celery_task(name='netbox_test_plugin:retry', max_retries=20)
def retry(self, task_id, times, countdown=0, limit=None):
    """Fail so often, and be tried again by hand."""
    attempt = self.request.retries + 1
    note(task_id, f'attempt {attempt}')
    self.log(f'attempt {attempt}')
    if attempt <= times:
        raise self.retry(exc=ValueError(f'attempt {attempt} failed'), countdown=countdown, max_retries=limit)
    return attempt


@netbox_celery_task(name='netbox_test_plugin:retry_elsewhere')
def retry_elsewhere(self, task_id, queue):
    raise self.retry(queue=queue, countdown=0)


@netbox_celery_task(
    name='netbox_test_plugin:autoretry', autoretry_for=(ValueError,), max_retries=2, default_retry_delay=0,
)
def autoretry(self, task_id, times, error='wrong'):
    """Fail so often, and be tried again by itself."""
    note(task_id, f'attempt {self.request.retries + 1}')
    if self.request.retries < times:
        raise ValueError(error)
    return self.request.retries + 1


@shared_task(
    name='netbox_test_plugin:autoretry_unbound', base=CeleryBaseTask, autoretry_for=(ValueError,), max_retries=2,
    default_retry_delay=0,
)
def autoretry_unbound(task_id, times):
    note(task_id, 'ran')
    if len(notes(task_id)) <= times:
        raise ValueError('wrong')
    return len(notes(task_id))


@netbox_celery_task(name='netbox_test_plugin:retry_ignored', ignore_result=True, max_retries=3)
def retry_ignored(self, task_id):
    """Be tried again, with a result that nobody wants."""
    if not self.request.retries:
        raise self.retry(exc=ValueError('once'), countdown=0)
    return 'second'


@netbox_celery_task(
    name='netbox_test_plugin:limits', autoretry_for=(ValueError,), max_retries=5, default_retry_delay=0
)
def limits(self, task_id):
    """Its own `retry` allows fewer attempts than its decorator; Celery then stops the automatic ones too."""
    note(task_id, 'ran')
    try:
        raise ValueError('always')
    except ValueError as exc:
        raise self.retry(exc=exc, countdown=0, max_retries=1)


@netbox_celery_task(name='netbox_test_plugin:retry_in_transaction', max_retries=2)
def retry_in_transaction(self, task_id, name):
    """Ask for a retry while a transaction is open, which the retry rolls back."""
    with transaction.atomic():
        Site.objects.create(name=f'{name}-{self.request.retries}', slug=f'{name}-{self.request.retries}')
        if not self.request.retries:
            raise self.retry(exc=ValueError('in a transaction'), countdown=0)
    return self.request.retries


#
# What a body says
#

@netbox_celery_task(name='netbox_test_plugin:say')
def say(self, task_id, message, times=1, **options):
    """Log a message."""
    for __ in range(times):
        self.log(message, **options)


@netbox_celery_task(name='netbox_test_plugin:say_and_retry')
def say_and_retry(self, task_id, times):
    """Log a message many times, in each of two attempts."""
    for __ in range(times):
        self.log('line')
    if not self.request.retries:
        raise self.retry(countdown=0)


@netbox_celery_task(name='netbox_test_plugin:say_about')
def say_about(self, task_id, pk):
    """Log about an object, and about nothing."""
    self.log('about', obj=Site.objects.get(pk=pk))
    self.log('about nothing')


@netbox_celery_task(name='netbox_test_plugin:say_much')
def say_much(self, task_id, length):
    """Log a long line."""
    self.log('x' * length)


@netbox_celery_task(name='netbox_test_plugin:show')
def show(self, task_id, length):
    """Show long data."""
    self.celery_result.update(data={'x': 'y' * length})


@netbox_celery_task(name='netbox_test_plugin:show_progress')
def show_progress(self, task_id, value):
    self.progress(value)


@netbox_celery_task(name='netbox_test_plugin:say_all')
def say_all(self, task_id):
    """Log in each way there is."""
    self.log_debug('debug')
    self.log_info('info', grouping='group')
    self.log_success('success')
    self.log_warning('warning')
    self.log_failure('failure')
    self.log('critical', level=50)
    self.log(['not', 'text'])
    self.log(Unprintable())
    self.log('two\nlines\tand a tab')


@netbox_celery_task(name='netbox_test_plugin:say_mine')
def say_mine(self, task_id, word, times):
    """Log in turns with others that run at the same time."""
    for number in range(times):
        self.log(f'{word} {number}')
        task_logger.warning('%s logger %s', word, number)
        time.sleep(0.001)
    return word


@netbox_celery_task(name='netbox_test_plugin:use_logging')
def use_logging(self, task_id):
    """Log through Python's logging."""
    task_logger.info('task logger %s', 1)
    task_logger.debug('too low')
    plugin_logger.warning('plugin logger')
    foreign_logger.error('foreign logger')
    try:
        raise ValueError('caught')
    except ValueError:
        plugin_logger.exception('with traceback')
    plugin_logger.error('%d is not a number', 'this')


@netbox_celery_task(name='netbox_test_plugin:say_on_a_quiet_worker')
def say_on_a_quiet_worker(self, task_id):
    """Log below and at the level of a worker that is started with `-l WARNING`."""
    task_logger.info('info of the task')
    logging.getLogger('netbox_test_plugin').info('info of the plugin')
    logging.getLogger('netbox_test_plugin').debug('too low')
    task_logger.warning('warning')


@netbox_celery_task(name='netbox_test_plugin:open_transaction')
def open_transaction(self, task_id, gate, name):
    """Log and show progress in a transaction that stays open, and is then rolled back."""
    with transaction.atomic():
        Site.objects.create(name=name, slug=name)
        self.log('in the transaction')
        self.progress(3, 10, step='inside')
        note(task_id, 'inside')
        wait_at(gate)
        raise ValueError('rolled back')


@netbox_celery_task(name='netbox_test_plugin:broken_transaction')
def broken_transaction(self, task_id):
    """Log about an object after PostgreSQL refused a statement of the open transaction."""
    from django.contrib.contenttypes.models import ContentType
    from django.db import DatabaseError

    site = Site.objects.create(name='broken', slug='broken')
    ContentType.objects.clear_cache()
    try:
        with transaction.atomic():
            with connection.cursor() as cursor:
                try:
                    cursor.execute('SELECT nonsense')
                except DatabaseError:
                    self.log('said all the same', obj=site)
            raise ValueError('out')
    except ValueError:
        pass
    return 'went on'


@netbox_celery_task(name='netbox_test_plugin:measure')
def measure(self, task_id, gate):
    """Use the handle of the row in each way there is."""
    row = self.celery_result
    row.update(value=1, value_max=10, step='first', data={'seen': [1, 2]})
    row.increment_value(2)
    row.increment_value()
    note(task_id, 'measured')
    wait_at(gate)
    row.update_value(5, value_step=10)
    row.update_value(20, value_step=10)
    self.update_state(state='CUSTOM', meta={'current': 7, 'total': 14, 'step': 'custom'})
    note(task_id, 'custom')
    wait_at(f'{gate}-end')
    return [row.pk, str(row.task_id), row.status]


@netbox_celery_task(name='netbox_test_plugin:end_itself')
def end_itself(self, task_id, how, gate=None, dies=False):
    """Set the end of its row by hand."""
    if gate:
        note(task_id, 'started')
        wait_at(gate)
    row = self.celery_result
    {
        'success': lambda: row.success(value={'by': 'hand'}),
        'error': lambda: row.error('by hand', traceback='here'),
        'canceled': lambda: row.canceled('by hand'),
    }[how]()
    self.progress(99)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == 'success':
        raise ValueError('too late')
    return 'too late'


@netbox_celery_task(name='netbox_test_plugin:percent')
def percent(self, task_id, gate):
    self.update_state(state='PROGRESS', meta={'percent': 40})
    note(task_id, 'percent')
    wait_at(gate)


@netbox_celery_task(name='netbox_test_plugin:whoami')
def whoami(self, task_id):
    """Return what a run knows of itself."""
    row = self.celery_result
    return {
        'row': row and str(row.task_id), 'id': self.request.id, 'task_id': task_id,
        'cancelled': self.is_cancelled(),
    }


@netbox_celery_task(name='netbox_test_plugin:change')
def change(self, task_id, name, fail=False, atomic=False):
    """Change NetBox's objects."""
    site = Site(name=name, slug=name)
    site.full_clean()
    site.save()
    site.snapshot()
    site.description = 'changed'
    site.save()
    if fail:
        raise ValueError('after the change')
    return site.pk


@netbox_celery_task(name='netbox_test_plugin:change_tags')
def change_tags(self, task_id, name, tag):
    """Change what an object is tagged with."""
    site = Site.objects.create(name=name, slug=name)
    site.snapshot()
    site.tags.add(tag)
    return site.pk


#
# Calls of other tasks
#

@netbox_celery_task(name='netbox_test_plugin:call')
def call(self, task_id, queue, atomic=False):
    """Call another task, in a transaction if that is wanted."""
    if not atomic:
        return str(echo.apply_async(('child',), queue=queue).id)
    with transaction.atomic():
        kept = echo.apply_async(('kept',), queue=queue).id
        try:
            with transaction.atomic():
                echo.apply_async(('dropped',), queue=queue, task_id=str(UUID(int=7)))
                raise ValueError
        except ValueError:
            pass
    return kept


@netbox_celery_task(name='netbox_test_plugin:call_itself')
def call_itself(self, task_id, queue, depth=2):
    """Send itself again as a new run, and run itself at once."""
    if depth:
        self.apply_async((queue, depth - 1), queue=queue)
    return depth


@netbox_celery_task(name='netbox_test_plugin:call_directly')
def call_directly(self, task_id):
    """Call tasks as functions, and eagerly: those runs have no row, and this one keeps its own."""
    called = whoami()
    eager = whoami.apply().get(disable_sync_subtasks=False)
    self.log('mine')
    return [called, eager, str(self.celery_result.task_id)]


@netbox_celery_task(name='netbox_test_plugin:across')
def across(self, task_id, gate):
    """Use the database before and after something happens to it."""
    before = Site.objects.count()
    self.log('before')
    note(task_id, 'started')
    wait_at(gate)
    self.log('after')
    return before


@netbox_celery_task(name='netbox_test_plugin:query')
def query(self, task_id):
    """Use Django's database connection."""
    return [Site.objects.count(), id(connection.connection), os.getpid()]


@netbox_celery_task(name='netbox_test_plugin:sleep_in_database')
def sleep_in_database(self, task_id, seconds):
    """Wait for PostgreSQL."""
    note(task_id, 'started')
    with connection.cursor() as cursor:
        cursor.execute('SELECT pg_sleep(%s)', [seconds])


@netbox_celery_task(name='netbox_test_plugin:sleep_limited')
def sleep_limited(self, task_id, seconds):
    """Sleep, with a time limit that the call gives."""
    note(task_id, 'started')
    time.sleep(seconds)
    note(task_id, 'ended')


@netbox_celery_task(name='netbox_test_plugin:fade')
def fade(self, task_id, gate):
    """Die slowly: the process has closed its files, and is there until the gate opens."""
    note(task_id, 'started')
    os.closerange(3, 4096)
    wait_at(gate)
    os.kill(os.getpid(), signal.SIGKILL)


# Messages and bodies that no worker expects

@netbox_celery_task(name='netbox_test_plugin:echo_late', acks_late=True)
def echo_late(self, task_id, *args, **kwargs):
    """Return what came in; the message is acknowledged after."""
    note(task_id, 'ran')
    return [list(args), kwargs]


@netbox_celery_task(name='netbox_test_plugin:echo_slowly', rate_limit='20/s')
def echo_slowly(self, task_id, *args):
    """Return what came in, a few times a second at most."""
    note(task_id, 'ran')
    return list(args)


class _Told(CeleryBaseTask):
    """Notes which handlers hear of a failure."""
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


@netbox_celery_task(name='netbox_test_plugin:leave', base=_Told)
def leave(self, task_id, how, own_end=False):
    """Leave by what is no `Exception`, or for want of memory."""
    note(task_id, 'ran')
    if own_end:
        self.celery_result.success('its own')
    _leave(how)


@netbox_celery_task(name='netbox_test_plugin:leave_late', base=_Told, acks_late=True)
def leave_late(self, task_id, how):
    """Leave likewise; the message is acknowledged after."""
    note(task_id, 'ran')
    _leave(how)


@shared_task(name='netbox_test_plugin:plain_leave')
def plain_leave(how):
    """Leave likewise, untracked."""
    _leave(how)


@netbox_celery_task(name='netbox_test_plugin:told_echo', base=_Told, acks_late=True)
def told_echo(self, task_id, *args, **kwargs):
    """Return what came in, and note what handlers hear."""
    note(task_id, 'ran')
    return [list(args), kwargs]
