"""Concurrency slots, waiting lines and ignore windows: each statement on its own rows, and two concurrently."""
import threading
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from uuid import uuid4

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from netbox_celery.celery import app
from netbox_celery.engine.calls.call import Call
from netbox_celery.engine.calls.policies import Policy
from netbox_celery.engine.exceptions import TaskConflict
from netbox_celery.engine.sending import admission
from netbox_celery.engine.sending.control import cancel_many
from netbox_celery.engine.sending.rows import build_row
from netbox_celery.engine.store.database import EngineConnection, execute
from netbox_celery.models import CeleryResult, IgnoreWindow
from tests.factories import make_result
from tests.support import in_thread

pytestmark = pytest.mark.django_db(transaction=True)

KEY = 'tests:key'
run_sql = partial(execute, connection)


@pytest.fixture
def sent(monkeypatch):
    """What is sent to the broker: IDs, in order."""
    sent = []
    monkeypatch.setattr(admission, 'send_row', lambda app, task_id, *row: sent.append(str(task_id)))
    return sent


def policy(**settings):
    return Policy('tests:x', **{'key': KEY, 'on_conflict': 'fail', **settings})


def admit(policy, insert=None, id_is_known=False, **options):
    options = {'task_id': str(uuid4()), **options}
    row = build_row(Call(app, 'tests:x', (), {}, options))
    return admission.admit(policy, row, insert or execute_insert, cancel_many, id_is_known=id_is_known)


def execute_insert(statement, row):
    rows = run_sql(statement, row)
    return SimpleNamespace(id=rows[0][0] if rows else None)


def make(slot=None, status='pending', **columns):
    return make_result(status, **{
        'concurrency_key': KEY, 'concurrency_slot': slot, 'concurrency_limit': 1, 'args': [], 'kwargs': {},
        'options': {}, **columns,
    })


def slots():
    return list(CeleryResult.objects.filter(completed=None).order_by('pk').values_list('concurrency_slot', flat=True))


# Slots

@pytest.mark.parametrize('limit', [1, 3])
def test_limit(limit):
    """As many runs as the limit are admitted, each with a slot of its own, and no more."""
    admitted = [admit(policy(limit=limit)) for __ in range(limit)]
    assert slots() == [*range(1, limit + 1)]
    assert all(it.id and not it.waits and not it.ignored for it in admitted)
    with pytest.raises(TaskConflict, match='is already active') as caught:
        admit(policy(limit=limit))
    assert caught.value.task_id == str(CeleryResult.objects.get(pk=admitted[0].id).task_id)
    assert CeleryResult.objects.count() == limit


@pytest.mark.parametrize('freed', [1, 2, 3])
def test_freed_slot(freed):
    """The slot of a finished run goes to the next call; others keep theirs."""
    runs = [make(slot) for slot in (1, 2, 3)]
    CeleryResult.objects.filter(pk=runs[freed - 1].pk).update(status='completed', completed=timezone.now())
    assert CeleryResult.objects.get(pk=admit(policy(limit=3)).id).concurrency_slot == freed


def test_lower_limit():
    """Calls with different limits under one key each respect their own."""
    make(1), make(2), make(5)
    with pytest.raises(TaskConflict):
        admit(policy(limit=2))
    assert CeleryResult.objects.get(pk=admit(policy(limit=3)).id).concurrency_slot == 3
    with pytest.raises(TaskConflict):
        admit(policy(limit=3))


@pytest.mark.parametrize('slots, expected', [((1,), False), ((1, 2), True), ((1, 2, 3), True)])
def test_is_processing(slots, expected):
    """A stale run does not count, and the others under the key do."""
    past = timezone.now() - timedelta(seconds=1)
    for slot in slots:
        make(slot, 'running', stale_after=past if slot == 1 else None, concurrency_limit=3)
    assert admission.is_processing(policy(limit=3)) is expected
    assert admission.is_processing(policy(limit=3)) is expected


def test_other_keys():
    make(1, concurrency_key='other')
    make(None, concurrency_key=KEY)
    assert admit(policy()).id


