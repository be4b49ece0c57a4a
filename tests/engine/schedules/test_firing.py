"""What is due, is run; and what cannot be run says so."""
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from core.models import ObjectChange
from netbox_celery.engine.schedules import due
from netbox_celery.engine.schedules import firing as schedules
from netbox_celery.engine.schedules.firing import DUE_HEADER, resume_after_clock, run_now
from netbox_celery.models import CeleryResult, CelerySchedule, CeleryTask
from tests.factories import grant, make_schedule
from tests.factories import make_task as make_task_row
from users.models import User

pytestmark = pytest.mark.django_db


@pytest.fixture
def owner():
    user = User.objects.create_user('olga')
    grant(user, CeleryTask, actions=['run'])
    return user


@pytest.fixture
def make_due(owner):
    """Make a schedule that was due some seconds ago, as beat finds it."""
    def make(seconds=1, **columns):
        schedule = make_schedule(**{'owner': owner, 'kind': 'interval', 'interval': 3600, **columns})
        CelerySchedule.objects.filter(pk=schedule.pk).update(next_run=timezone.now() - timedelta(seconds=seconds))
        schedule.refresh_from_db()
        return schedule
    return make


def fire():
    """Do what beat does until nothing is due; returns how many schedules were."""
    number = 0
    while fired := [pk for pk in schedules.find_due() if schedules.fire(pk, {})]:
        number += len(fired)
        assert number < 50
    return number


def runs(schedule):
    return list(CeleryResult.objects.filter(schedule=schedule).order_by('pk'))


def test_fire(make_due, owner):
    """A run as the schedule says; the next time on the grid; no entry in the change log."""
    schedule = make_due(
        args=['Bob'], queue='fast', priority=3, expires=60, object=owner, interval=10, options={'time_limit': 5}
    )
    due = schedule.next_run
    assert fire() == 1
    run, = runs(schedule)
    assert (run.celery_name, run.args, run.kwargs) == (schedule.task.name, ['Bob'], {})
    assert (run.user, run.object, run.queue, run.status) == (owner, owner, 'fast', 'pending')
    assert (run.options['priority'], run.options['time_limit']) == (3, 5)
    assert (run.options['headers'][DUE_HEADER], run.expires) == (due.isoformat(), due + timedelta(seconds=60))
    schedule.refresh_from_db()
    assert schedule.next_run == due + timedelta(seconds=10)
    assert schedule.enabled and timezone.now() - schedule.last_run < timedelta(seconds=10)
    assert not ObjectChange.objects.filter(changed_object_type__model='celeryschedule').exists()
    assert fire() == 0


def test_what_is_not_due(make_due):
    make_due(name='disabled', enabled=False)
    make_due(name='later', seconds=-5)
    CelerySchedule.objects.filter(name='disabled').update(enabled=False)
    assert fire() == 0


def test_longest_due_first(make_due):
    names = [make_due(name=name, seconds=seconds).name for name, seconds in (('b', 20), ('c', 10), ('a', 30))]
    fire()
    started = CeleryResult.objects.order_by('pk').values_list('schedule__name', flat=True)
    assert list(started) == ['a', 'b', 'c'] == sorted(names)


@pytest.mark.parametrize(('missed', 'seconds', 'expected'), [
    # Every 10 seconds; 305 seconds ago: 31 times, the latest 5 seconds ago
    ('run_once', 305, 1), ('skip', 305, 1), ('run_all', 305, 4),
    # Every 10 seconds, not missed at all
    ('run_once', 5, 1), ('skip', 5, 1), ('run_all', 5, 1),
])
def test_missed(make_due, missed, seconds, expected):
    """After an outage: the latest ones, as many as the policy says, never more; and then as if nothing had been."""
    schedule = make_due(seconds, interval=10, missed=missed, missed_max=4)
    first = schedule.next_run
    assert fire() == 1
    times = [run.options['headers'][DUE_HEADER] for run in runs(schedule)]
    last = seconds // 10
    assert times == [(first + timedelta(seconds=10 * n)).isoformat() for n in range(last - expected + 1, last + 1)]
    schedule.refresh_from_db()
    assert schedule.next_run == first + timedelta(seconds=10 * (last + 1))


