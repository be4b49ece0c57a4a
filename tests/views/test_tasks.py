"""The catalogue of tasks: list, detail, changes, and running one."""
from datetime import timedelta
from unittest.mock import patch

from django.db import connection
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from kombu.exceptions import OperationalError

from core.models import ObjectChange
from netbox_celery.engine.catalogue import discovery
from netbox_celery.models import CeleryResult, CeleryTask, CeleryWorker
from netbox_celery.views import tasks
from tests.factories import HELLO_WORLD, grant, make_result, make_task, make_worker
from tests.views.bases import PageTestCase, PluginURLMixin
from utilities.testing import ViewTestCases, create_tags, disable_warnings

LIST = '/plugins/celery/tasks/'


class CeleryTaskViewTest(
    PluginURLMixin,
    ViewTestCases.GetObjectViewTestCase,
    ViewTestCases.GetObjectChangelogViewTestCase,
    ViewTestCases.EditObjectViewTestCase,
    ViewTestCases.DeleteObjectViewTestCase,
    ViewTestCases.ListObjectsViewTestCase,
    ViewTestCases.BulkEditObjectsViewTestCase,
    ViewTestCases.BulkDeleteObjectsViewTestCase,
):
    model = CeleryTask

    @classmethod
    def setUpTestData(cls):
        # Only what is absent can be deleted
        for name in ('a', 'b', 'c'):
            make_task(f'plugin:{name}', present=False)
        tags = create_tags('Alpha', 'Bravo')
        cls.form_data = {'enabled': False, 'tags': [tag.pk for tag in tags]}
        cls.bulk_edit_data = {'enabled': False}


class TaskListTest(PageTestCase):

    def setUp(self):
        super().setUp()
        grant(self.user, CeleryTask)
        self.task = make_task()

    def test_no_tasks(self):
        """An empty list says what fills it, unless a filter or a permission has emptied it."""
        hint = 'No tasks yet. Start a worker (celery -A netbox_celery worker)'
        self.assertNotIn(hint, self.page(LIST))
        self.assertNotIn(hint, self.page(LIST, {'q': 'nothing like that'}))
        CeleryTask.objects.update(present=False)
        CeleryTask.objects.get().delete()
        self.assertIn(hint, self.page(LIST))
        self.assertIn(hint, self.page(LIST, headers=self.htmx))

    def test_last_run(self):
        grant(self.user, CeleryResult)
        make_result('errored')
        last = make_result('completed')
        make_result('running', celery_name='another')
        page = self.page(LIST)
        self.assertIn(f'<a href="{last.get_absolute_url()}" class="badge text-bg-green">Completed</a>', page)
        self.assertNotIn('Errored', page)

    def test_runs_are_restricted(self):
        """The last run and the number of runs ignore runs that the user may not view."""
        visible, hidden = make_result('completed'), make_result('errored')
        grant(self.user, CeleryResult, constraints={'pk': visible.pk})
        page = self.page(LIST)
        self.assertIn('Completed', page)
        self.assertNotIn(hidden.get_absolute_url(), page)
        self.assertEqual(tasks.CeleryTaskListView().get_queryset(self.request()).get().run_count, 1)

    def request(self):
        request = RequestFactory().get(LIST)
        request.user = self.user
        return request

    def test_many_runs_are_not_counted_to_the_end(self):
        grant(self.user, CeleryResult)
        for __ in range(4):
            make_result()
        with patch.object(tasks, 'COUNTED', 2):
            counted = tasks.CeleryTaskListView().get_queryset(self.request()).get().run_count
        self.assertEqual(counted, 3)

    def test_rows_cost_no_queries(self):
        grant(self.user, CeleryResult)
        make_result()
        with CaptureQueriesContext(connection) as few:
            self.page(LIST)
        for i in range(5):
            make_task(f'plugin:{i}')
            make_result(celery_name=f'plugin:{i}')
        with CaptureQueriesContext(connection) as many:
            self.page(LIST)
        self.assertEqual(len(many), len(few))

    def test_run_button(self):
        url = f'{self.task.get_absolute_url()}run/'
        disabled, absent = make_task('plugin:off', enabled=False), make_task('plugin:gone', present=False)
        self.assertNotIn(url, self.page(LIST))
        grant(self.user, CeleryTask, actions=['run'])
        page = self.page(LIST)
        self.assertIn(url, page)
        for task in (disabled, absent):
            self.assertNotIn(f'{task.get_absolute_url()}run/', page)


