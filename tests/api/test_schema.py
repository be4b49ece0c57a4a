"""The OpenAPI schema describes our endpoints without warnings, and correctly."""
import io
from contextlib import redirect_stderr

from django.test import TestCase
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.validation import validate_schema

PREFIX = '/api/plugins/celery/'


class SchemaTest(TestCase):

    @classmethod
    def setUpTestData(cls):
        GENERATOR_STATS.reset()
        cls.noise = io.StringIO()
        with redirect_stderr(cls.noise):
            generator = SchemaGenerator()
            generator._initialise_endpoints()
            generator.endpoints = [
                endpoint for endpoint in generator.endpoints if endpoint[0].startswith(PREFIX)
            ]
            cls.schema = generator.get_schema(request=None, public=True)

    def operation(self, path, method='get'):
        return self.schema['paths'][PREFIX + path][method]

    def test_no_warnings(self):
        self.assertEqual(self.noise.getvalue(), '')
        validate_schema(self.schema)

    def test_methods(self):
        """The documented methods are those that exist."""
        self.assertEqual({
            path.removeprefix(PREFIX): set(operations) for path, operations in self.schema['paths'].items()
        }, {
            'log-entries/': {'get'},
            'log-entries/{id}/': {'get'},
            'results/': {'get', 'patch', 'delete'},
            'results/{id}/': {'get', 'patch', 'delete'},
            'results/{id}/cancel/': {'post'},
            'results/{id}/logs/': {'get'},
            'results/{id}/rerun/': {'post'},
            'results/{id}/workflow/': {'get'},
            'schedules/': {'get', 'post', 'put', 'patch', 'delete'},
            'schedules/{id}/': {'get', 'put', 'patch', 'delete'},
            'schedules/{id}/preview/': {'get'},
            'schedules/{id}/run/': {'post'},
            'schedules/{id}/take-over/': {'post'},
            'tasks/': {'get', 'patch', 'delete'},
            'tasks/{id}/': {'get', 'patch', 'delete'},
            'tasks/{id}/run/': {'post'},
            'workers/': {'get'},
            'workers/{id}/': {'get'},
        })

    def test_logs(self):
        operation = self.operation('results/{id}/logs/')
        names = {parameter['name'] for parameter in operation['parameters']}
        self.assertLessEqual({'after', 'limit', 'level', 'level__gte', 'grouping', 'q'}, names)
        self.assertNotIn('celery_name', names)
        reference = operation['responses']['200']['content']['application/json']['schema']['$ref']
        page = self.schema['components']['schemas'][reference.rpartition('/')[2]]
        self.assertLessEqual({'results', 'next_after', 'status', 'finished'}, set(page['properties']))

    def test_run(self):
        operation = self.operation('tasks/{id}/run/', 'post')
        reference = operation['requestBody']['content']['application/json']['schema']['$ref']
        request = self.schema['components']['schemas'][reference.rpartition('/')[2]]
        self.assertLessEqual({'args', 'kwargs', 'queue', 'schedule_at', 'expires'}, set(request['properties']))
        self.assertEqual(list(operation['responses']), ['201'])

    def test_writable_fields(self):
        """Clients see what they can change of a run."""
        reference = self.operation('results/{id}/', 'patch')['requestBody']['content']['application/json']['schema']
        request = self.schema['components']['schemas'][reference['$ref'].rpartition('/')[2]]
        self.assertEqual(set(request['properties']), {'tags', 'custom_fields'})

    def test_schedules(self):
        """Beat's columns, and the owner, are not writable."""
        reference = self.operation('schedules/', 'post')['requestBody']['content']['application/json']['schema']
        one = reference.get('oneOf', [reference])[0]
        request = self.schema['components']['schemas'][one['$ref'].rpartition('/')[2]]
        self.assertLessEqual({'name', 'task', 'crontab', 'kwargs', 'overlap'}, set(request['properties']))
        written = {'owner', 'origin', 'present', 'next_run', 'last_run', 'stopped', 'options'}
        self.assertFalse(written & set(request['properties']))
        names = {parameter['name'] for parameter in self.operation('schedules/{id}/preview/')['parameters']}
        self.assertIn('count', names)
        self.assertNotIn('crontab', names)
