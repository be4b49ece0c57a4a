"""Tasks that call other tasks."""
from uuid import UUID

from django.db import transaction

from netbox_celery.tasks import netbox_celery_task

from .rows import whoami
from .shapes import echo


@netbox_celery_task(name='netbox_test_plugin:call')
def call(self, task_id, queue, atomic=False):
    """Call another task, in a transaction if `atomic`."""
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
    """Send itself again as a new run, and finish."""
    if depth:
        self.apply_async((queue, depth - 1), queue=queue)
    return depth


@netbox_celery_task(name='netbox_test_plugin:call_directly')
def call_directly(self, task_id):
    """Call tasks as functions, and eagerly: those have no row, and this run keeps its own."""
    called = whoami()
    eager = whoami.apply().get(disable_sync_subtasks=False)
    self.log('mine')
    return [called, eager, str(self.celery_result.task_id)]
