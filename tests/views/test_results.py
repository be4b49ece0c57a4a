"""The list of runs, and the pages of one run."""
from datetime import timedelta
from unittest.mock import patch

from django.contrib.auth import get_user_model
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from core.choices import ObjectChangeActionChoices
from core.models import ObjectChange
from dcim.models import Manufacturer, Site
from netbox_celery.models import CeleryResult, CelerySchedule
from tests.factories import grant, make_result, make_schedule, make_task, make_worker
from tests.views.bases import PageTestCase, PluginURLMixin
from utilities.testing import ViewTestCases, disable_warnings

LIST = '/plugins/celery/results/'
XSS = '<script>alert("{}")</script>'


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
        site = Site.objects.create(name='Site 1', slug='site-1')
        make_result('completed', name='Backup', queue='slow', worker='celery@one', value=3, value_max=4, object=site)
        make_result('errored', name='Audit', error='Took too long')
        make_result('running', name='Report', value=1, value_max=2)


class ResultListTest(PageTestCase):

    def setUp(self):
        super().setUp()
        grant(self.user, CeleryResult)

    def queries(self, **params):
        with CaptureQueriesContext(connection) as context:
            self.get(LIST, params)
        return context.captured_queries

    def test_address(self):
        self.assertEqual(reverse('plugins:netbox_celery:celeryresult_list'), LIST)

    def test_rows_cost_no_queries(self):
        """However many runs there are: one query for each type of object, none for a row."""
        user = get_user_model().objects.create(username='somebody')
        sites = [Site.objects.create(name=f'Site {i}', slug=f'site-{i}') for i in range(6)]

        def make(site):
            make_result('completed', user=user, object=site, value=1, value_max=2, error='x')
            make_result('running', user=user, object=site, started=timezone.now())

        make(sites[0])
        few = len(self.queries())
        for site in sites[1:]:
            make(site)
        self.assertEqual(len(self.queries()), few)

    def test_large_columns_are_not_loaded(self):
        make_result('completed', args=['x'], kwargs={'a': 'x'}, result='x', traceback='x')
        grant(self.user, CeleryResult, actions=['cancel', 'rerun', 'delete'])
        for query in self.queries():
            for column in ('args', 'kwargs', 'result', 'data', 'traceback', 'attempts', 'message', 'options'):
                self.assertNotIn(f'"netbox_celery_celeryresult"."{column}"', query['sql'])
            self.assertNotIn('celerylogentry', query['sql'])

    def test_columns(self):
        """All columns can be chosen, and exported."""
        make_result(
            'errored', name='Backup', started=timezone.now() - timedelta(seconds=90), completed=timezone.now(),
            value=30, value_max=40, error='Out of space', reason='worker_lost'
        )
        page = self.page(LIST, {'include_columns': 'error,reason,task_id,object_type,started,completed'})
        for text in ('Backup', 'Errored', '1m 30s', 'width: 75.00%', 'Out of space', 'Worker lost'):
            self.assertIn(text, page)
        export = b''.join(self.get(LIST, {'export': 'table'})).decode()
        self.assertIn('75.0', export)
        self.assertIn(',90.', export)

    def test_progress_without_a_maximum(self):
        make_result('running', value=1234567)
        self.assertIn('1234567', self.page(LIST))

    def test_filters(self):
        make_result('completed', name='Found', queue='slow')
        make_result('errored', name='Other', queue='fast')
        for params in ({'status': 'completed'}, {'queue': 'slow'}, {'q': 'found'}):
            with self.subTest(params):
                page = self.page(LIST, params)
                self.assertIn('Found', page)
                self.assertNotIn('Other', page)

    def test_invalid_filters(self):
        """An invalid filter is not ignored: "all that match" must not become all runs."""
        grant(self.user, CeleryResult, actions=['delete'])
        make_result('completed', name='Not meant')
        for name, value in (
            ('task_id', 'abc'), ('root_id__n', 'abc'), ('created__before', 'soon'), ('user_id', '0'), ('value', 'x'),
            ('queue__empty', 'perhaps'),
        ):
            with self.subTest(name=name):
                page = self.page(LIST, {name: value})
                self.assertNotIn('Not meant', page)
                self.assertIn('Invalid filter &quot;', page)
                self.assertNotIn('Not meant', self.page(LIST, {name: value}, headers=self.htmx))
                self.assertNotIn('Not meant', b''.join(self.get(LIST, {name: value, 'export': 'table'})).decode())
                # Nothing is left to ask about
                question = self.client.post(f'{LIST}delete/?{name}={value}', {'_all': 'on'})
                self.assertHttpStatus(question, 302)
        question = self.client.post(f'{LIST}delete/?name=Not+meant', {'_all': 'on'})
        self.assertIn('Not meant', question.content.decode())

    def test_buttons(self):
        """Rows offer the actions that the user may do."""
        ended, running = make_result('completed'), make_result('running')
        cancelling = make_result('running', cancelled=timezone.now())
        buttons = [
            f'{ended.get_absolute_url()}rerun/', f'{running.get_absolute_url()}cancel/',
            'formaction="/plugins/celery/results/cancel/', 'formaction="/plugins/celery/results/rerun/',
        ]
        page = self.page(LIST)
        for button in buttons:
            self.assertNotIn(button, page)
        grant(self.user, CeleryResult, actions=['cancel', 'rerun'])
        page = self.page(LIST)
        for button in buttons:
            self.assertIn(button, page)
        self.assertNotIn(f'{ended.get_absolute_url()}cancel/', page)
        self.assertNotIn(f'{running.get_absolute_url()}rerun/', page)
        self.assertNotIn(f'{cancelling.get_absolute_url()}cancel/', page)

    def test_progress_in_another_language(self):
        """The bar's width is CSS, with a decimal point in every language."""
        make_result('running', value=1, value_max=3)
        self.assertIn('width: 33.33%', self.page(LIST, headers={'Accept-Language': 'de'}))

    def test_escaping(self):
        make_result('errored', name=XSS.format('name'), step=XSS.format('step'), error=XSS.format('error'))
        page = self.page(LIST, {'include_columns': 'step,error,celery_name'})
        self.assertNotIn('<script>alert(', page)
        self.assertEqual(page.count('&lt;script&gt;alert('), 3)


