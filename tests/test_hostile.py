"""Hostile requests, and rows that no engine writes: they are answered, and shown."""
import json
from uuid import uuid4

from django.urls import reverse
from django.utils import timezone

from dcim.models import Site
from netbox_celery.models import CeleryLogEntry, CeleryResult, CelerySchedule, CeleryTask, CeleryWorker
from tests.factories import grant, make_log, make_result, make_schedule, make_task, make_worker
from tests.test_values import write
from tests.views.bases import PageTestCase
from users.models import User

ODD_JSON = (
    'null', '1', '"text"', '{}', '{"queue": ["x"]}', '{"queue": 1' + '0' * 5000 + '}', '[1]', '{"a": 1}',
    '[{"name": "a"}]', '[' * 300 + ']' * 300, '1' + '0' * 5000,
    '[{"name": "a", "kind": "keyword_only", "annotation": "", "required": false, "default": ' + '[' * 300 + ']' * 300
    + '}]',
)


class HostileTestCase(PageTestCase):

    def setUp(self):
        super().setUp()
        grant(self.user, CeleryResult, CelerySchedule, CeleryTask, CeleryWorker, CeleryLogEntry, actions=(
            'view', 'add', 'change', 'delete', 'run', 'cancel', 'rerun',
        ))
        self.task = make_task()

    def post(self, url, body):
        return self.client.post(url, body if isinstance(body, str) else json.dumps(body), 'application/json')

    def query(self, query):
        response = self.post(reverse('graphql'), {'query': query})
        self.assertNotIn('errors', response.json())

    def show(self, *urls):
        for url in urls:
            with self.subTest(url=url):
                response = self.client.get(url)
                self.assertHttpStatus(response, 200)
                if response.streaming:
                    b''.join(response.streaming_content)


class RowsTest(HostileTestCase):

    def test_times_of_the_engine(self):
        result, worker = make_result(), make_worker()
        (line,) = make_log(result, 'A line')
        for value in ('infinity', '-infinity', '294276-01-01Z', '4713-01-01 BC'):
            write(line, created=value)
            write(worker, started=value, heartbeat=value, stopped=value)
            write(self.task, last_seen=value)
            run, of_task, of_worker = (obj.get_absolute_url() for obj in (result, self.task, worker))
            self.show(
                run, f'{run}log/', f'{run}log/lines/', f'{run}log/download/', f'{run}log/download/?format=json',
                of_task, of_worker, f'/api{run}logs/', f'/api{of_task}', f'/api{of_worker}',
                '/api/plugins/celery/log-entries/',
            )
            self.show(*(f'/plugins/celery/{name}/{query}' for name in ('tasks', 'workers') for query in (
                '', '?export=table'
            )))
            self.query(
                '{ celery_task_list { last_seen } celery_worker_list { started heartbeat stopped is_alive } '
                'celery_log_entry_list { created } }'
            )

    def test_removed_type_of_a_line(self):
        result = make_result('running', started=timezone.now())
        (line,) = make_log(result, 'A line')
        write(line, object_type_id=99999, object_id=5)
        url = result.get_absolute_url()
        self.show(
            url, f'{url}log/', f'{url}log/lines/', f'{url}log/lines/?after=0', f'{url}log/download/?format=json',
            f'/api{url}logs/', '/api/plugins/celery/log-entries/'
        )
        self.query('{ celery_log_entry_list { message object_id } }')

    def test_intervals_that_are_not_numbers(self):
        for value in ('NaN', 'Infinity', '-Infinity'):
            schedule = make_schedule(value, kind='interval', interval=60)
            write(schedule, interval=value)
            url = schedule.get_absolute_url()
            self.show(url, f'{url}edit/', f'/api{url}', '/plugins/celery/schedules/', '/api/plugins/celery/schedules/')
            self.query('{ celery_schedule_list { interval in_words } }')
            response = self.client.patch(f'/api{url}', {'enabled': False}, content_type='application/json')
            self.assertHttpStatus(response, 200)
            self.assertHttpStatus(self.client.post(f'{url}delete/', {'confirm': True}), 302)

    def test_json_of_the_engine(self):
        worker, schedule = make_worker(), make_schedule(task=self.task, owner=self.user)
        for value in ODD_JSON:
            with self.subTest(value=value[:40]):
                write(self.task, parameters=value, defaults=value)
                write(worker, queues=value, versions=value)
                of_task, of_schedule = self.task.get_absolute_url(), schedule.get_absolute_url()
                self.show(
                    of_task, f'{of_task}run/', f'{of_schedule}edit/', worker.get_absolute_url(),
                    '/plugins/celery/workers/', '/plugins/celery/workers/?export=table', f'/api{of_task}',
                    f'/api{worker.get_absolute_url()}'
                )
                for body in ({}, {'queue': 'slow'}):
                    self.assertIn(self.post(f'/api{of_task}run/', body).status_code, (201, 400))
                self.query('{ celery_task_list { parameters defaults } celery_worker_list { queues versions } }')

    def test_attempts_beside_a_quote(self):
        User.objects.filter(pk=self.user.pk).update(is_superuser=False)
        result = make_result('errored', reason='upstream_failed', error=f'Not run, because x [{uuid4()}] is failed: y')
        write(result, attempts='[{"error": 5}, {"error": ["a"]}, {"error": {}}, {"error": null}]')
        self.user.object_permissions.all().delete()
        grant(self.user, CeleryResult, actions=('view', 'delete'), constraints={'pk': result.pk})
        url = result.get_absolute_url()
        self.show(url, f'/api{url}', f'/api{url}workflow/')
        self.query('{ celery_result_list { attempts error } }')
        self.assertHttpStatus(self.client.delete(f'/api{url}'), 204)

    def test_rerun(self):
        for columns in (
            {'options': '[[]]'}, {'options': '{"queue": 5}'}, {'options': '{"queue": ["x"], "exchange": {"a": 1}}'},
            {'options': '{"routing_key": "no.such"}'}, {'exact_call': '5'}, {'exact_call': '[5, 5, 5]'},
            {'exact_call': '[null, null, "x"]'}, {'exact_call': 'broken'}, {'options': '{"exchange": true}'},
        ):
            result = make_result()
            write(result, **columns)
            for api in (False, True):
                with self.subTest(columns=columns, api=api):
                    before = CeleryResult.objects.count()
                    response = self.client.post(f'{"/api" if api else ""}{result.get_absolute_url()}rerun/')
                    started = CeleryResult.objects.count() - before
                    self.assertEqual(response.status_code, 302 if not api else 201 if started else 400)


