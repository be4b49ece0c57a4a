"""The database is up, but a table or a privilege is missing. No task fails because of that."""
import os
import signal
import time
from contextlib import contextmanager

import pytest
from django.utils import timezone
from netbox_test_plugin import tasks
from netbox_test_plugin.side import noted, notes, open_gate

from netbox_celery.models import CeleryResult

from .support import ended, lines, row, settled, until

RESULTS, LOG = 'netbox_celery_celeryresult', 'netbox_celery_celerylogentry'
WORKERS, SCHEDULES = 'netbox_celery_celeryworker', 'netbox_celery_celeryschedule'


@contextmanager
def table_away(services, table=RESULTS):
    """Rename a table for the duration of the block, which is like dropping it."""
    with services.cluster.connect('netbox') as admin:
        admin.execute(f'ALTER TABLE {table} RENAME TO away')
        try:
            yield
        finally:
            admin.execute(f'ALTER TABLE away RENAME TO {table}')


@contextmanager
def no_insert(services, table):
    """Refuse inserts for the duration of the block, as without the privilege, which superusers always have."""
    with services.cluster.connect('netbox') as admin:
        admin.execute(f"""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                RAISE insufficient_privilege USING MESSAGE = 'permission denied for table {table}';
            END $$;
            CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION refuse();
        """)
        try:
            yield
        finally:
            admin.execute(f'DROP TRIGGER refuse ON {table}; DROP FUNCTION refuse();')


@pytest.mark.parametrize('task, status', [
    (tasks.hold, 'completed'), (tasks.hold_and_fail, 'errored'),
], ids=['completed', 'errored'])
def test_table_missing_at_the_end(services, worker, gate, task, status):
    """The body runs to its end, the worker's log names the run, and the end is written when the table is back.
    """
    run = worker.send(task, gate, 2)
    until(lambda: 'started' in noted(run.id))
    until(lambda: len(lines(run)) == 2)
    with table_away(services):
        open_gate(gate)
        until(lambda: 'ended' in noted(run.id))
        until(lambda: f'The end of task {run.id} ({status}) cannot be written yet' in worker.output)

    result = ended(run)
    assert (result.status, result.claims, result.reason) == (status, 1, '')
    assert result.error == ('' if status == 'completed' else 'ValueError: after the gate')
    assert noted(run.id) == ['started', 'ended']
    assert lines(run) == ['line 0', 'line 1', 'after the gate']
    assert worker.run(tasks.echo).status == 'completed'


def test_table_missing_when_a_process_dies(services, prefork, gate):
    """The worker's main process writes the end when the table is back."""
    run = prefork.send(tasks.hold, gate)
    until(lambda: 'started' in noted(run.id))
    with table_away(services):
        os.kill(notes(run.id)[0][0], signal.SIGKILL)
        until(lambda: f'The end of task {run.id} cannot be written yet' in prefork.output)

    result = ended(run)
    assert (result.status, result.reason) == ('errored', 'worker_lost')
    assert prefork.run(tasks.echo).status == 'completed'


@pytest.mark.parametrize('how, status, state', [
    ('success', 'completed', 'SUCCESS'), ('error', 'failed', 'FAILURE'), ('canceled', 'revoked', 'REVOKED'),
])
def test_table_missing_at_an_end_of_the_tasks_own(services, worker, gate, how, status, state):
    """Celery has the end that the task sets itself, and so has the row when the table is back."""
    run = worker.send(tasks.end_itself, how, gate)
    until(lambda: 'started' in noted(run.id))
    with table_away(services):
        open_gate(gate)
        until(lambda: f'The end of task {run.id} ({status}) cannot be written yet' in worker.output)
        until(lambda: run.state == state)

    result = ended(run)
    assert (result.status, run.state) == (status, state)
    assert how == 'success' or result.error == str(run.result) == 'by hand'


def test_table_missing_at_a_replacement(services, worker, gate):
    """The replacement runs without a row; the task's own row is ended."""
    run = worker.send(tasks.replace_at, gate)
    until(lambda: 'started' in noted(run.id))
    with table_away(services):
        open_gate(gate)
        until(lambda: 'replaced' in noted(run.id), 30)
        until(lambda: f'The replacement of task {run.id} is sent without being tracked' in worker.output)

    assert run.get(timeout=20) == run.id
    assert (ended(run).status, row(run).error) == ('ignored', 'Replaced by a task that is not tracked')
    assert noted(run.id) == ['started', 'replaced']


def test_table_missing_in_a_loop(services, worker, gate):
    """A body that checks for cancellation continues, and sees the cancel when the table is back."""
    run = worker.send(tasks.look, gate)
    until(lambda: 'started' in noted(run.id))
    with table_away(services):
        open_gate(gate)
        until(lambda: 'ended' in noted(run.id))
    CeleryResult.objects.filter(task_id=run.id).update(cancelled=timezone.now())
    open_gate(f'{gate}-end')

    assert (ended(run).status, run.state) == ('revoked', 'REVOKED')
    assert noted(run.id) == ['started', 'ended']
    assert worker.output.count(f'Task {run.id} cannot see whether it was cancelled') == 1


def test_table_missing_at_a_read(services, worker, gate):
    """A body keeps what it has read of its row; its ID needs no query."""
    run = worker.send(tasks.read, gate)
    until(lambda: 'started' in noted(run.id))
    with table_away(services):
        open_gate(gate)
        until(lambda: 'ended' in noted(run.id))

    name = tasks.read.name
    assert ended(run).result == [name, name, name, row(run).pk, run.id]