class ResultPageTest(PageTestCase):

    def setUp(self):
        super().setUp()
        grant(self.user, CeleryResult)

    def show(self, result, **kwargs):
        return self.page(result.get_absolute_url(), **kwargs)

    def test_panels(self):
        grant(self.user, Site)
        site = Site.objects.create(name='Berlin', slug='berlin')
        make_task()
        result = make_result(
            'errored', reason='time_limit', user=self.user, object=site, queue='slow', worker='celery@one',
            started=timezone.now(), kwargs={'deep': True}, result={'found': 3}, data={'note': 'mine'},
            error='Took too long', traceback='Traceback (most recent call last)', options={'priority': 3}, attempt=2,
            attempts=[
                {'number': 1, 'started': '2026-01-02T03:04:05+00:00', 'ended': '2026-01-02T03:05:35+00:00',
                 'worker': 'celery@zero', 'error': 'First failure'},
                {'number': 2, 'started': '2026-01-02T03:05:05+00:00', 'ended': None, 'worker': 'celery@one',
                 'error': ''},
            ]
        )
        page = self.show(result)
        for text in (
            'Errored', 'Exceeded its hard time limit', 'Berlin', 'slow', 'celery@one', 'deep', 'found',
            'mine', 'Took too long', 'Traceback (most recent call last)', 'First failure', 'celery@zero', 'priority',
            '2026-01-02', '1m 30s', str(result.task_id), 'testuser',
        ):
            self.assertIn(text, page)

    def test_culprit(self):
        other = make_result('errored')
        result = make_result(
            'errored', reason='upstream_failed', error=f'Not run, because Hello [{other.task_id}] is errored'
        )
        page = self.show(result)
        self.assertIn('Caused by', page)
        self.assertIn(f'/plugins/celery/results/?task_id={other.task_id}"', page)
        self.assertNotIn('Caused by', self.show(other))

    def test_schedule_and_key(self):
        grant(self.user, CelerySchedule)
        schedule = make_schedule('Nightly')
        result = make_result(
            'running', schedule=schedule, concurrency_key='device:7', stale_after='2099-01-02T03:04:05Z'
        )
        page = self.show(result)
        for text in (f'href="{schedule.get_absolute_url()}"', 'Nightly', 'device:7', '2099-01-02'):
            self.assertIn(text, page)
        # A finished run does not wait for a worker
        CeleryResult.objects.update(status='completed', completed=timezone.now())
        self.assertNotIn('2099-01-02', self.show(result))

    def test_values_of_python(self):
        """Rows hold values as Celery sends them: dates and the like are shown as plain JSON."""
        result = make_result(
            'completed', args=[timezone.now()], kwargs={'key': make_worker().key}, result={'when': timezone.now()}
        )
        self.assertNotIn('__type__', self.show(result))

    def test_redaction(self):
        """The caller's own representation is shown instead of hidden arguments."""
        result = make_result(
            'completed', args=['secret'], kwargs={'password': 'secret'},
            options={'argsrepr': "('***',)", 'kwargsrepr': "{'password': '***'}"}
        )
        page = self.show(result)
        self.assertNotIn('secret', page)
        self.assertIn('&#x27;password&#x27;: &#x27;***&#x27;', page)

    def test_arguments_were_not_kept(self):
        page = self.show(make_result('completed', args=None, kwargs=None))
        self.assertIn('Not stored', page)
        self.assertNotIn('celery-action-rerun"><a', page)

    def test_waiting_for_a_worker(self):
        result = make_result('pending')
        self.assertIn('No worker is running; the run starts when one does', self.show(result))
        make_worker(stopped=timezone.now())
        make_worker(heartbeat=timezone.now() - timedelta(hours=1))
        self.assertIn('No worker is running', self.show(result))
        make_worker()
        page = self.show(result)
        self.assertIn('Waiting for a worker', page)
        self.assertIn('No log entries yet: run not started', page)

    def test_progress(self):
        result = make_result(
            'running', value=50, value_max=200, step='Site 3', started=timezone.now() - timedelta(seconds=25)
        )
        page = self.show(result)
        for text in ('width: 25.00%', '50 of 200', '2.0/s', 'about 1m 15s left', 'Site 3'):
            self.assertIn(text, page)

    def test_escaping(self):
        places = ('name', 'arg', 'key', 'value', 'result', 'data', 'error', 'traceback', 'step', 'worker', 'queue')
        text = {place: XSS.format(place) for place in places}
        result = make_result(
            'errored', name=text['name'], args=[text['arg']], kwargs={text['key']: text['value']},
            result=text['result'], data={'x': text['data']}, error=text['error'], traceback=text['traceback'],
            step=text['step'], worker=text['worker'], queue=text['queue'], options={'argsrepr': XSS.format('repr')}
        )
        page = self.show(result)
        self.assertNotIn('<script>alert(', page)
        for place in (*(place for place in places if place != 'arg'), 'repr'):
            with self.subTest(place):
                self.assertRegex(page, rf'&lt;script&gt;alert\(\\?&quot;{place}')

    def test_nothing_is_loaded_from_elsewhere(self):
        page = self.show(make_result('running'))
        self.assertNotRegex(page, r'<(script|link|img)[^>]+(src|href)="(https?:)?//')
        self.assertIn('netbox_celery/celery.css', page)
        self.assertIn('netbox_celery/log.js', page)

    def test_stylesheet_is_on_our_pages_only(self):
        self.assertNotIn('netbox_celery/', self.page('/'))

    def test_buttons(self):
        """The actions are offered to users who may do them to this run."""
        running, ended = make_result('running'), make_result('completed')

        def offered(result):
            page = self.show(result)
            return [name for name in ('cancel', 'rerun') if f'href="{result.get_absolute_url()}{name}/"' in page]

        self.assertEqual((offered(running), offered(ended)), ([], []))
        grant(self.user, CeleryResult, actions=['cancel', 'rerun'], constraints={'pk': running.pk})
        self.assertEqual((offered(running), offered(ended)), (['cancel'], []))
        grant(self.user, CeleryResult, actions=['cancel', 'rerun'], constraints={'pk': ended.pk})
        self.assertEqual((offered(running), offered(ended)), (['cancel'], ['rerun']))
        running.cancelled = timezone.now()
        running.save()
        self.assertEqual(offered(running), [])

    def test_query_count_does_not_depend_on_the_history(self):
        result = make_result('completed')
        self.show(result)
        with CaptureQueriesContext(connection) as before:
            self.show(result)
        for __ in range(5):
            make_result('completed')
        with CaptureQueriesContext(connection) as after:
            self.show(result)
        self.assertEqual(len(after), len(before))


