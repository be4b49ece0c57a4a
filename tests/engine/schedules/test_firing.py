"""A schedule that is due starts a run; a run that cannot start says why."""
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
    """Do what beat does until nothing is due; returns how many schedules were due."""
    number = 0
    while fired := [pk for pk in schedules.find_due() if schedules.fire(pk, {})]:
        number += len(fired)
        assert number < 50
    return number


def runs(schedule):
    return list(CeleryResult.objects.filter(schedule=schedule).order_by('pk'))


def test_fire(make_due, owner):
    """The run is as the schedule describes it, the next time is on the grid, and there is no change-log entry."""
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


def test_not_due(make_due):
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
    """After an outage the latest times are run, as many as the policy allows; then the schedule continues."""
    schedule = make_due(seconds, interval=10, missed=missed, missed_max=4)
    first = schedule.next_run
    assert fire() == 1
    times = [run.options['headers'][DUE_HEADER] for run in runs(schedule)]
    last = seconds // 10
    assert times == [(first + timedelta(seconds=10 * n)).isoformat() for n in range(last - expected + 1, last + 1)]
    schedule.refresh_from_db()
    assert schedule.next_run == first + timedelta(seconds=10 * (last + 1))


def test_missed_for_too_long(make_due):
    """With `skip`, a time is skipped if it is late by more than a minute, so that a standby may take over."""
    late, in_time = make_due(90, missed='skip', name='late'), make_due(30, missed='skip', name='in time')
    assert fire() == 2
    assert (len(runs(late)), len(runs(in_time))) == (0, 1)
    late.refresh_from_db()
    assert late.last_run is None and late.next_run > timezone.now()


def test_once(make_due):
    """A single run, after which the schedule is disabled, also if the time was missed and skipped."""
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


def test_owner_deleted(make_due, owner):
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


def test_owner_may_run_other_tasks(make_due, owner):
    """The permission is checked for the task itself."""
    schedule = make_due()
    owner.object_permissions.all().delete()
    grant(owner, CeleryTask, actions=['run'], constraints={'name': 'another'})
    check_stopped(schedule, 'olga is not permitted to run the task')


def test_taken_over(make_due, owner):
    """A stopped schedule can be taken over: it runs as the new owner, and missed times are not caught up."""
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


def test_schedule_of_the_settings_has_no_owner(make_due):
    schedule = make_due(owner=None, origin='settings')
    fire()
    assert [(run.status, run.user) for run in runs(schedule)] == [('pending', None)]


def test_task_disabled(make_due):
    """The run says so, and the schedule continues: it runs again once the task is enabled."""
    schedule = make_due(interval=10)
    CeleryTask.objects.update(enabled=False)
    fire()
    assert [(run.status, run.reason) for run in runs(schedule)] == [('failed', 'task_disabled')]
    schedule.refresh_from_db()
    assert schedule.enabled and schedule.next_run > timezone.now()


def test_task_absent(make_due):
    """The run is sent: a worker with the task may come back, and one without it reports that."""
    schedule = make_due(task=make_task_row('nobody:has_it', present=False))
    fire()
    assert [run.status for run in runs(schedule)] == ['pending']


def test_arguments_that_do_not_fit(make_due):
    """They did when the schedule was made: the run says so, and other schedules are not delayed."""
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
def test_invalid_timing(make_due, columns):
    """Such a schedule is stopped once, with a reason; others are not delayed."""
    broken, sound = make_due(20, name='broken'), make_due(name='sound')
    CelerySchedule.objects.filter(pk=broken.pk).update(**columns)
    assert fire() == 2
    run, = runs(broken)
    assert (run.status, run.reason) == ('failed', 'invalid_call') and 'disabled' in run.error
    broken.refresh_from_db()
    assert not broken.enabled
    assert [run.status for run in runs(sound)] == ['pending']


def test_failing_tick(make_due):
    """A tick that fails unexpectedly is repeated later, with nothing half done, and others are not delayed."""
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
    """Of two leaders one starts the run: a schedule that the other has locked is skipped, and not due later."""
    import psycopg

    schedule = make_due()
    with psycopg.connect(services.cluster.url('netbox')) as other:
        other.execute('SELECT FROM netbox_celery_celeryschedule WHERE id = %s FOR NO KEY UPDATE', (schedule.pk,))
        assert fire() == 0
    assert (fire(), fire(), len(runs(schedule))) == (1, 0, 1)


@pytest.mark.django_db(transaction=True)
def test_edited_while_due(make_due):
    """An edit that started before a tick does not undo it."""
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
    """Times are computed without a lock; they are dropped if the schedule was changed meanwhile."""
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
    """A run that is due before an earlier one has finished; runs of other schedules of the task do not matter."""
    make_due(name='other', overlap='skip')
    schedule = make_due(overlap=overlap)
    assert fire() == 2
    make_due_again(schedule)
    assert fire() == 1
    assert [(run.status, run.reason) for run in runs(schedule)] == [first, second]
    assert {run.schedule for run in runs(schedule)} == {schedule}


@pytest.mark.django_db(transaction=True)
def test_overlap_of_missed_runs(make_due):
    """Missed runs that are started together overlap as well, so they queue."""
    schedule = make_due(35, interval=10, missed='run_all', overlap='queue')
    fire()
    assert [run.reason for run in runs(schedule)] == ['', 'queued', 'queued', 'queued']


def test_overlap_with_run_now(make_due, owner):
    schedule = make_due(overlap='skip')
    fire()
    assert schedule.run_now(owner).reason == 'skipped'


@pytest.mark.parametrize(('overlap', 'expected'), [('skip', ['skipped']), ('allow', [])])
def test_overlap_of_a_unique_task(make_task, make_due, owner, overlap, expected):
    """The task's own key applies, also against calls without a schedule; a joined call has no run of its own."""
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
    """Make a task with a key that it shares with runs of no schedule."""
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
    """A schedule cancels its own runs, and those its user may cancel; the new run waits for the others."""
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
    """The author's policy applies to each run of the task, also a schedule's."""
    task, row = shared_key(on_conflict='replace')
    other = CeleryResult.enqueue(task)
    make_due(task=row, overlap='replace')
    assert fire() == 1
    other.refresh_from_db()
    assert other.status == 'revoked'


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize('overlap', ['skip', 'queue'])
def test_overlap_on_a_key_of_the_tasks(make_due, shared_key, overlap):
    """Policies that cancel nothing decide about the schedule's own run, whatever the task's policy is."""
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
    """No task, caller or argument can block a schedule by a key of its own."""
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
    """The run is started as the user who asks for it, and the schedule's times stay."""
    other = User.objects.create_superuser('other')
    schedule = make_due(kwargs={'name': 'Bob'}, queue='fast')
    next_run = schedule.next_run
    run = schedule.run_now(other)
    assert (run.user, run.schedule, run.kwargs, run.queue) == (other, schedule, {'name': 'Bob'}, 'fast')
    schedule.refresh_from_db()
    assert (schedule.next_run, schedule.last_run) == (next_run, None)
    assert run_now(schedule, other) != run


def test_clock_set_back(make_due):
    """After a small step nothing is due again; after a large one the schedule does not wait."""
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
    """The run and the schedule's next time are written together or not at all."""
    schedule = make_due()
    with pytest.raises(KeyboardInterrupt), transaction.atomic():
        assert schedules.fire(schedule.pk, {})
        raise KeyboardInterrupt
    assert not runs(schedule)
    assert fire() == 1 and len(runs(schedule)) == 1
