"""Workflows on real workers: chains, groups, chords, callbacks, and nested ones."""
import pytest
from celery import chain, chord, group, signature
from celery.exceptions import TimeoutError as CeleryTimeout
from django.utils import timezone
from netbox_test_plugin.side import noted, notes, open_gate
from netbox_test_plugin.tasks import canvas as tasks

from dcim.models import Site
from netbox_celery.models import CeleryLogEntry, CeleryResult

from .support import Worker, ended, lines, row, until, waiting

ENDS = ('completed', 'failed', 'errored', 'revoked', 'ignored')


def rows():
    return list(CeleryResult.objects.order_by('pk'))


def all_ended(count, timeout=20):
    """Wait until there are so many runs, and all have finished."""
    def reached():
        found = rows()
        return len(found) == count and all(result.status in ENDS for result in found) and found
    return until(reached, timeout, lambda: [(str(run), run.status, run.reason, run.error) for run in rows()])


def by_status(runs):
    found = {}
    for run in runs:
        found.setdefault(run.status, []).append(run)
    return found


def test_chain(on, user):
    """Three rows, one tree: each step is under the one before it, all as the user of the first."""
    outcome = chain(on(tasks.add.s(1, netbox_user=user)), on(tasks.add.s(2)), on(tasks.add.s(3)))()
    assert outcome.get(timeout=20) == 6
    assert outcome.parent.parent.get() == 1
    first, second, third = all_ended(3)
    assert [str(run.task_id) for run in (first, second, third)] == [
        outcome.parent.parent.id, outcome.parent.id, outcome.id
    ]
    assert (first.parent_id, second.parent_id, third.parent_id) == (None, first.task_id, second.task_id)
    assert {run.root_id for run in rows()} == {first.task_id}
    assert {run.user for run in rows()} == {user}
    assert [child.id for child in outcome.parent.parent.children] == [outcome.parent.id]


@pytest.mark.parametrize('canvas, runs', [
    (lambda on: chain(on(tasks.add.s(1)), on(tasks.add.s(2))), 2),
    (lambda on: on(tasks.add.s(1)) | on(tasks.add.s(2)) | on(tasks.add.s(3)), 3),
    (lambda on: chain(on(tasks.add.s(1)), group(on(tasks.add.s(2)), on(tasks.add.s(3)))), 3),
    (lambda on: group(chain(on(tasks.add.s(1)), on(tasks.add.s(2))), on(tasks.add.s(3))), 3),
    (lambda on: chord([on(tasks.add.s(1)), on(tasks.add.s(2))], on(tasks.add.s(3))), 3),
], ids=['chain', 'or', 'group in chain', 'chain in group', 'chord'])
def test_started_twice(on, canvas, runs):
    """A workflow can be started again: all of it runs again, under new IDs."""
    canvas = canvas(on)
    first, second = canvas.delay(), canvas.delay()

    assert first.get(timeout=20) == second.get(timeout=20)
    assert first.id != second.id
    all_ended(2 * runs)


def test_options_of_steps(on, user):
    """Later steps keep users and objects; the caller's signatures are unchanged, and can be used again."""
    site = Site.objects.create(name='Berlin', slug='berlin')
    later = on(tasks.add.s(2)).set(netbox_user=user, netbox_object=site, netbox_name='Later')
    also = on(tasks.add.s(3, netbox_kwargs={'user': user, 'object': site}))
    link = on(tasks.add.s(4)).set(netbox_object=site)
    for __ in range(2):
        outcome = chain(on(tasks.add.s(1)), later, also).apply_async(link=link)
        assert outcome.get(timeout=20) == 6
    assert later.options['netbox_user'] is user and later.options['netbox_object'] is site
    assert also.kwargs['netbox_kwargs']['object'] is site
    runs = all_ended(8)
    assert [(run.name, run.user, run.object) for run in runs[1:3]] == [
        ('Later', user, site), ('netbox_test_plugin:add', user, site)
    ]
    assert sum(run.object == site for run in runs) == 6


@pytest.mark.parametrize('shape', ['chain', 'group', 'chord'])
def test_options_of_the_whole(on, user, shape):
    """A whole workflow can be given a user and an object, too."""
    site = Site.objects.create(name='Berlin', slug='berlin')
    first, last = on(tasks.add.s(1)), on(tasks.add.s(2))
    whole = {
        'chain': lambda: chain(first, last), 'group': lambda: group(first, last), 'chord': lambda: chord([first], last)
    }[shape]()
    outcome = whole.apply_async(netbox_user=user, netbox_object=site)
    assert outcome.get(timeout=20) == ([1, 2] if shape == 'group' else 3)
    assert {run.user for run in all_ended(2)} == {user}
    assert rows()[0].object == site