class BodiesTest(HostileTestCase):

    def test_answers_repeat_what_was_sent(self):
        """Lone surrogates are valid JSON but not text: an error that repeats one is answered nevertheless."""
        url = f'/api{self.task.get_absolute_url()}run/'
        for body in (r'{"kwargs": {"\ud800": 1}}', r'{"\ud800": 1}', r'{"object_type": "\ud800.x", "object_id": 1}'):
            self.assertHttpStatus(self.post(url, body), 400)
        body = {'name': 'A', 'task': self.task.pk, 'crontab': '0 * * * *'}
        for field in ('kind', 'overlap', 'timezone', 'object_type'):
            self.assertHttpStatus(self.post('/api/plugins/celery/schedules/', body | {field: '\ud800'}), 400)

    def test_errors_by_number(self):
        response = self.client.get(f'/api{make_result().get_absolute_url()}logs/?level=20&level=nan')
        self.assertHttpStatus(response, 400)
        self.assertIn('1', response.json()['level'])

    def test_what_the_database_refuses(self):
        url = f'/api{self.task.get_absolute_url()}run/'
        self.assertHttpStatus(self.post(url, {'object_type': '\0.x', 'object_id': 1}), 400)
        self.assertHttpStatus(self.post(url, {'tags': [{'name': '\0'}]}), 400)
        body = {'name': 'A', 'crontab': '0 * * * *', 'task': {'name': '\0'}}
        self.assertHttpStatus(self.post('/api/plugins/celery/schedules/', body), 400)

    def test_large_bodies(self):
        url = f'/api{self.task.get_absolute_url()}run/'
        response = self.post(url, {'kwargs': {f'x{number}': 1 for number in range(250_000)}})
        self.assertHttpStatus(response, 400)
        self.assertIn('too large', response.json()['detail'])
        response = self.post(url, {f'x{number}': 1 for number in range(20_000)})
        self.assertHttpStatus(response, 400)
        self.assertLess(len(response.content), 100_000)

    def test_patterns(self):
        """An invalid regular expression finds nothing, and is reported at its filter."""
        make_result()
        for pattern in ('(', '+', 'a{99999}', '[[:x:]]'):
            page = self.page('/plugins/celery/results/', {'name__regex': pattern})
            self.assertNotIn('results/1/', page)
            response = self.client.get('/api/plugins/celery/results/', {'name__iregex': pattern})
            self.assertHttpStatus(response, 400)
        response = self.client.get('/api/plugins/celery/results/', {'name__regex': '^Hel+o$'})
        self.assertEqual(response.json()['count'], 1)


