"""`results/`: NetBox's own tests of an endpoint, and what differs for rows that the engine writes."""
from datetime import datetime
from unittest.mock import patch

from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from rest_framework import status

from dcim.models import Site
from extras.models import Tag
from netbox_celery import querysets
from netbox_celery.api.urls import router
from netbox_celery.engine.sending import control
from netbox_celery.models import CeleryResult, CelerySchedule
from tests.factories import grant, make_log, make_result, make_schedule
from utilities.testing import APITestCase, APIViewTestCases, create_tags

LARGE = {'args', 'kwargs', 'options', 'data', 'result', 'traceback', 'attempts'}


class CeleryResultTest(
    APIViewTestCases.GetObjectViewTestCase,
    APIViewTestCases.ListObjectsViewTestCase,
    APIViewTestCases.UpdateObjectViewTestCase,
    APIViewTestCases.DeleteObjectViewTestCase,
    APIViewTestCases.GraphQLTestCase,
):
    model = CeleryResult
    view_namespace = 'plugins-api:netbox_celery'
    brief_fields = ['celery_name', 'display', 'id', 'name', 'status', 'task_id', 'url']
    graphql_base_name = 'celery_result'

    @classmethod
    def setUpTestData(cls):
        site = Site.objects.create(name='Site 1', slug='site-1')
        make_result('completed', name='Backup', queue='slow', worker='celery@one', attempt=1, object=site)
        make_result('errored', name='Audit', error='Took too long', attempt=2)
        make_result('revoked', name='Report')
        tags = create_tags('Alpha', 'Bravo')
        cls.update_data = {'tags': [tag.pk for tag in tags]}
        cls.bulk_update_data = {'add_tags': [tag.pk for tag in tags]}


class ResultRepresentationTest(APITestCase):
    """What is shown, and what is not."""
    model = CeleryResult
    view_namespace = 'plugins-api:netbox_celery'
    user_permissions = ('netbox_celery.view_celeryresult',)

    def get(self, url, **params):
        response = self.client.get(url, params, **self.header)
        self.assertHttpStatus(response, status.HTTP_200_OK)
        return response.json()

    def test_detail(self):
        grant(self.user, Site)
        site = Site.objects.create(name='Site 1', slug='site-1')
        result = make_result(
            'errored', reason='time_limit', args=['site-1'], kwargs={'deep': True}, options={'queue': 'slow'},
            value=2 ** 40, value_max=2 ** 41, result={'a': [1]}, data={'b': None}, traceback='Traceback', error='Why',
            object=site, user=self.user, attempts=[{'number': 1}]
        )
        data = self.get(self._get_detail_url(result))
        expected = {
            'id': result.pk, 'task_id': str(result.task_id), 'display': 'Hello',
            'status': {'value': 'errored', 'label': 'Errored'},
            'reason': {'value': 'time_limit', 'label': 'Time limit'},
            'args': ['site-1'], 'kwargs': {'deep': True}, 'options': {'queue': 'slow'}, 'value': 2 ** 40,
            'percentage': 50.0, 'result': {'a': [1]}, 'data': {'b': None}, 'traceback': 'Traceback', 'error': 'Why',
            'object_type': 'dcim.site', 'object_id': site.pk, 'attempts': [{'number': 1}], 'tags': [],
            'custom_fields': {},
        }
        self.assertEqual({name: data[name] for name in expected}, expected)
        self.assertEqual(data['object']['slug'], 'site-1')
        self.assertEqual(data['user']['username'], 'testuser')

    def test_engine_columns_are_shown_nowhere(self):
        result = make_result('pending', message='["secret", {}]')
        for data in (
            self.get(self._get_detail_url(result)),
            self.get(self._get_list_url(), fields='id,message,holder,claims,nesting,in_backend')['results'][0],
        ):
            self.assertFalse({'message', 'holder', 'claims', 'nesting', 'in_backend'} & set(data))
            self.assertNotIn('secret', str(data))

    def test_redacted_arguments(self):
        """If the caller gives a representation of the arguments, only that is shown."""
        result = make_result(
            args=['hunter2'], kwargs={'password': 'hunter2'},
            options={'argsrepr': "('***',)", 'kwargsrepr': "{'password': '***'}"}
        )
        for data in (
            self.get(self._get_detail_url(result)),
            self.get(self._get_list_url(), fields='args,kwargs,options')['results'][0],
        ):
            self.assertEqual((data['args'], data['kwargs']), ("('***',)", "{'password': '***'}"))
            self.assertNotIn('hunter2', str(data))

    def test_type_markers_are_resolved(self):
        """Kombu writes dates into JSON with a marker; people read dates."""
        from datetime import date
        result = make_result(kwargs={'day': date(2026, 1, 2)}, result={'day': date(2026, 1, 2)})
        data = self.get(self._get_detail_url(result))
        self.assertEqual((data['kwargs'], data['result']), ({'day': '2026-01-02'}, {'day': '2026-01-02'}))

    def test_lists_leave_out_what_is_large(self):
        make_result(args=[1], result='big', traceback='long')
        with CaptureQueriesContext(connection) as queries:
            row = self.get(self._get_list_url())['results'][0]
        self.assertFalse(LARGE & set(row))
        self.assertFalse(
            [query for query in queries if '"netbox_celery_celeryresult"."traceback"' in query['sql']]
        )
        with CaptureQueriesContext(connection) as queries:
            row = self.get(self._get_list_url(), fields='id,args,result')['results'][0]
        self.assertEqual((row['args'], row['result'], set(row)), ([1], 'big', {'id', 'args', 'result'}))
        self.assertEqual(len([query for query in queries if 'FROM "netbox_celery_celeryresult"' in query['sql']]), 2)
        row = self.get(self._get_list_url(), omit='name')['results'][0]
        self.assertFalse({'name', *LARGE} & set(row))

    def test_omit_and_fields_on_detail(self):
        result = make_result()
        self.assertNotIn('args', self.get(self._get_detail_url(result), omit='args'))
        self.assertEqual(set(self.get(self._get_detail_url(result), fields='id,status')), {'id', 'status'})

    def test_number_of_queries_does_not_grow(self):
        site = Site.objects.create(name='Site 1', slug='site-1')

        def count():
            with CaptureQueriesContext(connection) as queries:
                self.get(self._get_list_url())
            return len(queries)

        make_result(user=self.user, object=site)
        self.get(self._get_list_url())  # fills caches
        few = count()
        for _ in range(20):
            result = make_result(user=self.user, object=site)
            result.tags.add(Tag.objects.get_or_create(name='Alpha', slug='alpha')[0])
        self.assertLessEqual(count(), few + 1)

    def test_ordering(self):
        first, second = make_result(name='B'), make_result(name='A')
        self.assertEqual([row['id'] for row in self.get(self._get_list_url())['results']], [second.pk, first.pk])
        rows = self.get(self._get_list_url(), ordering='-name')['results']
        self.assertEqual([row['id'] for row in rows], [first.pk, second.pk])

    def test_filters(self):
        make_result('completed')
        failed = make_result('failed')
        rows = self.get(self._get_list_url(), status='failed')['results']
        self.assertEqual([row['id'] for row in rows], [failed.pk])
        response = self.client.get(self._get_list_url(), {'status': 'nonsense'}, **self.header)
        self.assertHttpStatus(response, status.HTTP_400_BAD_REQUEST)


