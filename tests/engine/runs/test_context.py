"""As which user a task changes NetBox objects, and what happens if that user is deleted meanwhile."""
from uuid import uuid4

import pytest
from django.db import connection, transaction

from core.models import ObjectChange
from dcim.models import Site
from netbox_celery.engine.calls.run import Run
from netbox_celery.engine.runs.context import change_context
from netbox_celery.models import CeleryResult, CelerySchedule
from tests.factories import make_result, make_schedule
from users.models import User

pytestmark = pytest.mark.django_db(transaction=True)


def nothing(self, task_id):
    pass


@pytest.fixture
def user():
    return User.objects.create_user('alice')


@pytest.fixture
def run(user):
    result = make_result('running', user=user)
    return Run(str(result.task_id), id=result.pk, claims=1, user_id=user.pk, request_id=result.task_id)


def delete(pk):
    """Delete a user as another process does."""
    User.objects.filter(pk=pk).delete()


def lines(run):
    from netbox_celery.engine.store.recorder import recorder

    recorder.flush(run)
    return list(CeleryResult.objects.get(pk=run.id).log_entries.values_list('message', flat=True))


def change(name):
    site = Site.objects.create(name=name, slug=name)
    site.snapshot()
    site.description = 'changed'
    site.save()
    return site


@pytest.mark.parametrize('first', [True, False], ids=['after a change', 'before'])
@pytest.mark.parametrize('in_transaction', [True, False])
def test_user_deleted(run, user, first, in_transaction, worker):
    """Each change has its entry, from then on without a user, and the log says so once."""
    from contextlib import nullcontext

    with change_context(run), transaction.atomic() if in_transaction else nullcontext():
        if first:
            change('before')
            assert ObjectChange.objects.filter(user=user).exists()
        if not in_transaction or not first:
            delete(user.pk)
            change('one')
            change('two')
    found = list(ObjectChange.objects.filter(changed_object_type__model='site').values_list('user', 'user_name'))
    if first and in_transaction:
        assert {who for who, __ in found} == {user.pk}
        return
    assert [who for who, __ in found] == [None] * len(found) and len(found) >= 2 + 2 * first
    assert all(name for __, name in found)
    assert len([line for line in lines(run) if 'was deleted' in line]) == 1


def test_user_who_exists(run, user, worker):
    with change_context(run):
        change('site')
    found = ObjectChange.objects.values_list('user', 'user_name', 'request_id')
    assert set(found) == {(user.pk, 'alice', run.request_id)}
    assert not lines(run)


def test_changes_of_others(run, user, worker):
    """Changes by other users meanwhile stay theirs."""
    other = User.objects.create_user('bob')
    with change_context(run):
        entry = change('site').to_objectchange('update')
        entry.user, entry.request_id = other, uuid4()
        entry.save()
    assert ObjectChange.objects.filter(user=other).count() == 1


def test_rows_of_a_deleted_user(make_task, user):
    """A deleted user's calls have no user, however they are made, and nothing fails."""
    task = make_task(nothing)
    pk = user.pk
    delete(pk)
    with transaction.atomic():
        ids = [task.apply_async(netbox_user=pk).id, CeleryResult.enqueue(task, user=pk).task_id]
        connection.check_constraints()
    ids.append(task.apply_async(netbox_user=pk, concurrency_key='key').id)
    ids += [row.task_id for row in CeleryResult.enqueue_many(task, [(), ()], user=pk)]
    rows = CeleryResult.objects.filter(task_id__in=ids)
    assert len(rows) == 5 and {row.user_id for row in rows} == {None}


def test_rows_of_a_deleted_schedule(make_task):
    task, schedule = make_task(nothing), make_schedule()
    pk = schedule.pk
    CelerySchedule.objects.filter(pk=pk).delete()
    assert CeleryResult.enqueue(task, netbox_schedule=pk).schedule_id is None


def test_rows_of_a_user_and_a_schedule(make_task, user):
    task, schedule = make_task(nothing), make_schedule()
    row = CeleryResult.enqueue(task, user=user, netbox_schedule=schedule)
    many = CeleryResult.enqueue_many(task, [(), ()], user=user)
    assert {(row.user, row.schedule) for row in (row,)} == {(user, schedule)}
    assert {row.user for row in many} == {user}
