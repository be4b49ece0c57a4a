"""Deleting rows in any way leaves no run that continues unseen, and deletes nothing that would come back."""
import pytest
from django.db import transaction

from netbox_celery.celery import app
from netbox_celery.models import CeleryResult, CelerySchedule, CeleryTask
from tests.factories import make_result, make_schedule, make_task, make_worker
from utilities.exceptions import AbortRequest

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def revoked(monkeypatch):
    """The task IDs whose cancel is broadcast to workers."""
    revoked = []
    monkeypatch.setattr(app.control, 'revoke', lambda task_ids, **options: revoked.extend(task_ids))
    return revoked


@pytest.mark.parametrize('status, is_cancelled', [
    ('pending', True), ('scheduled', True), ('retrying', True), ('completed', False), ('failed', False),
    ('errored', False), ('revoked', False), ('ignored', False),
])
@pytest.mark.parametrize('delete', [
    lambda run: run.delete(), lambda run: CeleryResult.objects.filter(pk=run.pk).delete(),
], ids=['one', 'queryset'])
def test_run(revoked, delete, status, is_cancelled):
    run = make_result(status)
    task_id = str(run.task_id)
    delete(run)
    assert revoked == ([task_id] if is_cancelled else [])
    assert not CeleryResult.objects.exists()


def test_running_one_is_terminated(monkeypatch):
    """As with a cancel, its process is terminated if it can be."""
    told = []
    monkeypatch.setattr(app.control, 'revoke', lambda task_ids, **options: told.append((task_ids, options)))
    worker = make_worker(pool='prefork')
    run = make_result('running', holder=worker.key, claims=1, attempt=1)
    task_id = str(run.task_id)
    run.delete()
    assert told == [([task_id], {'terminate': True})]


def test_deletion_that_is_rolled_back(revoked):
    """Then nothing was broadcast, and the run continues."""
    run = make_result('pending')
    with transaction.atomic():
        CeleryResult.objects.all().delete()
        transaction.set_rollback(True)
    run.refresh_from_db()
    assert (run.status, run.cancelled, revoked) == ('pending', None, [])


def test_object_that_is_behind(revoked):
    """The row counts: a run that has finished since it was loaded is not cancelled."""
    run = make_result('pending')
    CeleryResult.objects.update(status='completed')
    run.delete()
    assert revoked == []


@pytest.mark.parametrize('make, model, columns', [
    (make_task, CeleryTask, {'present': True}),
    (make_schedule, CelerySchedule, {'origin': 'settings', 'present': True}),
    (make_schedule, CelerySchedule, {'origin': 'code', 'present': True}),
], ids=['task', 'settings', 'code'])
def test_what_would_come_back(make, model, columns):
    """It is refused, with advice, in text that is safe on a page; once absent, it can be deleted."""
    row = make('<b>bold</b>', **columns)
    for delete in (row.delete, model.objects.all().delete):
        with pytest.raises(AbortRequest) as refused:
            delete()
        assert 'would reappear. Disable it' in refused.value.message
        assert '&lt;b&gt;bold' in refused.value.message and '<b>' not in refused.value.message
    assert model.objects.filter(pk=row.pk).exists()
    model.objects.update(present=False)
    model.objects.all().delete()
    assert not model.objects.exists()


def test_schedule_of_a_user():
    make_schedule().delete()
    assert not CelerySchedule.objects.exists()
