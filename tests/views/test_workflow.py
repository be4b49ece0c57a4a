"""The workflow of a run: its tab, its tree and timeline, and its cancel."""
from datetime import timedelta
from urllib.parse import quote
from uuid import uuid4

from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from core.models import ObjectChange
from netbox_celery.models import CeleryResult
from tests.api.test_workflow import make_chain
from tests.factories import grant, make_result
from tests.views.bases import ConfirmTestCases, PageTestCase


def make_group(count, status='completed', **columns):
    group_id = uuid4()
    return [
        make_result(status, name='part', group_id=group_id, root_id=group_id, **columns) for __ in range(count)
    ]


class WorkflowTest(PageTestCase):

    def setUp(self):
        super().setUp()
        grant(self.user, CeleryResult)

    def show(self, result, data=None, **kwargs):
        return self.page(f'{result.get_absolute_url()}workflow/', data, **kwargs)

    def test_tab(self):
        """There is a tab if there is a workflow."""
        self.assertNotIn('/workflow/', self.page(make_result().get_absolute_url()))
        runs = make_chain(2)
        for run in runs:
            self.assertIn(f'{run.get_absolute_url()}workflow/', self.page(run.get_absolute_url()))

    def test_tree(self):
        runs = make_chain(3)
        page = self.show(runs[1])
        for run in runs:
            self.assertIn(f'href="{run.get_absolute_url()}"', page)
        self.assertEqual(page.count('Completed'), 3)

    def test_timeline(self):
        """Bars for the time that a run waited, and for each of its attempts."""
        begin = timezone.now() - timedelta(seconds=100)
        attempts = [
            {'number': 1, 'started': (begin + timedelta(seconds=10)).isoformat(),
             'ended': (begin + timedelta(seconds=30)).isoformat(), 'worker': 'w', 'error': 'x'},
            {'number': 2, 'started': (begin + timedelta(seconds=50)).isoformat(),
             'ended': (begin + timedelta(seconds=100)).isoformat(), 'worker': 'w', 'error': ''},
        ]
        first, __ = make_chain(2, attempts=attempts, attempt=2, started=begin, completed=begin + timedelta(seconds=100))
        CeleryResult.objects.update(created=begin)
        page = self.show(first)
        for bar in (
            'celery-bar-wait" style="left: 0.000%; width: 10.000%"',
            'celery-bar-retrying" style="left: 10.000%; width: 20.000%"',
            'celery-bar-wait" style="left: 30.000%; width: 20.000%"',
            'celery-bar-completed" style="left: 50.000%; width: 50.000%"',
        ):
            self.assertEqual(page.count(bar), 2)
        self.assertIn('attempt 2', page)

    def test_timeline_of_a_used_id(self):
        """An earlier call with the ID is in the history of the run, but not in its timeline."""
        begin = timezone.now() - timedelta(seconds=100)
        attempts = [
            {'number': 1, 'started': (begin - timedelta(hours=2)).isoformat(),
             'ended': (begin - timedelta(hours=1)).isoformat(), 'worker': 'w', 'error': ''},
            {'number': 1, 'started': (begin + timedelta(seconds=50)).isoformat(),
             'ended': (begin + timedelta(seconds=100)).isoformat(), 'worker': 'w', 'error': ''},
        ]
        first, __ = make_chain(2, attempts=attempts, attempt=1, started=begin, completed=begin + timedelta(seconds=100))
        CeleryResult.objects.update(created=begin)
        page = self.show(first)
        self.assertEqual(page.count('celery-bar-wait" style="left: 0.000%; width: 50.000%"'), 2)
        self.assertEqual(page.count('celery-bar-completed" style="left: 50.000%; width: 50.000%"'), 2)
        self.assertNotIn('celery-bar-retrying', page)

    def test_groups_are_folded(self):
        """Hundreds of parts are one line, which the URL unfolds; what follows them is always shown."""
        parts = make_group(500)
        body = make_result(name='body', root_id=parts[0].root_id, parent_id=parts[7].task_id)
        page = self.show(body)
        self.assertIn('500 Completed', page)
        self.assertIn('body', page)
        self.assertNotIn(f'href="{parts[0].get_absolute_url()}"', page)
        self.assertLess(len(page), 120_000)

        opened = self.show(body, {'open': str(parts[0].group_id)})
        self.assertIn(f'href="{parts[0].get_absolute_url()}"', opened)
        self.assertNotIn(f'href="{parts[499].get_absolute_url()}"', opened)
        self.assertRegex(opened, r'Show \d+ more')
        self.assertIn(parts[499].get_absolute_url(), self.show(body, {'open': str(parts[0].group_id), 'limit': 600}))

    def test_long_chain(self):
        runs = make_chain(500)
        page = self.show(runs[0])
        self.assertIn('step 0', page)
        self.assertRegex(page, r'Show \d+ more')
        self.assertNotIn('step 499', page)

    def test_queries(self):
        """However many runs there are, the number of queries is the same."""
        def count(parts):
            runs = make_group(parts)
            with CaptureQueriesContext(connection) as context:
                self.show(runs[0], {'open': str(runs[0].group_id)})
            return len(context)

        count(2)
        self.assertEqual(count(3), count(50))

    def test_live(self):
        """It is polled until its end."""
        runs = make_chain(2, status='running')
        part = self.show(runs[0], headers=self.htmx)
        self.assertNotIn('<html', part)
        self.assertIn('every 2s', part)
        CeleryResult.objects.update(status='completed', completed=timezone.now())
        self.assertNotIn('every 2s', self.show(runs[0], headers=self.htmx))

    def test_hidden(self):
        from users.models import ObjectPermission
        runs = make_chain(3)
        ObjectPermission.objects.all().delete()
        grant(self.user, CeleryResult, constraints={'pk__in': [runs[0].pk, runs[2].pk]})
        page = self.show(runs[0])
        self.assertIn('step 2', page)
        self.assertNotIn('step 1', page)
        self.assertIn('1 run hidden (no permission)', page)

    def test_escaping(self):
        runs = make_chain(2, error='"><script>alert(1)</script>')
        CeleryResult.objects.update(name='<script>alert(2)</script>')
        self.assertNotIn('<script>alert(', self.show(runs[0]))

    def test_nothing_to_poll_any_more(self):
        """If the session has ended, or the run was deleted, the page is reloaded instead of embedding a login form."""
        runs = make_chain(2, status='running')
        url = f'{runs[0].get_absolute_url()}workflow/'
        runs[0].delete()
        gone = self.get(url, headers=self.htmx)
        self.client.logout()
        anonymous = self.get(url, headers=self.htmx)
        for response in (gone, anonymous):
            self.assertEqual((response['HX-Refresh'], response.content), ('true', b''))
        self.get(url, status=302)

    def test_strange_addresses(self):
        runs = make_chain(2)
        for data in ({'open': 'x"><script>', 'limit': 'x'}, {'open': ',,', 'limit': '-1'}, {'limit': '9' * 30}):
            self.assertNotIn('x"><script>', self.show(runs[0], data))

    def test_button(self):
        runs = make_chain(2, status='pending')
        self.assertNotIn('cancel-workflow', self.show(runs[0]))
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        # After a cancel the user wants to see its effect, and what was unfolded
        address = quote(f'{runs[0].get_absolute_url()}workflow/?open=a', safe='')
        self.assertIn(f'cancel-workflow/?return_url={address}"', self.show(runs[0], {'open': 'a'}))


class CancelWorkflowTest(ConfirmTestCases.ConfirmTestCase):
    model = CeleryResult
    action = 'cancel'

    def setUp(self):
        super().setUp()
        self.url = f'{self.obj.get_absolute_url()}cancel-workflow/'

    def make_object(self):
        self.first, self.second = make_chain(2, status='pending')
        return self.second

    def assertDone(self, obj, response):
        self.assertEqual(CeleryResult.objects.get(pk=obj.pk).status, 'revoked')
        self.assertIn(obj.pk, [change.changed_object_id for change in ObjectChange.objects.all()])

    def assertNotDone(self, obj):
        self.assertEqual(set(CeleryResult.objects.values_list('status', flat=True)), {'pending'})

    def test_all(self):
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        self.client.post(self.url)
        self.assertEqual(set(CeleryResult.objects.values_list('status', flat=True)), {'revoked'})
