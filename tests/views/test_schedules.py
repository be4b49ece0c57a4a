"""Schedules: NetBox's own tests for each model, the list, the page and its history."""
from datetime import timedelta

from django.utils import timezone

from dcim.models import Site
from netbox_celery.models import CeleryResult, CelerySchedule, CeleryTask
from tests.factories import HELLO_WORLD, grant, make_result, make_schedule, make_task
from tests.views.bases import PageTestCase, PluginURLMixin
from utilities.testing import ViewTestCases, create_tags

LIST = '/plugins/celery/schedules/'


class CeleryScheduleViewTest(
    PluginURLMixin,
    ViewTestCases.GetObjectViewTestCase,
    ViewTestCases.GetObjectChangelogViewTestCase,
    ViewTestCases.CreateObjectViewTestCase,
    ViewTestCases.EditObjectViewTestCase,
    ViewTestCases.DeleteObjectViewTestCase,
    ViewTestCases.ListObjectsViewTestCase,
    ViewTestCases.BulkImportObjectsViewTestCase,
    ViewTestCases.BulkEditObjectsViewTestCase,
    ViewTestCases.BulkRenameObjectsViewTestCase,
    ViewTestCases.BulkDeleteObjectsViewTestCase,
):
    model = CelerySchedule

    @classmethod
    def setUpTestData(cls):
        cls.task = make_task()
        schedules = [make_schedule(name) for name in ('A', 'B', 'C')]
        tags = create_tags('Alpha', 'Bravo')
        cls.form_data = {
            'name': 'D', 'description': 'Nightly', 'enabled': True, 'kind': 'crontab', 'crontab': '30 2 * * mon-fri',
            'timezone': 'Europe/Berlin', 'task': cls.task.pk, 'arguments_as': 'parameters', 'parameter_name': 'Bob',
            'missed': 'skip', 'missed_max': 5, 'overlap': 'queue', 'tags': [tag.pk for tag in tags],
        }
        cls.validation_excluded_fields = ['arguments_as', 'parameter_name']
        cls.csv_data = (
            'name,task,crontab,kwargs,description',
            f'X,{HELLO_WORLD},0 1 * * *,"{{""name"": ""Bob""}}",One',
            f'Y,{HELLO_WORLD},0 2 * * *,,Two',
            f'Z,{HELLO_WORLD},0 3 * * *,,Three',
        )
        cls.csv_update_data = (
            'id,name,description',
            *(f'{schedule.pk},{schedule.name}{schedule.name},changed' for schedule in schedules),
        )
        cls.bulk_edit_data = {
            'enabled': False, 'description': 'Changed', 'overlap': 'skip', 'missed': 'run_all', 'missed_max': 3,
            'timezone': 'Asia/Kolkata', 'queue': 'slow', 'priority': 3, 'expires': 60,
        }

    def setUp(self):
        super().setUp()
        # Schedules cannot be created or changed without it: see `tests/services/test_schedules.py`
        grant(self.user, CeleryTask, actions=['view', 'run'])


class ScheduleListTest(PageTestCase):

    def setUp(self):
        super().setUp()
        grant(self.user, CelerySchedule)
        self.schedule = make_schedule(timezone='Europe/Berlin', crontab='30 2 * * mon-fri')

    def test_words(self):
        self.assertIn('At 02:30, Monday through Friday (Europe/Berlin)', self.page(LIST))

    def test_last_run(self):
        """Of the runs that the user may view."""
        visible, hidden = (make_result(status, schedule=self.schedule) for status in ('completed', 'errored'))
        self.assertNotIn('Completed', self.page(LIST))
        grant(self.user, CeleryResult, constraints={'pk': visible.pk})
        page = self.page(LIST)
        self.assertIn(f'<a href="{visible.get_absolute_url()}" class="badge text-bg-green">Completed</a>', page)
        self.assertNotIn(hidden.get_absolute_url(), page)

    def test_run_button(self):
        url = f'{self.schedule.get_absolute_url()}run/'
        self.assertNotIn(url, self.page(LIST))
        grant(self.user, CeleryTask, actions=['run'])
        self.assertIn(url, self.page(LIST))
        CeleryTask.objects.update(enabled=False)
        self.assertNotIn(url, self.page(LIST))


