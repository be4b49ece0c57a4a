"""How a run ends: every end that a body can have, in the row and in the result backend."""
import re

import pytest
from celery import chain, chord
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult
from netbox_test_plugin import tasks
from netbox_test_plugin.side import noted, notes

from netbox_celery.celery import app
from netbox_celery.models import CeleryResult
from netbox_celery.tasks import TaskFailed

from .support import ended, lines, row, until


def test_success(worker):
    """A run that returns is completed, with its result, times, worker and one attempt."""
    result = worker.run(tasks.echo, 1, 'two', kwargs={'three': [3]})

    assert (result.status, result.reason, result.error) == ('completed', '', '')
    assert result.result == [[1, 'two'], {'three': [3]}]
    assert result.created <= result.sent
    assert result.created <= result.started <= result.completed
    assert result.worker == worker.row.name
    assert result.attempt == 1
    assert [(a['number'], a['error'], a['worker']) for a in result.attempts] == [(1, '', result.worker)]
    assert result.attempts[0]['ended'] is not None
    assert len(notes(result.task_id)) == 1


@pytest.mark.parametrize('how, status, error', [
    ('value', 'errored', 'ValueError: wrong value'),
    ('failed', 'failed', 'the switch said no'),
    ('empty', 'errored', 'KeyError'),
    # An exception that cannot be pickled, printed or stored ends its run under its own name
    ('unpicklable', 'errored', 'Unpicklable: has a lock'),
    ('unpicklable_failure', 'failed', 'sw1 has no port 7'),
    ('unprintable', 'errored', 'Unprintable: <its text could not be made>'),
    ('local', 'errored', 'Local: made in a function'),
    ('odd', 'errored', 'ValueError: nul \ufffd surrogate \ufffd end'),
])
def test_exception(worker, how, status, error):
    """An exception ends the run as errored, `TaskFailed` as failed, with its text and traceback."""
    result = worker.run(tasks.fail, how)

    assert (result.status, result.reason, result.error) == (status, '', error)
    assert 'in fail\n' in result.traceback
    assert result.attempts[0]['error'] == result.error
    assert lines(result) == ['about to fail']


def test_expected_failure(worker):
    """`TaskFailed` and a task's `throws` are expected: the worker logs no traceback."""
    runs = [worker.send(tasks.fail, how) for how in ('failed', 'expected', 'value')]
    until(lambda: all(f'[{run.id}] raised' in worker.output for run in runs))
    said = [re.search(rf'\[{run.id}\] raised (\w+)', worker.output)[1] for run in runs]

    assert said == ['expected', 'expected', 'unexpected']


def test_failure_is_celerys_failure(worker):
    """The result backend reports the same end to those who wait."""
    outcome = worker.send(tasks.fail, 'value')
    with pytest.raises(ValueError, match='wrong value'):
        outcome.get(timeout=20)
    assert row(outcome).status == 'errored'

    outcome = worker.send(tasks.fail, 'failed')
    with pytest.raises(Exception, match='the switch said no'):
        outcome.get(timeout=20)
    assert row(outcome).status == 'failed'
    assert outcome.state == 'FAILURE'


@pytest.mark.parametrize('how', ['revoked', 'lost', 'unregistered'])
def test_failure_over_another_run(worker, how):
    """A body that raises another run's error has failed: it was neither cancelled nor lost."""
    outcome = worker.send(tasks.fail, how)
    result = ended(outcome)
    assert (result.status, result.reason) == ('errored', '')
    assert 'the other one' in result.error
    assert until(lambda: outcome.state == 'FAILURE')


def test_huge_error_is_cut(worker):
    """An error text of two million characters is cut, and says by how much."""
    result = worker.run(tasks.fail, 'huge')

    assert result.error.startswith('ValueError: xxx')
    assert result.error.endswith('[cut: 1,990,012 of 2,000,012 characters left out]')
    assert len(result.error) < 10_100
    assert len(result.traceback) < 200_000
    assert 'in fail\n' in result.traceback


@pytest.mark.parametrize('how', ['exit', 'interrupt'])
def test_exit_ends_the_run(worker, how):
    """A body that calls `sys.exit()` or is interrupted ends as errored, and its worker continues.

    A process of the pool ends with it, which its parent reports; a thread has no parent.
    """
    result = worker.run(tasks.fail, how)

    assert result.status == 'errored'
    if worker.pool == 'prefork':
        assert result.reason == 'worker_lost'
    else:
        assert result.error == {'exit': 'SystemExit: 3', 'interrupt': 'KeyboardInterrupt'}[how]
    assert worker.run(tasks.echo).status == 'completed'