def test_no_two_in_one_slot():
    """PostgreSQL itself refuses it for every writer."""
    make(1)
    with pytest.raises(IntegrityError):
        make(1)


def test_same_id():
    """A call whose row exists is that row, and takes no second slot."""
    task_id = str(uuid4())
    assert admit(policy(limit=5), task_id=task_id).id
    assert admit(policy(limit=5), task_id=task_id) == admission.Admission()
    assert slots() == [1]


@pytest.mark.parametrize('on_conflict, options, expected', [
    ('join', {}, 'joined'), ('join', {'id_is_known': True}, 'ignored'),
    ('skip', {}, 'ignored'), ('queue', {}, 'waits'), ('replace', {}, 'waits'), ('fail', {}, None),
])
def test_conflict(on_conflict, options, expected):
    holder = make(1, 'running')
    if expected is None:
        with pytest.raises(TaskConflict):
            admit(policy(on_conflict=on_conflict), **options)
        return
    made = admit(policy(on_conflict=on_conflict), **options)
    assert {name for name in ('joined', 'waits', 'ignored') if getattr(made, name)} == {expected}
    assert not made.in_window
    if expected == 'joined':
        assert (made.joined, made.id, CeleryResult.objects.count()) == (str(holder.task_id), None, 1)
        return
    row = CeleryResult.objects.get(pk=made.id)
    if expected == 'ignored':
        assert (row.status, row.concurrency_slot, row.completed is None) == ('ignored', None, False)
        assert str(holder.task_id) in row.error
    else:
        assert (row.status, row.reason, row.concurrency_slot) == ('pending', 'queued', 0)
    holder.refresh_from_db()
    assert (holder.cancelled is not None) == (on_conflict == 'replace')


def test_replace():
    """All earlier runs under the key are superseded; later and stale ones are not."""
    stale, first, waits = make(None), make(1, 'running'), make(0)
    other = make(1, concurrency_key='other')
    new = CeleryResult.objects.get(pk=admit(policy(on_conflict='replace')).id)
    for run in (stale, first, waits, other):
        run.refresh_from_db()
    assert [run.cancelled is not None for run in (stale, first, waits, other)] == [False, True, True, False]
    assert waits.status == 'revoked' and str(new.task_id) in waits.error
    assert new.concurrency_slot == 0


def test_replace_by_a_call_with_a_used_id():
    """Its row is older than the runs that it supersedes, and they do not supersede it in turn."""
    old = make(None, 'completed', completed=timezone.now(), concurrency_key=None)
    first, waits = make(1, 'running'), make(0)
    row = build_row(Call(app, 'tests:x', (), {}, {'task_id': str(old.task_id)})) | {'seen': old.completed}
    admission.admit(policy(on_conflict='replace'), row, execute_insert, cancel_many)
    for run in (old, first, waits):
        run.refresh_from_db()
    assert [run.cancelled is not None for run in (old, first, waits)] == [False, True, True]
    assert (old.status, old.concurrency_slot) == ('pending', 0)
    assert run_sql(admission.EARLIER, {'key': KEY, 'id': waits.pk, 'limit': 1}) == []


@pytest.mark.parametrize('slots, cancelled', [((1, 2), 0), ((1, 2, 3), 1), ((1, 2, 3, 0), 2)])
def test_replace_within_the_limit(slots, cancelled):
    """The oldest runs are cancelled, as many as needed and no more."""
    runs = [make(slot, 'running' if slot else 'pending', concurrency_limit=3) for slot in slots]
    admit(policy(on_conflict='replace', limit=3))
    for run in runs:
        run.refresh_from_db()
    assert [run.cancelled is not None for run in runs] == [number < cancelled for number in range(len(slots))]


