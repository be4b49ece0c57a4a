"""Old runs are deleted with everything that belongs to them; others stay."""
from datetime import timedelta
from io import StringIO

import pytest
from django.contrib.contenttypes.models import ContentType
from django.core.management import CommandError, call_command
from django.utils import timezone

from core.models import Job, ObjectChange
from extras.models import Bookmark, JournalEntry, Notification, Subscription, Tag, TaggedItem
from netbox_celery.config import Config
from netbox_celery.engine.store.database import EngineConnection
from netbox_celery.engine.worker import retention
from netbox_celery.jobs import PruneJob
from netbox_celery.models import CeleryLogEntry, CeleryResult
from tests.factories import make_log, make_result, make_schedule
from users.models import User

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def settings_of_the_plugin(monkeypatch):
    """Keep runs for 30 days, and delete in small batches."""
    def keep(**settings):
        config = Config.from_dict(settings)
        monkeypatch.setattr(retention, 'get_config', lambda: config)
    keep(retention=30)
    monkeypatch.setattr(retention, 'LINES', 3)
    monkeypatch.setattr(retention, 'DELETE_LINES', retention.DELETE_LINES.replace('LIMIT 10000', 'LIMIT 3'))
    monkeypatch.setattr(retention, 'OLD', retention.OLD.replace('LIMIT 500', 'LIMIT 2'))
    return keep


def make_old(days=31, lines=2, **columns):
    run = make_result(completed=timezone.now() - timedelta(days=days), **columns)
    make_log(run, *(f'line {number}' for number in range(lines)))
    return run


def test_prune():
    """Runs that finished long ago are deleted with their logs; recent and unfinished runs stay as they are."""
    old = [make_old(lines=lines) for lines in (0, 2, 3, 10, 1)]
    young, open_ = make_old(days=29), make_result('running', completed=None, created=timezone.now() - timedelta(99))
    make_log(open_, 'line')
    seen = []
    pruned = retention.prune(retention.cutoff(), report=lambda pruned: seen.append((pruned.runs, pruned.lines)))
    assert (pruned.runs, pruned.lines) == (len(old), 16)
    assert set(CeleryResult.objects.all()) == {young, open_}
    assert CeleryLogEntry.objects.count() == 3
    assert seen == sorted(seen) and len(seen) > 3
    assert retention.prune(retention.cutoff()).runs == 0
    assert not ObjectChange.objects.exists()


def test_count():
    """A dry run counts what a real one deletes."""
    make_old(), make_old(days=29), make_old(lines=5)
    old = retention.count_old(retention.cutoff())
    pruned = retention.prune(retention.cutoff())
    assert (old.runs, old.lines) == (pruned.runs, pruned.lines) == (2, 7)


def test_what_belongs_to_a_run():
    """Everything that NetBox has about a run is deleted with it, and nothing of another run."""
    user, tag = User.objects.create_user('olga'), Tag.objects.create(name='Tag', slug='tag')
    for run in (make_old(), make_old(days=1)):
        run.tags.add(tag)
        JournalEntry.objects.create(assigned_object=run, comments='x')
        Bookmark.objects.create(object=run, user=user)
        Subscription.objects.create(object=run, user=user)
        Notification.objects.create(object=run, user=user, event_type='object_created')
    retention.prune(retention.cutoff())
    run = CeleryResult.objects.get()
    for model in (TaggedItem, JournalEntry, Bookmark, Subscription, Notification):
        about = model.objects.get()
        assert getattr(about, 'object_id', None) or about.assigned_object_id == run.pk
    assert TaggedItem.objects.get().content_type == ContentType.objects.get_for_model(run)


def test_stopped_in_the_middle():
    """What was deleted stays deleted, a run with a partly deleted log still exists, and the next time continues."""
    make_old(lines=2), make_old(lines=20), make_old(lines=2)
    turns = iter([False, True])
    pruned = retention.prune(retention.cutoff(), is_cancelled=lambda: next(turns))
    assert (pruned.runs, pruned.lines) == (0, 6)
    assert CeleryResult.objects.count() == 3
    assert retention.prune(retention.cutoff()).runs == 3
    assert not CeleryLogEntry.objects.exists()


def test_one_at_a_time():
    make_old()
    with EngineConnection().advisory_lock(retention.LOCK, 60) as locked:
        assert locked
        assert retention.prune(retention.cutoff()).is_busy
        with pytest.raises(CommandError, match='already'):
            call_command('celery_prune')
    assert CeleryResult.objects.count() == 1


@pytest.mark.parametrize(('settings', 'netbox', 'days'), [
    ({}, 90, 90), ({}, 0, 0), ({'retention': 7}, 90, 7), ({'retention': 0}, 90, 0),
])
def test_retention_days(settings_of_the_plugin, monkeypatch, settings, netbox, days):
    """The plugin's setting applies, else that of NetBox's jobs; 0 keeps runs for ever."""
    settings_of_the_plugin(**settings)
    monkeypatch.setattr(retention.host, 'job_retention', lambda: netbox)
    assert retention.retention_days() == days
    assert (retention.cutoff() is None) is (days == 0)


def test_command():
    def call(*args):
        call_command('celery_prune', *args, stdout=(out := StringIO()))
        return out.getvalue()

    make_old(), make_old(days=5)
    assert call('--dry-run').startswith('1 runs')
    assert CeleryResult.objects.count() == 2
    assert call().startswith('Deleted 1 runs')
    assert call('--days', '4').startswith('Deleted 1 runs')
    for days in ('0', '365001', '99999999999'):
        with pytest.raises(CommandError, match='days'):
            call('--days', days)
    assert call('--days', '365000').startswith('Deleted 0 runs')


def test_kept_for_ever(settings_of_the_plugin):
    settings_of_the_plugin(retention=0)
    make_old(days=9999)
    call_command('celery_prune', stdout=(out := StringIO()))
    assert 'forever' in out.getvalue() and CeleryResult.objects.exists()


def test_system_job():
    """NetBox's own job does it if beat does not, and leaves it to a beat that does."""
    job = PruneJob(Job(name=PruneJob.name))
    schedule = make_schedule('netbox_celery:prune')
    make_old()
    type(schedule).objects.update(last_run=timezone.now() - timedelta(hours=20))
    job.run()
    assert CeleryResult.objects.exists()
    type(schedule).objects.update(last_run=timezone.now() - timedelta(days=5))
    job.run()
    assert not CeleryResult.objects.exists()