@pytest.mark.parametrize('what, expected', [
    ('none', None),
    ('odd', {'nul \ufffd': 'surrogate \ufffd', 'number': 'nan'}),
    ('uuid', '00000000-0000-0000-0000-000000000001'),
])
def test_result(worker, what, expected):
    """A task's result is in the row, as far as PostgreSQL can hold it."""
    result = worker.run(tasks.answer, what)

    assert result.status == 'completed'
    assert (str(result.result) if what == 'uuid' else result.result) == expected


@pytest.mark.parametrize('what', ['set', 'object', 'unprintable'])
def test_result_that_is_not_json(worker, what):
    """A result that cannot be stored is an error of the task, as in Celery; the run does not hang."""
    outcome = worker.send(tasks.answer, what)
    result = ended(outcome)

    assert result.status == 'errored'
    assert 'JSON' in result.error
    assert until(lambda: outcome.state == 'FAILURE')


@pytest.mark.parametrize('what', ['object', 'unprintable'])
def test_ignored_result_that_is_not_json(worker, what):
    """An ignored result is not stored, so it fails nothing; the row shows a text."""
    result = worker.run(tasks.answer, what, ignore_result=True)

    assert result.status == 'completed'
    assert 'object' in result.result or 'Unprintable' in result.result


def test_huge_result_is_cut_in_the_row_alone(prefork):
    """A result of two million characters is returned in full; the row has its beginning."""
    outcome = prefork.send(tasks.answer, 'huge')

    assert len(outcome.get(timeout=20)) == 2_000_000
    result = row(outcome)
    assert result.status == 'completed'
    assert len(result.result) < 66_000
    assert result.result.endswith('[cut: 1,934,466 of 2,000,002 characters left out]')


def test_soft_time_limit(prefork):
    """A soft limit is an ordinary error with its own reason; a task that catches it decides itself."""
    raising, catching = prefork.send(tasks.soft), prefork.send(tasks.soft, True)

    result = ended(raising)
    assert (result.status, result.reason, result.error) == ('errored', 'soft_time_limit', 'SoftTimeLimitExceeded')
    assert (ended(catching).status, row(catching).result) == ('completed', 'tidied up')


def test_hard_time_limit(prefork):
    """The parent reports a hard limit twice: the run ends once, with its reason and its lines."""
    outcome = prefork.send(tasks.hard)

    result = ended(outcome)
    assert (result.status, result.reason) == ('errored', 'time_limit')
    assert 'TimeLimitExceeded' in result.error
    assert lines(outcome) == ['before the limit']
    assert until(lambda: outcome.state == 'FAILURE')
    assert prefork.run(tasks.echo).status == 'completed'
    assert row(outcome).completed == result.completed


def test_time_limit_of_the_call(prefork):
    """Limits of the call apply, and are in the row's options."""
    result = prefork.run(tasks.soft, soft_time_limit=0.3, time_limit=20)

    assert result.reason == 'soft_time_limit'
    assert (result.completed - result.started).total_seconds() < 1
    assert (result.options['soft_time_limit'], result.options['time_limit']) == (0.3, 20)


def test_hard_time_limit_with_redelivery(prefork):
    """With `acks_on_timeout=False` the message is requeued: the same row, two claims, one success."""
    outcome = prefork.send(tasks.hard_late)
    result = until(lambda: (found := row(outcome)).status == 'completed' and found, 30, lambda: row(outcome).status)

    assert noted(outcome.id) == ['ran', 'ran']
    assert result.result == 'in time'
    assert (result.attempt, result.claims) == (1, 2)


@pytest.mark.parametrize('why', ['nothing to do', None])
def test_ignore(worker, why):
    """Celery records nothing of an `Ignore`; the run ends as ignored, with the task's text."""
    result = worker.run(tasks.ignore, why)

    assert (result.status, result.error) == ('ignored', why or '')
    assert result.attempts[0]['ended'] is not None


def test_ignore_after_started(worker):
    """The backend has STARTED, and with Celery alone would never change."""
    outcome = worker.send(tasks.ignore_started)

    assert ended(outcome).status == 'ignored'
    assert outcome.get(timeout=10) is None
    assert outcome.state == 'IGNORED'


@pytest.mark.parametrize('requeue', [False, True])
def test_reject_after_early_acknowledgement(worker, requeue):
    """The message is already acknowledged, so requeue has no effect: failed, reason rejected, run once."""
    result = worker.run(tasks.reject, requeue)

    assert (result.status, result.reason) == ('failed', 'rejected')
    assert 'not for me' in result.error
    assert len(notes(result.task_id)) == 1


