"""Whatever a row can hold, every page, list, export, API and change-log entry shows it, and actions do what they do.

The rows are written with SQL: most of these values come in no other way any more, but older rows have them.
"""
import json

import pytest
from django.db import connection
from django.urls import reverse
from django.utils import timezone

from core.models import ObjectChange, ObjectType
from extras.models import ExportTemplate
from netbox_celery.choices import ResultStatusChoices
from netbox_celery.engine.store.payload import plain
from netbox_celery.models import CeleryResult, CelerySchedule, CeleryTask, CeleryWorker
from tests.factories import grant, make_log, make_result, make_schedule, make_task
from tests.views.bases import PageTestCase


def nested(depth, opening='[', closing=']'):
    return opening * depth + '1' + closing * depth


def marker(kind, value):
    return json.dumps({'__type__': kind, '__value__': value})


#: JSON text as `jsonb` takes it.
ZOO = [
    'null', '1', '"text"', '[]', '{}',
    marker('time', '10:00:00+02:00'), marker('time', '25:00'), marker('time', 5),
    marker('bytes', 'text'), marker('base64', '//79'), marker('base64', 'broken'), marker('bytes', 5),
    marker('uuid', {'hex': 'broken'}), marker('uuid', {'hex': '12345678123456781234567812345678'}), marker('uuid', 5),
    marker('decimal', '1e999999'), marker('decimal', 'broken'), marker('decimal', 'NaN'), marker('decimal', 'sNaN'),
    marker('datetime', '9999-12-31T23:59:59-05:00'), marker('datetime', '0001-01-01T00:00:00+05:00'),
    marker('datetime', 'broken'), marker('date', '0001-01-01'), marker('date', None), marker('unknown', [1]),
    '{"__type__": ["list"], "__value__": 1}', '{"__type__": "time"}',
    nested(300), nested(1000), nested(3000), nested(1000, '{"a": ', '}'),
    '1' + '0' * 5000, '-1' + '0' * 5000, '1e400', '1.5e-400', '0.1' + '2' * 5000,
    '"\\ud83d\\ude00"', '"<script>&amp;\\u2028"', '""', '{"": {"": ""}}',
]
#: The same where it most often stands.
ARGUMENTS = [(f'[{value}]', f'{{"name": {value}}}') for value in ZOO] + [(value, value) for value in ZOO]
#: Times that PostgreSQL knows, and Python does not, or not in each time zone.
TIMES = [
    'infinity', '-infinity', '9999-12-31 23:59:59-05', '0001-01-01 00:00:00+05', '294276-01-01Z', '4713-01-01 BC',
    '9999-12-31 23:59:59.999999Z', '0001-01-01Z',
]
RESULT_TIMES = ('scheduled', 'expires', 'sent', 'started', 'completed', 'cancelled', 'stale_after')
SCHEDULE_TIMES = ('at', 'start', '"end"', 'last_run', 'next_run', 'stopped')
HISTORY = [
    f'[{{"number": 1, "started": {value}, "ended": {value}, "worker": {value}, "error": {value}}}, {value}, {{}}]'
    for value in ZOO
] + ZOO


def write(obj, **columns):
    """Write text into columns of a row."""
    with connection.cursor() as cursor:
        cursor.execute(
            f'UPDATE {obj._meta.db_table} SET {", ".join(f"{name} = %s" for name in columns)} WHERE id = %s',
            [*columns.values(), obj.pk]
        )


@pytest.mark.parametrize('value', sorted({text for pair in ARGUMENTS for text in pair}), ids=lambda text: text[:40])
def test_every_value_can_be_shown(value):
    for field in (CeleryResult._meta.get_field('args'), CelerySchedule._meta.get_field('kwargs')):
        shown = plain(field.from_db_value(value, None, connection))
        json.dumps(shown, indent=4, allow_nan=False).encode()