class UnloadedTest(PageTestCase):
    """What could not be imported, here or in a worker, is shown in the list of tasks."""

    FAILURE = {
        'plugin': 'napalm_plugin', 'module': 'napalm_plugin.tasks', 'place': 'napalm_plugin/tasks.py:3',
        'error': 'ModuleNotFoundError: No module named <napalm>',
    }

    def setUp(self):
        super().setUp()
        grant(self.user, CeleryTask)
        self.task = make_task('napalm_plugin:ping')
        CeleryTask.objects.filter(pk=self.task.pk).update(plugin='napalm_plugin')
        self.pages = (LIST, self.task.get_absolute_url())

    def assert_notice(self, where):
        for url in self.pages:
            page = ' '.join(self.page(url).split())
            for text in (f'are not available in {where}:', 'napalm_plugin.tasks', 'named &lt;napalm&gt;', 'tasks.py:3'):
                self.assertIn(text, page)
            # An alert lays its children out in a row: all of the text is one of them
            self.assertIn('aria-hidden="true"></i> <div class="text-break"> <div> Tasks of the plugin', page)
            self.assertIn(f'then restart {where}. </div> </div> </div>', page)

    def test_nothing(self):
        for url in self.pages:
            self.assertNotIn('are not available in', self.page(url))

    def test_here(self):
        with patch.dict(discovery._failures, {'napalm_plugin.tasks': discovery.Failure(**self.FAILURE)}):
            self.assert_notice('NetBox')
            other = make_task('another:task')
            self.assertNotIn('are not available in', self.page(other.get_absolute_url()))

    def test_in_a_worker(self):
        worker = make_worker('celery@lacking', versions={'@worker': {'not_loaded': [self.FAILURE]}})
        make_worker('celery@stopped', stopped=timezone.now(), versions=worker.versions)
        make_worker('celery@silent', heartbeat=timezone.now() - timedelta(hours=1), versions=worker.versions)
        self.assertNotIn('are not available in', self.page(LIST))  # of which they may view no worker
        grant(self.user, CeleryWorker)
        self.assert_notice('celery@lacking')
        with patch.dict(discovery._failures, {'napalm_plugin.tasks': discovery.Failure(**self.FAILURE)}):
            self.assert_notice('NetBox, celery@lacking')


class TaskPageTest(PageTestCase):

    def setUp(self):
        super().setUp()
        grant(self.user, CeleryTask)
        self.task = make_task(
            documentation='Greet somebody.\n\nArgs:\n    name: Who is greeted, <b>loudly</b>',
            description='Greet somebody.', defaults={'max_retries': 5},
        )
        self.url = self.task.get_absolute_url()

    def test_panels(self):
        grant(self.user, CeleryResult)
        page = self.page(self.url)
        for text in ('Greet somebody.', 'max_retries', 'World', '<td>Who is greeted, &lt;b&gt;loudly&lt;/b&gt;</td>',
                     f'celery_name={HELLO_WORLD.replace(":", "%3A")}'):
            self.assertIn(text, page)

    def test_buttons(self):
        buttons = {name: f'{self.url}{name}/' for name in ('run', 'edit', 'delete')}

        def offered():
            page = self.page(self.url)
            return [name for name, url in buttons.items() if f'"{url}"' in page]

        self.assertEqual(offered(), [])
        grant(self.user, CeleryTask, actions=['run'], constraints={'pk': 0})
        self.assertEqual(offered(), [])
        grant(self.user, CeleryTask, actions=['run', 'change', 'delete'])
        self.assertEqual(offered(), ['run', 'edit'])
        CeleryTask.objects.update(present=False)
        self.assertEqual(offered(), ['edit', 'delete'])
        CeleryTask.objects.update(present=True, enabled=False)
        self.assertEqual(offered(), ['edit'])

    def test_registered_task_is_not_deleted(self):
        """It would come back, without its settings."""
        grant(self.user, CeleryTask, actions=['view', 'delete'])
        for url, data in (
            (f'{self.url}delete/', {'confirm': True}),
            (f'{LIST}delete/', {'pk': [self.task.pk], 'confirm': True, '_confirm': True}),
        ):
            with self.subTest(url):
                page = self.client.post(url, data, follow=True).content.decode()
                self.assertIn('is registered and would reappear', page)
                self.assertTrue(CeleryTask.objects.filter(pk=self.task.pk).exists())


