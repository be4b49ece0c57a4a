"""Tasks that write their own row: progress, data, the run's end."""
import os
import signal

from netbox_celery.tasks import netbox_celery_task

from ..side import note, wait_at


@netbox_celery_task(name='netbox_test_plugin:show')
def show(self, task_id, length):
    """Set long data."""
    self.celery_result.update(data={'x': 'y' * length})


@netbox_celery_task(name='netbox_test_plugin:show_progress')
def show_progress(self, task_id, value):
    self.progress(value)


@netbox_celery_task(name='netbox_test_plugin:measure')
def measure(self, task_id, gate):
    """Use the handle of the row in every way."""
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
    """Finish its row by hand."""
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
    """Return what a run knows about itself."""
    row = self.celery_result
    return {
        'row': row and str(row.task_id), 'id': self.request.id, 'task_id': task_id,
        'cancelled': self.is_cancelled(),
    }