@pytest.mark.parametrize('completed, taken, expected', [
    (None, None, (1, 'replaced')), (None, 1, (0, 'queued')), (timezone.now(), None, (None, 'replaced')),
])
def test_row_of_a_task_that_replaced_itself(completed, taken, expected):
    """The replacement gets a slot under the key, or waits in line for it; a finished run stays as it is."""
    replaced = make_result('revoked' if completed else 'pending', nesting=1, reason='replaced', completed=completed)
    if taken:
        make(taken, 'running')
    row = build_row(Call(app, 'tests:x', (), {}, {'task_id': str(replaced.task_id), 'replaced_task_nesting': 1}))
    if taken:
        with pytest.raises(TaskConflict):
            admission.admit(policy(), row, execute_insert, cancel_many)
        assert admission.admit(policy(on_conflict='queue'), row, execute_insert, cancel_many).waits
    else:
        assert admission.admit(policy(), row, execute_insert, cancel_many).id == (None if completed else replaced.pk)
    replaced.refresh_from_db()
    assert (replaced.concurrency_slot, replaced.reason) == expected


def test_predecessor():
    """A run that follows another one under the same key takes its slot; other slots stay."""
    before, other = make(1, 'running'), make(2, 'running')
    own = {'predecessor': str(before.task_id)}
    row = build_row(Call(app, 'tests:x', (), {}, {'task_id': str(uuid4())}))
    made = admission.admit(policy(limit=2), row, execute_insert, cancel_many, **own)
    assert CeleryResult.objects.get(pk=made.id).concurrency_slot == 1
    for run in (before, other):
        run.refresh_from_db()
    assert (before.concurrency_slot, other.concurrency_slot) == (None, 2)


def test_slot_that_is_always_taken():
    """A call that sees a free slot again and again, and never gets it, raises an error."""
    with pytest.raises(TaskConflict, match='no slot under the key'):
        admit(policy(), insert=lambda statement, row: SimpleNamespace(id=None))


@pytest.mark.parametrize('rollback', [False, True])
def test_open_transaction(rollback):
    """A call waits for another transaction: after a rollback the slot is free, after a commit it is not."""
    with transaction.atomic():
        admit(policy())
        thread, found = in_thread(admit, policy())
        thread.join(0.3)
        assert thread.is_alive()
        transaction.set_rollback(rollback)
    thread.join(30)
    assert isinstance(found[0], admission.Admission if rollback else TaskConflict)
    assert slots() == [1]


def test_many_concurrent_calls():
    """However many calls are made at the same time, exactly as many as the limit are admitted."""
    threads = [in_thread(admit, policy(limit=3)) for __ in range(20)]
    for thread, __ in threads:
        thread.join(20)
    assert sum(isinstance(found[0], admission.Admission) for __, found in threads) == 3
    assert sorted(slots()) == [1, 2, 3]


# Stale runs

@pytest.mark.parametrize('seconds, gone', [(-1, True), (60, False), (None, False)])
def test_stale(seconds, gone, caplog):
    """A stale run gives up its slot, and is not ended."""
    run = make(1, 'running', stale_after=None if seconds is None else timezone.now() + timedelta(seconds=seconds))
    assert admission.is_processing(policy()) is not gone
    assert bool(admission.evict(run_sql, KEY)) is False  # it has been
    run.refresh_from_db()
    assert (run.status, run.concurrency_slot) == ('running', None if gone else 1)
    assert ('is stale' in caplog.text) is gone


@pytest.mark.parametrize('eta', [None, timezone.now() + timedelta(days=1)])
def test_stale_after(eta):
    """The time counts from when the run may start."""
    options = {'eta': eta} if eta else {}
    run = CeleryResult.objects.get(pk=admit(policy(stale_after=60), **options).id)
    assert run.stale_after == (eta or run.created) + timedelta(seconds=60)


# The line

def test_advance(sent):
    """First come, first served: as many runs get a slot and are sent as there are slots."""
    line = [make(0, concurrency_limit=2) for __ in range(4)]
    assert admission.advance(app, run_sql, KEY) is False
    assert sent == [str(run.task_id) for run in line[:2]]
    assert slots() == [1, 2, 0, 0]
    assert [run.sent is not None for run in CeleryResult.objects.order_by('pk')] == [True, True, False, False]
    admission.advance(app, run_sql, KEY)
    assert len(sent) == 2

    CeleryResult.objects.filter(pk=line[0].pk).update(completed=timezone.now())
    admission.advance(app, run_sql, KEY)
    assert slots() == [2, 1, 0]
    assert sent[2:] == [str(line[2].task_id)]


