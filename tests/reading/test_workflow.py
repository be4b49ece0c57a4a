"""The tree of a workflow, what a page shows of it, and the bars of its timeline."""
from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone

from netbox_celery.models import CeleryResult
from netbox_celery.reading import workflow as reader
from tests.factories import grant, make_result
from users.models import User

pytestmark = pytest.mark.django_db


@pytest.fixture
def user():
    user = User.objects.create_user('reader')
    grant(user, CeleryResult, constraints=[{'name__startswith': 'a'}, {'name__startswith': 'b'}])
    return user


class Family:
    """Runs by name: `make(name, under)`."""

    def __init__(self):
        self.root_id = uuid4()
        self.runs = {}

    def make(self, name, under=None, status='completed', **columns):
        task_id = uuid4() if self.runs else self.root_id
        parent_id = self.runs[under].task_id if under else None
        self.runs[name] = make_result(
            status, name=name, task_id=task_id, root_id=self.root_id, parent_id=parent_id, **columns
        )
        return self.runs[name]


@pytest.fixture
def family():
    return Family()


def outline(workflow):
    return [(node.run.name, node.parent and node.parent.run.name, node.depth) for node in workflow.nodes]


def test_chain(family, user, django_assert_num_queries):
    """Successive runs are listed without an indent; it takes two queries."""
    for name, under in (('a1', None), ('a2', 'a1'), ('a3', 'a2')):
        last = family.make(name, under)
    user.get_all_permissions()
    with django_assert_num_queries(2):
        workflow = reader.load_workflow(last, user)
    assert outline(workflow) == [('a1', None, 0), ('a2', 'a1', 0), ('a3', 'a2', 0)]
    assert (workflow.root_id, workflow.hidden, workflow.is_cut) == (family.root_id, 0, False)


def test_branches(family, user):
    """The tree branches only where a run starts several; each is listed before what is under it."""
    for name, under in (('a', None), ('b1', 'a'), ('b2', 'a'), ('b1x', 'b1'), ('b2x', 'b2'), ('b2y', 'b2')):
        family.make(name, under)
    assert outline(reader.load_workflow(family.runs['b2'], user)) == [
        ('a', None, 0), ('b1', 'a', 1), ('b1x', 'b1', 1), ('b2', 'a', 1), ('b2x', 'b2', 2), ('b2y', 'b2', 2),
    ]


def test_hidden(family, user):
    """Children of a hidden run move up to the next visible one, or to the top."""
    names = ['hidden1', 'a', 'hidden2', 'hidden3', 'b']
    for name, under in zip(names, [None, *names]):
        family.make(name, under)
    workflow = reader.load_workflow(family.runs['b'], user)
    assert outline(workflow) == [('a', None, 0), ('b', 'a', 0)]
    assert workflow.hidden == 3


def test_circle(family, user):
    """Rows that name each other, or themselves, as parents end the search."""
    one, two = family.make('a1'), family.make('a2', 'a1')
    CeleryResult.objects.filter(pk=one.pk).update(parent_id=two.task_id)
    CeleryResult.objects.filter(pk=two.pk).update(parent_id=two.task_id)
    assert outline(reader.load_workflow(one, user)) == [('a1', None, 0), ('a2', None, 0)]


def test_most_runs(family, user, monkeypatch):
    monkeypatch.setattr(reader, 'MAX_RUNS', 2)
    first = family.make('a1')
    family.make('a2', 'a1')
    assert not reader.load_workflow(first, user).is_cut
    family.make('a3', 'a2')
    workflow = reader.load_workflow(first, user)
    assert (workflow.is_cut, workflow.hidden, [node.run.name for node in workflow.nodes]) == (True, 0, ['a1', 'a2'])


def test_is_workflow(family):
    alone, first = make_result(), family.make('a')
    assert not reader.is_workflow(alone) and not reader.is_workflow(first)
    second = family.make('b', 'a')
    assert reader.is_workflow(first) and reader.is_workflow(second) and not reader.is_workflow(alone)


def test_times(family, user):
    """It lasts from its first creation to its last end, or until now while a run is unfinished."""
    begin = timezone.now() - timedelta(seconds=100)
    first, second = family.make('a'), family.make('b', 'a')
    CeleryResult.objects.update(created=begin)
    for run, seconds in ((first, 60), (second, 10)):
        CeleryResult.objects.filter(pk=run.pk).update(completed=begin + timedelta(seconds=seconds))
    workflow = reader.load_workflow(first, user)
    assert (workflow.is_finished, workflow.started, workflow.duration) == (True, begin, timedelta(seconds=60))
    CeleryResult.objects.filter(pk=second.pk).update(status='running', completed=None)
    workflow = reader.load_workflow(first, user)
    assert (workflow.is_finished, workflow.finished) == (False, workflow.now)
    assert workflow.duration >= timedelta(seconds=100)


