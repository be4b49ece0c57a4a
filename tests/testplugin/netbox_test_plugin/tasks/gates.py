"""Tasks that wait at a gate until the test opens it."""
from dcim.models import Site
from netbox_celery.tasks import netbox_celery_task

from ..side import note, wait_at


@netbox_celery_task(name='netbox_test_plugin:hold')
def hold(self, task_id, gate, lines=0):
    """Wait at a gate; the message is acknowledged before the body."""
    return _hold(self, task_id, gate, lines)


@netbox_celery_task(name='netbox_test_plugin:hold_late', acks_late=True)
def hold_late(self, task_id, gate, lines=0):
    """Wait at a gate; the message is acknowledged after the body."""
    return _hold(self, task_id, gate, lines)


@netbox_celery_task(name='netbox_test_plugin:hold_rejecting', acks_late=True, reject_on_worker_lost=True)
def hold_rejecting(self, task_id, gate, lines=0):
    """Wait at a gate; the message is requeued if the process dies."""
    return _hold(self, task_id, gate, lines)


@netbox_celery_task(name='netbox_test_plugin:hold_retrying', acks_late=True, max_retries=3)
def hold_retrying(self, task_id, gate):
    """Wait at a gate in the second attempt, whose arguments differ from the first's."""
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
    """Wait at a gate, and be retried."""
    if self.request.retries:
        return self.request.retries + 1
    note(task_id, 'started')
    wait_at(gate)
    raise self.retry(exc=ValueError('once more'), countdown=1)


def _hold(self, task_id, gate, lines):
    note(task_id, 'started')
    for number in range(lines):
        self.log(f'line {number}')
    wait_at(gate)
    self.log('after the gate')
    note(task_id, 'ended')
    return gate


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


@netbox_celery_task(name='netbox_test_plugin:across')
def across(self, task_id, gate):
    """Use the database before and after the test does something to it."""
    before = Site.objects.count()
    self.log('before')
    note(task_id, 'started')
    wait_at(gate)
    self.log('after')
    return before
