"""Workers: which are available to run tasks."""
from datetime import timedelta

from django.utils import timezone

from netbox_celery.models import CeleryResult, CeleryWorker
from tests.factories import grant, make_worker
from tests.views.bases import PageTestCase, PluginURLMixin
from utilities.testing import ViewTestCases


class CeleryWorkerViewTest(
    PluginURLMixin,
    ViewTestCases.GetObjectViewTestCase,
    ViewTestCases.ListObjectsViewTestCase,
):
    model = CeleryWorker

    @classmethod
    def setUpTestData(cls):
        for name in ('celery@one', 'celery@two', 'celery@three'):
            make_worker(name)


class WorkerTest(PageTestCase):

    def setUp(self):
        super().setUp()
        grant(self.user, CeleryWorker)
        self.worker = make_worker(queues=['fast', 'slow'], versions={'celery': '5.7.0'})

    def test_alive(self):
        self.assertIn('mdi-check-bold', self.page('/plugins/celery/workers/'))
        CeleryWorker.objects.update(heartbeat=timezone.now() - timedelta(hours=1))
        self.assertIn('mdi-close-thick', self.page('/plugins/celery/workers/'))

    def test_page(self):
        grant(self.user, CeleryResult)
        page = self.page(self.worker.get_absolute_url())
        for text in ('celery@test', 'prefork', 'fast, slow', '5.7.0', 'worker=celery%40test&amp;status=running'):
            self.assertIn(text, page)

    def test_running_filter(self):
        make_worker('celery@gone', stopped=timezone.now())
        self.assertIn('celery@gone', self.page('/plugins/celery/workers/'))
        self.assertNotIn('celery@gone', self.page('/plugins/celery/workers/', {'running': True}))

    def test_autoscale(self):
        """The limits of the autoscaler are shown instead of a number."""
        self.assertNotIn('1 to 4', self.page('/plugins/celery/workers/'))
        make_worker('celery@scaled', concurrency=4, versions={
            'celery': '5.7.0', '@worker': {'autoscale': {'min': 1, 'max': 4}, 'not_loaded': []}
        })
        scaled = CeleryWorker.objects.get(name='celery@scaled')
        for page in ('/plugins/celery/workers/', scaled.get_absolute_url()):
            self.assertIn('1 to 4', self.page(page))
        self.assertNotIn('@worker', self.page(scaled.get_absolute_url()))
        self.assertNotIn('Not Loaded', self.page(scaled.get_absolute_url()))

    def test_not_loaded(self):
        """A worker's page shows what it could not import."""
        lacking = make_worker('celery@lacking', versions={'@worker': {'not_loaded': [{
            'plugin': 'napalm_plugin', 'module': 'napalm_plugin.tasks', 'place': 'napalm_plugin/tasks.py:3',
            'error': "ModuleNotFoundError: No module named <napalm>",
        }]}})
        page = self.page(lacking.get_absolute_url())
        for text in ('Not Loaded', 'napalm_plugin.tasks', 'No module named &lt;napalm&gt;', 'napalm_plugin/tasks.py:3'):
            self.assertIn(text, page)
