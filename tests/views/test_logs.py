"""The log of a run: what a page shows, what a poll returns, and what a download contains."""
import json
from datetime import timedelta
from unittest.mock import patch

from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from dcim.models import Device, Site
from netbox_celery.models import CeleryLogEntry, CeleryResult
from netbox_celery.reading import live
from tests.factories import grant, make_log, make_result, make_worker
from tests.views.bases import PageTestCase
from utilities.testing import disable_warnings

STOP_POLLING = 286


class LogTestCase(PageTestCase):
    """A log of five lines, of an active run."""

    def setUp(self):
        super().setUp()
        grant(self.user, CeleryResult)
        self.result = make_result('running', started=timezone.now())
        self.lines = make_log(self.result, 'one', (10, 'two'), (30, 'three'), (25, 'four'), (40, 'five'))
        self.url = f'{self.result.get_absolute_url()}log/lines/'

    def state(self, result=None):
        return live.LogWindow(result or self.result).state

    def poll(self, after=0, status=200, follow=True, **params):
        """Return the answer to a poll."""
        params = {'after': after, 'state': self.state(), **params} | ({'follow': 'on'} if follow else {})
        return self.get(self.url, params, status=status, headers=self.htmx)

    def shown(self, response, result=None):
        """Return which lines of the log an answer shows."""
        page = response.content.decode() if hasattr(response, 'content') else response
        entries = CeleryLogEntry.objects.filter(result=result or self.result).order_by('pk')
        return [entry.message for entry in entries if f'data-id="{entry.pk}"' in page]

    def cursor(self, response):
        """Return the cursor in an answer."""
        page = response.content.decode()
        return int(page.split('name="after" value="')[1].split('"')[0])


class LogPageTest(LogTestCase):
    """What a page shows when it opens."""

    def test_lines_are_on_the_page(self):
        for url in (self.result.get_absolute_url(), f'{self.result.get_absolute_url()}log/'):
            with self.subTest(url):
                response = self.get(url)
                self.assertEqual(self.shown(response), ['one', 'two', 'three', 'four', 'five'])
                self.assertEqual(self.cursor(response), self.lines[-1].pk)
                self.assertIn('hx-trigger="every 1s"', response.content.decode())

    def test_finished_run_is_not_polled(self):
        self.result = make_result('completed')
        page = self.page(self.result.get_absolute_url())
        self.assertNotIn('every 1s', page)
        self.assertIn('No log entries', page)

    def test_filters_in_the_address(self):
        response = self.get(f'{self.result.get_absolute_url()}log/', {'level': 30})
        self.assertEqual(self.shown(response), ['three', 'five'])

    def test_long_log_opens_at_its_end(self):
        with patch.object(live, 'WINDOW', 2):
            response = self.get(self.result.get_absolute_url())
            self.assertEqual(self.shown(response), ['four', 'five'])
            page = response.content.decode()
            self.assertIn(f'name="before" value="{self.lines[3].pk}"', page)
            earlier = self.get(self.url, {'before': self.lines[3].pk})
            self.assertEqual(self.shown(earlier), ['two', 'three'])
            self.assertIn(f'name="before" value="{self.lines[1].pk}"', earlier.content.decode())
            first = self.get(self.url, {'before': self.lines[1].pk})
            self.assertEqual(self.shown(first), ['one'])
            self.assertIn('class="celery-log-earlier" hx-swap-oob="true" hidden', first.content.decode())

    def test_line_breaks_and_spaces_are_kept(self):
        make_log(self.result, 'first\n\tsecond   third')
        self.assertIn('<span class="celery-message">first\n\tsecond   third</span>', self.page(self.url))

    def test_escaping(self):
        xss = '<script>alert("{}")</script>'
        make_log(self.result, xss.format('message'), grouping=xss.format('group'))
        site = Site.objects.create(name=xss.format('object'), slug='xss')
        make_log(self.result, 'about', object=site)
        grant(self.user, Site)
        for url in (self.result.get_absolute_url(), self.url, f'{self.url}?after=0', f'{self.url}?q=alert'):
            with self.subTest(url):
                page = self.page(url)
                self.assertNotIn('<script>alert(', page)
                self.assertIn('group', page)
        marked = self.page(self.url, {'q': 'ALERT'})
        self.assertIn('&lt;script&gt;<mark>alert</mark>(&quot;message&quot;)', marked)
        # What is searched for comes back in the form
        self.assertNotIn(xss.format('q'), self.page(f'{self.result.get_absolute_url()}log/', {'q': xss.format('q')}))

    def test_objects(self):
        """Lines link their objects, if the reader may view them, with one query for each type."""
        visible, hidden = (Site.objects.create(name=f'{name} site', slug=name) for name in ('visible', 'hidden'))
        grant(self.user, Site, constraints={'name__startswith': 'visible'})
        for site in (visible, hidden):
            make_log(self.result, 'about it', object=site)
        page = self.page(self.url)
        self.assertIn(f'<a href="{visible.get_absolute_url()}">visible site</a>', page)
        self.assertNotIn('hidden site', page)
        with CaptureQueriesContext(connection) as few:
            self.page(self.url)
        for i in range(10):
            make_log(self.result, 'x', object=Site.objects.create(name=f'visible {i}', slug=f'visible-{i}'))
        with CaptureQueriesContext(connection) as many:
            self.page(self.url)
        self.assertEqual(len(many), len(few))

    def test_deleted_object(self):
        site = Site.objects.create(name='Gone', slug='gone')
        make_log(self.result, 'about it', object=site)
        CeleryLogEntry.objects.filter(message='about it').update(object_id=site.pk + 1000)
        self.assertIn('about it', self.page(self.url))

    def test_headings(self):
        make_log(self.result, 'core-1 a', 'core-1 b', grouping='core-1')
        make_log(self.result, 'core-2 a', grouping='core-2', attempt=2)
        page = self.page(self.url)
        self.assertEqual(page.count('data-celery-group="core-1"'), 1)
        self.assertEqual(page.count('data-celery-group="core-2"'), 1)
        self.assertIn('Attempt 2', page)
        self.assertNotIn('data-celery-group="main"', page)

    def test_group_without_a_name(self):
        """Its heading is not an empty button, which could not be chosen."""
        make_log(self.result, 'a')
        make_log(self.result, 'b', grouping='')
        page = self.page(self.url)
        self.assertIn('No group', page)
        self.assertNotIn('data-celery-group=""', page)

    def test_groups_are_suggested(self):
        make_log(self.result, 'a', 'b', grouping='core-1')
        make_log(make_result('completed'), 'c', grouping='other')
        page = self.page(f'{self.result.get_absolute_url()}log/groups/')
        self.assertIn('<option value="core-1">', page)
        self.assertIn('<option value="main">', page)
        self.assertNotIn('other', page)


