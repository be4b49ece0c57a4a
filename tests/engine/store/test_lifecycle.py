"""The state machine: which transition leaves which state, and what guards it."""
from uuid import uuid4

import pytest
from django.db import connection as django_connection

from netbox_celery.choices import ResultStatusChoices
from netbox_celery.engine.store import lifecycle
from tests.factories import make_result, make_worker
from tests.support import Shared, now

pytestmark = pytest.mark.django_db

ALL = set(ResultStatusChoices.values())
WAITING = set(ResultStatusChoices.WAITING)
UNFINISHED = set(ResultStatusChoices.UNFINISHED)
HOLDER = uuid4()
ENTRY = {'number': 1, 'started': None, 'ended': None, 'worker': 'w', 'error': ''}

connection = Shared()


def make(status='running', **columns):
    claims = columns.pop('claims', 0 if status in ('pending', 'scheduled') else 1)
    columns = {
        'claims': claims, 'attempt': claims, 'holder': HOLDER if status == 'running' else None,
        'attempts': [ENTRY] * claims, 'message': 'kept', **columns,
    }
    return make_result(status, **columns)


def claim(run, *, attempt=1, nesting=0, holder=HOLDER):
    return lifecycle.claim(
        connection, task_id=run.task_id, attempt=attempt, nesting=nesting, worker='w', holder=holder
    )


@pytest.mark.parametrize('transition, leaves', [
    # A copy of the attempt that ran, and the message of the next one
    (lambda run: claim(run), {'pending', 'scheduled'}),
    (lambda run: claim(run, attempt=2), UNFINISHED),
    (lambda run: lifecycle.finish(connection, run.task_id, 'completed', claims=1), {'running'}),
    (lambda run: lifecycle.finish(connection, run.task_id, 'errored', holder=HOLDER, attempt=1), {'running'}),
    (lambda run: lifecycle.finish(connection, run.task_id, 'revoked'), WAITING),
    (lambda run: lifecycle.retry(connection, run.task_id, claims=1), {'running'}),
    (lambda run: lifecycle.requeue(connection, run.task_id, by='body', claims=1), {'running'}),
    (lambda run: lifecycle.requeue(connection, run.task_id, by='claim', claims=1), {'running'}),
    (lambda run: lifecycle.requeue(connection, run.task_id, by='holder', holder=HOLDER, attempt=1), {'running'}),
    (lambda run: lifecycle.replace(connection, run.task_id, claims=1, nesting=1), {'running'}),
    (lambda run: lifecycle.cancel(django_connection, [run.pk]), UNFINISHED),
    (lambda run: lifecycle.publish_failed(django_connection, [run.pk], 'error'), {'pending', 'scheduled'}),
], ids=[
    'claim', 'claim-next', 'finish-claim', 'finish-holder', 'finish-waiting', 'retry', 'requeue-body', 'requeue-claim',
    'requeue-holder', 'replace', 'cancel', 'publish-failed',
])
def test_transitions(transition, leaves):
    """Each transition applies to the states that it may leave, and changes nothing in others; no end is left."""
    make_worker(key=HOLDER)
    left = set()
    for status in sorted(ALL):
        run = make(status)
        before = now(run).__dict__.copy()
        transition(run)
        after = now(run).__dict__
        if any(before[name] != after[name] for name in ('status', 'cancelled', 'claims', 'completed', 'message')):
            left.add(status)
        else:
            assert {k: v for k, v in after.items() if k != '_state'} == {
                k: v for k, v in before.items() if k != '_state'
            }
    assert left == leaves


def test_claim():
    """A claim returns its number and the run's user, and adds an entry to the history."""
    run = make('pending')
    id, claims, attempt, user_id, request_id = claim(run)

    assert (id, claims, attempt, user_id, request_id) == (run.pk, 1, 1, None, run.request_id)
    assert now(run).status == 'running'
    assert (run.holder, run.worker, run.sent is not None, run.started is not None) == (HOLDER, 'w', True, True)
    assert [(a['number'], a['ended'], a['error']) for a in run.attempts] == [(1, None, '')]


@pytest.mark.parametrize('attempt, nesting, granted', [
    (1, 0, False), (2, 0, False), (3, 0, True), (1, 1, True), (9, 0, True),
])
def test_claims_never_go_back(attempt, nesting, granted):
    """A message of an earlier attempt is refused; a replacement is later than any attempt."""
    run = make('retrying', claims=2)

    assert bool(claim(run, attempt=attempt, nesting=nesting)) == granted


@pytest.mark.parametrize('worker', [{}, {'heartbeat': -100}, {'stopped': 0}, None], ids=str)
def test_claim_of_a_dead_workers_run(worker):
    """A copy of an active attempt's message is refused, whether or not the worker lives: only the sweep requeues."""
    from datetime import timedelta

    from django.utils import timezone

    other = uuid4()
    if worker is not None:
        make_worker(key=other, **{
            name: timezone.now() + timedelta(seconds=seconds) for name, seconds in worker.items()
        })
    run = make(holder=other)
    assert claim(run) is None

    assert lifecycle.requeue(connection, run.task_id, by='claim', claims=1, resend=True)
    assert claim(run)
    # The dead one, should it wake up, cannot end it
    assert lifecycle.finish(connection, run.task_id, 'completed', claims=1) is None
    assert lifecycle.finish(connection, run.task_id, 'completed', claims=2)
    assert len(now(run).attempts) == 2