def test_own_turn(sent):
    """A caller that checks its own turn sends its message itself."""
    first, second = make(0), make(0)
    assert admission.advance(app, run_sql, KEY, except_id=second.pk) is False
    assert sent == [str(first.task_id)]
    CeleryResult.objects.filter(pk=first.pk).update(completed=timezone.now())
    assert admission.advance(app, run_sql, KEY, except_id=second.pk) is True
    assert len(sent) == 1


def test_broker_unavailable(monkeypatch, caplog):
    """A run with a slot that could not be sent keeps it, for the sweep to send; the others continue."""
    def away(*args):
        raise ConnectionError('away')
    monkeypatch.setattr(admission, 'send_row', away)
    make(0, concurrency_limit=2), make(0, concurrency_limit=2)
    admission.advance(app, run_sql, KEY)
    assert slots() == [1, 2]
    assert CeleryResult.objects.filter(sent=None, reason='').count() == 2
    assert 'will be sent again: away' in caplog.text


def test_slot_taken_meanwhile(sent):
    """If a call takes the free slot first, that is not an error: the line is checked again."""
    make(0)
    answers = [IntegrityError('taken'), IntegrityError('taken')]

    def taken(sql, params):
        if answers and sql is admission.GIVE:
            raise answers.pop()
        return run_sql(sql, params)
    admission.advance(app, taken, KEY)
    assert (slots(), len(sent)) == ([1], 1)


def test_cancelled_in_line(sent):
    """A cancelled or finished run is in no line."""
    cancelled, waits = make(0), make(0)
    cancelled.cancel()
    assert sent == [str(waits.task_id)]
    admission.advance_all(app, run_sql)
    assert slots() == [1]


def test_all_lines(sent):
    """Every line advances, past stale runs too."""
    make(1, 'running', stale_after=timezone.now() - timedelta(seconds=1))
    runs = [make(0), make(0, concurrency_key='other')]
    admission.advance_all(app, run_sql)
    assert sorted(sent) == sorted(str(run.task_id) for run in runs)
    admission.advance_all(app, run_sql)
    assert len(sent) == 2


def test_advanced_by_many_concurrently(sent):
    """Each run in line is sent once, and no slot is given away twice."""
    for __ in range(12):
        make(0, concurrency_limit=5)

    def advance():
        own = EngineConnection()
        admission.advance(app, own.execute, KEY)
        own.close()
    threads = [threading.Thread(target=advance) for __ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert slots() == [*slots()[:5], *[0] * 7] and sorted(slots()[:5]) == [1, 2, 3, 4, 5]
    assert len(sent) == len(set(sent)) == 5


# Ignore windows

def test_ignore_window():
    """A window is open for its length, for all runs but the one that opened it; reopening restarts it."""
    opener = uuid4()
    is_open = partial(admission.is_window_open, run_sql, 'w')
    assert not is_open()
    admission.open_window(run_sql, 'w', 60, opener)
    assert (is_open(), is_open(uuid4()), is_open(opener)) == (True, True, False)
    assert not admission.is_window_open(run_sql, 'other')
    admission.open_window(run_sql, 'w', -1, uuid4())
    assert (is_open(), IgnoreWindow.objects.count()) == (False, 1)


def test_call_in_a_window():
    """The call has a row that says so; without a window it runs."""
    admission.open_window(run_sql, 'w', 60, uuid4())
    made = admit(policy(window='w', key=None))
    row = CeleryResult.objects.get(pk=made.id)
    assert (made.in_window, row.status, row.reason) == (True, 'ignored', 'ignore_window')
    assert admit(policy(window='other', key=None)).ignored == ''


@pytest.mark.parametrize('held, is_open, expected', [
    (False, False, None), (True, False, 'unique'), (False, True, 'ignored'), (True, True, 'ignored'),
])
def test_calls_without_a_row(held, is_open, expected):
    if held:
        make(1)
    if is_open:
        admission.open_window(run_sql, 'w', 60, uuid4())
    assert admission.why_not_now(policy(window='w')) == expected