def test_group(on):
    """The runs of a group have its ID, and a common root."""
    outcome = group(on(tasks.add.s(number)) for number in range(4))()
    assert outcome.get(timeout=20) == [0, 1, 2, 3]
    assert outcome.join() == [0, 1, 2, 3]
    assert outcome.completed_count() == 4
    runs = all_ended(4)
    assert {str(run.group_id) for run in runs} == {str(run.root_id) for run in runs} == {outcome.id}


def test_chord(on, user):
    outcome = chord([on(tasks.add.s(number, netbox_user=user)) for number in range(3)], on(tasks.add.s(10)))()
    assert outcome.get(timeout=20) == 13
    *header, body = all_ended(4)
    assert str(body.task_id) == outcome.id
    assert len({run.root_id for run in (*header, body)}) == 1
    assert len({run.group_id for run in header}) == 1
    assert body.parent_id in {run.task_id for run in header}
    assert {run.user for run in (*header, body)} == {user}


@pytest.mark.parametrize('shape, count, value', [
    ('chain of groups', 6, None),
    ('chord in chain', 5, 13),
    ('group of chains', 4, [3, 3]),
    ('chain in chord header', 4, 7),
    ('chord in chord header', 5, 9),
    ('group in chain', 4, [3, 4, 5]),
    ('chain in the last of groups', 7, None),
    ('chord and chain after a group', 7, [13, 1]),
])
def test_nested(on, shape, count, value):
    """However workflows are nested, the values are Celery's, and all runs are one workflow."""
    def add(*args):
        return on(tasks.add.s(*args))

    outcome = {
        'chain of groups': lambda: chain(
            group(add(1), add(2)), group(add(0), add(0)), group(add(1), add(1))
        ),
        'chord in chain': lambda: chain(add(1), group(add(1), add(2)), add(3), add(5)),
        'group of chains': lambda: group(chain(add(1), add(2)), chain(add(1), add(2))),
        'chain in chord header': lambda: chord([chain(add(1), add(2)), add(3)], add(1)),
        'chord in chord header': lambda: chord([chord([add(1), add(2)], add(1)), add(3)], add(2)),
        'group in chain': lambda: chain(add(1), group(add(2), add(3), add(4))),
        'chain in the last of groups': lambda: chain(
            group(add(1), add(2)), group(add(0), add(0)), group(add(1), chain(add(1), add(1)))
        ),
        'chord and chain after a group': lambda: group(
            chain(group(add(1), add(2)), chord([add(0)], add(3)), chain(add(3), add(4))), add(1)
        ),
    }[shape]().apply_async()
    found = outcome.get(timeout=20)
    if value is not None:  # of groups that follow groups, Celery forgets all but one of the values
        assert found == value
    runs = all_ended(count)
    assert {run.status for run in runs} == {'completed'}
    assert len({run.root_id for run in runs}) == 1, [(run.root_id, run.group_id, run.parent_id) for run in runs]


@pytest.mark.parametrize('kind', ['map', 'starmap', 'chunks'])
def test_map(prefork, kind):
    """There is one row for all items (for each chunk of them), with the name of the inner task."""
    items = [[number] for number in range(4)]
    whole = tasks.add.chunks(items, 2) if kind == 'chunks' else getattr(tasks.add, kind)(items)
    outcome = whole.apply_async(queue=prefork.queue)
    assert outcome.get(timeout=20) == ([[0, 1], [2, 3]] if kind == 'chunks' else [0, 1, 2, 3])
    names = [run.name for run in all_ended(2 if kind == 'chunks' else 1)]
    assert names == (
        ['netbox_test_plugin:add (starmap 2)'] * 2 if kind == 'chunks' else [f'netbox_test_plugin:add ({kind} 4)']
    )


def test_callbacks(on):
    """A link is a run of its own, under the one that it follows."""
    outcome = on(tasks.add.s(1)).apply_async(link=on(tasks.add.s(2)))
    first, second = all_ended(2)
    assert outcome.get() == 1
    assert (second.parent_id, second.root_id, second.result) == (first.task_id, first.task_id, 3)


