"""Tasks that replace themselves: the row of such a run ends once, however its replacement ends."""
from itertools import product

import pytest
from celery import chain, chord
from celery.exceptions import TimeoutError as CeleryTimeout
from netbox_test_plugin.side import noted, notes, open_gate
from netbox_test_plugin.tasks import canvas as tasks

from netbox_celery.choices import ResultStatusChoices
from netbox_celery.engine.calls.policies import window_key
from netbox_celery.engine.sending.admission import is_window_open
from netbox_celery.engine.store.database import get_connection
from netbox_celery.models import CeleryResult, IgnoreWindow

from .support import Worker, ended, row, until, waiting

COMPLETED, FAILED = ('completed', ''), ('errored', '')
UPSTREAM, CANCELLED = ('errored', 'upstream_failed'), ('revoked', 'cancelled')
NOT_SENT, LOST = ('errored', 'publish_failed'), ('errored', 'worker_lost')

#: What replaces the task, how that ends, and the run's final status then.
CELLS = {
    ('task', 'completed'): COMPLETED,
    ('task', 'refused last'): FAILED,
    ('task', 'fails last'): FAILED,
    ('task', 'lost last'): LOST,
    ('task', 'unknown last'): ('errored', 'unregistered'),
    ('task', 'untracked last'): COMPLETED,
    ('task', 'redacted last'): COMPLETED,
    ('task', 'retries last'): COMPLETED,
    ('task', 'windowed last'): COMPLETED,
    ('task', 'nobody last'): CANCELLED,
    ('task', 'gate last'): CANCELLED,
    **{(how, fate): end for how in ('chain', 'chord') for fate, end in (
        ('completed', COMPLETED),
        ('refused first', FAILED),
        ('refused last', NOT_SENT),
        ('fails first', UPSTREAM),
        ('fails last', FAILED),
        ('lost first', UPSTREAM),
        ('lost last', LOST),
        ('unknown first', UPSTREAM),
        ('unknown last', ('errored', 'unregistered')),
        ('untracked last', COMPLETED),
        ('redacted last', COMPLETED),
        ('retries last', COMPLETED),
        ('windowed last', COMPLETED),
        ('nobody first', CANCELLED),
        ('nobody last', CANCELLED),
        ('gate first', CANCELLED),
        ('gate last', CANCELLED),
    )},
    ('group', 'completed'): COMPLETED,
    ('group', 'refused first'): FAILED,
    ('group', 'fails first'): UPSTREAM,
    ('group', 'lost first'): UPSTREAM,
    ('group', 'unknown first'): UPSTREAM,
    ('group', 'nobody first'): CANCELLED,
    ('group', 'gate first'): CANCELLED,
    # The replacement replaces itself
    **{(how, 'nested last', then): COMPLETED for how, then in product(
        ('task', 'chain', 'chord'), ('task', 'chain', 'chord', 'group')
    )},
}
#: What takes the place, and the steps whose fate may be chosen: the last one of a group is made by Celery.
PLACES = {'task': ('last',), 'chain': ('first', 'last'), 'chord': ('first', 'last'), 'group': ('first',)}
#: Fates of any step; those that are the last step's own: it ends the row.
FATES = ('refused', 'fails', 'lost', 'unknown', 'nobody', 'gate')
LAST_FATES = ('untracked', 'redacted', 'retries', 'windowed')
#: The arguments of the task that replaces itself: whole in its row, hidden, or too long for it.
KEPT = ('kept', 'redacted', 'long')


def test_table():
    """It has each fate in each place."""
    expected = {(how, 'completed') for how in PLACES} | {
        (how, f'{fate} {place}') for how, places in PLACES.items() for place in places
        for fate in (*FATES, *(LAST_FATES if place == 'last' else ()))
    } | {(how, 'nested last', then) for how in PLACES if how != 'group' for then in PLACES}
    assert CELLS.keys() == expected


@pytest.fixture(scope='module')
def replacing(instance, worker_log, side, django_db_blocker):
    """A worker for the default queue too, to which Celery sends a task of its own when a group replaces a task."""
    worker = Worker(instance, worker_log, 'replacing-table', concurrency=6)
    worker.command[worker.command.index('-Q') + 1] = f'{worker.queue},celery'
    with django_db_blocker.unblock():
        worker.start().ready()
    yield worker
    worker.stop()