class ValuesTest(PageTestCase):
    user_permissions = ('core.view_objectchange', 'extras.view_exporttemplate')

    def setUp(self):
        super().setUp()
        grant(self.user, CeleryResult, CelerySchedule, CeleryTask, CeleryWorker, actions=(
            'view', 'add', 'change', 'delete', 'run', 'cancel', 'rerun',
        ))
        self.task = make_task()

    def make_results(self, status='pending', arguments=ARGUMENTS):
        results = []
        for number, (args, kwargs) in enumerate(arguments):
            value = ZOO[number % len(ZOO)]
            result = make_result(status, attempt=3)
            write(
                result, args=args, kwargs=kwargs, result=value, data=value,
                options=value if kwargs == value else f'{{"queue": {value}, "argsrepr": {value}}}'
                if number % 2 else f'{{"queue": {value}}}', attempts=HISTORY[number % len(HISTORY)],
            )
            results.append(result)
        make_log(results[0], 'A line')
        return results

    def make_schedules(self, arguments=ARGUMENTS):
        schedules = []
        for number, (args, kwargs) in enumerate(arguments):
            schedule = make_schedule(f'Schedule {number}', owner=self.user)
            write(schedule, args=args, kwargs=kwargs, options=kwargs)
            schedules.append(schedule)
        return schedules

    def assertShown(self, url, **data):
        response = self.client.get(url, data)
        self.assertIn(response.status_code, (200, 286), f'{url} {data}')
        return b''.join(response.streaming_content) if response.streaming else response.content

    def query(self, query):
        response = self.client.post(reverse('graphql'), {'query': query}, content_type='application/json')
        self.assertHttpStatus(response, 200)
        self.assertNotIn('errors', response.json())

    def test_runs(self):
        for result in self.make_results('completed', ARGUMENTS[:len(ZOO)]):
            url = result.get_absolute_url()
            with self.subTest(pk=result.pk):
                for page in ('', 'log/', 'workflow/', 'delete/', 'rerun/'):
                    self.assertShown(f'{url}{page}')
                for page in ('', 'workflow/', 'logs/'):
                    self.assertShown(f'/api{url}{page}')
                self.assertShown(f'/api{url}', format='api')
        for result in self.make_results('running', ARGUMENTS[len(ZOO):]):
            with self.subTest(pk=result.pk):
                url = result.get_absolute_url()
                self.assertShown(url)
                self.assertShown(f'/api{url}')
                self.assertShown(f'{url}log/lines/', after=0, state='another')
        for page in ('changes/', 'changelog/', 'journal/', 'cancel/', 'log/download/'):
            self.assertShown(f'{url}{page}')
        self.assertShown('/plugins/celery/results/')
        self.assertShown('/plugins/celery/results/', export='table')
        large = 'id,args,kwargs,options,data,result,attempts,traceback'
        self.assertShown('/api/plugins/celery/results/', fields=large, limit=1000)
        self.query('{ celery_result_list { id args kwargs options data result attempts } }')

    def test_export_template(self):
        self.make_results('completed')
        self.make_schedules()
        for model, name in ((CeleryResult, 'results'), (CelerySchedule, 'schedules')):
            template = ExportTemplate.objects.create(
                name=name, template_code='{% for obj in queryset %}{{ obj.args }}{{ obj.name }}\n{% endfor %}'
            )
            template.object_types.set([ObjectType.objects.get_for_model(model)])
            self.assertShown(f'/plugins/celery/{name}/', export=name)

    def test_cancel(self):
        for api in (False, True):
            for result in self.make_results(arguments=ARGUMENTS[api:len(ZOO):2]):
                with self.subTest(pk=result.pk):
                    url = f'{"/api" if api else ""}{result.get_absolute_url()}cancel/'
                    self.assertIn(self.client.post(url).status_code, (200, 302))
                    self.assertEqual(CeleryResult.objects.defer('args').get(pk=result.pk).status, 'revoked')
                    change = ObjectChange.objects.get(changed_object_id=result.pk, message='Cancelled')
                    self.assertEqual(change.prechange_data['status'], 'pending')
                    self.assertShown(change.get_absolute_url())

    def test_bulk_cancel(self):
        ids = [result.pk for result in self.make_results()]
        self.assertHttpStatus(self.client.post('/plugins/celery/results/cancel/', {'pk': ids}), 200)
        self.client.post('/plugins/celery/results/cancel/', {'pk': ids, '_confirm': '1'})
        self.assertEqual(CeleryResult.objects.filter(status='revoked').count(), len(ids))
        self.assertEqual(ObjectChange.objects.filter(message='Cancelled').count(), len(ids))

    def test_rerun(self):
        """A new run, or the reason why there is none; never a run without an answer."""
        for result in self.make_results('completed', ARGUMENTS[:len(ZOO)]):
            for api in (False, True):
                with self.subTest(pk=result.pk, api=api):
                    before = CeleryResult.objects.count()
                    response = self.client.post(f'{"/api" if api else ""}{result.get_absolute_url()}rerun/')
                    started = CeleryResult.objects.count() - before
                    self.assertIn(response.status_code, (201,) if api and started else (400,) if api else (302,))

    def test_edit_and_delete_runs(self):
        for result in self.make_results('completed', ARGUMENTS[len(ZOO)::2]):
            with self.subTest(pk=result.pk):
                url = f'/api{result.get_absolute_url()}'
                response = self.client.patch(url, {'custom_fields': {}}, content_type='application/json')
                self.assertHttpStatus(response, 200)
                self.assertHttpStatus(self.client.delete(url), 204)
                self.assertTrue(ObjectChange.objects.filter(changed_object_id=result.pk, action='delete').exists())

    def test_schedules(self):
        for schedule in self.make_schedules(ARGUMENTS[:len(ZOO):3] + ARGUMENTS[len(ZOO) + 1::3]):
            url = schedule.get_absolute_url()
            with self.subTest(pk=schedule.pk, url=url):
                for page in ('', 'edit/', 'run/'):
                    self.assertShown(f'{url}{page}')
                self.assertShown(f'/api{url}')
                schedule.refresh_from_db()
                self.assertShown('/plugins/celery/schedules/add/', **schedule.clone())
        for page in ('runs/', 'changelog/', 'delete/', 'disable/'):
            self.assertShown(f'{url}{page}')
        self.assertShown('/plugins/celery/schedules/')
        self.assertShown('/plugins/celery/schedules/', export='table')
        self.assertShown('/api/plugins/celery/schedules/', limit=1000)
        self.assertShown(f'{self.task.get_absolute_url()}')
        self.query('{ celery_schedule_list { id args kwargs options in_words } }')

    def test_change_schedules(self):
        for schedule in self.make_schedules(ARGUMENTS[1:len(ZOO):3] + ARGUMENTS[len(ZOO)::3]):
            url = schedule.get_absolute_url()
            with self.subTest(pk=schedule.pk):
                self.assertHttpStatus(self.client.post(f'{url}disable/'), 302)
                schedule.refresh_from_db()
                self.assertFalse(schedule.enabled)
                response = self.client.patch(f'/api{url}', {'description': 'x'}, content_type='application/json')
                self.assertHttpStatus(response, 200)
                self.assertIn(self.client.post(f'{url}run/').status_code, (302,))
                self.assertIn(self.client.post(f'/api{url}run/').status_code, (201, 400))
                self.assertHttpStatus(self.client.post(f'{url}delete/', {'confirm': True}), 302)

    def test_times(self):
        for zone in ('Pacific/Kiritimati', 'Pacific/Niue'):
            for value in TIMES[:4]:
                with self.subTest(zone=zone, value=value), timezone.override(zone):
                    status = ResultStatusChoices.STATUS_SCHEDULED
                    result, schedule = make_result(status), make_schedule(f'{zone} {value}')
                    once = make_schedule(f'Once {zone} {value}', kind='once', at=timezone.now())
                    write(result, **dict.fromkeys(RESULT_TIMES, value))
                    for obj in (schedule, once):
                        write(obj, **dict.fromkeys(SCHEDULE_TIMES, value))
                    for obj in (result, schedule, once):
                        url = obj.get_absolute_url()
                        self.assertShown(url)
                        self.assertShown(f'/api{url}')
                        self.assertShown(f'{url}changelog/')
                        obj.refresh_from_db()
                        obj.snapshot()
                    self.assertShown(f'{result.get_absolute_url()}workflow/')
                    for obj in (schedule, once):
                        self.assertShown(f'{obj.get_absolute_url()}edit/')
                        self.assertShown(f'/api{obj.get_absolute_url()}preview/')
                    self.assertIn(self.client.post(f'{result.get_absolute_url()}cancel/').status_code, (302,))
        for name in ('results', 'schedules'):
            self.assertShown(f'/plugins/celery/{name}/')
            self.assertShown(f'/plugins/celery/{name}/', export='table')
            self.assertShown(f'/api/plugins/celery/{name}/', limit=1000)
        self.query(f'{{ celery_result_list {{ {" ".join(RESULT_TIMES)} }} }}')
        self.query('{ celery_schedule_list { at start end last_run next_run stopped in_words } }')
