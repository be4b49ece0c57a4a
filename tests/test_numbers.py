"""Numbers and times that no column can hold get an answer that says so, wherever they are entered."""
import json
from urllib.parse import urlencode

from netbox_celery import filtersets
from netbox_celery.models import CeleryLogEntry, CeleryResult, CelerySchedule, CeleryTask, CeleryWorker
from tests.factories import grant, make_log, make_result, make_schedule, make_task, make_worker
from tests.views.bases import PageTestCase

#: For Python, for PostgreSQL, and for those who take `isdigit()` for "can be read by `int()`".
NUMBERS = ['9' * 5000, '-' + '9' * 25, '²', '1e400']
TIMES = ['9999-12-31T23:59:59-05:00', '0001-01-01T00:00:00+05:00', 'infinity']
LISTS = {
    'results': (CeleryResult, filtersets.CeleryResultFilterSet),
    'schedules': (CelerySchedule, filtersets.CeleryScheduleFilterSet),
    'tasks': (CeleryTask, filtersets.CeleryTaskFilterSet),
    'workers': (CeleryWorker, filtersets.CeleryWorkerFilterSet),
    'log-entries': (CeleryLogEntry, filtersets.CeleryLogEntryFilterSet),
}


class NumbersTest(PageTestCase):

    def setUp(self):
        super().setUp()
        grant(self.user, CeleryResult, CelerySchedule, CeleryTask, CeleryWorker, CeleryLogEntry, actions=(
            'view', 'add', 'change', 'delete', 'run', 'cancel', 'rerun',
        ))
        self.task = make_task()
        self.run = make_result('pending')
        self.schedule = make_schedule(owner=self.user)
        make_worker()
        make_log(self.run, 'A line')

    def assertAnswered(self, response, *codes):
        self.assertIn(response.status_code, codes or (200, 286, 302, 400, 404))

    def send(self, method, url, **data):
        return getattr(self.client, method)(url, json.dumps(data), content_type='application/json')

    def test_filters(self):
        for name, (__, filterset) in LISTS.items():
            url = f'/api/plugins/celery/{name}/'
            for filter in (name for name in filterset.base_filters if '__' not in name):
                for value in (NUMBERS[0], ' ') if filter.endswith('id') else (NUMBERS[0], TIMES[0]):
                    with self.subTest(name=name, filter=filter, value=value[:30]):
                        self.assertAnswered(self.client.get(url, {filter: value}), 200, 400)

    def test_pages(self):
        run, schedule = self.run.get_absolute_url(), self.schedule.get_absolute_url()
        for value in NUMBERS:
            for url, *names in (
                ('/plugins/celery/results/', 'page', 'per_page', 'limit', 'offset', 'sort'),
                ('/api/plugins/celery/results/', 'limit', 'offset', 'start', 'ordering'),
                ('/api/plugins/celery/log-entries/', 'limit', 'offset', 'start'),
                (f'{run}workflow/', 'limit', 'open'),
                (f'{run}log/', 'level', 'after', 'limit'),
                (f'{run}log/lines/', 'after', 'before', 'level', 'shown_attempt', 'state'),
                (f'/api{run}logs/', 'after', 'limit', 'offset', 'level', 'level__gte'),
                (f'/api{schedule}preview/', 'count'),
                ('/plugins/celery/schedules/add/', 'task', 'object_type', 'object', 'interval', 'interval_unit',
                 'priority', 'expires', 'missed_max', 'at', 'kind'),
            ):
                for name in names:
                    with self.subTest(url=url, name=name, value=value[:30]):
                        self.assertAnswered(self.client.get(url, {name: value}))

    def test_identities(self):
        for value in NUMBERS:
            for name in LISTS:
                with self.subTest(name=name, value=value[:30]):
                    self.assertAnswered(self.client.get(f'/api/plugins/celery/{name}/{value}/'), 404)
                    self.assertAnswered(self.client.get(f'/plugins/celery/{name}/{value}/'), 404)
            self.assertAnswered(self.client.get(f'/api/plugins/celery/results/{value}/logs/'), 404)
            for name, page in (('results', 'cancel'), ('results', 'rerun'), ('tasks', 'run'), ('schedules', 'run')):
                self.assertAnswered(self.send('post', f'/api/plugins/celery/{name}/{value}/{page}/'), 404)

    def test_bulk(self):
        for value in NUMBERS:
            for url, more in (
                ('/plugins/celery/results/cancel/', {}), ('/plugins/celery/results/rerun/', {}),
                ('/plugins/celery/results/delete/', {}), ('/plugins/celery/schedules/delete/', {}),
                ('/plugins/celery/schedules/edit/', {'_apply': '1', 'expires': '5'}),
                ('/plugins/celery/schedules/rename/', {'_apply': '1', 'find': 'a', 'replace': 'b'}),
                ('/plugins/celery/tasks/edit/', {'_apply': '1', 'enabled': 'true'}),
            ):
                for confirm in ({}, {'_confirm': '1', 'confirm': '1'}):
                    with self.subTest(url=url, value=value[:30], confirm=bool(confirm)):
                        self.assertAnswered(self.client.post(url, {'pk': [value], **more, **confirm}))
                        if 'cancel' in url or 'rerun' in url:
                            self.assertAnswered(self.client.post(url, {'_all': '1', 'newest': value, **confirm}))

    def test_invalid_newest(self):
        for value in ('9' * 5000, '²', 'x'):
            self.client.post('/plugins/celery/results/cancel/', {'_all': '1', 'newest': value, '_confirm': '1'})
        self.run.refresh_from_db()
        self.assertEqual(self.run.status, 'pending')

    def test_run(self):
        url = f'{self.task.get_absolute_url()}run/'
        before = CeleryResult.objects.count()
        for name in ('priority', 'schedule_at', 'eta', 'countdown', 'expires', 'time_limit', 'object_id'):
            for value in (*NUMBERS, *TIMES, 10 ** 25, 10 ** 4000, -10 ** 25, 1e300):
                with self.subTest(name=name, value=str(value)[:30]):
                    response = self.send('post', f'/api{url}', **{name: value})
                    self.assertAnswered(response, 400)
        for name in ('priority', 'schedule_at', 'parameter_name'):
            for value in (*NUMBERS, *TIMES):
                if name != 'parameter_name':
                    with self.subTest(name=name, value=value[:30]):
                        self.assertAnswered(self.client.post(url, {'parameter_name': 'Bob', name: value}), 200)
        self.assertEqual(CeleryResult.objects.count(), before)

    def test_schedule_fields(self):
        api = '/api/plugins/celery/schedules/'
        for name in ('at', 'start', 'end', 'interval', 'priority', 'expires', 'missed_max', 'object_id', 'task'):
            for value in (NUMBERS[0], TIMES[0], 10 ** 25):
                kind = {'at': 'once', 'interval': 'interval'}.get(name, 'crontab')
                data = {
                    'name': f'{name} {value}'[:200], 'task': self.task.pk, 'kind': kind,
                    **({'crontab': '0 0 * * *'} if kind == 'crontab' else {}),
                }
                if name == 'object_id':
                    data['object_type'] = 'dcim.site'
                with self.subTest(name=name, value=str(value)[:30]):
                    self.assertAnswered(self.send('post', api, **data | {name: value}), 400)
                    self.assertAnswered(self.send('patch', f'{api}{self.schedule.pk}/', **{name: value}), 400)
                    form = {**data, 'timezone': 'UTC', 'missed': 'skip', 'missed_max': 5, 'overlap': 'allow',
                            'arguments_as': 'parameters', 'interval_unit': 60, name: value}
                    if name == 'object_id':
                        continue  # the form has another field for that
                    self.assertAnswered(self.client.post('/plugins/celery/schedules/add/', form), 200)
                    self.assertAnswered(self.client.post('/plugins/celery/schedules/preview/', form), 200)
                    if name not in ('at', 'interval', 'object_id', 'task'):
                        self.assertAnswered(self.client.post('/plugins/celery/schedules/edit/', {
                            'pk': self.schedule.pk, '_apply': '1', name: value
                        }), 200)
        self.assertEqual(CelerySchedule.objects.count(), 1)
        for value in NUMBERS:
            self.assertAnswered(self.client.post(f'/plugins/celery/schedules/preview/?{urlencode({"id": value})}'), 404)

    def test_schedule_import(self):
        for name in ('at', 'start', 'end', 'interval', 'expires', 'priority', 'object_id', 'missed_max'):
            for value in (*NUMBERS[:2], TIMES[0]):
                for format, data in (
                    ('csv', f'name,task,crontab,{name}\nX,{self.task.name},0 0 * * *,{value}'),
                    ('yaml', f'- name: X\n  task: {self.task.name}\n  crontab: "0 0 * * *"\n  {name}: {value}'),
                    ('json', json.dumps([{'name': 'X', 'task': self.task.name, 'crontab': '0 0 * * *', name: value}])),
                ):
                    if format == 'yaml' and value == NUMBERS[0]:
                        continue  # NetBox's import ends there, whatever the model
                    with self.subTest(name=name, value=value[:30], format=format):
                        self.assertAnswered(self.client.post('/plugins/celery/schedules/import/', {
                            'data': data, 'format': format, 'csv_delimiter': ',', 'import_method': 'direct',
                        }), 200)
        self.assertEqual(CelerySchedule.objects.count(), 1)

    def test_number_of_arguments(self):
        """Each argument is checked during the request, so there is a limit, which the answer names."""
        make_task('test:any', parameters=[
            {'name': 'args', 'kind': 'var_positional', 'annotation': '', 'required': False},
            {'name': 'kwargs', 'kind': 'var_keyword', 'annotation': '', 'required': False},
        ])
        task = CeleryTask.objects.get(name='test:any')
        many = {f'a{number}': 1 for number in range(1001)}
        for data, limit in (
            ({'args': [1] * 200_000}, '1,000'), ({'kwargs': many}, '1,000'), ({'args': [1] * 501, 'kwargs': dict(
                list(many.items())[:500])}, '1,000'), ({'args': ['x' * 1_000_001]}, '1,000,000'),
        ):
            response = self.send('post', f'/api{task.get_absolute_url()}run/', **data)
            self.assertAnswered(response, 400)
            self.assertIn(limit, response.content.decode())
            schedule = {'name': 'X', 'task': task.pk, 'crontab': '0 0 * * *', **data}
            response = self.send('post', '/api/plugins/celery/schedules/', **schedule)
            self.assertAnswered(response, 400)
            self.assertIn(limit, response.content.decode())
        for args in ([1] * 1001, ['x' * 1_000_001]):
            response = self.client.post(f'{task.get_absolute_url()}run/', {'parameter_args': json.dumps(args)})
            self.assertIn('1,000', response.content.decode())
        self.assertEqual(CeleryResult.objects.exclude(pk=self.run.pk).count(), 0)

    def test_arguments(self):
        for text in ('9' * 5000, f'[{"9" * 5000}]', f'{{"name": {"9" * 5000}}}', '[' * 5000, '[' * 5000 + ']' * 5000):
            form = {
                'name': 'X', 'task': self.task.pk, 'kind': 'crontab', 'crontab': '0 0 * * *', 'timezone': 'UTC',
                'missed': 'skip', 'missed_max': 5, 'overlap': 'allow', 'arguments_as': 'json',
            }
            for name in ('args', 'kwargs'):
                with self.subTest(name=name, text=text[:30]):
                    self.assertAnswered(self.client.post('/plugins/celery/schedules/add/', form | {name: text}), 200)
                    self.assertAnswered(self.client.post(
                        '/plugins/celery/schedules/add/', form | {name: text}, headers=self.htmx
                    ), 200)
                    self.assertAnswered(self.client.get('/plugins/celery/schedules/add/', form | {name: text}), 200)
        self.assertEqual(CelerySchedule.objects.count(), 1)
