"""Calls on commit return the run that they will become."""
from uuid import UUID, uuid4

import pytest
from celery import signature
from celery.result import EagerResult
from celery.utils.functional import maybe_list
from django.db import transaction
from kombu.exceptions import OperationalError

from netbox_celery.celery import app
from netbox_celery.models import CeleryResult

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def task(make_task):
    return make_task(lambda self, task_id, a=None: a, name='tests:on_commit')


@pytest.fixture
def plain(make_task):
    """A task of Celery's own class."""
    task = make_task(lambda self, a=None: a, name='tests:plain', base=app.Task)
    task.netbox_track = True
    return task


def row(result):
    return CeleryResult.objects.get(task_id=result.id)


@pytest.mark.parametrize('kind', ['task', 'plain'])
@pytest.mark.parametrize('how', ['apply_async', 'delay', 'using'])
def test_in_a_transaction(request, kind, how):
    task = request.getfixturevalue(kind)
    with transaction.atomic():
        if how == 'delay':
            result = task.delay_on_commit(5)
        else:
            result = task.apply_async_on_commit((5,), **({'using': 'default'} if how == 'using' else {}))
        assert type(result) is app.AsyncResult
        assert UUID(result.id)
        assert result.state == 'PENDING'
        assert not CeleryResult.objects.exists()
    assert (row(result).args, row(result).celery_name) == ([5], task.name)


@pytest.mark.parametrize('how', ['apply_async', 'delay'])
def test_outside_of_a_transaction(task, how):
    result = task.delay_on_commit(5) if how == 'delay' else task.apply_async_on_commit((5,))
    assert type(result) is app.AsyncResult
    assert row(result).args == [5]


def test_options(task):
    """The ID in any spelling, the user, links, and what `delay` takes by name."""
    task_id = uuid4()
    with transaction.atomic():
        spelled = task.apply_async_on_commit((1,), task_id=task_id.hex.upper())
        linked = task.apply_async_on_commit((2,), link=task.si(3), link_error=signature('tests:on_commit'))
        named = task.delay_on_commit(4, netbox_name='Named', ignore_result=True)
    assert spelled.id == str(task_id)
    assert row(spelled).args == [1]
    assert [link['args'] for link in maybe_list(row(linked).options['link'])] == [[3]]
    assert (row(named).name, row(named).args, named.ignored) == ('Named', [4], True)


def test_rollback(task):
    """After a rollback of the transaction or of a savepoint, the result is that of a run that does not exist."""
    with transaction.atomic():
        kept = task.delay_on_commit('kept')
        with pytest.raises(KeyError), transaction.atomic():
            lost = task.delay_on_commit('lost')
            raise KeyError
        with transaction.atomic():
            nested = task.delay_on_commit('nested')
    with pytest.raises(KeyError), transaction.atomic():
        gone = task.delay_on_commit('gone')
        raise KeyError
    assert {run.args[0] for run in CeleryResult.objects.all()} == {'kept', 'nested'}
    assert {str(run.task_id) for run in CeleryResult.objects.all()} == {kept.id, nested.id}
    assert lost.state == gone.state == 'PENDING'


def test_untracked(task):
    with transaction.atomic():
        result = task.delay_on_commit(5, netbox_track=False)
    assert UUID(result.id)
    assert not CeleryResult.objects.exists()


def test_eager(task, eager):
    """In eager mode the task runs on commit, not before."""
    with transaction.atomic():
        assert UUID(task.delay_on_commit(5).id)
    assert type(task.delay_on_commit(5)) is EagerResult


def test_joined(make_task):
    """Code that has the ID learns that the call did not become a run, and which run it joined."""
    task = make_task(lambda self, task_id, a=None: a, name='tests:on_commit_unique', unique=True,
                     stale_time_limit=600)
    under_way = task.delay(1)
    with transaction.atomic():
        result = task.delay_on_commit(1)
    assert (row(result).status, row(result).reason) == ('ignored', 'joined')
    assert under_way.id in row(result).error
    assert result.state == 'IGNORED'
    # Without a transaction the call returns that run, as `delay` does
    assert task.delay_on_commit(1).id == under_way.id


def test_refused(task):
    """A call that is refused on commit raises an error, which its row records."""
    with app.connection_for_write('redis://127.0.0.1:1/0') as nobody:
        with pytest.raises(OperationalError), transaction.atomic():
            result = task.apply_async_on_commit((1,), connection=nobody, retry=False)
    assert (row(result).status, row(result).reason) == ('errored', 'publish_failed')