def test_nothing_to_see(family):
    """A user who may view none of it."""
    workflow = reader.load_workflow(family.make('hidden'), User.objects.create_user('stranger'))
    assert (workflow.nodes, workflow.hidden, workflow.duration) == ([], 1, timedelta())
    assert reader.rows(workflow, ()) == []


# The page

def shown(workflow, *opened):
    return [
        (f'{item.name} x{len(item.nodes)}', item.is_open, item.depth) if isinstance(item, reader.Group)
        else (item.run.name, None, item.depth) for item in reader.rows(workflow, opened)
    ]


@pytest.fixture
def group(family):
    """A run that starts a group, a body that follows one of its parts, and a run beside the group."""
    family.make('a')
    group_id = uuid4()
    for number in range(reader.FOLD_FROM):
        family.make(f'b{number}', 'a', group_id=group_id)
        CeleryResult.objects.filter(name__startswith='b').update(name='b')
    family.make('beside', 'a')
    body = family.make('body', 'b3')
    return body, str(group_id)


def test_folded(group, user):
    """The parts of a group are one line; what follows one of them is shown all the same."""
    body, __ = group
    assert shown(reader.load_workflow(body, user)) == [
        ('a', None, 0), ('b x8', False, 1), ('body', None, 1), ('beside', None, 1)
    ]


def test_unfolded(group, user):
    body, key = group
    assert shown(reader.load_workflow(body, user), key) == [
        ('a', None, 0), ('b x8', True, 1), *[('b', None, 2)] * 4, ('body', None, 1), *[('b', None, 2)] * 4,
        ('beside', None, 1),
    ]


def test_small_group(family, user):
    """A small group is not folded."""
    family.make('a')
    group_id = uuid4()
    for number in range(reader.FOLD_FROM - 1):
        family.make(f'b{number}', 'a', group_id=group_id)
    assert len(shown(reader.load_workflow(family.runs['a'], user))) == reader.FOLD_FROM


def test_group_of_chains(user):
    """The first runs of several chains are grouped, though only their root connects them."""
    root_id = uuid4()
    for __ in range(reader.FOLD_FROM):
        run = make_result(name='a', root_id=root_id)
    (row, is_open, __), = shown(reader.load_workflow(run, user))
    assert (row, is_open) == ('a x8', False)


def test_name_and_statuses():
    """Some of the names, and the number of runs by status, in the order of the statuses."""
    runs = [make_result(status, name=name) for status, name in (
        ('errored', 'd'), ('completed', 'c'), ('running', 'b'), ('completed', 'a'), ('completed', 'a')
    )]
    group = reader.Group('key', [reader.Node(run) for run in runs])
    assert group.name == 'a, b, c, …'
    assert sorted((status, count) for status, __, __, count in group.statuses) == [
        ('completed', 3), ('errored', 1), ('running', 1)
    ]
    assert reader.Group('key', group.nodes[1:3]).name == 'b, c'
    assert reader.Group('key', group.nodes[3:]).name == 'a'


# The timeline

def test_bars(family, user):
    """The time that a run waited, and each of its attempts; the last one has the run's color."""
    begin = timezone.now() - timedelta(seconds=100)

    def at(seconds):
        return (begin + timedelta(seconds=seconds)).isoformat()
    run = family.make('a', status='errored', completed=begin + timedelta(seconds=100), attempts=[
        {'number': 1, 'started': at(10), 'ended': at(30)}, {'number': 2, 'started': at(50), 'ended': at(100)},
    ])
    CeleryResult.objects.update(created=begin)
    workflow = reader.load_workflow(run, user)
    bars = reader.bars(workflow, workflow.nodes[0].run)
    assert [(bar['kind'], bar['left'], bar['width']) for bar in bars] == [
        ('wait', '0.000', '10.000'), ('retrying', '10.000', '20.000'), ('wait', '30.000', '20.000'),
        ('errored', '50.000', '50.000'),
    ]
    assert reader.span(workflow, workflow.nodes) == {'kind': 'group', 'left': '0.000', 'width': '100.000'}


@pytest.mark.parametrize('status, kinds', [
    ('pending', ['wait']), ('revoked', ['wait']), ('running', ['running']), ('retrying', ['retrying', 'wait']),
])
def test_bars_of_unfinished_runs(family, user, status, kinds):
    started = timezone.now() - timedelta(seconds=50)
    attempts = {
        'running': [{'number': 1, 'started': started.isoformat(), 'ended': None}],
        'retrying': [{'number': 1, 'started': started.isoformat(), 'ended': timezone.now().isoformat()}],
    }.get(status, [])
    run = family.make('a', status=status, attempts=attempts)
    CeleryResult.objects.update(created=started)
    workflow = reader.load_workflow(run, user)
    assert [bar['kind'] for bar in reader.bars(workflow, workflow.nodes[0].run)] == kinds
