"""`results/{id}/logs/`, which followers poll, and `log-entries/`."""
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from rest_framework import status

from dcim.models import Site
from netbox_celery.models import CeleryLogEntry, CeleryResult
from tests.factories import grant, make_log, make_result
from utilities.testing import APITestCase, APIViewTestCases


class LogsTest(APITestCase):
    user_permissions = ('netbox_celery.view_celeryresult',)

    def setUp(self):
        super().setUp()
        self.result = make_result('running', value=1, value_max=4, step='Site 1', attempt=2)

    def url(self, result=None):
        return reverse('plugins-api:netbox_celery-api:celeryresult-logs', kwargs={'pk': (result or self.result).pk})

    def poll(self, **params):
        response = self.client.get(self.url(), params, **self.header)
        self.assertHttpStatus(response, status.HTTP_200_OK)
        return response.json()

    def messages(self, page):
        return [line['message'] for line in page['results']]

    def test_page(self):
        grant(self.user, Site)
        site = Site.objects.create(name='Site 1', slug='site-1')
        line, = make_log(self.result, (30, 'No\nserial number'), object=site, grouping='sites', attempt=2)
        page = self.poll()
        shown, = page.pop('results')
        self.assertEqual(page, {
            'count': 1, 'next': None, 'next_after': line.pk, 'finished': False,
            'status': {'value': 'running', 'label': 'Running'}, 'reason': None, 'attempt': 2, 'value': 1,
            'value_max': 4, 'percentage': 25.0, 'step': 'Site 1',
        })
        self.assertEqual(shown.pop('object')['slug'], 'site-1')
        shown.pop('created')
        self.assertEqual(shown, {
            'id': line.pk, 'attempt': 2, 'level': {'value': 30, 'label': 'Warning'}, 'grouping': 'sites',
            'message': 'No\nserial number', 'object_type': 'dcim.site', 'object_id': site.pk,
        })

    def test_following(self):
        """A follower gets each line once, in order, and stops at the end."""
        make_log(self.result, 'one', 'two')
        page = self.poll()
        self.assertEqual(self.messages(page), ['one', 'two'])
        self.assertEqual(self.messages(self.poll(after=page['next_after'])), [])
        make_log(self.result, 'three')
        CeleryResult.objects.filter(pk=self.result.pk).update(status='errored', reason='time_limit')
        page = self.poll(after=page['next_after'])
        self.assertEqual((self.messages(page), page['finished']), (['three'], True))
        self.assertEqual((page['status']['value'], page['reason']['value']), ('errored', 'time_limit'))

    def test_pages(self):
        make_log(self.result, *'abcde')
        CeleryResult.objects.filter(pk=self.result.pk).update(status='completed')
        url, seen = f'{self.url()}?limit=2&level__gte=20', []
        while url:
            page = self.client.get(url, **self.header).json()
            seen.append(self.messages(page))
            self.assertEqual(page['finished'], page['next'] is None)
            url = page['next']
        self.assertEqual(seen, [['a', 'b'], ['c', 'd'], ['e']])

    def test_limits(self):
        CeleryLogEntry.objects.bulk_create(
            CeleryLogEntry(result=self.result, message=str(number)) for number in range(1005)
        )
        for limit, lines in ((None, 100), (1, 1), (1000, 1000), (5000, 1000), (0, 1000)):
            page = self.poll(**({} if limit is None else {'limit': limit}))
            self.assertEqual((len(page['results']), page['count']), (lines, lines))

    def test_filters(self):
        make_log(self.result, 'info', (30, 'Warning'), (40, 'failure'))
        make_log(self.result, 'grouped', grouping='sites')
        for params, expected in (
            ({'level': [20, 40]}, ['info', 'failure', 'grouped']),
            ({'level__gte': 30}, ['Warning', 'failure']),
            ({'grouping': ['sites', 'other']}, ['grouped']),
            ({'q': 'warn'}, ['Warning']),
        ):
            with self.subTest(params):
                self.assertEqual(self.messages(self.poll(**params)), expected)

    def test_wrong_parameters(self):
        for params in (
            {'after': 'x'}, {'after': -1}, {'after': 2 ** 63}, {'limit': 'many'}, {'limit': -1}, {'level': 'info'},
            {'level__gte': 'info'}, {'offset': -1},
        ):
            response = self.client.get(self.url(), params, **self.header)
            self.assertHttpStatus(response, status.HTTP_400_BAD_REQUEST)
            self.assertEqual(list(response.json()), list(params))

    def test_permissions(self):
        """Only users who may view the run may read its log."""
        make_log(self.result, 'secret')
        self.remove_permissions('netbox_celery.view_celeryresult')
        self.assertHttpStatus(self.client.get(self.url(), **self.header), status.HTTP_403_FORBIDDEN)
        grant(self.user, CeleryLogEntry)
        self.assertHttpStatus(self.client.get(self.url(), **self.header), status.HTTP_403_FORBIDDEN)
        permission = grant(self.user, CeleryResult, constraints={'pk': 0})
        self.assertHttpStatus(self.client.get(self.url(), **self.header), status.HTTP_404_NOT_FOUND)
        permission.constraints = {'pk': self.result.pk}
        permission.save()
        self.assertEqual(self.messages(self.poll()), ['secret'])
        self.assertHttpStatus(self.client.get(self.url(), HTTP_ACCEPT='application/json'), status.HTTP_403_FORBIDDEN)

    def test_unknown_run(self):
        self.result.pk = 0
        self.assertHttpStatus(self.client.get(self.url(), **self.header), status.HTTP_404_NOT_FOUND)
        for pk in ('x', 2 ** 70):
            url = self.url().replace('/0/', f'/{pk}/')
            self.assertHttpStatus(self.client.get(url, **self.header), status.HTTP_404_NOT_FOUND)

    def test_only_get(self):
        for method in ('post', 'put', 'patch', 'delete'):
            response = getattr(self.client, method)(self.url(), **self.header)
            self.assertIn(response.status_code, (status.HTTP_403_FORBIDDEN, status.HTTP_405_METHOD_NOT_ALLOWED))

    def test_cost(self):
        """A poll without new lines costs two queries beside NetBox's own for the token and the permissions."""
        make_log(self.result, 'one')
        self.poll()
        with CaptureQueriesContext(connection) as queries:
            self.poll()
        self.assertEqual(len([query for query in queries if 'netbox_celery' in query['sql']]), 2)