class ResultPagesTest(APITestCase):
    """Following `next` reaches every row, even if the estimated count is wrong."""
    model = CeleryResult
    view_namespace = 'plugins-api:netbox_celery'
    user_permissions = ('netbox_celery.view_celeryresult',)

    @classmethod
    def setUpTestData(cls):
        CeleryResult.objects.bulk_create([
            CeleryResult(task_id=f'00000000-0000-0000-0000-{number:012}', celery_name='x', name='x')
            for number in range(30)
        ])

    def follow(self, url):
        pages = []
        while url:
            self.assertLess(len(pages), 10)
            page = self.client.get(url, **self.header).json()
            pages.append(page)
            url = page['next']
        return pages

    def assertEveryRow(self, pages):
        ids = [row['id'] for page in pages for row in page['results']]
        self.assertEqual(ids, sorted(ids, reverse=True))
        self.assertEqual(len(set(ids)), 30)

    def test_small_table(self):
        pages = self.follow(f'{self._get_list_url()}?limit=7')
        self.assertEqual({page['count'] for page in pages}, {30})
        self.assertEveryRow(pages)

    def test_estimates(self):
        for estimate in (11, 25, 30, 31, 1000):
            with (
                self.subTest(estimate),
                patch.object(querysets, 'EXACT_UP_TO', 10),
                patch.object(querysets.HistoryQuerySet, '_estimate', return_value=estimate),
            ):
                pages = self.follow(f'{self._get_list_url()}?limit=7')
                self.assertEveryRow(pages)
                self.assertEqual(pages[-1]['count'], 30)

    def test_estimate_and_full_last_page(self):
        with (
            patch.object(querysets, 'EXACT_UP_TO', 10),
            patch.object(querysets.HistoryQuerySet, '_estimate', return_value=25),
        ):
            pages = self.follow(f'{self._get_list_url()}?limit=10')
            self.assertEveryRow(pages)
            self.assertEqual(pages[-1]['count'], 30)

    def test_cursor(self):
        page = self.client.get(f'{self._get_list_url()}?start=0&limit=30', **self.header).json()
        self.assertEqual((page['count'], len(page['results'])), (None, 30))


