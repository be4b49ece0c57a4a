"""`results/{id}/cancel/` and `results/{id}/rerun/`."""
from rest_framework import status

from core.models import ObjectChange
from dcim.models import Site
from netbox_celery.models import CeleryResult, CeleryTask
from tests.api.actions import ActionTestCases
from tests.factories import HELLO_WORLD, grant, make_result, make_task


class CancelTest(ActionTestCases.ActionTestCase):
    model = CeleryResult
    action = 'cancel'

    def make_object(self):
        return make_result('pending')

    def assertDone(self, obj, response):
        obj.refresh_from_db()
        self.assertEqual((obj.status, obj.reason), ('revoked', 'cancelled'))
        data = response.json()
        self.assertEqual((data['id'], data['status']['value']), (obj.pk, 'revoked'))

    def assertNotDone(self, obj):
        obj.refresh_from_db()
        self.assertEqual((obj.status, obj.cancelled), ('pending', None))

    def test_change_log(self):
        """People cancel runs, so the change log records who did."""
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        self.post()
        change = ObjectChange.objects.get()
        self.assertEqual((change.user, change.changed_object_id, change.action), (self.user, self.obj.pk, 'update'))

    def test_running(self):
        """An active run finishes a little later; a second request is not an error."""
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        running = make_result('running')
        for _ in range(2):
            response = self.post(obj=running)
            self.assertHttpStatus(response, status.HTTP_200_OK)
            self.assertEqual(response.json()['status']['value'], 'running')
            self.assertIsNotNone(response.json()['cancelled'])
        self.assertEqual(ObjectChange.objects.count(), 1)

    def test_finished(self):
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        ended = make_result('completed')
        response = self.post(obj=ended)
        self.assertHttpStatus(response, status.HTTP_400_BAD_REQUEST)
        self.assertIn('Completed', response.json()['detail'])
        ended.refresh_from_db()
        self.assertIsNone(ended.cancelled)


class RerunTest(ActionTestCases.ActionTestCase):
    model = CeleryResult
    action = 'rerun'
    succeeds_with = status.HTTP_201_CREATED

    def setUp(self):
        super().setUp()
        self.may_run = grant(self.user, CeleryTask, actions=['run'])

    def make_object(self):
        return make_result('completed', args=['Bob'], name='Greet Bob', options={'queue': 'slow'}, queue='slow')

    def assertDone(self, obj, response):
        data = response.json()
        new = CeleryResult.objects.exclude(pk=obj.pk).get()
        self.assertEqual((new.celery_name, new.args, new.name, new.queue), (HELLO_WORLD, ['Bob'], 'Greet Bob', 'slow'))
        self.assertEqual(new.user, self.user)
        self.assertEqual((data['id'], data['args']), (new.pk, ['Bob']))
        self.assertEqual(response['Location'], data['url'])

    def assertNotDone(self, obj):
        self.assertEqual(CeleryResult.objects.count(), 1)

    def test_queue_of_code(self):
        """A run on a queue that code chose is repeated there only if people can choose that queue."""
        grant(self.user, CeleryResult, actions=['view', 'rerun'])
        for options in ({'queue': 'odd'}, {'queue': 'unacked'}, {'exchange': 'odd', 'routing_key': 'odd'}):
            obj = make_result('completed', options=options)
            response = self.post(obj=obj)
            self.assertHttpStatus(response, 400)
            self.assertIn('queue', response.json())
        self.assertEqual(CeleryResult.objects.count(), 4)

    def test_needs_run_on_the_task(self):
        """A user who may not run the task may not run it again, nor one that is not in the catalogue."""
        self.may_run.delete()
        grant(self.user, CeleryResult, actions=['view', 'rerun'])
        self.assertRefused(status.HTTP_403_FORBIDDEN)
        task = make_task()
        grant(self.user, CeleryTask, actions=['run'], constraints={'name': 'other'})
        self.assertRefused(status.HTTP_403_FORBIDDEN)

        grant(self.user, CeleryTask, actions=['run'], constraints={'name': task.name})
        response = self.post()
        self.assertHttpStatus(response, status.HTTP_201_CREATED)
        self.assertDone(self.obj, response)

    def test_disabled_and_absent_tasks(self):
        grant(self.user, CeleryResult, actions=['view', 'rerun'])
        grant(self.user, CeleryTask, actions=['run'])
        task = make_task(enabled=False)
        for reason, columns in (
            ('disabled', {'enabled': False}), ('not registered', {'enabled': True, 'present': False}),
        ):
            CeleryTask.objects.filter(pk=task.pk).update(**columns)
            response = self.post()
            self.assertHttpStatus(response, status.HTTP_400_BAD_REQUEST)
            self.assertIn(reason, response.json()['detail'])
            self.assertNotDone(self.obj)

    def test_arguments_not_kept(self):
        grant(self.user, CeleryResult, actions=['view', 'rerun'])
        CeleryResult.objects.filter(pk=self.obj.pk).update(args=None)
        response = self.post()
        self.assertHttpStatus(response, status.HTTP_400_BAD_REQUEST)
        self.assertIn('not stored', response.json()['detail'])
        self.assertNotDone(self.obj)

    def test_arguments_that_do_not_fit_any_more(self):
        grant(self.user, CeleryResult, actions=['view', 'rerun'])
        CeleryResult.objects.filter(pk=self.obj.pk).update(kwargs={'greeting': 'Hi'})
        response = self.post()
        self.assertHttpStatus(response, status.HTTP_400_BAD_REQUEST)
        self.assertIn('greeting', str(response.json()))
        self.assertNotDone(self.obj)

    def test_object_is_kept(self):
        site = Site.objects.create(name='Site 1', slug='site-1')
        grant(self.user, CeleryResult, actions=['view', 'rerun'])
        response = self.post(obj=make_result('failed', object=site))
        self.assertEqual(response.json()['object_id'], site.pk)

    def test_change_log(self):
        grant(self.user, CeleryResult, actions=['view', 'rerun'])
        new = self.post().json()['id']
        change = ObjectChange.objects.get()
        self.assertEqual((change.user, change.changed_object_id, change.action), (self.user, new, 'create'))