def test_missed_for_too_long(make_due):
    """With `skip`, what is late by more than a minute is left out; what a standby took over is not."""
    late, in_time = make_due(90, missed='skip', name='late'), make_due(30, missed='skip', name='in time')
    assert fire() == 2
    assert (len(runs(late)), len(runs(in_time))) == (0, 1)
    late.refresh_from_db()
    assert late.last_run is None and late.next_run > timezone.now()


def test_once(make_due):
    """One time, then it is disabled: also if that was missed and skipped."""
    for missed, number in (('run_all', 1), ('skip', 0)):
        schedule = make_due(
            3600, name=missed, kind='once', interval=None, at=timezone.now() + timedelta(hours=1), missed=missed
        )
        assert fire() == 1
        schedule.refresh_from_db()
        assert (len(runs(schedule)), schedule.enabled, schedule.next_run) == (number, False, None)


def test_end(make_due):
    """After its end a schedule stays enabled, and is not due."""
    schedule = make_due(interval=60, end=timezone.now() + timedelta(seconds=30))
    fire()
    schedule.refresh_from_db()
    assert (len(runs(schedule)), schedule.enabled, schedule.next_run) == (1, True, None)


def check_stopped(schedule, words):
    assert fire() == 1
    run, = runs(schedule)
    assert (run.status, run.reason) == ('failed', 'not_permitted')
    assert words in run.error and run.completed and run.sent is None
    schedule.refresh_from_db()
    assert (schedule.enabled, schedule.next_run) == (False, None)
    assert schedule.stopped == run.completed


def test_owner_gone(make_due, owner):
    schedule = make_due()
    owner.delete()
    check_stopped(schedule, 'Its owner was deleted')


def test_owner_inactive(make_due, owner):
    schedule = make_due()
    User.objects.filter(pk=owner.pk).update(is_active=False)
    check_stopped(schedule, 'olga is no longer active')


def test_owner_without_permission(make_due, owner):
    schedule = make_due()
    owner.object_permissions.all().delete()
    check_stopped(schedule, 'olga is not permitted to run the task')


def test_owner_may_run_others(make_due, owner):
    """The permission is looked for on that very task."""
    schedule = make_due()
    owner.object_permissions.all().delete()
    grant(owner, CeleryTask, actions=['run'], constraints={'name': 'another'})
    check_stopped(schedule, 'olga is not permitted to run the task')


def test_taken_over(make_due, owner):
    """Somebody else may take a stopped schedule over: it runs in their name, and nothing is made up for."""
    schedule = make_due()
    User.objects.filter(pk=owner.pk).update(is_active=False)
    fire()
    other = User.objects.create_superuser('other')
    schedule.refresh_from_db()
    schedule.owner, schedule.enabled = other, True
    schedule.save()
    assert schedule.stopped is None
    assert fire() == 0
    CelerySchedule.objects.filter(pk=schedule.pk).update(next_run=timezone.now())
    fire()
    assert [run.user for run in runs(schedule)] == [owner, other]


def test_nobody_owns_what_the_settings_schedule(make_due):
    schedule = make_due(owner=None, origin='settings')
    fire()
    assert [(run.status, run.user) for run in runs(schedule)] == [('pending', None)]


def test_task_disabled(make_due):
    """The run says so, and the schedule goes on: whoever enables the task again need not think of it."""
    schedule = make_due(interval=10)
    CeleryTask.objects.update(enabled=False)
    fire()
    assert [(run.status, run.reason) for run in runs(schedule)] == [('failed', 'task_disabled')]
    schedule.refresh_from_db()
    assert schedule.enabled and schedule.next_run > timezone.now()


def test_task_absent(make_due):
    """It is sent: a worker that has it may be back before long, and one that has not says so."""
    schedule = make_due(task=make_task_row('nobody:has_it', present=False))
    fire()
    assert [run.status for run in runs(schedule)] == ['pending']


