"""Schedules: NetBox's own promises for each model, the list, the page, the history and the preview."""


from netbox_celery.models import CelerySchedule, CeleryTask
from tests.factories import HELLO_WORLD, grant, make_schedule, make_task
from tests.views.bases import PluginURLMixin
from utilities.testing import ViewTestCases, create_tags

LIST = '/plugins/celery/schedules/'


class CeleryScheduleViewTest(
    PluginURLMixin,
    ViewTestCases.GetObjectViewTestCase,
    ViewTestCases.GetObjectChangelogViewTestCase,
    ViewTestCases.CreateObjectViewTestCase,
    ViewTestCases.EditObjectViewTestCase,
    ViewTestCases.DeleteObjectViewTestCase,
    ViewTestCases.ListObjectsViewTestCase,
    ViewTestCases.BulkImportObjectsViewTestCase,
    ViewTestCases.BulkEditObjectsViewTestCase,
    ViewTestCases.BulkDeleteObjectsViewTestCase,
):
    model = CelerySchedule

    @classmethod
    def setUpTestData(cls):
        cls.task = make_task()
        schedules = [make_schedule(name) for name in ('A', 'B', 'C')]
        tags = create_tags('Alpha', 'Bravo')
        cls.form_data = {
            'name': 'D', 'description': 'Nightly', 'enabled': True, 'kind': 'crontab', 'crontab': '30 2 * * mon-fri',
            'timezone': 'Europe/Berlin', 'task': cls.task.pk, 'arguments_as': 'parameters', 'parameter_name': 'Bob',
            'missed': 'skip', 'missed_max': 5, 'overlap': 'queue', 'tags': [tag.pk for tag in tags],
        }
        cls.validation_excluded_fields = ['arguments_as', 'parameter_name']
        cls.csv_data = (
            'name,task,crontab,kwargs,description',
            f'X,{HELLO_WORLD},0 1 * * *,"{{""name"": ""Bob""}}",One',
            f'Y,{HELLO_WORLD},0 2 * * *,,Two',
            f'Z,{HELLO_WORLD},0 3 * * *,,Three',
        )
        cls.csv_update_data = (
            'id,name,description',
            *(f'{schedule.pk},{schedule.name}{schedule.name},changed' for schedule in schedules),
        )
        cls.bulk_edit_data = {
            'enabled': False, 'description': 'Changed', 'overlap': 'skip', 'missed': 'run_all', 'missed_max': 3,
            'timezone': 'Asia/Kolkata', 'queue': 'slow', 'priority': 3, 'expires': 60,
        }

    def setUp(self):
        super().setUp()
        # Without it nobody makes or changes a schedule: see `test_schedule_permissions.py`
        grant(self.user, CeleryTask, actions=['view', 'run'])
