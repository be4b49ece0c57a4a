"""Tasks that run into time limits, or sleep for as long as the call says."""
import time

from celery.exceptions import SoftTimeLimitExceeded
from django.db import connection

from netbox_celery.tasks import netbox_celery_task

from ..side import note, notes


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
    """Run into its hard time limit the first time; the message is then requeued."""
    first = not notes(task_id)
    note(task_id, 'ran')
    if first:
        time.sleep(30)
    return 'in time'


@netbox_celery_task(name='netbox_test_plugin:sleep_in_database')
def sleep_in_database(self, task_id, seconds):
    """Wait for PostgreSQL."""
    note(task_id, 'started')
    with connection.cursor() as cursor:
        cursor.execute('SELECT pg_sleep(%s)', [seconds])


@netbox_celery_task(name='netbox_test_plugin:sleep_limited')
def sleep_limited(self, task_id, seconds):
    """Sleep, with a time limit given by the call."""
    note(task_id, 'started')
    time.sleep(seconds)
    note(task_id, 'ended')