def test_arguments_that_do_not_fit(make_due):
    """They fitted when the schedule was made: the run says so, and others are not held up."""
    broken, sound = make_due(20, name='broken', kwargs={'no_such': 1}), make_due(name='sound')
    assert fire() == 2
    run, = runs(broken)
    assert (run.status, run.reason) == ('failed', 'invalid_call') and 'no_such' in run.error
    assert [run.status for run in runs(sound)] == ['pending']
    broken.refresh_from_db()
    assert broken.enabled and broken.next_run > timezone.now()


@pytest.mark.parametrize('columns', [
    {'kind': 'crontab', 'crontab': 'nonsense'}, {'kind': 'crontab', 'crontab': '* * * * *', 'timezone': 'Nowhere/Else'},
    {'kind': 'interval', 'interval': None}, {'kind': 'interval', 'interval': -1},
])
def test_times_that_cannot_be_reckoned(make_due, columns):
    """Such a schedule is stopped, once, and says why; others are not held up."""
    broken, sound = make_due(20, name='broken'), make_due(name='sound')
    CelerySchedule.objects.filter(pk=broken.pk).update(**columns)
    assert fire() == 2
    run, = runs(broken)
    assert (run.status, run.reason) == ('failed', 'invalid_call') and 'disabled' in run.error
    broken.refresh_from_db()
    assert not broken.enabled
    assert [run.status for run in runs(sound)] == ['pending']


def test_failing_tick(make_due):
    """What fails for no good reason is put off, with nothing half done, and holds nobody up."""
    broken, sound = make_due(20, name='broken'), make_due(name='sound')
    with connection.cursor() as cursor:
        # The run's row can be made, and then the schedule's cannot be written
        cursor.execute(f'''
            CREATE FUNCTION pg_temp.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF NEW.pk = {broken.pk} THEN RAISE EXCEPTION 'refused'; END IF;
                RETURN NEW;
            END $$;
        '''.replace('NEW.pk', 'NEW.id'))
        cursor.execute(
            'CREATE TRIGGER refuse BEFORE UPDATE OF last_run ON netbox_celery_celeryschedule'
            ' FOR EACH ROW EXECUTE FUNCTION pg_temp.refuse()'
        )
    assert fire() == 2
    assert (len(runs(broken)), len(runs(sound))) == (0, 1)
    broken.refresh_from_db()
    assert broken.enabled and timezone.now() < broken.next_run < timezone.now() + timedelta(seconds=70)


@pytest.mark.django_db(transaction=True)
def test_locked_by_another(make_due, services):
    """Of two leaders one runs what is due: what the other has in hand is passed over, and is not due afterwards."""
    import psycopg

    schedule = make_due()
    with psycopg.connect(services.cluster.url('netbox')) as other:
        other.execute('SELECT FROM netbox_celery_celeryschedule WHERE id = %s FOR NO KEY UPDATE', (schedule.pk,))
        assert fire() == 0
    assert (fire(), fire(), len(runs(schedule))) == (1, 0, 1)


@pytest.mark.django_db(transaction=True)
def test_edited_while_due(make_due):
    """An edit that was begun before a tick does not undo it."""
    schedule = make_due()
    fire()
    stale = schedule  # as it was before
    stale.description = 'edited'
    stale.save()
    assert fire() == 0 and len(runs(schedule)) == 1
    schedule.refresh_from_db()
    assert schedule.last_run is not None


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize('columns', [
    {'interval': 60}, {'missed': 'skip'}, {'next_run': datetime(2100, 1, 1, tzinfo=UTC)}, {'enabled': False},
], ids=str)
def test_edited_while_reckoned(make_due, monkeypatch, columns):
    """Times are reckoned without a lock; those of a schedule that says something else by then do not count."""
    schedule = make_due()
    last_due = due.last_due

    def reckon(*args):
        assert not connection.in_atomic_block
        CelerySchedule.objects.filter(pk=schedule.pk).update(**columns)
        return last_due(*args)
    monkeypatch.setattr(due, 'last_due', reckon)
    assert not schedules.fire(schedule.pk, {}) and not runs(schedule)
    schedule.refresh_from_db()
    assert schedule.last_run is None


