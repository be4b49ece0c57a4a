"""Tasks whose process dies."""
import os
import signal

from netbox_celery.tasks import netbox_celery_task

from ..side import note, notes, wait_at


@netbox_celery_task(name='netbox_test_plugin:kill_self')
def kill_self(self, task_id):
    """Be killed, as when memory runs out."""
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
    """Kill every process that runs it."""
    note(task_id, 'ran')
    os.kill(os.getpid(), signal.SIGKILL)


@netbox_celery_task(name='netbox_test_plugin:retry_on_lost', retry_on_worker_lost=True, default_retry_delay=0)
def retry_on_lost(self, task_id):
    """Be retried by Celery itself when its process dies."""
    note(task_id, 'ran')
    if not self.request.retries:
        os.kill(os.getpid(), signal.SIGKILL)
    return 'survived'


@netbox_celery_task(name='netbox_test_plugin:fade')
def fade(self, task_id, gate):
    """Die slowly: the process closes its files, and lives until the gate opens."""
    note(task_id, 'started')
    os.closerange(3, 4096)
    wait_at(gate)
    os.kill(os.getpid(), signal.SIGKILL)