class LogFilterTest(LogTestCase):

    def test_filters(self):
        make_log(self.result, 'in a group', grouping='core-1')
        for params, expected in (
            ({'level': 25}, ['three', 'four', 'five']),
            ({'grouping': 'core-1'}, ['in a group']),
            ({'q': 'F'}, ['four', 'five']),
            ({'q': 'f', 'level': 40}, ['five']),
            ({'q': '%'}, []),
        ):
            with self.subTest(params):
                self.assertEqual(self.shown(self.get(self.url, params)), expected)
                self.assertEqual(self.shown(self.poll(**params)), expected)

    def test_nothing_matches(self):
        self.assertIn('No matching entries', self.page(self.url, {'q': 'nothing'}))

    def test_cursor_passes_what_does_not_match(self):
        """A poll with a filter reads each line once."""
        self.assertEqual(self.cursor(self.poll(q='one')), self.lines[-1].pk)

    def test_invalid_filters_are_harmless(self):
        for params in (
            {'level': 'x'}, {'level': '99999999999999999999'}, {'after': 'x'}, {'after': '-1'}, {'after': '9' * 40},
            {'before': 'x'}, {'before': '²'}, {'grouping': '\x00'}, {'q': '\x00'}, {'q': 'x' * 1000},
            {'after': '0', 'shown_attempt': 'x', 'shown_grouping': '\x00'}, {'state': '\x00', 'after': '1'},
        ):
            with self.subTest(params):
                self.get(self.url, params)


