"""The list of runs, and the pages of one."""
from netbox_celery.models import CeleryResult
from tests.factories import make_result
from tests.views.bases import PluginURLMixin
from utilities.testing import ViewTestCases


class CeleryResultViewTest(
    PluginURLMixin,
    ViewTestCases.GetObjectViewTestCase,
    ViewTestCases.GetObjectChangelogViewTestCase,
    ViewTestCases.DeleteObjectViewTestCase,
    ViewTestCases.ListObjectsViewTestCase,
    ViewTestCases.BulkDeleteObjectsViewTestCase,
):
    model = CeleryResult

    @classmethod
    def setUpTestData(cls):
        make_result('completed', name='Backup', queue='slow', worker='celery@one', value=3, value_max=4)
        make_result('errored', name='Audit', error='Took too long')
        make_result('running', name='Report', value=1, value_max=2)
