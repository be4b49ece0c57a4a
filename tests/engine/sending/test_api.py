"""Calls from NetBox code return the row of a new run, or of the one that the call joined."""
from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone

from netbox_celery.models import CeleryResult
from tests.factories import make_schedule
from tests.factories import make_task as make_task_row
from users.models import User

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def task(make_task):
    return make_task(lambda self, task_id, a=None: None, name='tests:calls', unique=True, stale_time_limit=600)


@pytest.fixture(params=['behind', 'ahead'])
def under_way(request, task):
    """An active run that was called on another host, whose clock differs."""
    run = CeleryResult.enqueue(task)
    difference = timedelta(hours=1 if request.param == 'ahead' else -1)
    CeleryResult.objects.filter(pk=run.pk).update(created=timezone.now() + difference)
    return run


@pytest.mark.parametrize('how', ['enqueue', 'by name', 'rerun', 'run_now', 'enqueue_many', 'same ID'])
def test_joined(task, under_way, how):
    """A call knows whether it created a run, whatever the hosts' clocks say."""
    def call(*args):
        if how == 'rerun':
            return CeleryResult(celery_name=task.name, args=[*args], kwargs={}, options={}, name='x').rerun()
        if how == 'run_now':
            schedule = make_schedule(
                f'{args}', make_task_row(task.name, parameters=[]) if not args else schedule_task(), args=[*args]
            )
            return schedule.run_now(User.objects.create_superuser(f'user{args}'))
        if how == 'enqueue_many':
            return CeleryResult.enqueue_many(task, [args]).get()
        options = {'task_id': under_way.task_id if not args else uuid4()} if how == 'same ID' else {}
        return CeleryResult.enqueue(task.name if how == 'by name' else task, args=args, **options)

    joined, new = call(), call('other')
    assert (joined.pk, joined.joined) == (under_way.pk, True)
    assert (new.pk != under_way.pk, new.joined) == (True, False)


def schedule_task():
    from netbox_celery.models import CeleryTask

    return CeleryTask.objects.get(name='tests:calls')


def test_joined_among_many(task):
    """Calls that join a run created by one of them have created it."""
    under_way = CeleryResult.enqueue(task, args=('old',))
    runs = CeleryResult.enqueue_many(task, [('old',), ('new',), ('new',)])
    assert [(run.pk == under_way.pk, run.joined) for run in runs] == [(True, True), (False, False)]
    assert runs.count() == 2


def test_queueing_is_not_joining(make_task):
    """A run that waits in line or was skipped is a run of its own."""
    for on_conflict in ('queue', 'skip'):
        task = make_task(lambda self, task_id: None, name=f'tests:{on_conflict}', concurrency_key=on_conflict,
                         on_conflict=on_conflict)
        runs = [CeleryResult.enqueue(task) for __ in range(2)]
        assert [run.joined for run in runs] == [False, False]
        assert runs[0].pk != runs[1].pk
