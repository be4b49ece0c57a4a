"""Cancel and run again: one run from its page, many from the list."""
from unittest.mock import patch

from django.utils import timezone
from kombu.exceptions import OperationalError

from core.models import ObjectChange
from netbox_celery.models import CeleryResult, CeleryTask
from tests.factories import HELLO_WORLD, grant, make_result, make_task, make_worker
from tests.views.bases import ConfirmTestCases, PageTestCase
from utilities.testing import disable_warnings


class CancelTest(ConfirmTestCases.ConfirmTestCase):
    model = CeleryResult
    action = 'cancel'

    def make_object(self):
        return make_result('pending')

    def assertDone(self, obj, response):
        obj.refresh_from_db()
        self.assertEqual((obj.status, obj.reason), ('revoked', 'cancelled'))
        self.assertEqual(response.url, obj.get_absolute_url())

    def assertNotDone(self, obj):
        obj.refresh_from_db()
        self.assertEqual((obj.status, obj.cancelled), ('pending', None))

    def test_effect_is_announced(self):
        """The page says beforehand what a cancel will do to this run."""
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        prefork, threads = make_worker(), make_worker('celery@threads', pool='threads')
        for result, effect in (
            (make_result('pending'), 'The run has not started and will be revoked.'),
            (make_result('scheduled'), 'The run has not started and will be revoked.'),
            (make_result('retrying'), 'The run has not started and will be revoked.'),
            (make_result('running', holder=prefork.key), 'will be terminated'),
            (make_result('running', holder=threads.key), 'The task is asked to stop'),
        ):
            with self.subTest(effect):
                page = self.page(f'{result.get_absolute_url()}cancel/')
                self.assertIn(effect, page)
                self.assertIn('Cancel Run', page)

    def test_nothing_to_cancel(self):
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        for result, reason in (
            (make_result('completed'), 'the run has already finished'),
            (make_result('running', cancelled=timezone.now()), 'Cancellation is already in progress.'),
        ):
            with self.subTest(reason):
                url = f'{result.get_absolute_url()}cancel/'
                page = self.page(url)
                self.assertIn(reason, page)
                self.assertNotIn('Cancel Run', page)
                self.assertHttpStatus(self.client.post(url), 302)
        self.assertFalse(ObjectChange.objects.exists())

    def test_change_log(self):
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        self.client.post(self.url)
        change = ObjectChange.objects.get()
        self.assertEqual((change.user, change.changed_object_id, change.action), (self.user, self.obj.pk, 'update'))
        self.assertEqual((change.prechange_data['status'], change.postchange_data['status']), ('pending', 'revoked'))

    def test_goes_back(self):
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        response = self.client.post(self.url, {'return_url': '/plugins/celery/results/?status=running'})
        self.assertEqual(response.url, '/plugins/celery/results/?status=running')

    def test_goes_nowhere_else(self):
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        response = self.client.post(self.url, {'return_url': 'https://example.com/'})
        self.assertEqual(response.url, self.obj.get_absolute_url())

    def test_escaping(self):
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        result = make_result('pending', name='<script>alert(1)</script>')
        self.assertNotIn('<script>alert(', self.page(f'{result.get_absolute_url()}cancel/'))
        page = self.client.post(f'{result.get_absolute_url()}cancel/', {'return_url': '/'}, follow=True)
        self.assertNotIn('<script>alert(', page.content.decode())


