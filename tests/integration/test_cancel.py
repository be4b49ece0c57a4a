"""Cancel, revoke, terminate and expire: before the body, in it, with and without a worker."""
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from celery.app.control import Control
from celery.exceptions import TaskRevokedError
from celery.platforms import EX_UNAVAILABLE
from celery.result import GroupResult
from django.db import connection, transaction
from netbox_test_plugin import tasks
from netbox_test_plugin.side import noted, notes, open_gate

from netbox_celery.celery import app
from netbox_celery.engine.sending.control import cancellation
from netbox_celery.engine.store import lifecycle
from netbox_celery.models import CeleryResult

from .support import CELERY, Program, ended, lines, row, until, waiting

NOWHERE = 'a-queue-that-nobody-serves'


def started(run):
    until(lambda: notes(run.id))
    return run


def test_cancel_without_a_worker(make_worker, user):
    """A waiting run is revoked immediately, and stays so when a worker starts: Celery alone would run it."""
    worker = make_worker('latecomer', concurrency=1)
    run, other = worker.send(tasks.echo), worker.send(tasks.echo)

    assert row(run).cancel(user=user)
    result = row(run)
    assert (result.status, result.reason) == ('revoked', 'cancelled')
    assert result.completed is not None
    assert result.error == 'Cancelled by alice'
    assert run.state == 'REVOKED'
    with pytest.raises(TaskRevokedError):
        run.get(timeout=5)
    assert not row(run).cancel()

    worker.start().ready()
    assert ended(other).status == 'completed'
    assert notes(run.id) == []
    assert row(run).completed == result.completed


def test_cancel_of_a_process(prefork, gate, user):
    """A run in a process is terminated within moments; its lines up to then are kept."""
    run = started(prefork.send(tasks.hold, gate, 3))
    until(lambda: len(lines(run)) == 3)
    assert row(run).cancel(user=user)

    result = ended(run)
    assert result.status == 'revoked'
    assert result.reason in ('cancelled', 'terminated')
    assert noted(run.id) == ['started']
    assert 'Cancelled by alice' in result.error
    assert lines(run) == ['line 0', 'line 1', 'line 2']
    assert until(lambda: run.state == 'REVOKED')
    assert prefork.run(tasks.echo).status == 'completed'


def test_cancel_that_the_worker_does_not_hear_of(prefork, gate):
    """A process is terminated though Celery's broadcast is lost: the mark in the row is enough."""
    run = started(prefork.send(tasks.hold, gate))
    assert lifecycle.cancel(connection, [row(run).pk], 'Cancelled by nobody')

    assert ended(run).status == 'revoked'
    assert noted(run.id) == ['started']


def test_cancel_of_a_solo_worker(make_worker):
    """A worker without a pool learns it from the row, since it receives no broadcast while it runs a task."""
    solo = make_worker('solo-cancel', pool='solo', concurrency=1).start().ready()
    run = started(solo.send(tasks.cooperate))
    assert cancellation(row(run)) == 'cooperative'
    assert row(run).cancel()

    assert (ended(run).status, row(run).reason) == ('revoked', 'cancelled')
    assert solo.run(tasks.echo).status == 'completed'


def test_cancel_of_a_thread(threads):
    """A thread cannot be terminated: the task sees in `is_cancelled()` that it should stop, and is revoked."""
    run = started(threads.send(tasks.cooperate))
    assert row(run).cancel()
    assert row(run).status in ('running', 'revoked')

    result = ended(run)
    assert (result.status, result.reason) == ('revoked', 'cancelled')
    assert noted(run.id) == ['started', 'cancelled']
    assert until(lambda: run.state == 'REVOKED')


def test_cancel_wins_over_success_and_failure(threads, gate):
    """A task that does not check finishes; its row is revoked, however the task ends."""
    run = started(threads.send(tasks.hold, gate))
    assert row(run).cancel()
    assert row(run).is_cancelling
    open_gate(gate)

    assert (ended(run).status, row(run).reason) == ('revoked', 'cancelled')
    assert noted(run.id) == ['started', 'ended']


