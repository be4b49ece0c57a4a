"""A run's result is exactly what its task returned, and a repetition has exactly the call's arguments."""
from uuid import uuid4

import pytest
from celery import chain
from celery.backends.redis import RedisBackend
from netbox_test_plugin import tasks
from netbox_test_plugin.side import notes

from netbox_celery.celery import app
from netbox_celery.models import CeleryResult

from .support import ended, row, until


def asked_later(run):
    """Return what a caller gets that asks after the end, without having waited."""
    app.backend._cache.clear()
    return app.AsyncResult(str(run.task_id)).get(timeout=10)


@pytest.mark.parametrize('what', ['floats', 'order', 'odd', 'uuid', 'marker', 'deep', 'none'])
def test_results(worker, what):
    """Those who wait, and those who ask later, get exactly what the task returned, as with plain Celery."""
    returned = tasks.RESULTS[what]()
    outcome = worker.send(tasks.answer, what)

    assert repr(outcome.get(timeout=20)) == repr(returned)
    result = ended(outcome)
    assert result.status == 'completed'
    assert repr(asked_later(result)) == repr(returned)


def test_wait_beside_a_marker(prefork):
    """A result like one of Kombu's type markers does not interrupt the wait for others."""
    outcomes = [prefork.send(tasks.answer, what) for what in ('marker', 'floats', 'marker', 'none')]

    assert [outcome.get(timeout=20) for outcome in reversed(outcomes)] == [
        tasks.RESULTS[what]() for what in ('none', 'marker', 'floats', 'marker')
    ]


@pytest.mark.parametrize('what', ['deep', 'digits', 'encoder', 'silent encoder', 'set'])
def test_ignored_results(worker, what):
    """A body that returns succeeds, whatever it returns, and its worker continues."""
    result = worker.run(tasks.answer, what, ignore_result=True)

    assert (result.status, result.error) == ('completed', '')
    assert worker.run(tasks.echo).status == 'completed'
    assert CeleryResult.objects.get(pk=result.pk).status == 'completed'


@pytest.mark.parametrize('what', ['digits', 'encoder', 'silent encoder', 'set', 'deep'])
def test_stored_results(prefork, what):
    """A result that Celery cannot store fails the task, in the row as in Celery."""
    outcome = prefork.send(tasks.answer, what)
    result = ended(outcome)
    try:
        RedisBackend(app=app, url=app.conf.result_backend).encode(tasks.RESULTS[what]())
        expected = 'completed', 'SUCCESS'
    except Exception:  # noqa: BLE001 - it raises what Celery makes of what the encoder raises
        expected = 'errored', 'FAILURE'

    assert until(lambda: outcome.state in ('SUCCESS', 'FAILURE'))
    assert (result.status, outcome.state) == expected


@pytest.mark.parametrize('args, kwargs', [
    ([1e23, -0.0], {}), ([float('nan'), 'nul \x00'], {}), ([], {'z': 1, 'a': {'y': 1e16, 'x': 2}}),
], ids=['floats', 'unstorable', 'order'])
def test_run_again(worker, args, kwargs):
    """A repetition has the arguments of the run."""
    first = ended(worker.send(tasks.echo, *args, kwargs=kwargs))
    second = CeleryResult.objects.get(pk=first.pk).rerun()

    assert row(second).pk != first.pk
    again = ended(app.AsyncResult(str(second.task_id)))
    assert again.status == 'completed'
    assert repr(asked_later(again)) == repr(asked_later(first)) == repr([args, kwargs])


@pytest.mark.parametrize('depth', [90, 150, 300])
def test_foreign_message(worker, depth):
    """A program without the plugin may send what our calls refuse: the run fails, and the worker continues."""
    sent = app.AsyncResult(str(uuid4()))
    with app.producer_or_acquire() as producer:
        message = app.amqp.create_task_message(sent.id, tasks.echo.name, (tasks.nested(depth),), {})
        app.amqp.send_task_message(producer, tasks.echo.name, message, queue=worker.queue)
    until(lambda: CeleryResult.objects.filter(task_id=sent.id).exists())
    result = ended(sent)

    assert result.status == ('completed' if depth < 100 else 'errored')
    assert depth < 100 or 'nested too deeply' in result.error
    assert worker.run(tasks.echo).status == 'completed'


@pytest.mark.parametrize('how, status', [
    ('retry', 'errored'), ('retry header', 'errored'), ('replace', 'errored'), ('call', 'errored'), ('data', 'errored'),
    ('state', 'completed'), ('success', 'completed'), ('log', 'completed'),
])
def test_body_that_hands_on_what_is_too_deep(worker, how, status):
    """What it tries to send is refused in its body; what is only shown does no harm. Its worker continues."""
    outcome = worker.send(tasks.go_deep, how)
    result = ended(outcome)

    assert result.status == status, result.error
    assert status == 'completed' or 'nested too deeply' in result.error
    assert until(lambda: outcome.state == ('SUCCESS' if status == 'completed' else 'FAILURE'))
    assert len(notes(result.task_id)) == 1
    assert worker.run(tasks.echo).status == 'completed'


def test_result_that_the_next_step_cannot_have(worker):
    """A step whose result is nested too deeply for the next one fails, and the next one is closed."""
    first, last = tasks.answer.s('deep').set(queue=worker.queue), tasks.echo.s().set(queue=worker.queue)
    outcome = chain(first, last).apply_async()

    failed = ended(outcome.parent)
    assert (failed.status, failed.reason) == ('errored', '')
    assert 'nested too deeply' in failed.error
    until(lambda: CeleryResult.objects.filter(task_id=outcome.id, reason='upstream_failed').exists())