def test_claim_of_ones_own_run():
    """A worker does not take a run over from itself, however long its heartbeat was missing."""
    run = make()

    assert claim(run) is None


def test_cancelled_run_is_not_claimed():
    """After a cancel no claim succeeds, whatever the status."""
    for status in sorted(UNFINISHED):
        run = make(status)
        lifecycle.cancel(django_connection, [run.pk], 'by me')
        assert claim(run, attempt=2) is None
        assert now(run).error == 'by me'


@pytest.mark.parametrize('end', [
    lambda run: lifecycle.finish(connection, run.task_id, 'completed', claims=1, result='1'),
    lambda run: lifecycle.finish(connection, run.task_id, 'errored', claims=1, error='x'),
    lambda run: lifecycle.retry(connection, run.task_id, claims=1),
    lambda run: lifecycle.requeue(connection, run.task_id, by='body', claims=1),
    lambda run: lifecycle.requeue(connection, run.task_id, by='claim', claims=1, resend=True),
    lambda run: lifecycle.replace(connection, run.task_id, claims=1, nesting=1),
], ids=['completed', 'errored', 'retry', 'reject', 'lost', 'replace'])
def test_cancel_wins(end):
    """A run that was cancelled while active is revoked, however it leaves its body."""
    run = make()
    lifecycle.cancel(django_connection, [run.pk])
    assert now(run).status == 'running'
    end(run)

    assert (now(run).status, run.reason, run.completed is not None) == ('revoked', 'cancelled', True)


def test_cancel_counts_what_it_cancelled():
    """A second cancel, and one of a finished run, cancel nothing."""
    runs = [make('pending'), make('running'), make('completed')]
    first = lifecycle.cancel(django_connection, [run.pk for run in runs])
    second = lifecycle.cancel(django_connection, [run.pk for run in runs])

    assert {(id, status) for id, __, status, *__ in first} == {(runs[0].pk, 'revoked'), (runs[1].pk, 'running')}
    assert second == []


@pytest.mark.parametrize('claims', [0, 2, 3])
def test_token_of_another_claim(claims):
    """Only the latest claim's token ends a run."""
    run = make(claims=1)
    for transition in (
        lambda: lifecycle.finish(connection, run.task_id, 'completed', claims=claims),
        lambda: lifecycle.requeue(connection, run.task_id, by='body', claims=claims),
        lambda: lifecycle.requeue(connection, run.task_id, by='claim', claims=claims),
    ):
        assert transition() is None
    assert now(run).status == 'running'


def test_holder_of_another_attempt():
    """A parent ends only what its own child held in that attempt."""
    run = make()
    assert lifecycle.finish(connection, run.task_id, 'errored', holder=uuid4(), attempt=1) is None
    assert lifecycle.finish(connection, run.task_id, 'errored', holder=HOLDER, attempt=2) is None
    assert lifecycle.finish(connection, run.task_id, 'errored', holder=HOLDER, attempt=1)


def test_end_of_an_earlier_attempt_comes_late():
    """If the next attempt started before the retry is written, only the history is completed."""
    run = make('running', claims=2, attempts=[ENTRY, {**ENTRY, 'number': 2}])
    assert lifecycle.retry(connection, run.task_id, claims=1, error='first failed')

    assert (now(run).status, run.error) == ('running', '')
    assert [(a['error'], a['ended'] is not None) for a in run.attempts] == [('first failed', True), ('', False)]


def test_an_end_forgets_the_message():
    """The message that was kept for sending again, perhaps with secrets, is deleted at the end."""
    for status, end in (
        ('running', lambda run: lifecycle.finish(connection, run.task_id, 'completed', claims=1)),
        ('pending', lambda run: lifecycle.cancel(django_connection, [run.pk])),
        ('pending', lambda run: lifecycle.publish_failed(django_connection, [run.pk], 'x')),
    ):
        run = make(status)
        end(run)
        assert now(run).message is None


def test_losses_are_counted():
    """A run that loses its worker for the fifth time is not requeued, by parent or sweep; retries do not count."""
    for claims, attempt, given_back in ((4, 1, True), (5, 1, False), (9, 9, True), (13, 9, False)):
        for by in ({'by': 'claim', 'claims': claims}, {'by': 'holder', 'holder': HOLDER, 'attempt': attempt}):
            run = make(claims=claims, attempt=attempt)
            assert bool(lifecycle.requeue(connection, run.task_id, **by)) == given_back
    run = make(claims=50, attempt=1)
    assert lifecycle.requeue(connection, run.task_id, by='body', claims=50)