def test_cancel_in_a_transaction(prefork, gate):
    """A cancel that is rolled back has no effect."""
    run = started(prefork.send(tasks.hold, gate))
    with transaction.atomic():
        assert row(run).cancel()
        transaction.set_rollback(True)
    open_gate(gate)

    assert ended(run).status == 'completed'


def test_celerys_revoke_before_the_start(make_worker, gate):
    """`control.revoke` of a run that a worker has fetched: the row is revoked when Celery drops it."""
    worker = make_worker('revoking', concurrency=1).start().ready()
    first = started(worker.send(tasks.hold, gate))
    run = worker.send(tasks.echo)
    until(lambda: f'{run.id}] received' in worker.output)
    app.control.revoke(run.id)
    until(lambda: 'Tasks flagged as revoked' in worker.output)
    open_gate(gate)

    assert ended(first).status == 'completed'
    result = ended(run)
    assert (result.status, result.reason) == ('revoked', 'cancelled')
    assert notes(run.id) == []


@pytest.fixture
def deaf(monkeypatch):
    """Broadcasts of this process reach no worker."""
    monkeypatch.setattr(Control, 'broadcast', lambda self, *args, **options: None)


@pytest.mark.parametrize('revoke', [
    lambda run: run.revoke(),
    lambda run: run.revoke(terminate=True),
    lambda run: GroupResult('group', [run]).revoke(),
    lambda run: app.control.terminate(UUID(run.id)),
], ids=['result', 'terminate', 'group', 'control'])
def test_celerys_revoke_without_a_worker(make_worker, deaf, revoke):
    """Celery tells only running workers: here the row has it, and the next worker looks there."""
    worker = make_worker('after-revoke')
    run, other = worker.send(tasks.echo), worker.send(tasks.echo)
    revoke(run)

    assert (row(run).status, row(run).reason, run.state) == ('revoked', 'cancelled', 'REVOKED')
    worker.start().ready()
    assert ended(other).status == 'completed'
    assert notes(run.id) == []


def test_revoke_command(instance, tmp_path):
    """`celery control revoke`, of several runs."""
    runs = [tasks.echo.apply_async(queue=NOWHERE) for __ in range(3)]
    command = Program(instance, tmp_path / 'log', [
        CELERY, '-A', 'netbox_celery', 'control', 'revoke', runs[0].id, runs[1].id,
    ]).start()
    assert command.wait() in (0, EX_UNAVAILABLE), command.output
    assert [row(run).status for run in runs] == ['revoked', 'revoked', 'pending']


def test_celerys_revoke_of_an_active_run(prefork, gate, deaf):
    """Without `terminate` the run continues; with it, its process is terminated though no broadcast arrives."""
    goes_on, ends = started(prefork.send(tasks.hold, gate)), started(prefork.send(tasks.hold, 'never'))
    goes_on.revoke()
    ends.revoke(terminate=True)
    assert (ended(ends).status, row(ends).reason) == ('revoked', 'terminated')
    assert row(goes_on).cancelled is None
    open_gate(gate)
    assert ended(goes_on).status == 'completed'


@pytest.mark.parametrize('signal', ['SIGTERM', 'SIGKILL'])
def test_celerys_terminate(prefork, gate, signal):
    """`control.revoke(terminate=True)` terminates the process, and the row says so."""
    run = started(prefork.send(tasks.hold, gate))
    app.control.revoke(run.id, terminate=True, signal=signal)

    result = ended(run)
    assert (result.status, result.reason) == ('revoked', 'terminated')
    assert result.attempts[0]['ended'] is not None
    assert until(lambda: run.state == 'REVOKED')


def test_terminate_with_redelivery(prefork, gate):
    """A late-acknowledged run that is terminated is not delivered again."""
    run = started(prefork.send(tasks.hold_rejecting, gate))
    assert row(run).cancel()

    assert ended(run).status == 'revoked'
    assert [prefork.run(tasks.echo).status for __ in range(3)] == ['completed'] * 3
    assert noted(run.id) == ['started']


