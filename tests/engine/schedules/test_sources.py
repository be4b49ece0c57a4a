"""Schedules from Celery's settings and from tasks become rows."""
import logging
from datetime import UTC, datetime, timedelta

import pytest
from celery.beat import BeatLazyFunc
from celery.schedules import BaseSchedule, crontab, schedule
from django.core.exceptions import ValidationError
from django.utils import timezone

from netbox_celery.celery import app
from netbox_celery.engine.schedules import sources
from netbox_celery.engine.schedules.sources import Unschedulable, timing
from netbox_celery.engine.schedules.sync import sync_catalogue
from netbox_celery.models import CelerySchedule, CeleryTask
from tests.factories import HELLO_WORLD, make_schedule
from tests.factories import make_task as make_task_row

pytestmark = pytest.mark.django_db


def entry(when=60, **columns):
    return {'task': HELLO_WORLD, 'schedule': when, **columns}


def lead(beat_schedule):
    sources.sync(app, beat_schedule, is_leader=True)


@pytest.mark.parametrize(('when', 'text'), [
    (crontab(), '* * * * *'),
    (crontab(minute=0, hour='2, 3', day_of_week='Mon-Fri'), '0 2,3 * * mon-fri'),
    (crontab(minute={45, 15}, day_of_month=[1, 15], month_of_year='*/3'), '15,45 * 1,15 */3 *'),
])
def test_crontabs(when, text):
    columns = timing(app, when)
    assert (columns['kind'], columns['crontab'], columns['interval']) == ('crontab', text, None)
    assert columns['timezone'] == 'UTC'


@pytest.mark.parametrize('when', [90, 90.0, timedelta(seconds=90), schedule(90), schedule(timedelta(seconds=90))])
def test_intervals(when):
    columns = timing(app, when)
    assert (columns['kind'], columns['crontab'], columns['interval'], columns['start']) == ('interval', '', 90, None)


def test_relative_interval():
    """Celery rounds these to whole minutes, hours and days."""
    lead({'hourly': entry(3600, relative=True)})
    next_run = CelerySchedule.objects.get(name='hourly').next_run
    assert (next_run.minute, next_run.second, next_run.microsecond) == (0, 0, 0)


class OwnSchedule(schedule):
    """A schedule class of an author's own."""


class Solar(BaseSchedule):
    """Like Celery's, which needs a library."""


@pytest.mark.parametrize('when', [
    Solar(), OwnSchedule(60), 'daily', None, True, 0, -1, timedelta(),
])
def test_unsupported_schedule(when):
    with pytest.raises(Unschedulable):
        timing(app, when)


def test_settings():
    """An entry becomes a row with everything that it defines."""
    lead({'nightly': entry(
        crontab(minute=30, hour=2), args=(1, (2, 3)), kwargs={'when': datetime(2026, 1, 1, tzinfo=UTC)},
        options={'queue': 'slow', 'priority': 4, 'expires': 59.5, 'time_limit': 10},
    )})
    row = CelerySchedule.objects.get(name='nightly')
    assert (row.origin, row.task.name, row.owner, row.enabled) == ('settings', HELLO_WORLD, None, True)
    assert (row.args, row.kwargs) == ([1, [2, 3]], {'when': datetime(2026, 1, 1, tzinfo=UTC)})
    assert (row.queue, row.priority, row.expires, row.options) == ('slow', 4, 60, {'time_limit': 10})
    assert row.next_run > timezone.now()


def test_unchanged():
    """An unchanged entry is not written: its next time stays."""
    beat_schedule = {'a': entry(3600, args=((1, 2),)), 'b': entry(crontab(minute='0'))}
    lead(beat_schedule)
    soon = timezone.now() + timedelta(seconds=5)
    CelerySchedule.objects.update(next_run=soon)
    lead(beat_schedule)
    assert set(CelerySchedule.objects.filter(name__in=beat_schedule).values_list('next_run', flat=True)) == {soon}


