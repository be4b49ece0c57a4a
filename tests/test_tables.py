"""Lists can be ordered by the columns that offer it, and can show and export all columns."""
from datetime import timedelta

from django.test import RequestFactory
from django.utils import timezone

from dcim.models import Site
from netbox_celery.tables import CeleryResultTable, CeleryScheduleTable, CeleryTaskTable, CeleryWorkerTable
from tests.factories import make_result, make_schedule, make_task, make_worker
from utilities.testing import TableTestCases


class FilledTableMixin:
    """A table with rows."""

    def make_rows(self):
        raise NotImplementedError

    def test_every_column_renders(self):
        self.make_rows()
        self.user.is_superuser = True
        request = RequestFactory().get('/')
        request.user = self.user
        for __, queryset in self.get_queryset_sources():
            table = self.table(queryset)
            for column in table.columns:
                table.columns.show(column.name)
            self.assertIn('</table>', table.as_html(request))
            self.assertEqual(len(list(table.as_values())), len(queryset) + 1)


class CeleryResultTableTest(FilledTableMixin, TableTestCases.StandardTableTestCase):
    table = CeleryResultTable

    def make_rows(self):
        site = Site.objects.create(name='Site 1', slug='site-1')
        make_result('running', user=self.user, object=site, value=1, value_max=3, started=timezone.now())
        make_result('errored', reason='expired', error='Why', started=timezone.now() - timedelta(days=1))
        make_result('pending', schedule=make_schedule(), concurrency_key='k', stale_after=timezone.now())

    def test_names_break(self):
        """A long name does not push the status out of view."""
        table = self.table([make_result('completed', name='a:b')])
        self.assertIn('>a:<wbr>b</a>', table.rows[0].get_cell('name'))


class CeleryTaskTableTest(FilledTableMixin, TableTestCases.StandardTableTestCase):
    table = CeleryTaskTable

    def make_rows(self):
        make_task()
        make_result('completed')
        make_task('plugin:never', enabled=False, present=False)


class CeleryScheduleTableTest(FilledTableMixin, TableTestCases.StandardTableTestCase):
    table = CeleryScheduleTable

    def make_rows(self):
        site = Site.objects.create(name='Site 1', slug='site-1')
        make_result('completed', schedule=make_schedule(owner=self.user, object=site))
        make_schedule('Never', enabled=False, kind='once', at=timezone.now(), origin='code')

    def test_names_break(self):
        """Between their parts, but not in an export; HTML in a name is escaped."""
        table = self.table([make_schedule('a:b<i>')])
        self.assertIn('>a:<wbr>b&lt;i&gt;</a>', table.rows[0].get_cell('name'))
        self.assertIn('a:b<i>', list(table.as_values())[1])


class CeleryWorkerTableTest(FilledTableMixin, TableTestCases.StandardTableTestCase):
    table = CeleryWorkerTable

    def make_rows(self):
        make_worker()
        make_worker(stopped=timezone.now(), queues=[])