class PollTest(LogTestCase):
    """A poll returns new lines, and polling ends with the run."""

    def test_new_lines_only(self):
        response = self.poll(self.lines[2].pk)
        self.assertEqual(self.shown(response), ['four', 'five'])
        after = self.cursor(response)
        self.assertEqual(self.shown(self.poll(after)), [])
        make_log(self.result, 'six')
        response = self.poll(after)
        self.assertEqual(self.shown(response), ['six'])
        self.assertNotIn('HX-Reswap', response.headers)

    def test_stops_when_the_run_has_finished(self):
        self.poll(status=200)
        CeleryResult.objects.filter(pk=self.result.pk).update(status='completed', completed=timezone.now())
        self.assertEqual(self.shown(self.poll(status=STOP_POLLING)), ['one', 'two', 'three', 'four', 'five'])

    def test_end_waits_for_the_last_line(self):
        """A page that does not follow gets every line before polling stops."""
        CeleryResult.objects.filter(pk=self.result.pk).update(status='completed', completed=timezone.now())
        with patch.object(live, 'WINDOW', 3):
            first = self.poll(follow=False, status=200)
            self.assertEqual(self.shown(first), ['one', 'two', 'three'])
            second = self.poll(self.cursor(first), follow=False, status=STOP_POLLING)
            self.assertEqual(self.shown(second), ['four', 'five'])

    def test_following_page_jumps_to_the_end(self):
        """If a log grows faster than polls can keep up, the last lines replace those shown."""
        with patch.object(live, 'WINDOW', 2):
            response = self.poll(self.lines[0].pk)
        self.assertEqual(self.shown(response), ['four', 'five'])
        self.assertEqual(response['HX-Reswap'], 'innerHTML')
        self.assertIn(f'name="before" value="{self.lines[3].pk}"', response.content.decode())

    def test_status_and_progress_are_returned(self):
        CeleryResult.objects.filter(pk=self.result.pk).update(value=3, value_max=4, step='Berlin')
        page = self.poll().content.decode()
        self.assertIn('id="celery-status" class="celery-live" hx-swap-oob="true"', page)
        for text in ('width: 75.00%', '3 of 4', 'Berlin'):
            self.assertIn(text, page)

    def test_change_of_state_returns_the_rest(self):
        """The other panels and the buttons are rendered when they have changed."""
        grant(self.user, CeleryResult, actions=['cancel', 'rerun'])
        fragments = ('celery-error', 'celery-result', 'celery-attempts', 'celery-data', 'celery-action-cancel')
        page = self.poll().content.decode()
        for fragment in fragments:
            self.assertNotIn(f'id="{fragment}"', page)
        CeleryResult.objects.filter(pk=self.result.pk).update(
            status='errored', completed=timezone.now(), error='No answer', result={'found': 3}
        )
        page = self.poll(status=STOP_POLLING).content.decode()
        for fragment in fragments:
            self.assertRegex(page, f'id="{fragment}"[^>]* hx-swap-oob="true"')
        for text in ('No answer', 'found', f'{self.result.get_absolute_url()}rerun/'):
            self.assertIn(text, page)
        self.assertNotIn(f'{self.result.get_absolute_url()}cancel/', page)

    def test_whole_page(self):
        """A page with the log only gets no panels, but a badge."""
        CeleryResult.objects.filter(pk=self.result.pk).update(status='completed', completed=timezone.now())
        page = self.poll(status=STOP_POLLING, whole_page='on').content.decode()
        self.assertIn('id="celery-log-badge"', page)
        self.assertNotIn('id="celery-status"', page)
        self.assertNotIn('id="celery-result"', page)

    def test_state(self):
        """A new attempt and a cancel are changes, too."""
        states = {
            self.state(make_result(status, **columns)) for status, columns in (
                ('running', {}), ('running', {'attempt': 2}), ('running', {'cancelled': timezone.now()}),
                ('retrying', {}), ('completed', {}), ('completed', {'cancelled': timezone.now()}),
            )
        }
        self.assertEqual(len(states), 5)

    def test_headings_across_polls(self):
        """A group that continues from poll to poll has one heading."""
        make_log(self.result, 'a', grouping='core-1')
        response = self.poll(self.lines[-1].pk)
        page = response.content.decode()
        self.assertIn('data-celery-group="core-1"', page)
        self.assertIn('name="shown_grouping" value="core-1"', page)
        make_log(self.result, 'b', grouping='core-1')
        page = self.poll(self.cursor(response), shown_grouping='core-1').content.decode()
        self.assertNotIn('data-celery-group', page)

    def test_cost(self):
        """A poll without new lines loads no large column and few rows."""
        self.poll(self.lines[-1].pk)
        with CaptureQueriesContext(connection) as context:
            self.poll(self.lines[-1].pk)
        sql = ' '.join(query['sql'] for query in context.captured_queries)
        for column in ('args', 'kwargs', 'result', 'traceback', 'data'):
            self.assertNotIn(f'"netbox_celery_celeryresult"."{column}"', sql)
        self.assertLessEqual(len([q for q in context.captured_queries if 'netbox_celery' in q['sql']]), 4)

    def test_no_cache(self):
        self.assertNotCacheable(self.poll())

    def test_worker_appears(self):
        """While the run waits, the page says if no worker can start it."""
        self.result = make_result('pending')
        self.url = f'{self.result.get_absolute_url()}log/lines/'
        self.assertIn('No worker is running', self.poll().content.decode())
        make_worker()
        self.assertIn('Waiting for a worker', self.poll().content.decode())