class RerunTest(ConfirmTestCases.ConfirmTestCase):
    model = CeleryResult
    action = 'rerun'

    def setUp(self):
        super().setUp()
        grant(self.user, CeleryResult)
        self.may_run = grant(self.user, CeleryTask, actions=['run'])

    def make_object(self):
        return make_result('errored', args=['Bob'], kwargs={}, name='Greeting')

    def assertDone(self, obj, response):
        new = CeleryResult.objects.exclude(pk=obj.pk).get()
        self.assertEqual((new.celery_name, new.args, new.name, new.user), (HELLO_WORLD, ['Bob'], 'Greeting', self.user))
        self.assertEqual(new.status, 'pending')
        self.assertEqual(response.url, new.get_absolute_url())

    def assertNotDone(self, obj):
        self.assertEqual(CeleryResult.objects.get(), obj)

    def assertNotStarted(self, reason):
        """The action is neither offered, nor done if requested all the same."""
        page = self.page(self.url)
        self.assertIn(reason, page)
        self.assertNotIn('btn btn-primary', page.split('modal-footer')[1])
        response = self.client.post(self.url, follow=True)
        self.assertIn(reason, response.content.decode())
        self.assertNotDone(self.obj)

    def test_arguments_were_not_kept(self):
        grant(self.user, CeleryResult, actions=['view', 'rerun'])
        CeleryResult.objects.update(args=None)
        self.assertNotStarted('arguments')

    def test_task_is_disabled_or_absent(self):
        grant(self.user, CeleryResult, actions=['view', 'rerun'])
        grant(self.user, CeleryTask, actions=['run'])
        task = make_task(enabled=False)
        self.assertNotStarted('is disabled')
        task.enabled, task.present = True, False
        task.save()
        self.assertNotStarted('is not registered')

    def test_needs_permission_to_run_the_task(self):
        """Also if the catalogue does not have the task."""
        self.may_run.delete()
        grant(self.user, CeleryResult, actions=['view', 'rerun'])
        self.assertRefused(403)
        task = make_task()
        self.assertRefused(403)
        grant(self.user, CeleryTask, actions=['run'], constraints={'pk': 0})
        self.assertRefused(403)
        grant(self.user, CeleryTask, actions=['run'], constraints={'pk': task.pk})
        self.assertHttpStatus(self.client.post(self.url), 302)
        self.assertEqual(CeleryResult.objects.count(), 2)

    def test_broker_is_down(self):
        """The page says what the user can do about it."""
        grant(self.user, CeleryResult, actions=['view', 'rerun'])
        with patch('netbox_celery.services.runs.control.rerun', side_effect=OperationalError('Connection refused')):
            response = self.client.post(self.url, follow=True)
        self.assertHttpStatus(response, 200)
        page = response.content.decode()
        self.assertIn('the message broker cannot be reached (Connection refused)', page)
        self.assertIn('then try again', page)

    def test_change_log(self):
        grant(self.user, CeleryResult, actions=['view', 'rerun'])
        self.client.post(self.url)
        change = ObjectChange.objects.get()
        self.assertEqual((change.user, change.action), (self.user, 'create'))

    def test_running(self):
        """An unfinished run can be repeated; the page warns that both may run."""
        grant(self.user, CeleryResult, actions=['view', 'rerun'])
        running = make_result('running')
        self.assertIn('both may run at the same time', self.page(f'{running.get_absolute_url()}rerun/'))


class BulkTestCase(PageTestCase):

    def post(self, data, url=None):
        return self.client.post(url or self.url, data)

    def statuses(self, *results):
        found = CeleryResult.objects.in_bulk([result.pk for result in results])
        return [found[result.pk].status for result in results]


class BulkCancelTest(BulkTestCase):
    url = '/plugins/celery/results/cancel/'

    def setUp(self):
        super().setUp()
        self.runs = [make_result('pending', name=f'Run {i}') for i in range(3)]
        self.ended = make_result('completed', name='Ended')
        self.pks = [result.pk for result in (*self.runs, self.ended)]

    def test_permission(self):
        with disable_warnings('django.request'):
            self.assertHttpStatus(self.post({'pk': self.pks, '_confirm': ''}), 403)
            grant(self.user, CeleryResult, actions=['view', 'change', 'delete', 'rerun'])
            self.assertHttpStatus(self.post({'pk': self.pks, '_confirm': ''}), 403)
        self.assertEqual(self.statuses(*self.runs), ['pending'] * 3)

    def test_constraint(self):
        """Runs that the user is not allowed to cancel are not affected."""
        grant(self.user, CeleryResult, actions=['view', 'cancel'], constraints={'pk': self.runs[0].pk})
        page = self.post({'pk': self.pks}).content.decode()
        self.assertIn('Run 0', page)
        self.assertNotIn('Run 1', page)
        self.assertHttpStatus(self.post({'pk': self.pks, '_confirm': ''}), 302)
        self.assertEqual(self.statuses(*self.runs), ['revoked', 'pending', 'pending'])

    def test_question_has_no_effect(self):
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        page = self.post({'pk': self.pks}).content.decode()
        self.assertIn('3 runs are selected.', page)
        self.assertNotIn('Ended', page)
        self.assertEqual(self.statuses(*self.runs), ['pending'] * 3)
        self.assertHttpStatus(self.client.get(self.url), 302)

    def test_selected(self):
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        data = {'pk': [self.runs[0].pk, self.ended.pk], '_confirm': '', 'return_url': '/plugins/celery/results/?q=x'}
        self.assertEqual(self.post(data).url, '/plugins/celery/results/?q=x')
        self.assertEqual(self.statuses(*self.runs, self.ended), ['revoked', 'pending', 'pending', 'completed'])
        change = ObjectChange.objects.get()
        self.assertEqual((change.user, change.user_name, change.action), (self.user, 'testuser', 'update'))
        self.assertEqual((change.prechange_data['status'], change.postchange_data['status']), ('pending', 'revoked'))

    def test_all_that_match(self):
        """All that match the filters, and none created after the question."""
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        other = make_result('pending', queue='other')
        page = self.post({'_all': 'on'}, f'{self.url}?queue__empty=true').content.decode()
        newest = page.split('name="newest" value="')[1].split('"')[0]
        later = make_result('pending')
        self.post({'_all': 'on', 'newest': newest, '_confirm': ''}, f'{self.url}?queue__empty=true')
        self.assertEqual(self.statuses(*self.runs, other, later), ['revoked'] * 3 + ['pending'] * 2)

    def test_nothing_is_selected(self):
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        for data in ({}, {'pk': [self.ended.pk]}, {'pk': ['x']}):
            with self.subTest(data):
                self.assertHttpStatus(self.post(data), 302)

    def test_limit(self):
        """More runs than one request can process are done in turn, the oldest first."""
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        with patch('netbox_celery.views.bulk_actions.CeleryResultBulkCancelView.limit', 2):
            self.assertIn('Only the oldest 2 will be processed', self.post({'pk': self.pks}).content.decode())
            self.post({'pk': self.pks, '_confirm': ''})
        self.assertEqual(self.statuses(*self.runs), ['revoked', 'revoked', 'pending'])


