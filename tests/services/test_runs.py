"""What people do to tasks and runs: permissions, effects, and the change log."""
from uuid import uuid4

import pytest
from django.core.exceptions import PermissionDenied

from core.models import ObjectChange
from netbox_celery.engine.exceptions import QueueRefused
from netbox_celery.models import CeleryResult, CeleryTask
from netbox_celery.services import runs
from tests.factories import HELLO_WORLD, grant, make_result, make_task
from users.models import User

pytestmark = pytest.mark.django_db

MAP = {'task': {'task': HELLO_WORLD, 'options': {}}, 'it': [1]}


@pytest.fixture
def user():
    return User.objects.create_user('operator')


@pytest.fixture
def request_of(rf, user):
    """A request of the user, as NetBox's middleware leaves it."""
    request = rf.post('/')
    request.user, request.id = user, uuid4()
    return request


def logged():
    return list(ObjectChange.objects.order_by('pk').values_list('changed_object_id', 'action', 'message'))


def reloaded(user):
    """Return the user as the next request has it: permissions are cached on the object."""
    return User.objects.get(pk=user.pk)


# Who may, and what can be run

@pytest.mark.parametrize('columns, expected', [
    ({}, ''), ({'enabled': False}, 'is disabled'), ({'present': False}, 'is not registered on any worker'),
    ({'enabled': False, 'present': False}, 'is disabled'), ({'defaults': {'strategy': 'own.Strategy'}}, 'own.Strategy'),
], ids=str)
def test_not_runnable(columns, expected):
    reason = runs.why_not_runnable(make_task(**columns))
    assert bool(reason) is bool(expected) and expected in reason


def test_may_run(user):
    """A permission with that action, on that task."""
    task, other = make_task(), make_task('plugin:other')
    grant(user, CeleryTask, actions=['view'])
    assert not runs.may_run(user, task)
    grant(user, CeleryTask, actions=['run'], constraints={'name': HELLO_WORLD})
    user = reloaded(user)
    assert (runs.may_run(user, task), runs.may_run(user, other)) == (True, False)


@pytest.mark.parametrize('names, is_permitted', [
    ([HELLO_WORLD], True), ([HELLO_WORLD, 'plugin:other'], False), (['plugin:unknown'], False), (['celery.map'], False),
    ([], True),
], ids=str)
def test_check_calls(user, names, is_permitted):
    """All calls are checked; those without a catalogue entry, or that call others, need the right to run all tasks."""
    make_task(), make_task('plugin:other'), make_task('celery.map')
    grant(user, CeleryTask, actions=['run'], constraints={'name__in': [HELLO_WORLD, 'celery.map']})
    if is_permitted:
        runs.check_calls(user, names)
    else:
        with pytest.raises(PermissionDenied):
            runs.check_calls(user, names)
    grant(user, CeleryTask, actions=['run'])
    runs.check_calls(reloaded(user), names)


def test_disabled(user):
    """Also inside another call; permission is checked first."""
    make_task(enabled=False)
    result = make_result(celery_name='celery.map', args=[], kwargs=MAP)
    with pytest.raises(PermissionDenied):
        runs.check_rerun(user, result)
    grant(user, CeleryTask, actions=['run'])
    with pytest.raises(runs.NotRunnable, match='is disabled'):
        runs.check_rerun(reloaded(user), make_result(celery_name='plugin:unknown'), result)


def test_run_that_calls_itself_too_deeply(user):
    value = []
    for __ in range(3000):
        value = [value]
    result = CeleryResult(celery_name='celery.chord', args=[value], kwargs={})
    with pytest.raises(runs.NotRunnable, match='nested too deeply'):
        runs.check_rerun(user, result)


# Run

def test_run(request_of, user):
    result = runs.run(request_of, make_task(), kwargs={'name': 'you'})
    assert (result.user, result.kwargs, result.status) == (user, {'name': 'you'}, 'pending')
    assert logged() == [(result.pk, 'create', '')]
    assert ObjectChange.objects.get().user == user


def test_run_of_what_calls_others(request_of, user):
    """`celery.map` and the like need the permission for what they call."""
    task = make_task('celery.map')
    make_task()
    grant(user, CeleryTask, actions=['run'], constraints={'name': 'celery.map'})
    with pytest.raises(PermissionDenied):
        runs.run(request_of, task, kwargs=MAP)
    assert not CeleryResult.objects.exists()