class LogPermissionTest(LogTestCase):
    """The log is shown to users who may view the run."""

    @property
    def urls(self):
        log = f'{self.result.get_absolute_url()}log/'
        return (
            log, self.url, f'{self.url}?after=0', f'{self.url}?before=5', f'{log}groups/', f'{log}download/',
            f'{log}download/?format=json',
        )

    def setUp(self):
        super().setUp()
        self.user.object_permissions.all().delete()

    def assertAnswers(self, code):
        for url in self.urls:
            with self.subTest(url), disable_warnings('django.request'):
                response = self.client.get(url)
                self.assertHttpStatus(response, code)
                if code != 200:
                    self.assertNotIn('five', response.content.decode())

    def test_without_permission(self):
        grant(self.user, CeleryResult, actions=['change', 'delete', 'cancel', 'rerun'])
        grant(self.user, CeleryLogEntry, Device)
        self.assertAnswers(403)

    def test_with_permission(self):
        grant(self.user, CeleryResult, constraints={'pk': self.result.pk})
        self.assertAnswers(200)

    def test_constraint_excludes_the_run(self):
        grant(self.user, CeleryResult, constraints={'pk': 0})
        self.assertAnswers(404)

    def test_session_has_expired(self):
        """The page is reloaded, instead of putting the login form into the log."""
        response = Client().get(self.url, {'after': 0}, headers=self.htmx)
        self.assertEqual((response.status_code, response['HX-Refresh'], response.content), (200, 'true', b''))
        self.assertHttpStatus(Client().get(self.url), 302)

    def test_run_is_deleted_meanwhile(self):
        grant(self.user, CeleryResult)
        url = self.url
        self.result.delete()
        with disable_warnings('django.request'):
            self.get(url, {'after': 0}, status=404, headers=self.htmx)

    def test_only_get(self):
        grant(self.user, CeleryResult)
        for url in self.urls:
            with disable_warnings('django.request'):
                self.assertHttpStatus(self.client.post(url), 405)


class DownloadTest(LogTestCase):

    def download(self, **params):
        response = self.get(f'{self.result.get_absolute_url()}log/download/', params)
        self.assertTrue(response.streaming)
        self.assertNotCacheable(response)
        return response, b''.join(response).decode()

    def test_text(self):
        make_log(self.result, 'first\nsecond', grouping='core-1')
        self.lines[0].created = timezone.now() - timedelta(days=1)
        self.lines[0].save()
        response, text = self.download()
        self.assertEqual(response['Content-Type'], 'text/plain; charset=utf-8')
        self.assertEqual(response['Content-Disposition'], f'attachment; filename="hello-{self.result.pk}.log"')
        lines = text.splitlines()
        self.assertEqual(len(lines), 7)
        self.assertRegex(lines[0], r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 INFO     one$')
        self.assertTrue(lines[2].endswith(' WARNING  three'))
        self.assertTrue(lines[5].endswith(' INFO     [core-1] first'))
        self.assertEqual(lines[6], 'second')

    def test_json(self):
        site = Site.objects.create(name='Site 1', slug='site-1')
        make_log(self.result, 'ünïcödé "quoted"', object=site)
        response, text = self.download(format='json')
        self.assertEqual(response['Content-Type'], 'application/json')
        data = json.loads(text)
        self.assertEqual([line['message'] for line in data[:2]], ['one', 'two'])
        self.assertEqual(data[5] | {'created': ''}, {
            'id': data[5]['id'], 'created': '', 'attempt': 1, 'level': {'value': 20, 'label': 'Info'},
            'grouping': 'main', 'message': 'ünïcödé "quoted"', 'object_type': 'dcim.site', 'object_id': site.pk,
        })

    def test_empty(self):
        self.result = make_result('completed')
        self.assertEqual(self.download()[1], '')
        self.assertEqual(json.loads(self.download(format='json')[1]), [])

    def test_chunks(self):
        """However long the log is, only a chunk of it is in memory."""
        with patch('netbox_celery.views.logs.CHUNK', 2):
            self.assertEqual(len(json.loads(self.download(format='json')[1])), 5)
            self.assertEqual(len(self.download()[1].splitlines()), 5)

    def test_name_of_the_file(self):
        self.result.name = 'näme: with/../"quotes"\r\n'
        self.result.save()
        response, __ = self.download()
        self.assertEqual(
            response['Content-Disposition'], f'attachment; filename="name-withquotes-{self.result.pk}.log"'
        )
