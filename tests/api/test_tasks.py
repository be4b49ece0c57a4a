"""`tasks/` and `tasks/{id}/run/`."""
from datetime import timedelta
from unittest.mock import patch
from uuid import uuid4

from django.test import TransactionTestCase
from django.urls import reverse
from django.utils import timezone
from kombu.exceptions import OperationalError
from rest_framework import status
from rest_framework.test import APIClient

from core.models import ObjectChange
from dcim.models import Site
from extras.models import Tag
from netbox_celery.engine.schedules.sync import sync_catalogue
from netbox_celery.models import CeleryResult, CeleryTask
from tests.api.actions import ActionTestCases
from tests.factories import HELLO_WORLD, grant, make_task, make_worker
from users.constants import TOKEN_PREFIX
from users.models import Token, User
from utilities.testing import APITestCase, APIViewTestCases, create_tags


class CeleryTaskTest(
    APIViewTestCases.GetObjectViewTestCase,
    APIViewTestCases.ListObjectsViewTestCase,
    APIViewTestCases.UpdateObjectViewTestCase,
    APIViewTestCases.DeleteObjectViewTestCase,
    APIViewTestCases.GraphQLTestCase,
):
    model = CeleryTask
    view_namespace = 'plugins-api:netbox_celery'
    brief_fields = ['description', 'display', 'enabled', 'id', 'name', 'present', 'url']
    graphql_base_name = 'celery_task'
    update_data = {'enabled': False}
    bulk_update_data = {'enabled': False}
    bulk_update_invalid_data = {'enabled': 'perhaps'}

    @classmethod
    def setUpTestData(cls):
        for name in ('backup', 'audit', 'report'):
            make_task(f'gone:{name}', description=f'The {name}', present=False)


class TaskWriteTest(APITestCase):
    model = CeleryTask
    view_namespace = 'plugins-api:netbox_celery'
    user_permissions = tuple(f'netbox_celery.{action}_celerytask' for action in ('view', 'add', 'change', 'delete'))

    def test_methods(self):
        task = make_task()
        for url in (self._get_list_url(), self._get_detail_url(task)):
            response = self.client.options(url, **self.header)
            self.assertEqual(set(response['Allow'].split(', ')), {'GET', 'PATCH', 'DELETE', 'HEAD', 'OPTIONS'})
            for method in ('post', 'put'):
                response = getattr(self.client, method)(url, {'name': 'x'}, format='json', **self.header)
                self.assertHttpStatus(response, status.HTTP_405_METHOD_NOT_ALLOWED)

    def test_fields_from_the_code_are_not_written(self):
        task = make_task()
        data = {'enabled': False, 'name': 'x', 'parameters': [], 'present': False, 'description': 'x'}
        response = self.client.patch(self._get_detail_url(task), data, format='json', **self.header)
        self.assertHttpStatus(response, status.HTTP_200_OK)
        changed = CeleryTask.objects.get(pk=task.pk)
        self.assertFalse(changed.enabled)
        for name in ('name', 'parameters', 'present', 'description'):
            self.assertEqual(getattr(changed, name), getattr(task, name))

    def test_present_task_is_not_deleted(self):
        task = make_task()
        response = self.client.delete(self._get_detail_url(task), **self.header)
        self.assertHttpStatus(response, status.HTTP_400_BAD_REQUEST)
        self.assertIn('registered', response.json()['detail'])
        self.assertTrue(CeleryTask.objects.filter(pk=task.pk).exists())

    def test_list_only_reads(self):
        """Workers and beat write the catalogue."""
        self.client.get(self._get_list_url(), **self.header)
        self.assertFalse(CeleryTask.objects.filter(name=HELLO_WORLD).exists())
        sync_catalogue()
        rows = self.client.get(self._get_list_url(), {'name': HELLO_WORLD}, **self.header).json()['results']
        self.assertEqual([row['name'] for row in rows], [HELLO_WORLD])
        self.assertEqual([parameter['name'] for parameter in rows[0]['parameters']], ['name'])


