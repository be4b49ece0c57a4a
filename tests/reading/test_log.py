"""Following a log by its cursor: each line once, in order, and then the end."""
from unittest.mock import patch

from django.db import connection
from django.test import TestCase
from django.test.utils import CaptureQueriesContext

from dcim.models import Site
from netbox_celery.models import CeleryResult
from netbox_celery.reading import log as reader
from netbox_celery.reading.log import LogFilter, log_lines, read_log
from tests.factories import make_log, make_result


class ReadLogTest(TestCase):

    @classmethod
    def setUpTestData(cls):
        cls.result = make_result('running', value=1, value_max=4)
        cls.other = make_result('running')

    def read(self, **options):
        return read_log(CeleryResult.objects.all(), self.result.pk, **options)

    def messages(self, page):
        return [entry.message for entry in page.entries]

    def finish(self):
        CeleryResult.objects.filter(pk=self.result.pk).update(status='completed')

    def test_empty(self):
        page = self.read()
        self.assertEqual((page.entries, page.next_after, page.finished), ([], 0, False))
        self.assertEqual(self.read(after=7).next_after, 7)

    def test_only_new_lines_of_this_run(self):
        make_log(self.result, 'one', 'two')
        make_log(self.other, 'other')
        page = self.read()
        self.assertEqual(self.messages(page), ['one', 'two'])

        make_log(self.result, 'three')
        page = self.read(after=page.next_after)
        self.assertEqual(self.messages(page), ['three'])
        self.assertEqual(self.messages(self.read(after=page.next_after)), [])

    def test_pages(self):
        """A long log is read in pages; only the last one is the end."""
        make_log(self.result, *'abcde')
        self.finish()
        seen, finished, after = [], [], 0
        for _ in range(3):
            page = self.read(after=after, limit=2)
            seen.append(self.messages(page))
            finished.append((page.has_more, page.finished))
            after = page.next_after
        self.assertEqual(seen, [['a', 'b'], ['c', 'd'], ['e']])
        self.assertEqual(finished, [(True, False), (True, False), (False, True)])

    def test_full_last_page_is_the_end(self):
        make_log(self.result, 'a', 'b')
        self.finish()
        self.assertTrue(self.read(limit=2).finished)

    def test_offset(self):
        make_log(self.result, *'abcde')
        page = self.read(offset=2, limit=2)
        self.assertEqual((self.messages(page), page.has_more), (['c', 'd'], True))

    def test_status_is_read_before_the_lines(self):
        """If a line and the end come while the log is read, the line is shown, and the end with the next poll."""
        original = reader.log_lines

        def meanwhile(*args):
            make_log(self.result, 'last')
            self.finish()
            return original(*args)

        with patch.object(reader, 'log_lines', meanwhile):
            page = self.read()
        self.assertEqual((self.messages(page), page.finished, page.result.status), (['last'], False, 'running'))
        self.assertTrue(self.read(after=page.next_after).finished)

    def test_filters(self):
        make_log(self.result, 'info', (30, 'Warning'), (40, 'failure'))
        make_log(self.result, 'grouped', grouping='sites')
        for wanted, expected in (
            (LogFilter(levels=(20, 40)), ['info', 'failure', 'grouped']),
            (LogFilter(min_level=30), ['Warning', 'failure']),
            (LogFilter(groupings=('sites',)), ['grouped']),
            (LogFilter(search='WARN'), ['Warning']),
            (LogFilter(min_level=0), ['info', 'Warning', 'failure', 'grouped']),
            (LogFilter(levels=(30,), search='x'), []),
        ):
            with self.subTest(wanted):
                self.assertEqual(self.messages(self.read(wanted=wanted)), expected)
                self.assertEqual([line.message for line in log_lines(self.result.pk, wanted=wanted)], expected)

    def test_filter_moves_the_cursor_past_what_does_not_match(self):
        """Lines that do not match are read only once."""
        lines = make_log(self.result, (30, 'warning'), 'info', 'info')
        page = self.read(wanted=LogFilter(min_level=30))
        self.assertEqual(page.next_after, lines[-1].pk)

        # Where more is to come, the cursor stays at the last line shown
        make_log(self.result, (30, 'a'), 'info', (30, 'b'), 'info')
        page = self.read(after=page.next_after, limit=1, wanted=LogFilter(min_level=30))
        self.assertEqual((self.messages(page), page.has_more), (['a'], True))
        page = self.read(after=page.next_after, limit=1, wanted=LogFilter(min_level=30))
        self.assertEqual((self.messages(page), page.has_more), (['b'], False))

    def test_run_that_may_not_be_seen(self):
        with self.assertRaises(CeleryResult.DoesNotExist):
            read_log(CeleryResult.objects.none(), self.result.pk)

    def test_cost(self):
        """Two queries a poll, on the index and without large columns; one more for each type of object."""
        make_log(self.result, 'one')
        with CaptureQueriesContext(connection) as queries:
            page = self.read()
            self.assertEqual(page.result.percentage, 25)
        self.assertEqual(len(queries), 2)
        for column in ('args', 'traceback', 'message', 'attempts'):
            self.assertNotIn(f'"{column}"', queries[0]['sql'])

        for number in range(3):
            site = Site.objects.create(name=f'Site {number}', slug=f'site-{number}')
            make_log(self.result, f'{number}', object=site)
        with self.assertNumQueries(3):
            objects = [str(entry.object) for entry in self.read(after=page.next_after).entries]
        self.assertEqual(objects, ['Site 0', 'Site 1', 'Site 2'])
