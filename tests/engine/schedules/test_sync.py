"""The rows of the catalogue follow the tasks that a process has registered."""
import pytest

from netbox_celery.engine.schedules.sync import sync_catalogue
from netbox_celery.models import CeleryTask
from tests.factories import make_task as make_task_row


@pytest.mark.django_db
def test_sync(described):
    """The rows follow the registered tasks; what people decided about them stays."""
    sync_catalogue()
    row = CeleryTask.objects.get(name='tests:described')
    assert (row.present, row.description) == (True, 'The first line.')
    assert not CeleryTask.objects.filter(name__startswith='celery.').exists()

    CeleryTask.objects.filter(pk=row.pk).update(enabled=False, description='old', present=False)
    gone = make_task_row('tests:gone', last_seen=None, present=True)
    recent = make_task_row('tests:elsewhere')
    CeleryTask.objects.filter(pk=gone.pk).update(last_seen='2020-01-01T00:00:00Z')
    sync_catalogue()
    for task in (row, gone, recent):
        task.refresh_from_db()
    assert (row.enabled, row.description, row.present) == (False, 'The first line.', True)
    # A task that no process has registered for long is absent; another process's task is not
    assert (gone.present, recent.present) == (False, True)


@pytest.mark.django_db
@pytest.mark.parametrize('code', [
    {'__doc__': 'a NUL \x00'}, {'max_retries': float('nan')}, {'run': lambda self, items=[{1, 2}]: None},
    {'__doc__': property(lambda self: 1 / 0)},
], ids=['NUL', 'NaN', 'set', 'raises'])
def test_task_that_cannot_be_described(make_task, code):
    """Other tasks are added to the catalogue and updated all the same."""
    for suffix in ('a', 'c'):
        make_task(lambda self, task_id: None, name=f'tests:{suffix}')
    bad = make_task(lambda self, task_id: None, name='tests:b')
    for name, value in code.items():
        setattr(type(bad), name, value)
    for __ in range(2):
        sync_catalogue()
        assert {'tests:a', 'tests:c'} <= set(CeleryTask.objects.values_list('name', flat=True))