def describe(run):
    return [(str(found), found.status, found.reason, found.error) for found in CeleryResult.objects.order_by('pk')]


def waits(result):
    """Return what a caller that waits for a run gets: its result, or `Exception`."""
    try:
        return result.get(timeout=30)
    except CeleryTimeout:
        raise AssertionError(f'The end of {result.id} was not reported: {describe(result)}') from None
    except Exception:  # noqa: BLE001 - as a run ends
        return Exception


class Cell:
    """One way to replace a task: in a chain, under a concurrency key, with another run in the waiting line."""

    def __init__(self, worker, how, fate, kept, window, gate, then=None, place='chain'):
        self.how, self.window, self.name = how, window, f'{how}, {fate}, {kept}, window {window}'
        self.key = f'{how} {fate} {kept} {window}'
        padding = [kept, 'x' * 70_000 if kept == 'long' else '']
        kwargs = {'how': how, 'fate': fate, 'queue': worker.queue, 'gate': gate, 'then': then}
        step = tasks.replace_with.si(*padding, **kwargs).set(
            queue=worker.queue, concurrency_key=self.key, on_conflict='queue'
        )
        if kept == 'redacted':
            step.set(argsrepr='***', kwargsrepr='***')
        if window:
            step.set(ignore_task_after_success=True, ignore_task_timedelta=60)
            # Each has its own arguments, so each has its own window
            self.window = window_key(tasks.replace_with, padding, kwargs)
        after = tasks.add.si(10).set(queue=worker.queue)
        if place == 'chain':
            self.after = chain(step, after).apply_async()
            self.run = self.after.parent
        else:
            self.after = chord([tasks.add.si(5).set(queue=worker.queue), step], after).apply_async()
            self.run = self.after.parent.results[1]
        self.next = worker.send(tasks.add, 7, concurrency_key=self.key, on_conflict='queue')

    def check(self, end):
        result = ended(self.run, 30)
        reason = 'cancelled' if result.reason == 'terminated' else result.reason  # a process that the worker terminated
        assert (result.status, reason) == end, (self.name, result.error)
        assert result.completed and result.message is None
        if end != COMPLETED:
            assert result.error, self.name
        assert (waits(self.run) is not Exception) == (end == COMPLETED), self.name
        assert (waits(self.after) is not Exception) == (end == COMPLETED), self.name
        # A step that will never run gets its row after the end of the step before it
        until(lambda: CeleryResult.objects.filter(task_id=self.after.id).exists(), 30)
        after = ended(self.after, 30)
        assert (after.status, after.reason) == (COMPLETED if end == COMPLETED else UPSTREAM), (self.name, after.error)
        assert waits(self.next) == 7, self.name
        if self.window:
            opened = is_window_open(get_connection().execute, self.window)
            assert opened == (end == COMPLETED), self.name


@pytest.mark.parametrize('cell', CELLS, ids=', '.join)
def test_ends(replacing, gate, cell):
    """The row ends once, with or because of the replacement, and everything that depends on it is informed."""
    how, fate, *then = cell
    end, word = CELLS[cell], fate.split()[0]
    cells = []
    for kept, window in product(KEPT, (False, True)):
        cells.append(Cell(replacing, how, fate, kept, window, gate if word == 'gate' else None, *then))
    for cell in cells:
        if word in ('gate', 'nobody'):
            place = fate.split()[1]
            waits_for = row(cell.run)
            if word == 'gate' and place == 'last':
                until(
                    lambda: noted(cell.run.id) == ['replaced', 'ran'], 30, lambda: describe(cell)
                )
            else:
                waits_for = waiting(cell.run, 'pending', 'running', timeout=30)
                until(lambda: row(cell.run).reason == 'replaced' and row(cell.run).holder is None, 30)
                if place == 'last':
                    # The sweep looks for it in the queue of its message
                    until(lambda: row(cell.run).message and row(cell.run).sent, 30, lambda: describe(cell))
                    assert row(cell.run).queue == 'nobody'
            assert waits_for.cancel()
    if fate != 'gate last':
        open_gate(gate)  # runs that were not cancelled continue
    for cell in cells:
        cell.check(end)
    open_gate(gate)
    if word != 'nobody':
        until(
            lambda: not CeleryResult.objects.filter(status__in=ResultStatusChoices.UNFINISHED).exists(), 30,
            lambda: describe(None)
        )
    opened = sum(1 for cell in cells if cell.window) if end == COMPLETED else 0
    # A replacement with a window of its own opens one for each run
    assert IgnoreWindow.objects.count() == opened + (len(cells) if word == 'windowed' else 0)
    assert not replacing.tracebacks()


