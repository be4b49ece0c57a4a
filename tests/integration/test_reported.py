"""What Celery's API reports about the end of a run: once, exactly, and nothing if results are ignored."""
import json
from contextlib import contextmanager

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError
from netbox_test_plugin import tasks
from netbox_test_plugin.side import open_gate
from netbox_test_plugin.tasks import canvas, declared
from redis import Redis

from netbox_celery.celery import app
from netbox_celery.models import CeleryResult

from .support import ended, row, until, waiting


def named(value):
    """Return the same name for a task in each process."""
    return getattr(value, 'name', None) or str(value)


@contextmanager
def listening(services):
    """Listen to all ends that Redis publishes meanwhile; yields a function for those of one run."""
    with Redis.from_url(services.redis.url()) as client, client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.psubscribe('*celery-task-meta-*')
        pubsub.get_message(timeout=1)
        heard = []

        def told(task_id):
            while message := pubsub.get_message(timeout=0.3):
                heard.append(json.loads(message['data']))
            return [meta for meta in heard if meta['task_id'] == task_id]
        yield told


def seen_of(result, timeout=20):
    """Poll a run until after its end; returns the different states that were seen."""
    seen = []

    def look():
        meta = app.backend.get_task_meta(result.id)
        value = meta['status'], type(meta['result']).__name__, str(meta['result'])
        if meta['status'] != 'PENDING' and value not in seen:
            seen.append(value)
        found = CeleryResult.objects.filter(task_id=result.id, completed__isnull=False).first()
        return found is not None and meta['status'] != 'PENDING'
    until(look, timeout)
    for __ in range(50):
        look()
    return seen


@pytest.mark.parametrize('body', ['task', 'chain', 'group'])
def test_end_of_a_body(services, on, body):
    """The body of a failed chord is reported once, with the error of the failed part."""
    add = on(canvas.add.s(1))
    with listening(services) as told:
        outcome = chord([add.clone(), on(canvas.break_.s())], {
            'task': add.clone(), 'chain': chain(add.clone(), add.clone()), 'group': group(add.clone(), add.clone()),
        }[body]).apply_async()
        last = outcome.results[-1] if body == 'group' else outcome
        ended_row = until(lambda: CeleryResult.objects.filter(task_id=last.id, completed__isnull=False).first())
        metas = until(lambda: told(last.id))
        assert len(metas) == 1
    assert ended_row.reason == 'upstream_failed'
    meta, = metas
    if body == 'group':
        assert (meta['result']['exc_type'], meta['result']['exc_message']) == ('ValueError', ['broken'])
    else:
        assert (meta['result']['exc_type'], 'ValueError' in str(meta['result'])) == ('ChordError', True)
        assert 'broken' in meta['traceback']
    with pytest.raises((ChordError, ValueError)):
        app.AsyncResult(last.id).get(timeout=10)


def test_children_of_a_body(prefork, on):
    """The error callback of a body is among its children."""
    body = on(canvas.add.s(1)).on_error(on(tasks.echo.s()))
    outcome = chord([on(canvas.add.s(1)), on(canvas.break_.s())], body).apply_async()
    assert until(lambda: outcome.children)


@pytest.mark.filterwarnings('ignore:task_allow_error_cb_on_chord_header')
@pytest.mark.parametrize('order', ['inner_last', 'outer_last'])
def test_error_callback_of_nested_chords(on, gate, order):
    """A callback linked to a chord, and so to the one in its header, is called once."""
    add = on(canvas.add.s(1))
    failing = on(canvas.break_at_gate.s(gate)) if order == 'inner_last' else on(canvas.break_.s())
    other = add.clone() if order == 'inner_last' else on(tasks.hold.s(gate))
    outer = chord([other, chord([add.clone(), failing], add.clone())], add.clone())
    outer.link_error(on(tasks.echo.si('called')))
    outcome = outer.apply_async()
    if order == 'inner_last':
        until(lambda: CeleryResult.objects.filter(celery_name=canvas.add.name, status='completed').count() == 2)
    else:
        until(lambda: CeleryResult.objects.filter(reason='upstream_failed').exists())
    open_gate(gate)
    until(lambda: CeleryResult.objects.filter(task_id=outcome.id, reason='upstream_failed').exists())
    called = CeleryResult.objects.filter(celery_name=tasks.echo.name)
    until(lambda: called.exists() and not CeleryResult.objects.filter(completed=None).exists())
    assert called.count() == 1


