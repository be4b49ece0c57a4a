"""Tasks that check whether they have been cancelled."""
import time

from netbox_celery.tasks import netbox_celery_task

from ..side import note, wait_at


@netbox_celery_task(name='netbox_test_plugin:cooperate')
def cooperate(self, task_id):
    """Check for cancellation again and again, as long tasks should."""
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
    """Check for cancellation before a gate, and at each turn of a loop after it."""
    before = self.is_cancelled()
    note(task_id, 'started')
    wait_at(gate)
    seen = []
    for __ in range(turns):
        seen.append(self.is_cancelled())
        time.sleep(0.05)
    note(task_id, 'ended')
    wait_at(f'{gate}-end')
    time.sleep(0.6)  # longer than an answer is cached
    return [before, any(seen), self.is_cancelled()]