def test_reject_late(worker):
    """A message that is rejected without requeue fails the run."""
    result = worker.run(tasks.reject_late)

    assert (result.status, result.reason) == ('failed', 'rejected')
    assert len(notes(result.task_id)) == 1


def test_reject_late_and_requeue(worker):
    """A message that is requeued does not end the run: it waits, and is claimed again at each delivery."""
    result = worker.run(tasks.reject_late, 3)

    assert (result.status, result.result) == ('completed', 'taken')
    assert len(notes(result.task_id)) == 4
    assert [a['error'] for a in result.attempts] == [*['Reject: come again'] * 3, '']


def test_unregistered(worker):
    """A task that the worker does not know ends the run as errored, also in the backend."""
    outcome = app.send_task('netbox_test_plugin:no_such_task', args=(1,), queue=worker.queue)

    result = ended(outcome)
    assert (result.status, result.reason) == ('errored', 'unregistered')
    assert 'netbox_test_plugin:no_such_task' in result.error
    assert until(lambda: outcome.state == 'FAILURE')
    # An error in a worker's main process would end it
    assert worker.run(tasks.echo).status == 'completed'


@pytest.mark.parametrize('how', ['task', 'self'])
def test_replace(worker, how):
    """A task that replaces itself keeps its row, which ends like its replacement."""
    outcome = worker.send(tasks.replace, how, kwargs={'queue': worker.queue})

    assert outcome.get(timeout=20) == [['replacement'], {}]
    result = ended(outcome)
    assert (result.status, result.result) == ('completed', [['replacement'], {}])
    assert lines(outcome) == ['before the replacement'] * (2 if how == 'self' else 1)
    assert len(result.attempts) == (3 if how == 'self' else 2)
    assert CeleryResult.objects.count() == 1


def test_replace_with_a_chain(worker):
    """The last step keeps the row; the first has a row of its own, under it."""
    outcome = worker.send(tasks.replace, 'chain', kwargs={'queue': worker.queue})

    assert outcome.get(timeout=20) == [['last'], {}]
    result = ended(outcome)
    first = CeleryResult.objects.exclude(pk=result.pk).get()
    assert (result.status, result.result) == ('completed', [['last'], {}])
    assert ended(first).status == 'completed'
    assert first.root_id == result.task_id


def test_replacement_fails(worker):
    """The replacement's error is the run's."""
    result = worker.run(tasks.replace, 'failing', kwargs={'queue': worker.queue})

    assert (result.status, result.error) == ('errored', 'ValueError: wrong value')


def test_replacement_cannot_be_sent(worker):
    """If the broker refuses the replacement, the run ends with that error."""
    result = worker.run(tasks.replace, 'unsent')

    assert result.status == 'errored'
    assert 'onnection' in result.error


@pytest.mark.parametrize('how, status', [('success', 'completed'), ('error', 'failed'), ('canceled', 'revoked')])
def test_end_set_by_hand_is_kept(worker, how, status):
    """The end that a body sets itself stays, whatever it does or raises afterwards."""
    outcome = worker.send(tasks.end_itself, how)
    until(outcome.ready)
    # The last thing that a worker does for the run is its progress, which comes too late
    assert worker.run(tasks.echo).status == 'completed'
    result = row(outcome)

    assert result.status == status
    assert result.value is None
    if how == 'success':
        assert outcome.get(timeout=20) == result.result == {'by': 'hand'}
    else:
        assert result.error == 'by hand'
        with pytest.raises((TaskFailed, TaskRevokedError), match='by hand'):
            outcome.get(timeout=20)
    assert outcome.state == {'completed': 'SUCCESS', 'failed': 'FAILURE', 'revoked': 'REVOKED'}[status]


@pytest.mark.parametrize('how', ['error', 'canceled'])
def test_end_set_by_hand_ends_the_chain(worker, how):
    """Steps after one that sets itself an end without success are not run."""
    outcome = chain(tasks.end_itself.s(how).set(queue=worker.queue), tasks.echo.si().set(queue=worker.queue))()

    until(lambda: CeleryResult.objects.filter(task_id=outcome.id).exists())
    result = ended(outcome)
    assert (result.status, result.reason) == ('errored', 'upstream_failed')
    assert notes(outcome.id) == []