@pytest.mark.parametrize('joined', [False, True])
def test_joined(request_of, monkeypatch, joined):
    """A call that joined another run has created none, for the change log."""
    result = make_result('running')
    result.joined = joined
    monkeypatch.setattr(CeleryResult, 'enqueue', lambda *args, **kwargs: result)
    assert runs.run(request_of, make_task()) is result
    assert len(logged()) == (not joined)


def test_rerun(request_of, user):
    done = make_result('failed', args=['you'], kwargs={})
    again = runs.rerun(request_of, done)
    assert (again.celery_name, again.args, again.user, again.status) == (HELLO_WORLD, ['you'], user, 'pending')
    assert logged() == [(again.pk, 'create', f'Run again from run {done.pk}')]


def test_rerun_on_an_unknown_queue(request_of):
    done = make_result('failed', args=[], kwargs={}, options={'queue': 'unacked'})
    with pytest.raises(QueueRefused):
        runs.rerun(request_of, done)
    assert (CeleryResult.objects.count(), logged()) == (1, [])


# Cancel

@pytest.mark.parametrize('status, expected', [
    ('pending', 'revoked'), ('scheduled', 'revoked'), ('running', 'running'), ('completed', 'completed'),
])
def test_cancel(request_of, status, expected):
    """Once, as long as the run is unfinished; its entry has the values from before."""
    result = make_result(status)
    could = status != 'completed'
    assert [runs.cancel(request_of, result) for __ in range(2)] == [could, False]
    result.refresh_from_db()
    assert (result.status, result.cancelled is not None) == (expected, could)
    assert logged() == ([(result.pk, 'update', 'Cancelled')] if could else [])
    if could:
        assert ObjectChange.objects.get().prechange_data['cancelled'] is None


def test_cancel_many(request_of, monkeypatch):
    """In batches; finished runs are not changed."""
    monkeypatch.setattr(runs, 'BATCH', 2)
    waiting, done = [make_result('pending') for __ in range(4)], make_result('completed')
    ids = [waiting[0].pk, done.pk, *(run.pk for run in waiting[1:])]
    assert runs.cancel_many(request_of, iter(ids)) == 4
    assert sorted(logged()) == [(run.pk, 'update', 'Cancelled') for run in waiting]
    assert {change.prechange_data['status'] for change in ObjectChange.objects.all()} == {'pending'}
    assert runs.cancel_many(request_of, ids) == 0


def test_cancel_workflow(request_of, user):
    """Runs that the user may view and cancel; others continue, and so do other workflows."""
    first = make_result('running', name='mine 1')
    CeleryResult.objects.filter(pk=first.pk).update(root_id=first.task_id)
    first.refresh_from_db()
    columns = {'root_id': first.task_id, 'parent_id': first.task_id}
    make_result('pending', name='mine 2', **columns)
    make_result('completed', name='mine 3', **columns)
    make_result('pending', name='not to cancel', **columns)
    make_result('pending', name='not to view', **columns)
    make_result('pending', name='mine elsewhere')
    grant(user, CeleryResult, constraints=[{'name__startswith': 'mine'}, {'name': 'not to cancel'}])
    grant(user, CeleryResult, actions=['cancel'], constraints=[{'name__startswith': 'mine'}, {'name': 'not to view'}])

    def names(queryset):
        return sorted(queryset.values_list('name', flat=True))
    assert names(runs.cancellable(request_of, first)) == ['mine 1', 'mine 2']
    assert runs.is_under_way(request_of, first)
    assert runs.cancel_workflow(request_of, first) == (2, 2)
    assert names(CeleryResult.objects.filter(cancelled__isnull=False)) == ['mine 1', 'mine 2']
    assert names(runs.cancellable(request_of, first)) == []
    assert runs.is_under_way(request_of, first)  # the first one runs, and was asked to stop
    assert runs.cancel_workflow(request_of, first) == (0, 2)
    CeleryResult.objects.filter(pk=first.pk).update(status='revoked')
    assert not runs.is_under_way(request_of, first)


def test_chord_that_continues(request_of, user):
    """A finished part may be about to send the body: it is marked as cancelled, too."""
    grant(user, CeleryResult, actions=['view', 'cancel'])
    part = make_result('completed', options={'chord': {'task': 'body'}})
    assert runs.cancel_workflow(request_of, part) == (0, 0)
    part.refresh_from_db()
    assert part.cancelled is not None