def test_table_missing_at_a_retry(services, worker, gate):
    """The next attempt is sent, and runs."""
    run = worker.send(tasks.hold_and_retry, gate)
    until(lambda: 'started' in noted(run.id))
    with table_away(services):
        open_gate(gate)
        until(lambda: f'The retry of task {run.id} cannot be written yet' in worker.output)

    result = settled(run)
    assert (result.status, result.result, len(result.attempts)) == ('completed', 2, 2)
    assert result.attempts[0]['error'] == 'ValueError: once more'


def test_table_missing_at_the_claim(services, worker):
    """A body that cannot be claimed runs without its row, which ends when the table is back, without a second run."""
    run = worker.send(tasks.whoami, countdown=1)
    until(lambda: row(run).sent)
    with table_away(services):
        assert run.get(timeout=30) == {'row': None, 'id': run.id, 'task_id': run.id, 'cancelled': False}
        assert f'Task {run.id} is run without being tracked' in worker.output

    assert ended(run).status == 'completed'
    assert row(run).result['row'] is None


def test_table_missing_for_a_moment(services, worker):
    """A claim waits for a table that comes back."""
    run = worker.send(tasks.echo, countdown=1)
    until(lambda: row(run).sent)
    with table_away(services):
        until(lambda: f'Task {run.id} cannot be claimed, trying again' in worker.output)

    assert (ended(run).status, row(run).claims) == ('completed', 1)


def test_table_missing_at_the_call(services, worker):
    """The task is sent and run, without a row."""
    with table_away(services):
        run = worker.send(tasks.whoami)
        assert run.get(timeout=30)['row'] is None

    assert not CeleryResult.objects.exists()


def test_insert_refused(services, worker):
    """Calls, also those of bodies, work without rows; so does a run whose message has no row."""
    with no_insert(services, RESULTS):
        run = worker.send(tasks.whoami)
        assert run.get(timeout=30)['row'] is None
        parent = worker.send(tasks.call, worker.queue)
        child = parent.get(timeout=30)
        until(lambda: notes(child))

    assert not CeleryResult.objects.exists()
    assert worker.run(tasks.echo).status == 'completed'


def test_log_refused(services, worker, gate):
    """Lines are lost, which the worker's log says; the run is unaffected."""
    run = worker.send(tasks.hold, gate, 3)
    until(lambda: 'started' in noted(run.id))
    until(lambda: len(lines(run)) == 3)
    with no_insert(services, LOG):
        open_gate(gate)
        result = ended(run)

    assert (result.status, result.result) == ('completed', gate)
    assert lines(run) == ['line 0', 'line 1', 'line 2']
    assert 'log line(s) could not be written' in worker.output


@pytest.mark.parametrize('lock', [
    f'LOCK TABLE {RESULTS} IN ACCESS EXCLUSIVE MODE', f'SELECT FROM {RESULTS} FOR UPDATE'
], ids=['table', 'row'])
@pytest.mark.parametrize('task', [tasks.hold, tasks.hold_late], ids=['early', 'late'])
def test_soft_limit_while_the_claim_waits(services, prefork, gate, lock, task):
    """A soft limit before the body starts ends the run with that reason, and the worker continues.

    The claim was sent: if PostgreSQL still executed it, no process would finish the run.
    """
    run = prefork.send(task, gate, countdown=1, soft_time_limit=1)
    until(lambda: row(run).sent)
    with services.cluster.connect('netbox') as admin, admin.transaction():
        admin.execute(lock)
        until(lambda: f'Soft time limit (1s) exceeded for {task.name}[{run.id}]' in prefork.output)
        time.sleep(0.5)  # so that the interrupted process can write the end of the run

    result = ended(run)
    assert (result.status, result.reason, result.claims) == ('errored', 'soft_time_limit', 0)
    assert noted(run.id) == []
    assert prefork.run(tasks.echo).status == 'completed'


@pytest.mark.parametrize('task', [tasks.hold, tasks.hold_late, tasks.hold_and_fail], ids=['early', 'late', 'failing'])
def test_soft_limit_while_the_end_waits(services, prefork, gate, task):
    """A soft limit while the end is written fails the run as well, once, in the row and in Celery."""
    run = prefork.send(task, gate, soft_time_limit=2)
    until(lambda: 'started' in noted(run.id))
    with services.cluster.connect('netbox') as admin, admin.transaction():
        admin.execute(f'SELECT FROM {RESULTS} FOR NO KEY UPDATE')
        open_gate(gate)
        until(lambda: 'ended' in noted(run.id))
        until(lambda: f'Soft time limit (2s) exceeded for {task.name}[{run.id}]' in prefork.output)
        time.sleep(0.5)

    result = ended(run)
    assert (result.status, result.reason, result.claims) == ('errored', 'soft_time_limit', 1)
    assert noted(run.id) == ['started', 'ended']
    until(lambda: run.state == 'FAILURE')


def test_missing_tables(services, make_worker, make_beat):
    """A worker stops, and beat waits; both log what to do."""
    hint = 'Are all migrations applied (netbox migrate)?'
    with table_away(services, WORKERS):
        worker = make_worker('too-early', concurrency=1).start()
        assert worker.wait(90) not in (0, None)
    assert hint in worker.output and 'Traceback' not in worker.output

    with table_away(services, SCHEDULES):
        beat = make_beat()
        beat.says(hint)
    assert 'Traceback' not in beat.output
    until(lambda: beat.is_leader, 30)
