"""`workers/`."""
from datetime import timedelta

from django.utils import timezone
from rest_framework import status

from netbox_celery.models import CeleryWorker
from tests.factories import make_worker
from utilities.testing import APITestCase, APIViewTestCases


class CeleryWorkerTest(
    APIViewTestCases.GetObjectViewTestCase,
    APIViewTestCases.ListObjectsViewTestCase,
    APIViewTestCases.GraphQLTestCase,
):
    model = CeleryWorker
    view_namespace = 'plugins-api:netbox_celery'
    brief_fields = ['display', 'id', 'is_alive', 'name', 'url']
    graphql_base_name = 'celery_worker'

    @classmethod
    def setUpTestData(cls):
        for name in ('celery@one', 'celery@two', 'celery@three'):
            make_worker(name)


class WorkerTest(APITestCase):
    model = CeleryWorker
    view_namespace = 'plugins-api:netbox_celery'
    user_permissions = ('netbox_celery.view_celeryworker', 'netbox_celery.add_celeryworker')

    def test_is_alive(self):
        now = timezone.now()
        make_worker('celery@alive')
        make_worker('celery@silent', heartbeat=now - timedelta(hours=1))
        make_worker('celery@stopped', stopped=now)
        rows = self.client.get(self._get_list_url(), **self.header).json()['results']
        self.assertEqual({row['name']: row['is_alive'] for row in rows}, {
            'celery@alive': True, 'celery@silent': False, 'celery@stopped': False,
        })

    def test_state(self):
        """A worker shows the limits of its autoscaler, and what it could not import."""
        failure = {'plugin': 'p', 'module': 'p.tasks', 'error': 'ImportError: no', 'place': 'p/tasks.py:1'}
        make_worker('celery@old', versions={'celery': '5.7.0'})
        make_worker('celery@scaled', concurrency=4, versions={
            'celery': '5.7.0', '@worker': {'autoscale': {'min': 1, 'max': 4}, 'not_loaded': [failure]},
        })
        old, scaled = self.client.get(self._get_list_url(), **self.header).json()['results']
        self.assertEqual((old['autoscale'], old['not_loaded']), (None, []))
        self.assertEqual((scaled['concurrency'], scaled['autoscale']), (4, {'min': 1, 'max': 4}))
        self.assertEqual((scaled['versions'], scaled['not_loaded']), ({'celery': '5.7.0'}, [failure]))

    def test_read_only(self):
        response = self.client.post(self._get_list_url(), {}, format='json', **self.header)
        self.assertHttpStatus(response, status.HTTP_405_METHOD_NOT_ALLOWED)