class SchedulePageTest(PageTestCase):

    def setUp(self):
        super().setUp()
        grant(self.user, CelerySchedule, actions=['view', 'change', 'delete'])

    def show(self, **columns):
        columns.setdefault('owner', self.user)
        self.schedule = make_schedule(f'S{CelerySchedule.objects.count()}', **columns)
        return self.page(self.schedule.get_absolute_url())

    def test_what_and_when(self):
        grant(self.user, CeleryTask)
        site = Site.objects.create(name='Site 1', slug='site-1')
        grant(self.user, Site)
        grant(self.user, CeleryTask, actions=['run'])
        page = self.show(
            crontab='30 2 * * *', timezone='Asia/Kolkata', kwargs={'name': 'Bob'}, queue='slow', priority=3, expires=60,
            object=site, missed='run_all', missed_max=7, overlap='queue', description='Greets'
        )
        for text in (
            'At 02:30 (Asia/Kolkata)', '30 2 * * *', HELLO_WORLD, '&quot;Bob&quot;', 'slow',
            '60 seconds after the scheduled time', 'Site 1', 'Greets', 'One run per missed time, up to the limit',
            'Queue the new run',
        ):
            self.assertIn(text, page)
        self.assertEqual(page.count('data-celery-time'), 10)
        # The time in the schedule's zone is beside the reader's
        self.assertEqual(page.count('02:30:00</td>'), 10)
        self.assertIn('Catch-up limit', page)
        self.assertNotIn('Catch-up limit', self.show())

    def test_owner(self):
        """What is wrong with the owner is said before the schedule stops."""
        self.assertIn('inactive or not allowed to run the task', self.show())
        self.assertIn('Its owner was deleted. Another user can take ownership.', self.show(owner=None))
        grant(self.user, CeleryTask, actions=['run'])
        page = self.show()
        self.assertNotIn('inactive or not allowed to run the task', page)
        self.assertNotIn('Its owner was deleted', page)

    def test_disabled(self):
        page = self.show(enabled=False)
        self.assertIn('The schedule is disabled; it would run at:', page)
        self.assertEqual(page.count('data-celery-time'), 10)

    def test_nothing_left(self):
        self.assertIn('No further runs', self.show(kind='once', at=timezone.now() - timedelta(days=1)))

    def test_sourced(self):
        """A schedule that would reappear cannot be deleted; one that was removed from its source can."""
        for origin, text in (('settings', 'Defined in the settings.'), ('code', 'Defined in code.')):
            with self.subTest(origin):
                page = self.show(origin=origin, owner=None)
                self.assertIn(text, page.replace("'", '&#x27;'))
                self.assertNotIn('Its owner was deleted', page)
                self.assertNotIn(f'{self.schedule.get_absolute_url()}delete/', page)
                page = self.show(origin=origin, owner=None, present=False)
                self.assertIn('No longer defined there; inactive', page)
                self.assertIn(f'{self.schedule.get_absolute_url()}delete/', page)

    def test_sourced_is_not_deleted(self):
        self.show(origin='code', owner=None)
        for url, data in (
            (f'{self.schedule.get_absolute_url()}delete/', {'confirm': True}),
            (f'{LIST}delete/', {'pk': [self.schedule.pk], 'confirm': True, '_confirm': True}),
        ):
            page = self.client.post(url, data, follow=True).content.decode()
            self.assertIn('would reappear', page)
            self.assertTrue(CelerySchedule.objects.exists())
        CelerySchedule.objects.update(present=False)
        self.client.post(f'{self.schedule.get_absolute_url()}delete/', {'confirm': True})
        self.assertFalse(CelerySchedule.objects.exists())

    def test_task_lists_its_schedules(self):
        self.show()
        grant(self.user, CeleryTask)
        self.assertIn('/plugins/celery/schedules/?', self.page(self.schedule.task.get_absolute_url()))
        self.user.object_permissions.all().delete()
        grant(self.user, CeleryTask)
        self.assertNotIn('/plugins/celery/schedules/?', self.page(self.schedule.task.get_absolute_url()))