def test_expires_in_the_queue(prefork):
    """A worker drops an expired message."""
    run = prefork.send(tasks.echo, expires=datetime.now(UTC) - timedelta(seconds=1))

    result = ended(run)
    assert (result.status, result.reason) == ('revoked', 'expired')
    assert notes(run.id) == []
    assert until(lambda: run.state == 'REVOKED')


@pytest.mark.parametrize('expires', [0.5, 1])
def test_expires_without_a_worker(prefork, expires):
    """The sweep expires a run that is not fetched: no worker of its queue is needed."""
    run = tasks.echo.apply_async(queue=NOWHERE, expires=expires)
    assert row(run).status == 'pending'
    assert 0 < (row(run).expires - row(run).created).total_seconds() < 2

    result = ended(run)
    assert (result.status, result.reason) == ('revoked', 'expired')
    assert until(lambda: run.state == 'REVOKED')


def test_copy_that_expires_does_not_end_the_run(prefork, gate):
    """A copy of an active run's message (Redis' visibility timeout) may expire without effect on the run."""
    run = started(prefork.send(tasks.hold, gate, expires=1.5))
    app.backend.client.delete('none')
    with app.connection_for_write() as connection:
        message = app.amqp.create_task_message(run.id, tasks.hold.name, (gate,), {}, expires=row(run).expires)
        until(lambda: datetime.now(UTC) > row(run).expires)
        with connection.Producer() as producer:
            app.amqp.send_task_message(producer, tasks.hold.name, message, queue=prefork.queue)
    until(lambda: 'Discarding revoked task' in prefork.output and run.id in prefork.output.split('Discarding')[-1])

    assert row(run).status == 'running'
    open_gate(gate)
    assert ended(run).status == 'completed'
    assert run.get(timeout=10) == gate
    assert CeleryResult.objects.count() == 1


@pytest.mark.parametrize('option', [
    {'countdown': 1}, {'eta': 'aware'}, {'eta': 'naive'}, {'eta': 'text'}
], ids=str)
def test_eta(prefork, option):
    """A run with an ETA is scheduled until then; a time without a zone is the server's, as in Celery."""
    when = datetime.now(UTC) + timedelta(seconds=1)
    if 'eta' in option:
        option = {'eta': {
            'aware': when, 'naive': when.astimezone().replace(tzinfo=None), 'text': when.isoformat(),
        }[option['eta']]}
    run = prefork.send(tasks.echo, **option)

    result = row(run)
    assert result.status == 'scheduled'
    assert abs((result.scheduled - when).total_seconds()) < 0.5
    result = ended(run)
    assert result.status == 'completed'
    assert (result.started - when).total_seconds() > -0.5


def test_eta_in_the_past(prefork):
    """Such a run does not wait."""
    run = prefork.send(tasks.echo, eta=datetime.now(UTC) - timedelta(days=1))

    assert row(run).scheduled is None
    assert ended(run).status == 'completed'


def test_cancel_of_a_scheduled_run(prefork):
    """A worker may have fetched it: the claim is refused when its time comes."""
    run = prefork.send(tasks.echo, countdown=1.5)
    assert waiting(run, 'scheduled').cancel()

    assert row(run).status == 'revoked'
    assert prefork.run(tasks.echo, countdown=2).status == 'completed'
    assert notes(run.id) == []


def test_deleted_run_is_not_run(make_worker):
    """A run whose row was deleted is not run."""
    worker = make_worker('after-delete', concurrency=1)
    run, other = worker.send(tasks.echo), worker.send(tasks.echo)
    row(run).delete()

    worker.start().ready()
    assert ended(other).status == 'completed'
    assert notes(run.id) == []
    assert not CeleryResult.objects.filter(task_id=run.id).exists()


def test_delete_of_a_running_run(prefork, gate):
    """Its process is terminated, so that it does not continue unseen."""
    run = started(prefork.send(tasks.hold, gate))
    pid = notes(run.id)[0][0]
    assert pid in prefork.children
    row(run).delete()

    until(lambda: pid not in prefork.children)
    assert prefork.run(tasks.echo).status == 'completed'
