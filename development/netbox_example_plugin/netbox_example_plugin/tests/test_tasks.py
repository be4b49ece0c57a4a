"""
Tests of the tasks, as NetBox runs those of plugins: `netbox test netbox_example_plugin`.
"""

from django.test import TestCase

from core.models import ObjectChange
from dcim.models import Device
from netbox_celery.testing import run_task
from netbox_example_plugin.tasks import audit_devices, backup_configs, flaky, hello_world
from users.models import User
from utilities.testing import create_test_device

__all__ = (
    'TasksTestCase',
)


class TasksTestCase(TestCase):

    @classmethod
    def setUpTestData(cls):
        cls.user = User.objects.create_user('alice')
        cls.device = create_test_device('router-1')

    def test_hello_world(self):
        run = run_task(hello_world, 'Bob')
        self.assertEqual(run.raise_for_error().result, 'Hello Bob!')
        self.assertEqual(run.messages, ['Hello Bob!'])

    def test_audit_changes_devices_as_the_user(self):
        run = run_task(audit_devices, delay=0, netbox_user=self.user)
        self.assertEqual(run.result, {'devices': 1, 'gaps': 3})
        self.assertEqual(run.log[1].object, self.device)
        self.assertEqual(run.row.value, 1)
        self.device.refresh_from_db()
        self.assertIn('a serial number', self.device.comments)
        self.assertEqual(ObjectChange.objects.get(request_id=run.row.request_id).user, self.user)

    def test_audit_without_devices(self):
        Device.objects.all().delete()
        run = run_task(audit_devices)
        self.assertEqual((run.status, run.error), ('failed', 'No devices to check'))

    def test_backup(self):
        run = run_task(backup_configs, delay=0).raise_for_error()
        self.assertEqual({line.grouping for line in run.log}, {'main', 'router-1'})

    def test_retries(self):
        run = run_task(flaky, succeed_on=3)
        self.assertEqual((run.result, run.row.attempt), (3, 3))