def test_changed():
    """The source defines when and what; people decide whether, and the policies."""
    lead({'a': entry(60)})
    CelerySchedule.objects.filter(name='a').update(enabled=False, missed='skip', overlap='queue', description='Ours')
    lead({'a': entry(crontab(minute=5), kwargs={'name': 'Bob'})})
    row = CelerySchedule.objects.get(name='a')
    assert (row.kind, row.crontab, row.interval, row.kwargs) == ('crontab', '5 * * * *', None, {'name': 'Bob'})
    assert (row.enabled, row.missed, row.overlap, row.description) == (False, 'skip', 'queue', 'Ours')
    assert row.next_run is None


def test_removed_and_restored():
    """A removed entry is not due; restored, it has its old policies, and missed times are not caught up."""
    lead({'a': entry(60)})
    CelerySchedule.objects.filter(name='a').update(missed='skip', next_run=timezone.now() - timedelta(hours=1))
    lead({})
    row = CelerySchedule.objects.get(name='a')
    assert (row.present, row.enabled, row.next_run) == (False, True, None)
    lead({'a': entry(60)})
    row.refresh_from_db()
    assert row.present and row.missed == 'skip' and row.next_run > timezone.now()


def test_only_the_leader_changes():
    """Another process may have older settings: it only adds new entries."""
    lead({'a': entry(60), 'b': entry(60)})
    sources.sync(app, {'a': entry(5), 'c': entry(60)})
    rows = {row.name: row for row in CelerySchedule.objects.filter(origin='settings')}
    assert set(rows) == {'a', 'b', 'c'} and rows['a'].interval == 60 and rows['b'].present


def test_refused_entries(caplog):
    """Each is reported with its name and reason; the others are scheduled."""
    make_schedule('taken')
    with caplog.at_level(logging.ERROR):
        lead({
            'sun': entry(Solar()), 'lazy': entry(args=(BeatLazyFunc(dict),)),
            'odd': entry(colour='red'), 'object': entry(args=(object(),)), 'nothing': {'schedule': 5},
            'taken': entry(), 'until': entry(options={'expires': datetime(2030, 1, 1)}), 'fine': entry(),
        })
    said = '\n'.join(caplog.messages)
    for name, why in (
        ('sun', 'Solar'), ('lazy', 'BeatCallBack'), ('odd', 'colour'), ('object', 'object'), ('nothing', 'no task'),
        ('taken', 'was created in NetBox'), ('until', 'expires'),
    ):
        assert f"'{name}' of the settings" in said and why in said
    assert list(CelerySchedule.objects.filter(origin='settings').values_list('name', flat=True)) == ['fine']
    assert CelerySchedule.objects.get(name='taken').origin == 'user'


def test_code(make_task):
    """A task's own schedule, in its decorator or its class, is named after the task."""
    def nightly(self, task_id):
        """Tidy up."""
    make_task(nightly, name='tests:nightly', schedule=crontab(minute=0, hour=3))
    sync_catalogue()
    row = CelerySchedule.objects.get(name='tests:nightly')
    assert (row.origin, row.crontab, row.task.name, row.description) == (
        'code', '0 3 * * *', 'tests:nightly', 'Tidy up.'
    )


def test_method_of_that_name(make_task):
    """A method named `schedule` is the task's own affair."""
    from netbox_celery.tasks import CeleryBaseTask

    class Base(CeleryBaseTask):
        def schedule(self):
            return 5

    make_task(lambda task_id: None, name='tests:method', base=Base, bind=False)
    sync_catalogue()
    assert not CelerySchedule.objects.filter(name='tests:method').exists()


def test_task_of_other_processes():
    """A task that only workers have can be scheduled; the catalogue has it as absent."""
    lead({'a': {'task': 'elsewhere:task', 'schedule': 5}})
    assert CeleryTask.objects.get(name='elsewhere:task').present is False


def test_read_only():
    """What the source defines cannot be changed in NetBox; policies can."""
    make_task_row()
    lead({'a': entry(60)})
    row = CelerySchedule.objects.get(name='a')
    row.enabled, row.missed, row.overlap, row.description = False, 'skip', 'skip', 'Ours'
    row.full_clean()
    for name, value in (('interval', 5), ('name', 'b'), ('kwargs', {'name': 'x'}), ('queue', 'x'), ('origin', 'user')):
        row.refresh_from_db()
        setattr(row, name, value)
        with pytest.raises(ValidationError) as caught:
            row.full_clean()
        assert name in caught.value.message_dict