def test_long_history():
    """The history of a run with very many attempts keeps its beginning and its end, and stays short."""
    run = make('pending')
    for attempt in range(1, 151):
        __, claims, *__ = claim(run, attempt=attempt)
        lifecycle.retry(connection, run.task_id, claims=claims, error=f'error {attempt}')

    assert now(run).claims == 150
    assert len(run.attempts) == 100
    assert [a['number'] for a in run.attempts] == [*range(1, 100), 150]
    assert [a['error'] for a in run.attempts] == [f'error {a["number"]}' for a in run.attempts]


def test_requeue_for_sending_again():
    """With `resend` the run counts as not sent."""
    from django.utils import timezone

    for resend in (False, True):
        run = make(sent=timezone.now())
        lifecycle.requeue(connection, run.task_id, by='claim', claims=1, resend=resend, error='lost')
        assert (now(run).sent is None, run.status, run.holder) == (resend, 'pending', None)
        assert run.attempts[-1]['error'] == 'lost'


def test_remember():
    """A message is remembered only by the claim that sent it; a replacement forgets the first task's."""
    run = make(message=None)
    lifecycle.remember(connection, run.task_id, 'stale', claims=2)
    assert now(run).message is None
    lifecycle.remember(connection, run.task_id, 'mine', claims=1)
    assert now(run).message == 'mine'
    lifecycle.replace(connection, run.task_id, claims=1, nesting=1)
    assert now(run).message is None
    lifecycle.remember(connection, run.task_id, 'replacement', claims=1)
    assert now(run).message == 'replacement'


def test_replace():
    """A row that waits for a replacement forgets the message; if that is not sent, everything is restored."""
    from django.utils import timezone

    then = timezone.now()
    run = make(message='[[1], {}]', sent=then, scheduled=then, expires=then, attempt=3, claims=3)
    id, status, before = lifecycle.replace(connection, run.task_id, claims=3, nesting=1, header='{"opens": {"w": 5}}')
    assert (id, status) == (run.pk, 'pending')
    assert (now(run).reason, run.nesting, run.attempt, run.holder) == ('replaced', 1, 0, HOLDER)
    assert (run.message, run.sent, run.scheduled, run.expires) == (None, None, None, None)
    assert run.options == {'headers': {'netbox_celery': {'opens': {'w': 5}}}}

    assert not lifecycle.take_back(connection, run.task_id, claims=2, attempt=3, before=before)
    assert lifecycle.take_back(connection, run.task_id, claims=3, attempt=3, before=before)
    assert (now(run).status, run.reason, run.nesting, run.attempt) == ('running', '', 0, 3)
    assert (run.message, run.sent, run.scheduled, run.expires) == ('[[1], {}]', then, then, then)
    assert run.options == {}
    assert lifecycle.finish(connection, run.task_id, 'completed', claims=3)


def test_replacement_has_the_row():
    """Once the replacement was claimed, its sender can neither take the row back nor release it."""
    run = make()
    __, __, before = lifecycle.replace(connection, run.task_id, claims=1, nesting=1)
    lifecycle.remember(connection, run.task_id, 'replacement', claims=1)
    assert lifecycle.close_replaced(connection, run.task_id, 'error') is None  # it was sent
    other = uuid4()
    assert claim(run, nesting=1, holder=other)
    assert not lifecycle.take_back(connection, run.task_id, claims=1, attempt=1, before=before)
    lifecycle.release(connection, run.task_id, claims=1)
    assert not lifecycle.resend_replacement(connection, run.task_id, claims=1)
    assert (now(run).status, run.holder) == ('running', other)


@pytest.mark.parametrize('status', sorted(ALL))
@pytest.mark.parametrize('columns', [{}, {'message': 'known'}, {'nesting': 0}], ids=str)
def test_close_replaced(status, columns):
    """Only a row that waits for an earlier step is closed."""
    run = make(status, **{'nesting': 1, 'message': None, 'concurrency_key': 'k', 'concurrency_slot': 1, **columns})
    found = lifecycle.close_replaced(connection, run.task_id, 'why')
    assert found == ((run.pk, 'k') if status in WAITING and not columns else None)
    assert (now(run).reason == 'upstream_failed') == (found is not None)


@pytest.mark.parametrize('claims', [1, None])
@pytest.mark.parametrize('status', ['completed', 'errored'])
def test_ignore_windows(claims, status):
    """All windows of a run open with its success, claimed or not, and with nothing else."""
    from netbox_celery.models import IgnoreWindow

    run = make('running' if claims else 'pending')
    assert lifecycle.finish(connection, run.task_id, status, claims=claims, windows={'a': 60, 'b': 0.5})
    assert set(IgnoreWindow.objects.values_list('key', 'task_id')) == (
        {('a', run.task_id), ('b', run.task_id)} if status == 'completed' else set()
    )


@pytest.mark.parametrize('text', ['nul \x00', 'lone \ud800'])
def test_text_that_postgresql_refuses(text):
    """Errors and tracebacks of any content can be written."""
    run = make()
    assert lifecycle.finish(connection, run.task_id, 'errored', claims=1, error=text, traceback=text)

    assert '\ufffd' in now(run).error
    assert '\ufffd' in run.traceback
    assert run.attempts[0]['error'] == run.error