def test_error_callbacks(on):
    """One that takes an ID is a run of its own; one that takes the exception is noted in the failed run's log."""
    outcome = on(tasks.break_.s()).apply_async(link_error=[on(tasks.errback.s()), tasks.inline_errback.s()])
    failed, called = all_ended(2)
    assert str(failed.task_id) == outcome.id
    assert (failed.status, called.celery_name, called.parent_id) == (
        'errored', tasks.errback.name, failed.task_id
    )
    assert 'Error callback: netbox_test_plugin:inline_errback' in lines(failed)
    assert {what for __, what in notes(failed.task_id)} == {'ran', 'inline broken', 'published'}


@pytest.mark.parametrize(('how', 'options'), [
    ('error', {}), ('kill', {}), ('slow', {'time_limit': 1}), ('slow', {'soft_time_limit': 1})
], ids=str)
def test_log_of_an_error_callback(on, prefork, how, options):
    """It is called once; the failed run's log names it before the end, its own lines are in the worker's log."""
    run = on(tasks.break_.s(how=how)).apply_async(link_error=tasks.inline_errback.s(), **options)
    failed = ended(run)
    noted, = CeleryLogEntry.objects.filter(result=failed)
    assert noted.message == 'Error callback: netbox_test_plugin:inline_errback'
    assert failed.started < noted.created < failed.completed
    until(lambda: f'called back for {run.id}' in prefork.output)
    prefork.run(tasks.add)
    assert len([what for __, what in notes(run.id) if what.startswith('inline')]) == 1
    assert CeleryLogEntry.objects.get(result=failed) == noted


def test_error_callback_of_a_cancelled_run(on, prefork, gate):
    """It is not called, since the run was cancelled before it failed, and so it is not named."""
    run = on(tasks.break_at_gate.s(gate=gate)).apply_async(link_error=tasks.inline_errback.s())
    waiting(run, 'running')
    CeleryResult.objects.filter(task_id=run.id).update(cancelled=timezone.now())
    open_gate(gate)
    assert (ended(run).status, lines(run)) == ('revoked', [])


@pytest.fixture(scope='module')
def replacing(instance, worker_log, side, django_db_blocker):
    """A worker for the default queue too: Celery sends a task of its own there when a group replaces a task."""
    worker = Worker(instance, worker_log, 'replacing')
    worker.command[worker.command.index('-Q') + 1] = 'replacing,celery'
    with django_db_blocker.unblock():
        worker.start().ready()
    yield worker
    worker.stop()


@pytest.mark.parametrize('how', ['chain', 'group', 'chord'])
@pytest.mark.parametrize('place', ['alone', 'chain', 'header'])
def test_replace(replacing, how, place):
    """A task that is replaced by a workflow keeps its row, and what follows it follows the workflow."""
    def on(signature):
        return signature.set(queue=replacing.queue)

    step = on(tasks.replace_by.si(how=how, queue=replacing.queue))
    value = {'chain': 2, 'group': [1, 1], 'chord': 4}[how]
    total = sum(value) if isinstance(value, list) else value
    if place == 'alone':
        outcome, expected = step.apply_async(), value
    elif place == 'chain':
        outcome, expected = chain(step, on(tasks.add.s(10))).apply_async(), total + 10
    else:
        outcome, expected = chord([step, on(tasks.add.s(5))], on(tasks.add.s(10))).apply_async(), None
    found = outcome.get(timeout=20)
    assert expected is None or found == expected
    runs = all_ended(len(rows()))
    assert {run.status for run in runs} == {'completed'}, [(str(run), run.status, run.reason) for run in runs]
    assert len({run.root_id for run in runs}) == 1


#
# Steps that will never run
#

def assert_unreached(run, culprit):
    run.refresh_from_db()
    assert (run.status, run.reason) == ('errored', 'upstream_failed')
    assert run.culprit_id == str(culprit.task_id)
    assert str(culprit) in run.error
    assert run.completed and not run.started and notes(run.task_id) == []


#: Ways in which a step does not succeed: how its body behaves, its limit, and how the run ends.
FAILURES = {
    'exception': ('error', {}, 'errored'),
    'task failed': ('failed', {}, 'failed'),
    'child killed': ('kill', {}, 'errored'),
    'hard limit': ('slow', {'time_limit': 1}, 'errored'),
    'soft limit': ('slow', {'soft_time_limit': 1}, 'errored'),
    'ignored': ('ignored', {}, 'ignored'),
    'rejected': ('rejected', {}, 'failed'),
}


