"""Tasks that are retried."""
from celery import shared_task
from django.db import transaction

from dcim.models import Site
from netbox_celery.tasks import CeleryBaseTask, netbox_celery_task

from ..side import note, notes


@netbox_celery_task(name='netbox_test_plugin:retry', max_retries=20)
def retry(self, task_id, times, countdown=0, limit=None):
    """Fail so many times, and be retried by hand."""
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
    """Fail so many times, and be retried automatically."""
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
    """Be retried, with `ignore_result`."""
    if not self.request.retries:
        raise self.retry(exc=ValueError('once'), countdown=0)
    return 'second'


@netbox_celery_task(
    name='netbox_test_plugin:limits', autoretry_for=(ValueError,), max_retries=5, default_retry_delay=0
)
def limits(self, task_id):
    """Allow fewer attempts in `retry()` than in the decorator; Celery then stops the automatic retries too."""
    note(task_id, 'ran')
    try:
        raise ValueError('always')
    except ValueError as exc:
        raise self.retry(exc=exc, countdown=0, max_retries=1)


@netbox_celery_task(name='netbox_test_plugin:retry_in_transaction', max_retries=2)
def retry_in_transaction(self, task_id, name):
    """Retry while a transaction is open, which the retry rolls back."""
    with transaction.atomic():
        Site.objects.create(name=f'{name}-{self.request.retries}', slug=f'{name}-{self.request.retries}')
        if not self.request.retries:
            raise self.retry(exc=ValueError('in a transaction'), countdown=0)
    return self.request.retries
