"""Tasks that write to the log of their run."""
import logging
import time

from celery.utils.log import get_task_logger
from django.contrib.contenttypes.models import ContentType
from django.db import DatabaseError, connection, transaction

from dcim.models import Site
from netbox_celery.tasks import netbox_celery_task

from ..side import note, wait_at
from .failures import Unprintable

task_logger = get_task_logger(__name__)
plugin_logger = logging.getLogger(__name__)
foreign_logger = logging.getLogger('somebody.else')


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
    """Log with an object, and without one."""
    self.log('about', obj=Site.objects.get(pk=pk))
    self.log('about nothing')


@netbox_celery_task(name='netbox_test_plugin:say_much')
def say_much(self, task_id, length):
    """Log a long line."""
    self.log('x' * length)


@netbox_celery_task(name='netbox_test_plugin:say_all')
def say_all(self, task_id):
    """Log in every way."""
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
    """Log in turns with other runs at the same time."""
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
    """Log below and at the level of a worker started with `-l WARNING`."""
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
