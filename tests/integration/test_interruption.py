"""Bodies that end with a `BaseException` that is not an `Exception`, or without memory."""
from uuid import uuid4

import pytest
from celery import chord
from netbox_test_plugin import tasks
from netbox_test_plugin.side import noted, notes

from netbox_celery.models import CeleryResult

from .support import ended, until

#: The error of each, if its process does not end with it.
SAID = {
    'cancelled': 'CancelledError', 'exit': 'SystemExit: 3', 'interrupt': 'KeyboardInterrupt',
    'generator': 'GeneratorExit', 'own': 'OwnInterrupt: by hand',
}


def heard(run):
    return {what.split(':')[0].split()[0] for __, what in notes(run.id)} - {'ran'}


@pytest.mark.parametrize('task', [tasks.leave, tasks.leave_late], ids=['early', 'late'])
@pytest.mark.parametrize('how', [*SAID, 'memory'])
def test_end_is_reported(any_worker, how, task):
    """The run ends with its traceback; those who wait, the next step, error callbacks and hooks are informed."""
    pid = any_worker.pid
    errback = tasks.echo.si('errback').set(queue=any_worker.queue, task_id=str(uuid4()))
    result = (
        task.s(how).set(queue=any_worker.queue, link_error=[errback]) | tasks.echo.s().set(queue=any_worker.queue)
    ).apply_async()
    run = result.parent

    row = ended(run)
    exits = any_worker.pool == 'prefork' and how in ('exit', 'interrupt')
    assert (row.status, row.reason) == ('errored', 'worker_lost' if exits else '')
    if not exits:
        assert row.error == SAID.get(how, 'MemoryError: no more of it')
    assert 'in _leave' in row.traceback
    with pytest.raises(Exception):
        run.get(timeout=20)
    until(lambda: CeleryResult.objects.filter(task_id=result.id).exists())
    after = ended(result)
    assert (after.status, after.reason) == ('errored', 'upstream_failed')
    until(lambda: CeleryResult.objects.filter(task_id=errback.options['task_id']).exists())
    assert ended(errback.options['task_id']).result == [['errback'], {}]
    # Of a process that ends itself, Celery tells the signal alone
    until(lambda: heard(run) >= ({'on_task_failure'} if exits else {'on_task_failure', 'on_failure', 'after_return'}))
    assert any_worker.run(tasks.echo).status == 'completed'
    assert any_worker.process.poll() is None and any_worker.pid == pid
    assert len([what for __, what in notes(run.id) if what.startswith('on_task_failure')]) == 1
    assert noted(run.id).count('ran') == 1


@pytest.mark.parametrize('how', ['cancelled', 'exit', 'memory'])
def test_chord_is_notified(any_worker, how):
    """The body of a chord with such a part is closed."""
    queue = any_worker.queue
    body = chord(
        [tasks.leave.s(how).set(queue=queue), tasks.echo.s().set(queue=queue)], tasks.echo.s().set(queue=queue)
    ).apply_async()
    until(lambda: CeleryResult.objects.filter(task_id=body.id).exists())
    row = ended(body)
    assert (row.status, row.reason) == ('errored', 'upstream_failed')
    with pytest.raises(Exception):
        body.get(timeout=20)


@pytest.mark.parametrize('how', SAID)
def test_own_end_is_kept(any_worker, how):
    """The end that the body set before stays, in the row and in Celery."""
    run = any_worker.send(tasks.leave, how, True)
    assert run.get(timeout=5) == 'its own'
    assert ended(run).status == 'completed'


@pytest.mark.parametrize('how', [*SAID, 'memory'])
def test_untracked(any_worker, how):
    """A worker survives such a task without a row, and those who wait get the error."""
    pid, run = any_worker.pid, any_worker.send(tasks.plain_leave, how)
    with pytest.raises(Exception):
        run.get(timeout=20)
    assert any_worker.run(tasks.echo).status == 'completed'
    assert any_worker.process.poll() is None and any_worker.pid == pid