class CeleryLogEntryTest(
    APIViewTestCases.GetObjectViewTestCase,
    APIViewTestCases.ListObjectsViewTestCase,
    APIViewTestCases.GraphQLTestCase,
):
    model = CeleryLogEntry
    view_namespace = 'plugins-api:netbox_celery'
    # The bases grant permissions on lines alone; runs must be visible as well
    user_permissions = ('netbox_celery.view_celeryresult',)
    brief_fields = ['created', 'display', 'id', 'level', 'message', 'url']
    graphql_base_name = 'celery_log_entry'

    @classmethod
    def setUpTestData(cls):
        site = Site.objects.create(name='Site 1', slug='site-1')
        make_log(make_result(), 'one', (30, 'two'))
        make_log(make_result(), (40, 'three'), object=site, grouping='sites')


class LogEntryPermissionTest(APITestCase):
    model = CeleryLogEntry
    view_namespace = 'plugins-api:netbox_celery'

    def setUp(self):
        super().setUp()
        self.line, = make_log(make_result(user=self.user), 'mine')
        self.secret, = make_log(make_result(), 'secret')

    def messages(self):
        response = self.client.get(self._get_list_url(), **self.header)
        self.assertHttpStatus(response, status.HTTP_200_OK)
        self.assertEqual(response.json()['count'], len(response.json()['results']))
        return [line['message'] for line in response.json()['results']]

    def test_lines_of_visible_runs(self):
        grant(self.user, CeleryLogEntry)
        self.assertEqual(self.messages(), [])
        permission = grant(self.user, CeleryResult, constraints={'user': '$user'})
        self.assertEqual(self.messages(), ['mine'])
        response = self.client.get(self._get_detail_url(self.secret), **self.header)
        self.assertHttpStatus(response, status.HTTP_404_NOT_FOUND)
        permission.constraints = None
        permission.save()
        self.assertEqual(self.messages(), ['mine', 'secret'])

    def test_nested_run(self):
        """Lines name their run, and load no more of it than that."""
        self.add_permissions('netbox_celery.view_celerylogentry', 'netbox_celery.view_celeryresult')
        with CaptureQueriesContext(connection) as queries:
            line = self.client.get(self._get_list_url(), **self.header).json()['results'][0]
        self.assertEqual(set(line['result']), {'id', 'url', 'display', 'task_id', 'celery_name', 'name', 'status'})
        loading = [query['sql'] for query in queries if 'FROM "netbox_celery_celeryresult"' in query['sql']]
        self.assertEqual(len(loading), 1)
        self.assertNotIn('traceback', loading[0])

    def test_read_only(self):
        self.add_permissions(*(
            f'netbox_celery.{action}_celerylogentry' for action in ('view', 'add', 'change', 'delete')
        ))
        for url in (self._get_list_url(), self._get_detail_url(self.line)):
            for method in ('post', 'put', 'patch', 'delete'):
                response = getattr(self.client, method)(url, {}, format='json', **self.header)
                self.assertHttpStatus(response, status.HTTP_405_METHOD_NOT_ALLOWED)
