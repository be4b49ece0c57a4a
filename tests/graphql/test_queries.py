"""GraphQL shows what REST shows, to the same users. (NetBox's own tests of the types are beside those of REST.)"""
from datetime import datetime

from django.db import connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from rest_framework import status

from dcim.models import Site
from netbox.graphql.schema import schema
from netbox_celery.models import CeleryLogEntry, CeleryResult, CelerySchedule, CeleryTask
from tests.factories import HELLO_WORLD, grant, make_log, make_result, make_schedule, make_task, make_worker
from users.models import User
from utilities.testing import APITestCase


class GraphQLTest(APITestCase):

    def query(self, query):
        response = self.client.post(reverse('graphql'), {'query': query}, format='json', **self.header)
        self.assertHttpStatus(response, status.HTTP_200_OK)
        data = response.json()
        self.assertNotIn('errors', data)
        return data['data']

    def test_result(self):
        site = Site.objects.create(name='Site 1', slug='site-1')
        grant(self.user, CeleryResult, User)
        result = make_result(
            'errored', reason='time_limit', args=['site-1'], kwargs={'deep': True}, value=2 ** 40, value_max=2 ** 41,
            result={'a': 1}, object=site, user=self.user
        )
        data = self.query(f'''{{
            celery_result(id: {result.pk}) {{
                task_id display status reason args kwargs value percentage result object_id
                object_type {{ app_label model }} user {{ username }}
            }}
        }}''')
        self.assertEqual(data['celery_result'], {
            'task_id': str(result.task_id), 'display': 'Hello', 'status': 'errored', 'reason': 'time_limit',
            'args': ['site-1'], 'kwargs': {'deep': True}, 'value': 2 ** 40, 'percentage': 50.0, 'result': {'a': 1},
            'object_id': site.pk, 'object_type': {'app_label': 'dcim', 'model': 'site'},
            'user': {'username': 'testuser'},
        })

    def test_schedule(self):
        site = Site.objects.create(name='Site 1', slug='site-1')
        grant(self.user, CelerySchedule, CeleryTask, User)
        schedule = make_schedule(
            crontab='30 2 * * *', timezone='Europe/Berlin', kwargs={'name': 'Bob'}, owner=self.user, object=site,
            queue='slow', priority=3, expires=60, missed='run_all', missed_max=3, overlap='queue'
        )
        data = self.query(f'''{{
            celery_schedule(id: {schedule.pk}) {{
                name display kind crontab timezone in_words enabled present origin args kwargs options queue priority
                expires missed missed_max overlap next_run object_id object_type {{ model }} owner {{ username }}
                task {{ name }}
            }}
        }}''')['celery_schedule']
        self.assertEqual(datetime.fromisoformat(data.pop('next_run')), schedule.next_run)
        self.assertEqual(data, {
            'name': 'Hello', 'display': 'Hello', 'kind': 'crontab', 'crontab': '30 2 * * *',
            'timezone': 'Europe/Berlin', 'in_words': 'At 02:30 (Europe/Berlin)', 'enabled': True, 'present': True,
            'origin': 'user', 'args': [], 'kwargs': {'name': 'Bob'}, 'options': {}, 'queue': 'slow', 'priority': 3,
            'expires': 60, 'missed': 'run_all', 'missed_max': 3, 'overlap': 'queue', 'object_id': site.pk,
            'object_type': {'model': 'site'}, 'owner': {'username': 'testuser'}, 'task': {'name': HELLO_WORLD},
        })

    def test_schedule_and_key_of_a_run(self):
        """The schedule is shown to users who may view it; the key to those who may view the run."""
        grant(self.user, CeleryResult)
        stale = timezone.now()
        make_result(schedule=make_schedule(), concurrency_key='device:7', stale_after=stale)
        query = '{ celery_result_list { concurrency_key stale_after schedule { name task { name } } } }'
        row, = self.query(query)['celery_result_list']
        self.assertEqual((row['concurrency_key'], row['schedule']), ('device:7', None))
        self.assertEqual(datetime.fromisoformat(row['stale_after']), stale)
        grant(self.user, CelerySchedule)
        self.assertEqual(self.query(query)['celery_result_list'][0]['schedule'], {'name': 'Hello', 'task': None})

    def test_redacted_arguments(self):
        grant(self.user, CeleryResult)
        make_result(args=['hunter2'], kwargs={'password': 'hunter2'}, options={'argsrepr': '*', 'kwargsrepr': '**'})
        data = self.query('{ celery_result_list { args kwargs options } }')
        self.assertEqual(data['celery_result_list'], [
            {'args': '*', 'kwargs': '**', 'options': {'argsrepr': '*', 'kwargsrepr': '**'}}
        ])

    def test_engine_columns_are_not_in_the_schema(self):
        """Neither as fields nor as filters: arguments could be guessed by filtering."""
        text = str(schema)
        for kind, hidden in (
            ('type CeleryResultType', ('message', 'holder', 'claims', 'nesting', 'inBackend', 'in_backend')),
            ('input CeleryResultFilter', (
                'message', 'holder', 'claims', 'nesting', 'args', 'kwargs', 'options', 'result', 'data', 'traceback',
            )),
        ):
            fields = {
                line.strip().partition(':')[0].partition('(')[0]
                for line in text.partition(f'{kind} {{\n')[2].partition('\n}')[0].splitlines()
            }
            self.assertIn('status', fields)
            self.assertFalse(fields & set(hidden))

    def test_lines_of_visible_runs(self):
        make_log(make_result(user=self.user), 'mine')
        make_log(make_result(), 'secret')
        query = '{ celery_log_entry_list { message result { id name } } }'
        grant(self.user, CeleryLogEntry)
        self.assertEqual(self.query(query)['celery_log_entry_list'], [])
        grant(self.user, CeleryResult, constraints={'user': '$user'})
        self.assertEqual([line['message'] for line in self.query(query)['celery_log_entry_list']], ['mine'])

    def test_filters(self):
        self.user.is_superuser = True
        self.user.save()
        running, failed = make_result('running'), make_result('failed', queue='slow')
        lines = make_log(running, 'info', (30, 'warning'))
        task, worker = make_task(enabled=False), make_worker()
        schedule, __ = (
            make_schedule('A', task, overlap='skip', owner=self.user, queue='slow'), make_schedule('B', task)
        )
        CeleryResult.objects.filter(pk=failed.pk).update(schedule=schedule, concurrency_key='device:7')
        for query, expected in (
            ('celery_result_list(filters: {status: {exact: STATUS_FAILED}})', failed),
            ('celery_result_list(filters: {queue: {exact: "slow"}})', failed),
            (f'celery_result_list(filters: {{task_id: {{exact: "{running.task_id}"}}}})', running),
            ('celery_log_entry_list(filters: {level: {comparison_lookup: {gte: 30}}})', lines[1]),
            (f'celery_log_entry_list(filters: {{result_id: {running.pk}, id: {{gt: {lines[0].pk}}}}})', lines[1]),
            ('celery_log_entry_list(filters: {result: {status: {exact: STATUS_RUNNING}}, '
             'message: {exact: "info"}})', lines[0]),
            ('celery_task_list(filters: {enabled: {exact: false}})', task),
            ('celery_result_list(filters: {schedule: {name: {exact: "A"}}})', failed),
            (f'celery_result_list(filters: {{schedule_id: {schedule.pk}}})', failed),
            ('celery_result_list(filters: {concurrency_key: {starts_with: "device:"}})', failed),
            ('celery_schedule_list(filters: {overlap: {exact: OVERLAP_SKIP}})', schedule),
            ('celery_schedule_list(filters: {owner: {username: {exact: "testuser"}}})', schedule),
            (f'celery_schedule_list(filters: {{task_id: {task.pk}, queue: {{exact: "slow"}}}})', schedule),
            ('celery_worker_list(filters: {pool: {exact: "prefork"}})', worker),
        ):
            with self.subTest(query):
                rows = self.query(f'{{ {query} {{ id }} }}')[query.partition('(')[0]]
                self.assertEqual([int(row['id']) for row in rows], [expected.pk])

    def test_only_what_is_asked_for_is_loaded(self):
        """A query of many rows costs as much as one of few, and loads no large column unasked."""
        grant(self.user, CeleryResult)
        for _ in range(5):
            make_result(args=[1], traceback='long')
        self.query('{ celery_result_list { id } }')  # fills caches
        for fields in ('id display name status', 'id args kwargs options result attempts percentage'):
            with CaptureQueriesContext(connection) as queries:
                self.query(f'{{ celery_result_list {{ {fields} }} }}')
            loading = [query['sql'] for query in queries if 'FROM "netbox_celery_celeryresult"' in query['sql']]
            self.assertEqual(len(loading), 1)
            self.assertNotIn('"traceback"', loading[0])

    def test_log_entries_of_a_run(self):
        """A run has its lines, oldest first, for users who may view them, filtered and paginated like all lists."""
        other, run = make_result(), make_result()
        make_log(run, *(f'line {number}' for number in range(5)), (40, 'bad'))
        make_log(other, 'other')
        grant(self.user, CeleryResult)

        def lines(arguments=''):
            runs = self.query(f'{{ celery_result_list {{ log_entries{arguments} {{ message level }} }} }}')
            return [[line['message'] for line in row['log_entries']] for row in runs['celery_result_list']]

        self.assertEqual(lines(), [[], []])
        grant(self.user, CeleryLogEntry)
        every = [*(f'line {number}' for number in range(5)), 'bad']
        self.assertEqual(lines(), [every, ['other']])
        self.assertEqual(lines('(pagination: {offset: 1, limit: 2})'), [['line 1', 'line 2'], []])
        self.assertEqual(lines('(filters: {level: {comparison_lookup: {gte: 40}}})'), [['bad'], []])
        with override_settings(MAX_PAGE_SIZE=3):
            self.assertEqual(lines(), [every[:3], ['other']])
        one = self.query(f'{{ celery_result(id: {run.pk}) {{ log_entries {{ message }} }} }}')['celery_result']
        self.assertEqual([line['message'] for line in one['log_entries']], every)

    def test_constrained_lines_of_a_run(self):
        """A constraint on lines applies as well."""
        run = make_result()
        make_log(run, 'info', (40, 'bad'))
        grant(self.user, CeleryResult)
        grant(self.user, CeleryLogEntry, constraints={'level': 40})
        rows = self.query('{ celery_result_list { log_entries { message } } }')['celery_result_list']
        self.assertEqual(rows, [{'log_entries': [{'message': 'bad'}]}])

    def test_lines_of_many_runs_cost_one_query(self):
        grant(self.user, CeleryResult)
        grant(self.user, CeleryLogEntry)
        for _ in range(4):
            make_log(make_result(), 'line')
        self.query('{ celery_result_list { log_entries { message } } }')  # fills caches
        with CaptureQueriesContext(connection) as queries:
            self.query('{ celery_result_list { log_entries { message } } }')
        self.assertEqual(sum('FROM "netbox_celery_celerylogentry"' in query['sql'] for query in queries), 1)

    def test_pagination(self):
        grant(self.user, CeleryResult)
        first, second, third = (make_result().pk for _ in range(3))
        rows = self.query('{ celery_result_list(pagination: {offset: 1, limit: 1}) { id } }')['celery_result_list']
        self.assertEqual([int(row['id']) for row in rows], [second])