class RunTest(PageTestCase):
    """A person runs a task."""

    def setUp(self):
        super().setUp()
        self.task = make_task()
        self.url = f'{self.task.get_absolute_url()}run/'

    def post(self, follow=False, **data):
        return self.client.post(self.url, {'parameter_name': 'World', **data}, follow=follow)

    def assertRefused(self, code):
        with disable_warnings('django.request'):
            self.assertHttpStatus(self.client.get(self.url), code)
            self.assertHttpStatus(self.post(), code)
        self.assertFalse(CeleryResult.objects.exists())

    def test_without_permission(self):
        grant(self.user, CeleryTask, actions=['view', 'add', 'change', 'delete'])
        grant(self.user, CeleryResult, actions=['view', 'add', 'rerun'])
        self.assertRefused(403)

    def test_constraint_excludes_the_task(self):
        grant(self.user, CeleryTask, actions=['run'], constraints={'name': 'another'})
        self.assertRefused(404)

    def test_anonymous(self):
        self.client.logout()
        self.assertRefused(302)

    def test_form(self):
        grant(self.user, CeleryTask, actions=['run'])
        page = self.page(self.url)
        self.assertIn('name="parameter_name"', page)
        self.assertIn('value="World"', page)
        self.assertFalse(CeleryResult.objects.exists())

    def test_run(self):
        grant(self.user, CeleryTask, actions=['run'], constraints={'name': HELLO_WORLD})
        grant(self.user, CeleryResult)
        response = self.post(parameter_name='Bob')
        result = CeleryResult.objects.get()
        self.assertEqual(response.url, result.get_absolute_url())
        self.assertEqual((result.celery_name, result.kwargs, result.user), (HELLO_WORLD, {'name': 'Bob'}, self.user))
        change = ObjectChange.objects.get()
        self.assertEqual((change.user, change.action, change.changed_object_id), (self.user, 'create', result.pk))

    def test_without_a_view_of_runs(self):
        """A user who may only run the task is told that it was started, not that access is denied."""
        grant(self.user, CeleryTask, actions=['run'])
        self.assertEqual(self.post().url, self.url)
        self.assertIn('Started', self.post(follow=True).content.decode())
        grant(self.user, CeleryTask)
        self.assertEqual(self.post().url, self.task.get_absolute_url())

    def test_options(self):
        grant(self.user, CeleryTask, actions=['run'])
        time = (timezone.localtime() + timedelta(days=1)).replace(microsecond=0)
        self.post(name='Greeting', queue='slow', priority=3, schedule_at=time.strftime('%Y-%m-%d %H:%M:%S'))
        result = CeleryResult.objects.get()
        self.assertEqual((result.name, result.queue, result.status, result.scheduled),
                         ('Greeting', 'slow', 'scheduled', time))
        self.assertEqual(result.options['priority'], 3)

    def test_errors_are_at_their_fields(self):
        grant(self.user, CeleryTask, actions=['run'])
        CeleryTask.objects.update(parameters=[
            {'name': 'count', 'kind': 'positional_or_keyword', 'annotation': 'int', 'required': True},
        ])
        response = self.client.post(self.url, {'parameter_count': 'x', 'schedule_at': '2020-01-01 00:00:00'})
        self.assertHttpStatus(response, 200)
        page = response.content.decode()
        self.assertIn('id="id_parameter_count_errors"', page)
        self.assertIn('id="id_schedule_at_errors"', page)
        self.assertIn('Must be in the future.', page)
        self.assertFalse(CeleryResult.objects.exists())

    def test_disabled_or_absent(self):
        grant(self.user, CeleryTask, actions=['view', 'run'])
        for columns, reason in (({'enabled': False}, 'is disabled'), ({'present': False}, 'is not registered')):
            with self.subTest(reason):
                CeleryTask.objects.update(**{'enabled': True, 'present': True} | columns)
                self.assertIn(reason, self.page(self.url))
                self.assertIn(reason, self.post().content.decode())
                self.assertFalse(CeleryResult.objects.exists())

    def test_broker_is_down(self):
        grant(self.user, CeleryTask, actions=['run'])
        error = OperationalError('Connection refused')
        with patch('netbox_celery.services.runs.CeleryResult.enqueue', side_effect=error):
            response = self.post(parameter_name='Bob')
        self.assertHttpStatus(response, 200)
        page = response.content.decode()
        self.assertIn('the message broker cannot be reached (Connection refused)', page)
        # What was entered is still there, to try again
        self.assertIn('value="Bob"', page)

    def test_escaping(self):
        grant(self.user, CeleryTask, actions=['run'])
        xss = '<script>alert(1)</script>'
        CeleryTask.objects.update(
            name=xss, description=xss, documentation=f'x\n\nArgs:\n    name: {xss}', parameters=[{
                'name': 'name', 'kind': 'keyword_only', 'annotation': xss, 'required': False, 'default': xss,
            }]
        )
        self.assertNotIn('<script>alert(', self.page(self.url))
        page = self.post(parameter_name=xss, name=xss, queue=xss, priority=xss).content.decode()
        self.assertNotIn('<script>alert(', page)