class ResultWriteTest(APITestCase):
    """Only tags and custom fields of a run can be written by REST."""
    model = CeleryResult
    view_namespace = 'plugins-api:netbox_celery'
    user_permissions = tuple(
        f'netbox_celery.{action}_celeryresult' for action in ('view', 'add', 'change', 'delete')
    )

    def test_methods(self):
        result = make_result()
        allowed = {
            self._get_list_url(): {'GET', 'PATCH', 'DELETE', 'HEAD', 'OPTIONS'},
            self._get_detail_url(result): {'GET', 'PATCH', 'DELETE', 'HEAD', 'OPTIONS'},
        }
        for url, methods in allowed.items():
            response = self.client.options(url, **self.header)
            self.assertEqual(set(response['Allow'].split(', ')), methods)
            for method in ('post', 'put'):
                response = getattr(self.client, method)(url, {}, format='json', **self.header)
                self.assertHttpStatus(response, status.HTTP_405_METHOD_NOT_ALLOWED)

    def test_patch_changes_nothing_of_the_engine(self):
        result = make_result('running', value=1, worker='celery@one')
        data = {'status': 'completed', 'value': 99, 'worker': 'x', 'name': 'x', 'message': 'x', 'tags': []}
        response = self.client.patch(self._get_detail_url(result), data, format='json', **self.header)
        self.assertHttpStatus(response, status.HTTP_200_OK)
        changed = CeleryResult.objects.get(pk=result.pk)
        for name in ('status', 'value', 'worker', 'name', 'message'):
            self.assertEqual(getattr(changed, name), getattr(result, name))

    def test_patch_does_not_undo_what_the_engine_writes_meanwhile(self):
        """The request has read the row as running; before it saves, the run finishes."""
        result = make_result('running')
        tag, = create_tags('Alpha')
        original = CeleryResult.full_clean

        def meanwhile(instance, *args, **kwargs):
            CeleryResult.objects.filter(pk=result.pk).update(status='completed', result={'ok': True}, claims=1)
            return original(instance, *args, **kwargs)

        with patch.object(CeleryResult, 'full_clean', meanwhile):
            response = self.client.patch(
                self._get_detail_url(result), {'tags': [tag.pk]}, format='json', **self.header
            )
        self.assertHttpStatus(response, status.HTTP_200_OK)
        result.refresh_from_db()
        self.assertEqual((result.status, result.result, result.claims), ('completed', {'ok': True}, 1))
        self.assertEqual(list(result.tags.all()), [tag])

    def test_delete_takes_the_log_along(self):
        result = make_result()
        make_log(result, 'one')
        response = self.client.delete(self._get_detail_url(result), **self.header)
        self.assertHttpStatus(response, status.HTTP_204_NO_CONTENT)
        self.assertFalse(CeleryResult.objects.exists())

    def test_unfinished_run_is_cancelled_when_it_is_deleted(self):
        """Otherwise its message, or its process, would continue unseen."""
        with patch.object(control, 'cancel', wraps=control.cancel) as cancel:
            for state in ('pending', 'running', 'completed'):
                response = self.client.delete(self._get_detail_url(make_result(state)), **self.header)
                self.assertHttpStatus(response, status.HTTP_204_NO_CONTENT)
        self.assertEqual(cancel.call_count, 2)
        self.assertFalse(CeleryResult.objects.exists())


class ScheduledResultTest(APITestCase):
    """A run names the schedule that started it, and its concurrency key."""
    view_namespace = 'plugins-api:netbox_celery'
    model = CeleryResult

    def test_schedule_and_key(self):
        grant(self.user, CeleryResult, CelerySchedule)
        schedule = make_schedule('Nightly')
        stale = timezone.now().replace(microsecond=0)
        result = make_result(schedule=schedule, concurrency_key='device:7', stale_after=stale)
        make_result()
        for params in ({'schedule_id': schedule.pk}, {'schedule': 'Nightly'}, {'concurrency_key': 'device:7'}):
            rows = self.client.get(self._get_list_url(), params, **self.header).json()['results']
            self.assertEqual([row['id'] for row in rows], [result.pk])
        row, = rows
        self.assertEqual((row['schedule']['id'], row['schedule']['name']), (schedule.pk, 'Nightly'))
        self.assertEqual(row['concurrency_key'], 'device:7')
        self.assertEqual(datetime.fromisoformat(row['stale_after']), stale)


class RootTest(APITestCase):

    def test_root_lists_the_endpoints(self):
        response = self.client.get(reverse('plugins-api:netbox_celery-api:api-root'), **self.header)
        self.assertHttpStatus(response, status.HTTP_200_OK)
        self.assertEqual(list(response.json()), ['log-entries', 'results', 'schedules', 'tasks', 'workers'])
        self.assertIn('/api/plugins/celery/results/', response.json()['results'])

    def test_invalid_ids_are_not_found(self):
        """Whatever is requested of an object, with anything in the place of its ID."""
        self.user.is_superuser = True
        self.user.save()
        addresses = [pattern for pattern in router.urls if 'pk' in pattern.pattern.regex.groupindex]
        asked = set()
        for pattern in addresses:
            for pk in ('0', 'abc', '1e3', str(10 ** 30)):
                url = reverse(f'plugins-api:netbox_celery-api:{pattern.name}', kwargs={'pk': pk})
                for method, action in list(pattern.callback.actions.items()):
                    with self.subTest(url=url, method=method):
                        response = getattr(self.client, method)(url, format='json', **self.header)
                        if method in pattern.callback.cls.http_method_names:
                            self.assertHttpStatus(response, status.HTTP_404_NOT_FOUND)
                            asked.add(action)
        self.assertLess({'retrieve', 'logs', 'workflow', 'cancel', 'rerun', 'run', 'preview', 'take_over'}, asked)
