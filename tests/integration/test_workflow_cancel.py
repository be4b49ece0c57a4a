"""A cancelled workflow stays cancelled, whatever is active at that moment."""
import pytest
from celery import chain, chord, group
from django.db import transaction
from netbox_test_plugin.side import notes, open_gate
from netbox_test_plugin.tasks import canvas as tasks

from core.models import ObjectChange
from netbox_celery.models import CeleryResult
from netbox_celery.services import runs as actions
from users.models import User

from .support import row, until
from .test_canvas import ENDS, all_ended, rows


@pytest.fixture
def request_(rf):
    """A request of a user who may cancel everything."""
    from uuid import uuid4

    request = rf.get('/')
    request.user, request.id = User.objects.create_superuser('admin'), uuid4()
    return request


def running(task=tasks.pass_gate, count=1):
    return until(lambda: len(found := list(CeleryResult.objects.filter(
        status='running', celery_name=task.name
    ))) == count and found)


@pytest.mark.parametrize('shape', ['chain', 'chord'])
def test_terminated(prefork, request_, gate, shape):
    """Active runs are terminated, later steps get their rows, and waiting for them ends."""
    step, last = tasks.pass_gate.s(gate=gate).set(queue=prefork.queue), tasks.add.s(1).set(queue=prefork.queue)
    outcome = chain(step, last)() if shape == 'chain' else chord([step, step.clone()], last)()
    held = running(count=1 if shape == 'chain' else 2)
    assert actions.cancel_workflow(request_, held[0]) == (len(held), 0)
    *first, unreached = all_ended(len(held) + 1)
    assert {run.status for run in first} == {'revoked'}
    assert (unreached.status, unreached.reason) == ('errored', 'upstream_failed')
    with pytest.raises(Exception):
        outcome.get(timeout=10)
    assert {change.changed_object_id for change in ObjectChange.objects.all()} == {run.pk for run in held}
    assert {change.user for change in ObjectChange.objects.all()} == {request_.user}


@pytest.mark.parametrize('pool', ['prefork', 'threads'])
def test_nested_chord(pool, request, request_, gate):
    """A chord with a part that is a cancelled chord ends, whether or not its parts can be terminated."""
    worker = request.getfixturevalue(pool)
    step, last = tasks.pass_gate.s(gate=gate).set(queue=worker.queue), tasks.add.s(1).set(queue=worker.queue)
    outcome = chord([chord([step, step.clone()], last), last.clone()], last.clone())()
    held = running(count=2)
    actions.cancel_workflow(request_, held[0])
    if pool == 'threads':
        open_gate(gate)
    until(lambda: len(rows()) == 5 and all(run.status in ENDS for run in rows()), 20, rows)
    for id in (outcome.id, outcome.parent.results[0].id):
        assert (row(id).status, row(id).reason) in (('revoked', 'cancelled'), ('errored', 'upstream_failed'))
        assert notes(id) == []
    until(lambda: outcome.state == 'FAILURE')
    with pytest.raises(Exception):
        outcome.get(timeout=10)


@pytest.mark.parametrize('shape', ['chain', 'chord', 'group', 'link'])
def test_born_revoked(threads, request_, gate, shape):
    """A task that cannot be terminated finishes; what it then sends, or what follows it, never runs."""
    step, last = tasks.pass_gate.s(gate=gate).set(queue=threads.queue), tasks.add.s(1).set(queue=threads.queue)
    outcome = {
        'chain': lambda: chain(step, last, last.clone()).apply_async(),
        'chord': lambda: chord([step, step.clone()], last).apply_async(),
        'group': lambda: chain(step, group(last, last.clone())).apply_async(),
        'link': lambda: step.apply_async(link=last),
    }[shape]()
    held = running(count=2 if shape == 'chord' else 1)
    actions.cancel_workflow(request_, held[0])
    open_gate(gate)
    runs = all_ended(3 if shape in ('chain', 'chord', 'group') else 2)
    later = [run for run in runs if run.pk not in {run.pk for run in held}]
    assert {run.status for run in runs if run not in later} == {'revoked'}
    for run in later:
        assert (run.status, run.reason) in (('revoked', 'cancelled'), ('errored', 'upstream_failed'))
        assert notes(run.task_id) == []
    if shape in ('chain', 'chord'):
        with pytest.raises(Exception):
            outcome.get(timeout=10)


@pytest.mark.parametrize('options', [{}, {'atomic': True}, {'many': True}, {'atomic': True, 'many': True}])
def test_call_of_a_cancelled_run(threads, request_, gate, options):
    """Nor does what its body starts, also in a transaction, and in bulk."""
    run = threads.send(tasks.start_later, gate, threads.queue, kwargs=options)
    running(tasks.start_later)
    actions.cancel_workflow(request_, row(run))
    open_gate(gate)
    first, second = all_ended(2)
    assert (first.status, second.status, second.reason) == ('revoked', 'revoked', 'cancelled')
    assert 'cancelled' in second.error
    assert notes(second.task_id) == []


def test_waiting_workflow(request_):
    """Without any worker, everything that is queued is revoked immediately."""
    parts = [tasks.add.s(number).set(queue='nowhere') for number in range(20)]
    outcome = chord([chord(parts[1:], tasks.add.s()), parts[0]], tasks.add.s(1))()
    assert actions.cancel_workflow(request_, rows()[3]) == (20, 0)
    runs = all_ended(22)
    assert {run.status for run in runs[:20]} == {'revoked'}
    assert {run.reason for run in runs[20:]} == {'upstream_failed'}
    assert outcome.state == 'FAILURE'


def test_under_fire(prefork, threads, request_):
    """At whatever moment a workflow is cancelled, none of its runs starts afterwards, and all of them end."""
    for number in range(8):
        part = chain(*(tasks.add.s(number).set(queue=prefork.queue) for number in range(3)))
        outcome = chord([part, part.clone()], tasks.add.s(1).set(queue=threads.queue))
        outcome = chain(outcome, tasks.add.s(1).set(queue=prefork.queue)).apply_async()
        before = CeleryResult.objects.latest('pk').pk
        until(lambda: notes(outcome.id) or CeleryResult.objects.filter(
            root_id=CeleryResult.objects.get(pk=before).root_id, status='completed'
        ).count() >= number)
        one = CeleryResult.objects.get(pk=before)
        actions.cancel_workflow(request_, one)
        done = set(CeleryResult.objects.filter(status='completed').values_list('pk', flat=True))
        until(lambda: all(run.status in ENDS for run in rows()))
        with transaction.atomic():
            late = CeleryResult.objects.filter(status='completed').exclude(pk__in=done)
            assert not late.exists(), [(str(run), run.status, run.cancelled) for run in rows()]