class BulkRerunTest(BulkTestCase):
    url = '/plugins/celery/results/rerun/'

    def setUp(self):
        super().setUp()
        self.may_run = grant(self.user, CeleryTask, actions=['run'])
        self.runs = [make_result('errored', args=[f'Bob {i}']) for i in range(3)]
        self.running = make_result('running')
        self.pks = [result.pk for result in (*self.runs, self.running)]

    def new(self):
        return CeleryResult.objects.exclude(pk__in=self.pks).order_by('pk')

    def test_permission(self):
        with disable_warnings('django.request'):
            grant(self.user, CeleryResult, actions=['view', 'add', 'change', 'cancel'])
            self.assertHttpStatus(self.post({'pk': self.pks, '_confirm': ''}), 403)
        self.assertFalse(self.new().exists())

    def test_constraint(self):
        grant(self.user, CeleryResult, actions=['view', 'rerun'], constraints={'pk': self.runs[1].pk})
        self.post({'pk': self.pks, '_confirm': ''})
        self.assertEqual(self.new().get().args, ['Bob 1'])

    def test_question_has_no_effect(self):
        grant(self.user, CeleryResult, actions=['view', 'rerun'])
        self.assertIn('3 runs are selected.', self.post({'pk': self.pks}).content.decode())
        self.assertFalse(self.new().exists())

    def test_selected(self):
        grant(self.user, CeleryResult, actions=['view', 'rerun'])
        self.post({'pk': self.pks, '_confirm': ''})
        self.assertEqual([run.args for run in self.new()], [['Bob 0'], ['Bob 1'], ['Bob 2']])
        self.assertEqual({run.user for run in self.new()}, {self.user})

    def test_some_cannot_be_started(self):
        """The others are, and each reason is shown once."""
        grant(self.user, CeleryResult, actions=['view', 'rerun'])
        make_task('netbox_example_plugin:off', enabled=False)
        grant(self.user, CeleryTask, actions=['run'])
        CeleryResult.objects.filter(pk__in=self.pks[:2]).update(celery_name='netbox_example_plugin:off')
        page = self.client.post(self.url, {'pk': self.pks, '_confirm': ''}, follow=True).content.decode()
        self.assertEqual(self.new().get().args, ['Bob 2'])
        self.assertIn('2 runs not started: The task netbox_example_plugin:off is disabled.', page)
        self.assertIn('Started 1 run again', page)

    def test_needs_permission_to_run_the_task(self):
        self.may_run.delete()
        grant(self.user, CeleryResult, actions=['view', 'rerun'])
        make_task()
        page = self.client.post(self.url, {'pk': self.pks, '_confirm': ''}, follow=True).content.decode()
        self.assertFalse(self.new().exists())
        self.assertIn(f'3 runs not started: You do not have permission to run the task {HELLO_WORLD}.', page)