@pytest.mark.django_db(transaction=True)
def test_saved_without_a_lock_while_reckoned(make_due, monkeypatch):
    schedule = make_due()
    next_due = due.next_due

    def reckon(*args):
        assert not connection.in_atomic_block
        return next_due(*args)
    monkeypatch.setattr(due, 'next_due', reckon)
    schedule.interval = 60
    schedule.save()
    assert schedule.next_run > timezone.now()


def make_due_again(schedule):
    CelerySchedule.objects.filter(pk=schedule.pk).update(next_run=timezone.now())


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(('overlap', 'first', 'second'), [
    ('allow', ('pending', ''), ('pending', '')),
    ('skip', ('pending', ''), ('ignored', 'skipped')),
    ('queue', ('pending', ''), ('pending', 'queued')),
    ('replace', ('revoked', 'cancelled'), ('pending', '')),
])
def test_overlap(make_due, overlap, first, second):
    """A run that is due while an earlier one has not ended; those of other schedules of the task do not matter."""
    make_due(name='other', overlap='skip')
    schedule = make_due(overlap=overlap)
    assert fire() == 2
    make_due_again(schedule)
    assert fire() == 1
    assert [(run.status, run.reason) for run in runs(schedule)] == [first, second]
    assert {run.schedule for run in runs(schedule)} == {schedule}


@pytest.mark.django_db(transaction=True)
def test_overlap_of_missed_runs(make_due):
    """What is made up for at once overlaps as well: it waits in line."""
    schedule = make_due(35, interval=10, missed='run_all', overlap='queue')
    fire()
    assert [run.reason for run in runs(schedule)] == ['', 'queued', 'queued', 'queued']


def test_overlap_with_run_now(make_due, owner):
    schedule = make_due(overlap='skip')
    fire()
    assert schedule.run_now(owner).reason == 'skipped'


@pytest.mark.parametrize(('overlap', 'expected'), [('skip', ['skipped']), ('allow', [])])
def test_overlap_of_a_unique_task(make_task, make_due, owner, overlap, expected):
    """The task's own key holds, also against calls that no schedule makes; who joins has no run of its own."""
    task = make_task(lambda self, task_id: None, name='tests:unique', unique=True, stale_time_limit=60)
    CeleryResult.enqueue(task)
    schedule = make_due(task=make_task_row(task.name, parameters=[]), overlap=overlap)
    assert fire() == 1
    assert [run.reason for run in runs(schedule)] == expected
    assert CeleryResult.objects.count() == 1 + len(expected)
    schedule.refresh_from_db()
    assert schedule.last_run is not None and schedule.next_run > timezone.now()


@pytest.fixture
def shared_key(make_task):
    """Make a task with a key that it shares with runs which no schedule makes."""
    def make(**options):
        task = make_task(lambda self, task_id: None, name='tests:shared', concurrency_key='shared', **options)
        return task, make_task_row(task.name, parameters=[])
    return make


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize('how', ['fire', 'run_now'])
@pytest.mark.parametrize(('right', 'cancelled'), [
    (None, []), ({}, ['other', 'others']), ({'user__username': 'olga'}, []), ({'user__username': 'others'}, ['others']),
])
def test_replace_on_a_key_of_the_tasks(make_due, owner, shared_key, how, right, cancelled):
    """A schedule cancels its own runs, and those that its user may cancel; the new run waits for the others."""
    task, row = shared_key(limit=1, on_conflict='queue')
    user = User.objects.create_user('others')
    if right is not None:
        grant(owner, CeleryResult, actions=['cancel'], constraints=right or None)
    other = CeleryResult.enqueue(task)
    others = CeleryResult.enqueue(task, user=user)
    schedule = make_due(task=row, overlap='replace')
    for __ in range(2):
        make_due_again(schedule)
        assert fire() == 1 if how == 'fire' else schedule.run_now(owner)
    for run in (other, others):
        run.refresh_from_db()
    assert [name for name, run in (('other', other), ('others', others)) if run.cancelled] == cancelled
    earlier, new = runs(schedule)
    assert (earlier.status, new.status) == ('revoked', 'pending')
    assert (new.reason == 'queued') == (cancelled != ['other', 'others'])


