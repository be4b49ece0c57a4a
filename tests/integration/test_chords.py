"""Chords that Celery has lost count of continue, from the rows."""
from contextlib import closing
from datetime import timedelta

import pytest
from celery import chain, chord, group
from django.db.models import F
from django.utils import timezone
from netbox_test_plugin.side import notes, open_gate
from netbox_test_plugin.tasks import canvas as tasks
from netbox_test_plugin.tasks import echo
from redis import Redis

from netbox_celery.celery import app
from netbox_celery.engine.results.chords import GRACE, Watch
from netbox_celery.engine.store.database import EngineConnection
from netbox_celery.models import CeleryResult

from .support import ended, row, until


@pytest.fixture
def look():
    """Look for chords that stand still, as a worker does a minute after the last part has ended."""
    with closing(EngineConnection()) as connection:
        def look():
            CeleryResult.objects.filter(completed__gt=timezone.now() - timedelta(seconds=GRACE)).update(
                completed=F('completed') - timedelta(seconds=GRACE)
            )
            return Watch().look(connection, app)
        yield look


def forget(services, group_id):
    """Delete Redis' count of a chord."""
    with Redis.from_url(services.redis.url()) as client:
        keys = client.keys(f'*{group_id}*')
        assert keys
        client.delete(*keys)


def at_the_gate(task, others):
    """Wait until all parts of a chord but the one at the gate have finished; returns its row."""
    part = until(lambda: CeleryResult.objects.filter(celery_name=task.name, status='running').first())
    until(lambda: CeleryResult.objects.filter(status='completed').count() == others)
    return part


def lose_count(services, gate, part):
    """Delete Redis' count before the last part finishes; returns that part's row."""
    forget(services, part.group_id)
    open_gate(gate)
    return ended(part.task_id)


CHORDS = {
    'list': lambda on, gate: chord([on(tasks.add.s(1)), on(tasks.add.s(2)), gate], on(tasks.add.s(10))),
    'generator': lambda on, gate: chord((part for part in (on(tasks.add.s(3)), gate)), on(tasks.add.s(10))),
    'chains': lambda on, gate: chord(
        [gate, chain(on(tasks.add.s(1)), on(tasks.add.s(1)))], chain(on(tasks.add.s(11)), on(tasks.add.s(0)))
    ),
    'chord': lambda on, gate: chord(
        [gate, chord([on(tasks.add.s(1)), on(tasks.add.s(1))], on(tasks.add.s(0)))], on(tasks.add.s(11))
    ),
    'body of steps': lambda on, gate: chord(
        [on(tasks.add.s(1)), gate],
        chain(on(tasks.add.s(1)), chord([on(tasks.add.s(1)), on(tasks.add.s(2))], on(tasks.add.s(5)))),
    ),
    'one': lambda on, gate: chord([gate], on(tasks.add.s(13))),
    'in a chain': lambda on, gate: chain(
        on(tasks.add.s(1)), group(on(tasks.add.s(1)), gate), on(tasks.add.s(11))
    ),
}


@pytest.mark.parametrize('kind', CHORDS)
def test_count_lost(services, user, on, gate, look, kind):
    """The body is sent once all parts have finished, with their results in order, and only once."""
    waits = on(tasks.pass_gate.si(gate=gate))
    outcome = CHORDS[kind](on, waits).apply_async(netbox_user=user)
    part = until(lambda: CeleryResult.objects.filter(celery_name=tasks.pass_gate.name, status='running').first())
    until(lambda: not CeleryResult.objects.exclude(pk=part.pk).exclude(status='completed').exists())
    # Redis knows the size, at least
    forget(services, part.group_id)
    assert look() == 0

    open_gate(gate)
    assert ended(part.task_id).status == 'completed'
    before = CeleryResult.objects.count()
    assert look() == 1
    assert outcome.get(timeout=20) == 14
    after = CeleryResult.objects.count()
    assert after > before
    # As if the part that finished last had sent it
    assert set(CeleryResult.objects.values_list('root_id', 'user')) == {(part.root_id, user.pk)}
    following = CeleryResult.objects.order_by('pk')[before]
    assert following.parent_id == part.task_id
    assert look() == 0
    assert (CeleryResult.objects.count(), len(notes(outcome.id))) == (after, 1)