@pytest.fixture(params=FAILURES)
def broken(on, request):
    """A step that does not succeed, and the final status of its run."""
    how, options, status = FAILURES[request.param]
    return on(tasks.break_.s(how=how)).set(**options), status


def test_chain_fails(on, broken):
    """The steps after a failed one get rows that name it, whether the child or its parent ends it."""
    step, status = broken
    outcome = chain(on(tasks.add.s(1)), step, on(tasks.add.s(2)), on(tasks.add.s(3)))()
    with pytest.raises(Exception):
        outcome.get(timeout=20)
    first, culprit, *unreached = all_ended(4)
    assert (first.status, culprit.status) == ('completed', status)
    for run in unreached:
        assert_unreached(run, culprit)
        assert run.root_id == first.task_id
    assert {outcome.state, outcome.parent.state} == {'FAILURE'}
    assert {str(run.task_id) for run in unreached} == {outcome.id, outcome.parent.id}


def test_chord_fails(on, broken):
    """A chord whose part fails fails its body; the other parts run."""
    step, status = broken
    outcome = chord([on(tasks.add.s(1)), step, on(tasks.add.s(2))], on(tasks.add.s(3)))()
    with pytest.raises(Exception):
        outcome.get(timeout=20)
    *__, body = runs = all_ended(4)
    assert len(by_status(runs)['completed']) == 2
    culprit = next(run for run in runs if run.celery_name == tasks.break_.name)
    assert (culprit.status, str(body.task_id)) == (status, outcome.id)
    assert_unreached(body, culprit)


@pytest.mark.parametrize('shape', ['chain', 'chord'])
def test_unregistered(on, shape):
    """So do the steps after a task that the worker does not know."""
    unknown, last = on(signature('netbox_test_plugin:no_such_task')), on(tasks.add.s(1))
    outcome = (chain(unknown, last) if shape == 'chain' else chord([unknown], last))()
    with pytest.raises(Exception) as caught:
        outcome.get(timeout=20)
    assert not isinstance(caught.value, CeleryTimeout)
    culprit, unreached = all_ended(2)
    assert culprit.reason == 'unregistered'
    assert_unreached(unreached, culprit)


def test_nested_canvas_fails(on):
    """Everything that would follow a failure is closed, also within a group, and the body of a chord around it."""
    outcome = chord([
        chain(on(tasks.break_.s()), group(on(tasks.add.s(1)), on(tasks.add.s(2))), on(tasks.add.s(3))),
        on(tasks.add.s(4)),
    ], chain(on(tasks.add.s(5)), on(tasks.add.s(6))))()
    with pytest.raises(Exception):
        outcome.get(timeout=20)
    found = by_status(all_ended(7))
    assert len(found['completed']) == 1
    culprit = next(run for run in found['errored'] if run.reason == '')
    unreached = [run for run in found['errored'] if run.reason]
    assert len(unreached) == 5
    for run in unreached:
        assert_unreached(run, culprit)
    assert len({run.root_id for run in rows()}) == 1
    members = [run.group_id for run in unreached if run.args in ([1], [2])]
    assert members[0] and members == [members[0]] * 2


@pytest.mark.parametrize('shape, called', [
    ('chord', 2),
    ('three deep', 3),
    ('chain body', 1),
    ('group body', 3),
    ('chord body', 1),
    ('group in a chain', 2),
    ('group in a longer chain', 1),
    ('chord in a group', 1),
    ('chord later in a chain', 2),
    ('group after it', 1),
    ('chord after it', 1),
])
def test_chord_around_a_failure(on, shape, called):
    """A chord that fails is a failed part of the chord around it, and so on to the outermost, once each."""
    add, broken, unreached = on(tasks.add.si(1)), on(tasks.break_.si()), []

    def last():
        unreached.append(on(tasks.add.s()).on_error(on(tasks.errback.s())))
        return unreached[-1]

    part = {
        'chord': lambda: chord([add, broken], last()),
        'three deep': lambda: chord([chord([broken, add], last()), add], last()),
        'chain body': lambda: chord([add, broken], chain(last(), last())),
        'group body': lambda: chord([add, broken], group(last(), last())),
        'chord body': lambda: chord([add, broken], chord([last(), last()], last())),
        'group in a chain': lambda: chain(group(add, broken), last()),
        'group in a longer chain': lambda: chain(group(add, broken), last(), last()),
        'chord in a group': lambda: group(chord([add, broken], last()), add),
        'chord later in a chain': lambda: chain(add, chord([add, broken], last())),
        'group after it': lambda: chain(broken, group(last(), last())),
        'chord after it': lambda: chain(broken, chord([last(), last()], chain(last(), group(last(), last())))),
    }[shape]()
    whole = chain(part, last(), last()) if shape == 'chord in a group' else chord([part, add], last())
    outcome = whole.apply_async()
    until(lambda: CeleryResult.objects.filter(reason='upstream_failed').count() == len(unreached), 20, rows)
    until(lambda: CeleryResult.objects.filter(celery_name=tasks.errback.name, status='completed').count() == called)
    culprit = CeleryResult.objects.get(celery_name=tasks.break_.name)
    found = []
    for run in CeleryResult.objects.filter(reason='upstream_failed'):
        assert (run.status, run.culprit_id) == ('errored', str(culprit.task_id))
        found.append(noted(run.task_id))
    assert sorted(found) == [[]] * (len(unreached) - called) + [['published']] * called
    until(lambda: outcome.state == 'FAILURE')
    with pytest.raises(Exception) as caught:
        outcome.get(timeout=5)
    assert not isinstance(caught.value, CeleryTimeout)
    assert len({run.root_id for run in rows()}) == 1