class NamesTest(HostileTestCase):
    """Names that a user may not view are disclosed neither by responses that repeat requests, nor by the order."""

    def setUp(self):
        super().setUp()
        self.hidden = User.objects.create(username='hidden-somebody')
        self.secret = make_task('secret.plugin:task')
        self.user.object_permissions.all().delete()
        grant(self.user, CeleryResult, CelerySchedule, actions=('view', 'add', 'change', 'delete'))
        grant(self.user, CeleryTask, actions=('view', 'run'), constraints={'pk': self.task.pk})
        grant(self.user, User, constraints={'pk': self.user.pk})

    def test_filters(self):
        grant(self.user, Site, constraints={'pk': 0})
        site = Site.objects.create(name='Hidden Site', slug='hidden-site')
        schedule = make_schedule('S', task=self.secret, owner=self.hidden)
        CelerySchedule.objects.filter(pk=schedule.pk).update(name='schedule-nobody-sees')
        for name, query in (
            ('results', f'user_id={self.hidden.pk}'), ('results', f'object_type=dcim.site&object_id={site.pk}'),
            ('schedules', f'owner_id={self.hidden.pk}'), ('schedules', f'task_id={self.secret.pk}'),
            ('schedules/add', f'task={self.secret.pk}'), ('schedules/add', f'owner={self.hidden.pk}'),
            ('schedules/add', f'object_type=dcim.site&object_id={site.pk}'),
        ):
            with self.subTest(query=query):
                page = self.page(f'/plugins/celery/{name}/?{query}')
                for text in ('hidden-somebody', 'Hidden Site', 'secret.plugin'):
                    self.assertNotIn(text, page)
        self.user.object_permissions.filter(actions__contains=['add']).delete()
        grant(self.user, CeleryResult)
        grant(self.user, CelerySchedule, constraints={'pk': 0})
        self.assertNotIn('nobody-sees', self.page(f'/plugins/celery/results/?schedule_id={schedule.pk}'))

    def test_order(self):
        users = [User.objects.create(username=name) for name in ('zz', 'mm', 'aa')]
        tasks = [make_task(name) for name in ('z:z', 'm:m', 'a:a')]
        runs = [make_result(user=user) for user in users]
        schedules = [
            make_schedule(f'S{number}', task=task, owner=user)
            for number, (task, user) in enumerate(zip(tasks, users))
        ]
        for name, column, rows in (
            ('results', 'user', runs), ('schedules', 'owner', schedules), ('schedules', 'task', schedules),
        ):
            with self.subTest(column=column):
                pks = [row.pk for row in rows]
                for sign, expected in (('', pks), ('-', pks[::-1])):
                    answer = self.client.get(f'/api/plugins/celery/{name}/', {'ordering': f'{sign}{column}'}).json()
                    self.assertEqual([row['id'] for row in answer['results']], expected)
                    page = self.page(f'/plugins/celery/{name}/', {'sort': f'{sign}{column}'})
                    places = [page.index(f'/plugins/celery/{name}/{pk}/') for pk in expected]
                    self.assertEqual(places, sorted(places))
        grant(self.user, User, CeleryTask)
        answer = self.client.get('/api/plugins/celery/results/', {'ordering': 'user'}).json()
        self.assertEqual([row['id'] for row in answer['results']], [run.pk for run in runs[::-1]])

    def test_order_by_an_unknown_column(self):
        make_log(make_result(), 'A line')
        make_schedule()
        grant(self.user, CeleryWorker, CeleryLogEntry)
        for name in ('results', 'schedules', 'tasks', 'workers', 'log-entries'):
            for column in ('object', 'args', 'options', 'message', 'tags', 'user__password', 'percentage'):
                self.show(f'/api/plugins/celery/{name}/?ordering={column}')

    def test_tasks_by_name(self):
        """A task that a user may not view is answered like one that does not exist."""
        body = {'name': 'A', 'crontab': '0 * * * *'}
        answers = [
            self.post('/api/plugins/celery/schedules/', body | {'task': {'name': name}})
            for name in ('secret.plugin:task', 'no.such:task')
        ]
        self.assertEqual(len({answer.status_code for answer in answers}), 1)
        self.assertEqual(
            answers[0].content.replace(b'secret.plugin:task', b''), answers[1].content.replace(b'no.such:task', b'')
        )