class HistoryTest(PageTestCase):
    """The tab with the runs of a schedule."""

    def setUp(self):
        super().setUp()
        grant(self.user, CelerySchedule)
        self.schedule = make_schedule()
        self.url = f'{self.schedule.get_absolute_url()}runs/'

    def run_for(self, seconds, status='completed', **columns):
        now = timezone.now()
        return make_result(
            status, schedule=self.schedule, started=now - timedelta(seconds=seconds), completed=now, **columns
        )

    def test_permission(self):
        """It needs the permission to view runs, and shows those that it allows."""
        visible, hidden = self.run_for(2), self.run_for(8, 'errored')
        self.assertNotIn(self.url, self.page(self.schedule.get_absolute_url()))
        self.assertIn('No runs yet, or none that you have permission to view.', self.page(self.url))
        grant(self.user, CeleryResult, constraints={'pk': visible.pk})
        self.assertIn(self.url, self.page(self.schedule.get_absolute_url()))
        page = self.page(self.url)
        self.assertIn(visible.get_absolute_url(), page)
        self.assertNotIn(hidden.get_absolute_url(), page)
        self.assertIn('100%', page)
        self.assertIn('Based on 1 run;', page)

    def test_figures(self):
        grant(self.user, CeleryResult)
        for seconds in (1, 2, 9):
            self.run_for(seconds)
        self.run_for(200, 'failed')
        make_result('revoked', schedule=self.schedule)
        make_result('pending', schedule=self.schedule)
        make_result('completed')
        page = self.page(self.url)
        for text in ('75%', '5.50 s', '1.00 s', '53.00 s', '3m', 'Based on 6 runs;'):
            self.assertIn(text, page)

    def test_empty(self):
        grant(self.user, CeleryResult)
        page = self.page(self.url)
        self.assertIn('No runs yet', page)
        self.assertIn('Next run: ', page)
        self.assertNotIn('succeeded', page)
        CelerySchedule.objects.update(enabled=False, next_run=None)
        self.assertNotIn('Next run: ', self.page(self.url))

    def test_filters(self):
        grant(self.user, CeleryResult)
        completed, errored = self.run_for(1), self.run_for(1, 'errored')
        page = self.page(self.url, {'status': 'errored'}, headers=self.htmx)
        self.assertIn(errored.get_absolute_url(), page)
        self.assertNotIn(completed.get_absolute_url(), page)
        # Where they can be exported, too
        self.assertIn(f'/plugins/celery/results/?schedule_id={self.schedule.pk}"', self.page(self.url))


#: Queues that no user can choose, and how the message about each starts.
REFUSALS = (('odd', 'There is no queue'), ('unacked', 'A queue cannot be named'))


class QueueTest(PageTestCase):
    """An unknown queue is refused at its field, wherever people enter one."""

    def setUp(self):
        super().setUp()
        grant(self.user, CelerySchedule, actions=['view', 'add', 'change'])
        grant(self.user, CeleryTask, actions=['view', 'run'])

    def test_import(self):
        row = f'{HELLO_WORLD},0 1 * * *'
        for queue, refusal in REFUSALS:
            data = f'name,task,crontab,queue\nX,{row},{queue}'
            page = self.client.post(f'{LIST}import/', {
                'data': data, 'format': 'csv', 'csv_delimiter': ',', 'import_method': 'direct',
            }, follow=True)
            self.assertIn(f'queue: {refusal}', page.content.decode())
        self.assertFalse(CelerySchedule.objects.exists())

    def test_bulk_edit(self):
        schedule = make_schedule(owner=self.user)
        for queue, refusal in REFUSALS:
            data = {'pk': [schedule.pk], '_apply': True, 'queue': queue}
            page = self.client.post(f'{LIST}edit/', data, follow=True)
            self.assertIn(refusal, page.content.decode())
            schedule.refresh_from_db()
            self.assertEqual(schedule.queue, '')

    def test_form_and_clone(self):
        task = make_task()
        data = {
            'name': 'Copy', 'kind': 'crontab', 'crontab': '0 1 * * *', 'timezone': 'UTC', 'task': task.pk,
            'arguments_as': 'json', 'missed': 'skip', 'missed_max': 5, 'overlap': 'allow',
        }
        for queue, refusal in REFUSALS:
            page = self.client.post(f'{LIST}add/', {**data, 'queue': queue}).content.decode()
            self.assertIn(refusal, page)
        self.assertFalse(CelerySchedule.objects.exists())