class ResultChangesTest(PageTestCase):
    """A run's changes in NetBox."""

    def setUp(self):
        super().setUp()
        self.result = make_result('completed', request_id='0e0b6b0e-3b1f-4b43-9d6b-6c8a1f2e7d11')
        self.site = self.change(Site, self.result.request_id, name='Changed', slug='changed')
        self.other = self.change(Manufacturer, '11111111-3b1f-4b43-9d6b-6c8a1f2e7d11', name='Else', slug='else')
        self.url = f'{self.result.get_absolute_url()}changes/'

    def change(self, model, request_id, **columns):
        obj = model.objects.create(**columns)
        change = obj.to_objectchange(ObjectChangeActionChoices.ACTION_CREATE)
        change.user, change.request_id = self.user, request_id
        change.save()
        return obj

    def test_changes(self):
        grant(self.user, CeleryResult, ObjectChange)
        page = self.page(self.url)
        self.assertIn('Changed', page)
        self.assertNotIn('Else', page)
        self.assertIn(self.url, self.page(self.result.get_absolute_url()))

    def test_changes_are_restricted(self):
        grant(self.user, CeleryResult)
        grant(self.user, ObjectChange, constraints={'pk': 0})
        self.assertNotIn('/sites/', self.page(self.url).split('object_list', 1)[1])

    def test_no_tab_without_permission(self):
        grant(self.user, CeleryResult)
        self.assertNotIn(self.url, self.page(self.result.get_absolute_url()))

    def test_run_is_restricted(self):
        grant(self.user, CeleryResult, constraints={'pk': 0})
        grant(self.user, ObjectChange)
        with disable_warnings('django.request'):
            self.get(self.url, status=404)


class DeleteUnfinishedTest(PageTestCase):

    def test_delete(self):
        """A run that is deleted before its end is cancelled: its process does not continue unseen."""
        grant(self.user, CeleryResult, actions=['delete'])
        result = make_result('running')
        cancelled = []
        with self.captureOnCommitCallbacks(execute=True):
            with patch('netbox_celery.engine.sending.control._notify_workers', cancelled.extend):
                response = self.client.post(f'{result.get_absolute_url()}delete/', {'confirm': True})
        self.assertHttpStatus(response, 302)
        self.assertFalse(CeleryResult.objects.filter(pk=result.pk).exists())
        self.assertEqual([str(row[1]) for row in cancelled], [str(result.task_id)])
