"""Tasks with a list of delays between their attempts, and one that waits for a result."""
from netbox_celery.tasks import netbox_celery_task

from ..side import note

__all__ = (
    'delays',
    'delays_automatic',
    'waits',
)


@netbox_celery_task(name='netbox_test_plugin:delays', default_retry_delays=(0.2, 0.4, 0.6))
def delays(self, task_id, **options):
    """Fail every time, and be retried by hand."""
    note(task_id, self.request.retries)
    raise self.retry(exc=ValueError('wrong'), **options)


@netbox_celery_task(
    name='netbox_test_plugin:delays_automatic', default_retry_delays=(0.2, 0.4), autoretry_for=(ValueError,),
)
def delays_automatic(self, task_id):
    """Fail every time, and be retried automatically."""
    note(task_id, self.request.retries)
    raise ValueError('wrong')


@netbox_celery_task(name='netbox_test_plugin:waits')
def waits(self, task_id):
    """Wait for another run, which Celery forbids."""
    try:
        delays.apply_async_and_get_result()
    except RuntimeError as exc:
        return str(exc)