@pytest.mark.parametrize('how, state', [('error', 'FAILURE'), ('canceled', 'REVOKED')])
def test_process_killed_after_an_end_set_by_hand(prefork, how, state):
    """The end is kept, and nothing waits for the next step that the process would have sent."""
    step = tasks.end_itself.s(how, dies=True).set(queue=prefork.queue)
    ends = [chain(step, tasks.echo.si().set(queue=prefork.queue))(), chord([step.clone()], tasks.echo.si())()]
    for end in ends:
        until(lambda: CeleryResult.objects.filter(task_id=end.id).exists())
        assert (row(end).status, row(end).reason) == ('errored', 'upstream_failed')
        assert until(lambda: end.state == 'FAILURE')
    first = ends[0].parent
    assert row(first).status == {'FAILURE': 'failed', 'REVOKED': 'revoked'}[state]
    assert until(lambda: first.state == state)


def test_child_killed(prefork):
    """A killed process (out of memory) ends the run in the parent, and the pool starts another one."""
    outcome = prefork.send(tasks.kill_self)

    result = ended(outcome)
    assert (result.status, result.reason) == ('errored', 'worker_lost')
    assert 'SIGKILL' in result.error
    assert until(lambda: outcome.state == 'FAILURE')
    assert len(notes(outcome.id)) == 1
    assert prefork.run(tasks.echo).status == 'completed'


def test_child_killed_with_redelivery(prefork):
    """With `reject_on_worker_lost` Celery requeues the message silently: the same row, run again."""
    result = prefork.run(tasks.kill_once)

    assert (result.status, result.result) == ('completed', 'survived')
    assert len(notes(result.task_id)) == 2
    assert 'lost' in result.attempts[0]['error']
    assert result.attempts[1]['error'] == ''


def test_task_that_kills_every_process(prefork):
    """A task that kills every process is not redelivered for ever: five losses end it."""
    outcome = prefork.send(tasks.kill_always, countdown=1)
    earlier = [{'number': 1, 'started': None, 'ended': None, 'worker': '', 'error': 'lost'}] * 3
    CeleryResult.objects.filter(task_id=outcome.id).update(claims=3, attempts=earlier)

    result = ended(outcome, timeout=40)
    assert (result.status, result.reason) == ('errored', 'worker_lost')
    assert 'not started again after 5 losses' in result.error
    assert len(notes(outcome.id)) == 2
    assert until(lambda: outcome.state == 'FAILURE')
    # Its message is lost, too
    assert [prefork.run(tasks.echo).status for __ in range(4)] == ['completed'] * 4
    assert len(notes(outcome.id)) == 2


def test_chain_of_a_task_that_kills_every_process(prefork):
    """The next step is closed as after any other end, so that waiting for the chain ends."""
    chain = (tasks.kill_always.si().set(queue=prefork.queue) | tasks.echo.si().set(queue=prefork.queue)).apply_async(
        countdown=1
    )
    CeleryResult.objects.filter(task_id=chain.parent.id).update(claims=4, attempts=[])

    assert ended(chain.parent, timeout=40).reason == 'worker_lost'
    last = until(lambda: CeleryResult.objects.filter(task_id=chain.id).first())
    assert (last.status, last.reason) == ('errored', 'upstream_failed')
    assert chain.parent.id in last.error
    assert until(lambda: chain.state == 'FAILURE')


def test_child_killed_and_retried_by_celery(prefork):
    """With `retry_on_worker_lost` Celery sends the next attempt itself, and the run continues."""
    result = prefork.run(tasks.retry_on_lost)

    assert (result.status, result.result) == ('completed', 'survived')
    assert (result.attempt, len(result.attempts)) == (2, 2)
    assert 'lost' in result.attempts[0]['error'].lower()


@pytest.mark.parametrize('how, state, seen', [
    ('ok', 'SUCCESS', ["on_success ok ['ok'] {}"]),
    ('fail', 'FAILURE', ["on_failure ValueError('fail') ['fail'] {} ExceptionInfo"]),
    ('retry', 'SUCCESS', [
        'before_start', "on_retry ValueError('once more') ['retry'] {} ExceptionInfo", "on_success retry ['retry'] {}",
    ]),
])
def test_handlers_are_the_authors(worker, how, state, seen):
    """An author's handlers are called once each, with Celery's arguments; tracking does not depend on them."""
    outcome = worker.send(tasks.handlers, how)
    result = ended(outcome)
    expected = ['before_start', *seen, f'after_return {state}']
    called = until(lambda: len(found := noted(outcome.id)) >= len(expected) and found)

    # The next attempt may start before the handlers of the one before are called
    assert sorted(called) == sorted(expected)
    assert result.status == ('errored' if how == 'fail' else 'completed')
    assert AsyncResult(outcome.id, app=app).state == state