def test_error_callbacks_of_its_own(on):
    """A different callback of the outer chord is called as well."""
    add = on(canvas.add.s(1))
    inner = chord([add.clone(), on(canvas.break_.s())], add.clone().on_error(on(tasks.echo.si('inner'))))
    outcome = chord([add.clone(), inner], add.clone().on_error(on(tasks.echo.si('outer')))).apply_async()
    until(lambda: CeleryResult.objects.filter(task_id=outcome.id, reason='upstream_failed').exists())
    called = CeleryResult.objects.filter(celery_name=tasks.echo.name)
    until(lambda: called.count() == 2)
    assert sorted(run.args[0] for run in called) == ['inner', 'outer']


@pytest.mark.parametrize('step', ['chain', 'chord'])
def test_one_exception(on, step):
    """A step that never runs has one final state, which does not change later."""
    add, broken = on(canvas.add.s(1)), on(canvas.break_.s())
    workflow = chain(broken, add.clone(), add.clone()) if step == 'chain' else chord([add.clone(), broken], add.clone())
    outcome = workflow.apply_async()
    seen = seen_of(outcome)
    assert len(seen) == 1, seen
    kind = 'ValueError' if step == 'chain' else 'ChordError'
    assert seen[0][:2] == ('FAILURE', kind)
    # When Redis has lost it, the row reports the same
    app.backend.forget(outcome.id)
    CeleryResult.objects.filter(task_id=outcome.id).update(completed='2020-01-01T00:00:00Z')
    assert seen_of(outcome) == seen


@pytest.mark.parametrize('how', ['error', 'failed'])
def test_type_after_redis_has_lost_it(on, how):
    """The row keeps the type of the exception."""
    run = on(canvas.break_.s(how=how)).delay()
    before = seen_of(run)
    app.backend.forget(run.id)
    CeleryResult.objects.filter(task_id=run.id).update(completed='2020-01-01T00:00:00Z')
    assert seen_of(run) == before
    assert before[0][1] == {'error': 'ValueError', 'failed': 'TaskFailed'}[how]


def test_type_during_a_retry(prefork):
    """The exception behind a retry is available."""
    run = prefork.send(tasks.retry, 2, kwargs={'countdown': 600})
    waiting(run, 'retrying')
    assert (run.state, type(run.result), run.result.args) == ('RETRY', ValueError, ('attempt 1 failed',))
    assert 'attempt 1 failed' in run.traceback
    row(run).cancel()


@pytest.mark.parametrize('task, given, state', [
    (declared.ignored, {}, 'PENDING'), (tasks.echo, {'ignore_result': True}, 'PENDING'),
    (declared.ignored, {'ignore_result': False}, 'SUCCESS'), (tasks.echo, {}, 'SUCCESS'),
], ids=named)
def test_ignored_result(worker, task, given, state):
    """Nothing is reported of a run whose result is ignored; its row has it."""
    run = worker.send(task, **given)
    result = ended(run)
    assert (result.status, result.result is not None) == ('completed', True)
    meta = app.backend.get_task_meta(run.id)
    assert (meta['status'], meta['result'] is None) == (state, state == 'PENDING')
    CeleryResult.objects.update(completed='2020-01-01T00:00:00Z')
    assert app.AsyncResult(run.id).state == state


@pytest.mark.parametrize('task, args', [(canvas.break_, ()), (tasks.retry, (1,)), (tasks.retry, (9,))], ids=named)
def test_ignored_end(prefork, task, args):
    """The same for an error, or a retry."""
    options = {'kwargs': {'countdown': 600}} if args == (9,) else {}
    run = prefork.send(task, *args, ignore_result=True, **options)
    waiting(run, 'completed', 'errored', *(['retrying'] if args == (9,) else []))
    assert app.AsyncResult(run.id).state == 'PENDING'
    row(run).cancel()


def test_ignored_parts(on):
    """The next step, and a chord's body, get the results of steps that ignore them, also in nested lists."""
    add = on(canvas.add.s(1).set(ignore_result=True))
    last = on(canvas.add.s(1))
    assert chain(add.clone(), last.clone()).apply_async().get(timeout=20) == 2
    assert chord([add.clone(), add.clone()], last.clone()).apply_async().get(timeout=20) == 3
    inner = chain(add.clone(), group(add.clone(), add.clone()))
    assert chord([inner, add.clone()], last.clone()).apply_async().get(timeout=20) == 6
    assert {run.status for run in CeleryResult.objects.all()} == {'completed'}


def test_own_end(prefork):
    """The same for an end that the task sets itself."""
    run = prefork.send(tasks.end_itself, 'success', ignore_result=True)
    ended(run)
    assert app.AsyncResult(run.id).state == 'PENDING'