@pytest.mark.parametrize('how', ['task', 'chain', 'chord', 'group'])
@pytest.mark.parametrize('fate', ['completed', 'fails first'])
def test_part_of_a_chord(replacing, how, fate):
    """A part of a chord that replaces itself counts as one part, with its final status."""
    cells = [Cell(replacing, how, fate, kept, True, None, place='chord') for kept in KEPT]
    for cell in cells:
        cell.check(COMPLETED if fate == 'completed' or how == 'task' else UPSTREAM)


@pytest.mark.parametrize('how', ['task', 'chain', 'chord'])
@pytest.mark.parametrize('otherwise', ['result', 'retry'])
def test_not_sent(replacing, how, otherwise):
    """A body whose replacement cannot be sent may continue: return, or retry."""
    run = replacing.send(tasks.replace_or, kwargs={'how': how, 'otherwise': otherwise}, argsrepr='***')
    assert run.get(timeout=30) == 'otherwise'
    assert (ended(run).status, row(run).reason, row(run).nesting) == ('completed', '', 0)
    assert len(notes(run.id)) == (2 if otherwise == 'retry' else 1)


@pytest.mark.parametrize('how', ['task', 'chain', 'chord', 'group'])
def test_in_a_transaction(replacing, how):
    """`replace()` inside a transaction rolls it back; the replacement is sent all the same."""
    run = replacing.send(
        tasks.replace_with, kwargs={'how': how, 'fate': 'completed', 'queue': replacing.queue, 'atomic': True}
    )
    assert waits(run) == ([1, 1] if how == 'group' else 1)
    assert ended(run).status == 'completed'


@pytest.mark.parametrize('how', ['task', 'chain', 'chord'])
@pytest.mark.parametrize('times', [{'countdown': 100}, {'countdown': 100, 'expires': 200}, {'expires': 1}], ids=str)
def test_times(replacing, how, times):
    """The row of a run gets the times of its replacement."""
    queue = 'nobody' if 'countdown' not in times else replacing.queue
    run = replacing.send(tasks.replace_by_later, kwargs={
        'how': how, 'queue': replacing.queue, 'last': {'queue': queue, **times},
    }, expires=300, countdown=0.1)
    until(lambda: row(run).message and row(run).reason == 'replaced' or row(run).completed, 30)
    found = row(run)
    if 'countdown' in times:
        assert (found.status, (found.scheduled - found.created).total_seconds() > 90) == ('scheduled', True)
        assert (found.expires is not None) == ('expires' in times)
        found.cancel()
    else:
        assert (ended(run, 30).status, row(run).reason) == ('revoked', 'expired')
    assert waits(run) is Exception


@pytest.mark.parametrize('how', ['task', 'chain'])
def test_nothing_is_sent(replacing, how):
    """A task whose `on_replace` sends nothing is ignored."""
    run = replacing.send(tasks.die_in_replace, kwargs={'how': how, 'queue': '', 'when': 'never', 'what': ''})
    assert (ended(run).status, row(run).error) == ('ignored', 'nothing replaces it')
    assert waits(run) is None


@pytest.mark.parametrize('how', ['task', 'chain'])
@pytest.mark.parametrize('when', ['before', 'after'])
@pytest.mark.parametrize('what', ['process', 'worker'])
def test_lost_on_the_way(make_worker, replacing, how, when, what):
    """A worker that dies while it sends a replacement leaves no run waiting for ever."""
    victim = make_worker('victim-replacing', concurrency=1).start().ready()
    outcome = chain(
        tasks.die_in_replace.si(how=how, queue=replacing.queue, when=when, what=what).set(queue=victim.queue),
        tasks.add.si(1).set(queue=replacing.queue),
    ).apply_async()
    result = ended(outcome.parent, 60)
    assert result.status in ('completed', 'errored')
    if result.status == 'errored':
        assert result.reason == 'worker_lost'
    assert (waits(outcome) == 1) == (result.status == 'completed')
    until(
        lambda: not CeleryResult.objects.filter(status__in=ResultStatusChoices.UNFINISHED).exists(), 60,
        lambda: describe(None)
    )
