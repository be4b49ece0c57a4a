"""Tasks that reject their message or ignore it."""
from celery.exceptions import Ignore, Reject

from netbox_celery.tasks import netbox_celery_task

from ..side import note, notes


@netbox_celery_task(name='netbox_test_plugin:reject')
def reject(self, task_id, requeue=False):
    """Reject its message, which is already acknowledged."""
    note(task_id, 'ran')
    raise Reject('not for me', requeue=requeue)


@netbox_celery_task(name='netbox_test_plugin:reject_late', acks_late=True)
def reject_late(self, task_id, times=0):
    """Reject its message: requeue it so many times, or discard it."""
    note(task_id, 'ran')
    if not times:
        raise Reject('not for me', requeue=False)
    if len(notes(task_id)) <= times:
        raise Reject('come again', requeue=True)
    return 'taken'


@netbox_celery_task(name='netbox_test_plugin:ignore')
def ignore(self, task_id, why=None):
    """Ignore itself."""
    note(task_id, 'ran')
    raise Ignore(why) if why else Ignore


@netbox_celery_task(name='netbox_test_plugin:ignore_started', track_started=True)
def ignore_started(self, task_id):
    """Ignore itself after Celery stored that it has started."""
    raise Ignore('nothing to do')
