"""NetBox's global search finds tasks, by name and docstring, and schedules, but no runs."""
from django.test import TestCase

from netbox.registry import registry
from netbox.search.backends import search_backend
from tests.factories import make_result, make_schedule, make_task
from users.models import User


class SearchTest(TestCase):

    def search(self, value):
        admin = User.objects.get_or_create(username='admin', is_superuser=True)[0]
        return [found.object for found in search_backend.search(value, user=admin)]

    def test_tasks(self):
        with self.captureOnCommitCallbacks(execute=True):
            task = make_task('plugin_a:backup', description='Save configurations', documentation='Asks each switch.')
        for value in ('backup', 'configurations', 'switch'):
            self.assertEqual(self.search(value), [task])

    def test_schedules(self):
        with self.captureOnCommitCallbacks(execute=True):
            schedule = make_schedule('Nightly', make_task('plugin_a:backup'), description='Save configurations')
        for value in ('nightly', 'configurations'):
            self.assertEqual(self.search(value), [schedule])

    def test_runs_are_not_indexed(self):
        """An index would cost a write each time a run's status changes."""
        with self.captureOnCommitCallbacks(execute=True):
            make_result(name='needle')
        self.assertEqual(self.search('needle'), [])
        ours = {label for label in registry['search'] if label.startswith('netbox_celery.')}
        self.assertEqual(ours, {'netbox_celery.celerytask', 'netbox_celery.celeryschedule'})