def test_arguments_of_the_body(services, on, gate, look):
    """Results from before and after the loss are in the order of the parts."""
    outcome = chord(
        [on(tasks.echo_list.s('a')), on(tasks.pass_gate.si(gate=gate)), on(tasks.echo_list.s('c'))],
        on(tasks.echo_list.s()),
    )()
    lose_count(services, gate, at_the_gate(tasks.pass_gate, 2))
    assert look() == 1
    assert outcome.get(timeout=20) == [['a'], 1, ['c']]


@pytest.mark.parametrize('step', [1, -1])
def test_shape_of_the_arguments(services, on, gate, look, step):
    """If a chain in the header ends in a group, the body gets a list within the list."""
    header = [
        chain(on(tasks.add.s(1)), group(on(tasks.add.s(1)), on(tasks.add.s(2)))), on(tasks.pass_gate.si(gate=gate))
    ]
    outcome = chord(header[::step], on(tasks.echo_list.s()))()
    lose_count(services, gate, at_the_gate(tasks.pass_gate, 3))
    assert look() == 1
    assert outcome.get(timeout=20) == [[2, 3], 1][::step]


def test_failed_part(services, on, gate, look):
    """A body that will not run is closed, and names the part that failed."""
    outcome = chord([on(tasks.break_at_gate.s(gate)), on(tasks.add.s(1))], on(tasks.add.s()))()
    part = lose_count(services, gate, at_the_gate(tasks.break_at_gate, 1))
    assert part.status == 'errored'
    assert look() == 1
    body = row(outcome.id)
    assert (body.status, body.reason, body.culprit_id) == ('errored', 'upstream_failed', str(part.task_id))
    assert outcome.state == 'FAILURE'
    assert look() == 0


def test_chord_that_is_not_stalled(on, look):
    """A chord that continued by itself is not touched, nor is one with an untracked body."""
    outcome = chord([on(tasks.add.s(1)), on(tasks.add.s(2))], on(tasks.add.s(3)))()
    assert outcome.get(timeout=20) == 6
    chord([on(tasks.add.s(1)), on(tasks.add.s(2))], on(tasks.add.s(3, netbox_track=False)))()
    until(lambda: CeleryResult.objects.filter(status='completed').count() == 5)
    assert look() == 0
    assert CeleryResult.objects.count() == 5


@pytest.mark.parametrize('header', [
    lambda on: [chain(on(tasks.add.si(1)), group(on(tasks.add.si(2)), on(tasks.add.si(3))))],
    lambda on: [group(on(tasks.add.si(2)), on(tasks.add.si(3))), on(tasks.add.si(1))],
    lambda on: [
        chain(on(tasks.add.si(1)), chain(on(tasks.add.si(1)), group(on(tasks.add.si(2)), on(tasks.add.si(3)))))
    ],
], ids=['chain that ends in a group', 'group', 'chain in a chain'])
@pytest.mark.parametrize('pool', ['prefork', 'threads'])
def test_group_in_a_header(shared_workers, pool, header):
    """The body gets the results in nested lists, whichever part finishes last, and no process waits."""
    worker = shared_workers(pool)

    def on(step):
        return step.set(queue=worker.queue)
    results = [chord(header(on), on(echo.s()))() for __ in range(4)]
    for result in results:
        (parts,), __ = result.get(timeout=20)
        flat = [number for part in parts for number in (part if isinstance(part, list) else [part])]
        assert sorted(flat) in ([2, 3], [1, 2, 3])
    assert worker.run(echo).status == 'completed'