@pytest.mark.django_db(transaction=True)
def test_replace_that_the_task_itself_asks_for(make_due, shared_key):
    """What an author has written holds for each run of the task, a schedule's as well."""
    task, row = shared_key(on_conflict='replace')
    other = CeleryResult.enqueue(task)
    make_due(task=row, overlap='replace')
    assert fire() == 1
    other.refresh_from_db()
    assert other.status == 'revoked'


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize('overlap', ['skip', 'queue'])
def test_overlap_on_a_key_of_the_tasks(make_due, shared_key, overlap):
    """The policies that cancel nothing say what becomes of the schedule's own run, whatever the task says."""
    task, row = shared_key(on_conflict='replace')
    other = CeleryResult.enqueue(task)
    schedule = make_due(task=row, overlap=overlap)
    assert fire() == 1
    other.refresh_from_db()
    assert (other.cancelled, other.status) == (None, 'pending')
    assert [run.reason for run in runs(schedule)] == [{'skip': 'skipped', 'queue': 'queued'}[overlap]]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize('by', ['decorator', 'call', 'argument', 'function', 'generator'])
def test_key_that_looks_like_a_schedules(make_task, make_due, by):
    """No task, caller or argument holds up a schedule by the key that it gives."""
    schedule = make_due(overlap='skip')
    key = f'schedule:{schedule.pk}'
    options = {
        'decorator': {'concurrency_key': key}, 'argument': {'concurrency_key': '{key}'}, 'call': {},
        'function': {'concurrency_key': lambda task, args, kwargs: key},
        'generator': {
            'unique': True, 'stale_time_limit': 60, 'unique_key_generator': lambda task, prefix, args, kwargs: key,
        },
    }[by]
    task = make_task(lambda self, task_id, key: None, name='tests:intruder', **options)
    call = {'concurrency_key': key} if by == 'call' else {}
    intruder = CeleryResult.enqueue(task, args=(key,), **call)
    assert fire() == 1
    assert [run.reason for run in runs(schedule)] == ['']
    assert CeleryResult.enqueue(task, args=(key,), **call).pk == intruder.pk


def test_run_now(make_due, owner):
    """A run in the name of whoever asks for it, beside the schedule's times."""
    other = User.objects.create_superuser('other')
    schedule = make_due(kwargs={'name': 'Bob'}, queue='fast')
    next_run = schedule.next_run
    run = schedule.run_now(other)
    assert (run.user, run.schedule, run.kwargs, run.queue) == (other, schedule, {'name': 'Bob'}, 'fast')
    schedule.refresh_from_db()
    assert (schedule.next_run, schedule.last_run) == (next_run, None)
    assert run_now(schedule, other) != run


def test_clock_back(make_due):
    """What was due is not due again when the clock goes back a little; it does not wait when it goes back far."""
    a_little, far, fresh = (make_due(-7200, name=name) for name in ('a little', 'far', 'fresh'))
    now = timezone.now()
    CelerySchedule.objects.filter(pk=a_little.pk).update(last_run=now + timedelta(seconds=30))
    CelerySchedule.objects.filter(pk=far.pk).update(last_run=now + timedelta(hours=1))
    # Never run, but made when the clock was wrong
    CelerySchedule.objects.filter(pk=fresh.pk).update(last_updated=now + timedelta(hours=1))
    resume_after_clock()
    soon = timezone.now() + timedelta(seconds=3600)
    for schedule, is_reckoned in ((a_little, False), (far, True), (fresh, True)):
        schedule.refresh_from_db()
        assert (schedule.next_run <= soon) is is_reckoned
    assert far.last_run <= timezone.now()
    assert fire() == 0


def test_rolled_back(make_due):
    """The run and the schedule's next time are one: without the other there is neither."""
    schedule = make_due()
    with pytest.raises(KeyboardInterrupt), transaction.atomic():
        assert schedules.fire(schedule.pk, {})
        raise KeyboardInterrupt
    assert not runs(schedule)
    assert fire() == 1 and len(runs(schedule)) == 1