class RunTest(ActionTestCases.ActionTestCase):
    model = CeleryTask
    action = 'run'
    succeeds_with = status.HTTP_201_CREATED

    def make_object(self):
        return make_task()

    def assertDone(self, obj, response):
        result = CeleryResult.objects.get()
        self.assertEqual((result.celery_name, result.status, result.user), (obj.name, 'pending', self.user))
        data = response.json()
        self.assertEqual((data['id'], data['task_id']), (result.pk, str(result.task_id)))
        self.assertEqual(response['Location'], data['url'])
        self.assertIn(f'/results/{result.pk}/', data['url'])

    def assertNotDone(self, obj):
        self.assertFalse(CeleryResult.objects.exists())

    def test_object_is_not_visible(self):
        """A user who may run it need not view it in lists. One who may do neither does not learn that it exists."""
        for action in ('run', 'view'):
            grant(self.user, CeleryTask, actions=[action], constraints={'pk': 0})
            self.assertRefused(status.HTTP_404_NOT_FOUND)
        grant(self.user, CeleryTask, actions=['run'])
        self.assertHttpStatus(self.post(), status.HTTP_201_CREATED)

    def run_task(self, **data):
        grant(self.user, CeleryTask, actions=['view', 'run'])
        return self.post(data)

    def assertInvalid(self, response, *path):
        """The answer has the error where the request has its cause."""
        self.assertHttpStatus(response, status.HTTP_400_BAD_REQUEST)
        errors = response.json()
        for name in path:
            self.assertIn(name, errors)
            errors = errors[name]
        self.assertTrue(errors)
        self.assertNotDone(self.obj)

    def test_arguments(self):
        for data, args, kwargs in (
            ({'args': ['Bob']}, ['Bob'], {}),
            ({'kwargs': {'name': 'Bob'}}, [], {'name': 'Bob'}),
            ({}, [], {}),
        ):
            response = self.run_task(**data)
            self.assertHttpStatus(response, status.HTTP_201_CREATED)
            result = CeleryResult.objects.get(pk=response.json()['id'])
            self.assertEqual((result.args, result.kwargs), (args, kwargs))

    def test_invalid_arguments(self):
        self.assertInvalid(self.run_task(kwargs={'greeting': 'Hi'}), 'parameters', 'greeting')
        self.assertInvalid(self.run_task(kwargs={'name': 1}), 'parameters', 'name')
        self.assertInvalid(self.run_task(args=['Bob'], kwargs={'name': 'Bob'}), 'parameters', 'name')
        self.assertInvalid(self.run_task(args=['Bob', 'Alice']), 'parameters', '__all__')
        unreadable = {'__type__': 'uuid', '__value__': 'x'}
        self.assertInvalid(self.run_task(args=[unreadable]), 'parameters', '__all__')

    def test_options_among_the_arguments(self):
        """Options that only code may give, such as an invisible object, cannot be passed as arguments of any task."""
        CeleryTask.objects.update(parameters=[
            {'name': 'rest', 'kind': 'var_keyword', 'annotation': '', 'required': False},
        ])
        site = Site.objects.create(name='S', slug='s')
        response = self.run_task(kwargs={'netbox_object': ['dcim.site', site.pk]})
        self.assertInvalid(response, 'parameters', 'netbox_object')

    def test_missing_arguments(self):
        CeleryTask.objects.update(parameters=[
            {'name': name, 'kind': 'positional_or_keyword', 'annotation': '', 'required': True}
            for name in ('site', 'device')
        ])
        response = self.run_task()
        self.assertInvalid(response, 'parameters', 'site')
        self.assertInvalid(response, 'parameters', 'device')

    def test_catalogue_behind_the_code(self):
        """Where the catalogue allows what the code does not, the code decides."""
        CeleryTask.objects.update(parameters=[
            {'name': 'greeting', 'kind': 'positional_or_keyword', 'annotation': '', 'required': True}
        ])
        self.assertInvalid(self.run_task(kwargs={'greeting': 'Hi'}), 'detail')

    def test_command(self):
        """A management command is run like any other task, and accepts its own options only."""
        sync_catalogue()
        task = CeleryTask.objects.get(name='command.django.contrib.sessions.clearsessions')
        grant(self.user, CeleryTask, actions=['view', 'run'])
        response = self.post({'kwargs': {'volume': 11}}, task)
        self.assertHttpStatus(response, status.HTTP_400_BAD_REQUEST)
        self.assertIn('volume', str(response.json()))
        response = self.post({'kwargs': {'verbosity': 2}}, task)
        self.assertHttpStatus(response, status.HTTP_201_CREATED)
        result = CeleryResult.objects.get()
        self.assertEqual((result.celery_name, result.kwargs), (task.name, {'verbosity': 2}))

    def test_malformed_requests(self):
        for data, *path in (
            ({'args': 'Bob'}, 'args'),
            ({'args': {'name': 'Bob'}}, 'args'),
            ({'kwargs': ['Bob']}, 'kwargs'),
            ({'kwarg': {'name': 'Bob'}}, 'kwarg'),
            ({'priority': 'high'}, 'priority'),
            ({'priority': 256}, 'priority'),
            ({'eta': 'tomorrow'}, 'eta'),
            ({'countdown': -1}, 'countdown'),
            ({'expires': 0}, 'expires'),
            ({'expires': True}, 'expires'),
            ({'expires': 'soon'}, 'expires'),
            ({'countdown': 5, 'eta': timezone.now().isoformat()}, 'countdown'),
            ({'schedule_at': timezone.now().isoformat(), 'eta': timezone.now().isoformat()}, 'eta'),
            ({'name': ''}, 'name'),
            ({'name': 'x' * 256}, 'name'),
            ({'time_limit': 0}, 'time_limit'),
            ({'time_limit': 10, 'soft_time_limit': 10}, 'soft_time_limit'),
            ({'object_type': 'dcim.site'}, 'object_id'),
            ({'object_id': 1}, 'object_id'),
            ({'object_type': 'dcim.nonsense', 'object_id': 1}, 'object_type'),
            ({'tags': [{'slug': 'nonsense'}]}, 'tags'),
        ):
            with self.subTest(data):
                self.assertInvalid(self.run_task(**data), *path)
        self.assertHttpStatus(self.post(['Bob']), status.HTTP_400_BAD_REQUEST)

    def test_options(self):
        site = Site.objects.create(name='Site 1', slug='site-1')
        grant(self.user, Site, Tag)
        tag, = create_tags('Alpha')
        response = self.run_task(
            name='Greet', queue='slow', priority=3, expires=3600, time_limit=60, soft_time_limit=50,
            object_type='dcim.site', object_id=site.pk, tags=[{'slug': 'alpha'}]
        )
        self.assertHttpStatus(response, status.HTTP_201_CREATED)
        result = CeleryResult.objects.get()
        self.assertEqual((result.name, result.queue, result.object), ('Greet', 'slow', site))
        self.assertEqual(list(result.tags.all()), [tag])
        self.assertAlmostEqual(result.expires, timezone.now() + timedelta(hours=1), delta=timedelta(seconds=30))
        self.assertEqual(result.options['priority'], 3)
        self.assertEqual((result.options['time_limit'], result.options['soft_time_limit']), (60, 50))

    def test_unknown_queues(self):
        """People send to queues that are configured, consumed or allowed, and never to a reserved name."""
        for queue in (
            'odd', 'unacked', 'unacked_index', '_kombu.binding.celery', 'celery-task-meta-5', 'amq.x', 'é' * 200,
        ):
            with self.subTest(queue):
                response = self.run_task(queue=queue)
                self.assertInvalid(response, 'queue')
                refusal = 'There is no queue' if queue == 'odd' else 'A queue cannot be named'
                self.assertIn(refusal, str(response.json()['queue']))
        self.assertIn('Queues are: celery', str(self.run_task(queue='odd').json()['queue']))
        self.assertFalse(CeleryResult.objects.exists())
        make_worker(queues=['odd'])
        self.assertHttpStatus(self.run_task(queue='odd'), status.HTTP_201_CREATED)
        self.assertHttpStatus(self.run_task(queue='lab-7'), status.HTTP_201_CREATED)

    def test_times(self):
        later = timezone.now() + timedelta(hours=1)
        for option in ({'schedule_at': later.isoformat()}, {'eta': later.isoformat()}, {'countdown': 3600}):
            response = self.run_task(expires=(later + timedelta(hours=1)).isoformat(), **option)
            self.assertHttpStatus(response, status.HTTP_201_CREATED)
            self.assertEqual(response.json()['status']['value'], 'scheduled')
            result = CeleryResult.objects.get(pk=response.json()['id'])
            self.assertAlmostEqual(result.scheduled, later, delta=timedelta(seconds=30))
            self.assertEqual(result.expires, later + timedelta(hours=1))

    def test_object_that_the_user_may_not_view(self):
        """Users cannot find out that it exists, nor start a run about it."""
        site = Site.objects.create(name='Site 1', slug='site-1')
        self.assertInvalid(self.run_task(object_type='dcim.site', object_id=site.pk), 'object_id')
        grant(self.user, Site, constraints={'slug': 'other'})
        self.assertInvalid(self.run_task(object_type='dcim.site', object_id=site.pk), 'object_id')
        # No object of NetBox's: there are no permissions to ask
        self.assertInvalid(self.run_task(object_type='contenttypes.contenttype', object_id=1), 'object_id')

    def test_disabled_and_absent_tasks(self):
        for reason, columns in (
            ('disabled', {'enabled': False}), ('not registered', {'enabled': True, 'present': False}),
        ):
            CeleryTask.objects.update(**columns)
            response = self.run_task()
            self.assertInvalid(response, 'detail')
            self.assertIn(reason, response.json()['detail'])

    def test_change_log(self):
        self.run_task()
        change = ObjectChange.objects.get()
        self.assertEqual(
            (change.user, change.changed_object, change.action), (self.user, CeleryResult.objects.get(), 'create')
        )

    def test_redacted_options_are_not_offered(self):
        """Clients cannot give `task_id`, `headers`, `argsrepr` and the like."""
        for option in ('task_id', 'headers', 'argsrepr', 'netbox_user', 'user', 'routing_key', 'link'):
            self.assertInvalid(self.run_task(**{option: str(uuid4())}), option)


class BrokerDownTest(TransactionTestCase):
    """Outside a transaction the message is sent immediately, and the client learns if it was not."""

    def test_broker_down(self):
        user = User.objects.create_superuser(username='admin')
        token = Token.objects.create(user=user)
        task = make_task()
        with patch('kombu.messaging.Producer.publish', side_effect=OperationalError('Connection refused')):
            response = APIClient().post(
                reverse('plugins-api:netbox_celery-api:celerytask-run', kwargs={'pk': task.pk}),
                HTTP_AUTHORIZATION=f'Bearer {TOKEN_PREFIX}{token.key}.{token.token}'
            )
        self.assertEqual(response.status_code, status.HTTP_503_SERVICE_UNAVAILABLE)
        self.assertIn('broker', response.json()['detail'])
        result = CeleryResult.objects.get()
        self.assertEqual((result.status, result.reason), ('errored', 'publish_failed'))