def test_chord_in_a_chord_fails(on, broken):
    """However the part of the inner chord ends without success, the body of the outer one is closed."""
    step, status = broken
    add = on(tasks.add.s(1))
    inner, outer = on(tasks.add.s()), on(tasks.add.s()).on_error(on(tasks.errback.s()))
    outcome = chord([chord([add, step], inner), add], outer).apply_async()
    runs = all_ended(6)
    culprit = next(run for run in runs if run.celery_name == tasks.break_.name)
    assert culprit.status == status
    unreached = [run for run in runs if run.reason == 'upstream_failed']
    assert len(unreached) == 2
    for run in unreached:
        assert run.culprit_id == str(culprit.task_id)
        assert noted(run.task_id) == (['published'] if str(run.task_id) == outcome.id else [])
    until(lambda: outcome.state == 'FAILURE')


def test_replacement_by_a_chord_fails(on, prefork):
    """A part of a chord that replaced itself with a failing chord has failed, and fails the body."""
    part = on(tasks.replace_by.si(how='broken chord', queue=prefork.queue))
    outcome = chord([part, on(tasks.add.s(1))], on(tasks.add.s())).apply_async()
    runs = all_ended(5)
    culprit = next(run for run in runs if run.celery_name == tasks.break_.name)
    replaced = next(run for run in runs if run.celery_name == tasks.replace_by.name)
    for run in (replaced, row(outcome)):
        assert (run.status, run.reason, run.culprit_id) == ('errored', 'upstream_failed', str(culprit.task_id))
    assert replaced.root_id == row(outcome).root_id == culprit.root_id
    until(lambda: outcome.state == 'FAILURE')


@pytest.mark.parametrize('shape', ['chain', 'chord'])
def test_untracked_step_fails(on, shape):
    """What would follow a run without a row belongs to its workflow all the same."""
    first, broken, last = on(tasks.add.s(1)), on(tasks.break_.s()).set(netbox_track=False), on(tasks.add.s())
    outcome = (chain(first, broken, last) if shape == 'chain' else chord([broken, first], last))()
    run, unreached = all_ended(2)
    assert (unreached.status, unreached.reason, unreached.root_id) == ('errored', 'upstream_failed', run.root_id)
    assert str(unreached.task_id) == outcome.id
    assert unreached.culprit_id == str((outcome.parent if shape == 'chain' else outcome.parent.results[0]).id)


def test_body_is_refused(on, prefork, gate):
    """A chord's body that is not sent, because its concurrency key is taken, says why."""
    holder = prefork.send(tasks.pass_gate, concurrency_key='body', kwargs={'gate': gate})
    waiting(holder, 'running')
    body = on(tasks.add.s()).set(concurrency_key='body', on_conflict='fail')
    outcome = chord([chord([on(tasks.add.s(1)), on(tasks.add.s(2))], body), on(tasks.add.s(3))], on(tasks.add.s()))()
    refused, last = until(
        lambda: len(found := CeleryResult.objects.filter(reason='upstream_failed').order_by('pk')) == 2 and [*found]
    )
    open_gate(gate)
    assert (str(refused.task_id), str(last.task_id)) == (outcome.parent.results[0].id, outcome.id)
    for run in (refused, last):
        assert run.error.startswith('Not run: TaskConflict: ') and holder.id in run.error
        assert notes(run.task_id) == []
    assert len({run.root_id for run in rows() if run.pk != row(holder).pk}) == 1
    until(lambda: outcome.state == 'FAILURE')


def test_replacement_by_a_chain_fails(on, prefork):
    """The row of a task that replaced itself ends with the replacing chain, and so does what follows."""
    outcome = chain(on(tasks.replace_by.si(how='broken', queue=prefork.queue)), on(tasks.add.s(1)))()
    with pytest.raises(Exception):
        outcome.get(timeout=20)
    runs = all_ended(3)
    assert {run.status for run in runs} == {'errored'}
    assert [run.reason for run in runs].count('upstream_failed') == 2


def test_replacement_by_a_chain_loses_its_connection(prefork):
    """A step that is sent after PostgreSQL closed the connection ends the row that it takes over."""
    run = prefork.send(tasks.replace_by, kwargs={'how': 'stale', 'queue': prefork.queue})
    assert (ended(run).status, row(run).result) == ('completed', 2)


def test_revoked_in_the_queue(make_worker):
    """What waits for a run that is cancelled before a worker starts ends immediately, also a chord's body."""
    worker = make_worker('later')
    steps = [tasks.add.s(number).set(queue='later') for number in range(3)]
    outcome = chain(*steps)()
    assert row(outcome.parent.parent).cancel()
    first, *unreached = all_ended(3)
    for run in unreached:
        assert_unreached(run, first)
    assert outcome.state == 'FAILURE'

    body = chord(steps[:1], steps[1])()
    row(body.parent.results[0]).cancel()
    assert ended(body.id).reason == 'upstream_failed'
    with pytest.raises(Exception) as caught:
        body.get(timeout=5)
    assert not isinstance(caught.value, CeleryTimeout)
    worker.start().ready()
    marker = worker.run(tasks.add, 1)
    assert marker.status == 'completed'
    assert all(notes(run.task_id) == [] for run in rows() if run.pk != marker.pk)


def test_expired(on):
    outcome = chain(on(tasks.add.s(1)).set(expires=0.001, countdown=1), on(tasks.add.s(2)))()
    first, second = all_ended(2)
    assert (first.status, first.reason) == ('revoked', 'expired')
    assert_unreached(second, first)
    assert outcome.state == 'FAILURE'


def test_not_published(on):
    """If the first message is refused, the later steps are closed as well."""
    from kombu.exceptions import OperationalError

    from netbox_celery.celery import app

    broken = app.connection('redis://127.0.0.1:1/0')
    with pytest.raises(OperationalError):
        chain(on(tasks.add.s(1)), on(tasks.add.s(2))).apply_async(connection=broken, retry=False)
    first, second = all_ended(2)
    assert (first.status, first.reason) == ('errored', 'publish_failed')
    assert_unreached(second, first)


def test_lost_worker(make_worker, prefork, gate):
    """A chord part that is lost with its worker fails the bodies, by the sweep of another worker."""
    victim = make_worker('victim-canvas', concurrency=1).start().ready()
    add = tasks.add.s(1).set(queue=prefork.queue)
    inner = chord([tasks.pass_gate.s(gate=gate).set(queue=victim.queue), add], add.clone())
    outcome = chord([inner, add.clone()], add.clone() | add.clone())()
    lost = until(lambda: CeleryResult.objects.filter(status='running', celery_name=tasks.pass_gate.name).first())
    victim.kill()
    with pytest.raises(Exception) as caught:
        outcome.get(timeout=30)
    assert not isinstance(caught.value, CeleryTimeout)
    all_ended(6)
    lost.refresh_from_db()
    assert lost.reason == 'worker_lost'
    for run in CeleryResult.objects.filter(reason='upstream_failed'):
        assert_unreached(run, lost)
    assert CeleryResult.objects.filter(reason='upstream_failed').count() == 3


def test_step_that_ran_is_not_closed(on):
    """Repeated reports of a failure, and one after the next step was sent, change nothing."""
    from netbox_celery.celery import app
    from netbox_celery.engine.workflows.canvas import as_request

    outcome = chain(on(tasks.add.s(1)), on(tasks.add.s(2)), on(tasks.add.s(3)))()
    assert outcome.get(timeout=20) == 6
    first = all_ended(3)[0]
    for __ in range(2):
        app.backend.mark_as_failure(
            str(first.task_id), ValueError('late'), request=as_request(first.task_id, first.celery_name, first.options)
        )
    assert {run.status for run in all_ended(3)} == {'completed'}
    assert outcome.get() == 6
