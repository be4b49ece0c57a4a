"""Counts of long histories, and whose log lines a user may read."""
from unittest.mock import patch

from django.db import connection
from django.test import TestCase
from django.test.utils import CaptureQueriesContext

from netbox_celery import querysets
from netbox_celery.models import CeleryLogEntry, CeleryResult
from netbox_celery.querysets import Estimate
from tests.factories import grant, make_log, make_result
from users.models import User


class BoundedCountTest(TestCase):

    @classmethod
    def setUpTestData(cls):
        CeleryResult.objects.bulk_create([
            CeleryResult(task_id=f'00000000-0000-0000-0000-{number:012}', celery_name='x', name='x')
            for number in range(30)
        ])
        with connection.cursor() as cursor:
            cursor.execute('ANALYZE netbox_celery_celeryresult')

    def test_exact_below_the_bound(self):
        """Small tables, and filters with few matches, are counted."""
        queryset = CeleryResult.objects.with_bounded_count()
        self.assertEqual(queryset.count(), 30)
        self.assertNotIsInstance(queryset.count(), Estimate)
        self.assertEqual(queryset.filter(task_id__in=['00000000-0000-0000-0000-000000000001']).count(), 1)
        self.assertEqual(queryset.none().count(), 0)

    def test_estimate_above_the_bound(self):
        """PostgreSQL counts up to the bound, and estimates the rest."""
        with patch.object(querysets, 'EXACT_UP_TO', 10), CaptureQueriesContext(connection) as queries:
            count = CeleryResult.objects.with_bounded_count().order_by('name').count()
        self.assertIsInstance(count, Estimate)
        self.assertEqual(count, 30)
        self.assertIn('LIMIT 11', queries[0]['sql'])
        self.assertNotIn('ORDER BY', queries[0]['sql'])
        self.assertIn('EXPLAIN', queries[1]['sql'])

    def test_estimate_is_not_below_what_was_counted(self):
        with patch.object(querysets, 'EXACT_UP_TO', 10):
            queryset = CeleryResult.objects.with_bounded_count()
            with patch.object(type(queryset), '_estimate', return_value=3):
                self.assertEqual(queryset.count(), 11)

    def test_bound_is_kept_by_filters_and_restrict(self):
        user = User.objects.create_user(username='alice')
        grant(user, CeleryResult, constraints={'name': 'x'})
        with patch.object(querysets, 'EXACT_UP_TO', 10):
            queryset = CeleryResult.objects.with_bounded_count().restrict(user).filter(name='x').order_by('pk')
            self.assertIsInstance(queryset.count(), Estimate)

    def test_count_is_exact_by_default(self):
        """NetBox compares counts to check what a user may do."""
        with patch.object(querysets, 'EXACT_UP_TO', 10):
            self.assertNotIsInstance(CeleryResult.objects.count(), Estimate)
            self.assertEqual(CeleryResult.objects.filter(name='x').count(), 30)

    def test_slices_and_loaded_rows_are_counted(self):
        with patch.object(querysets, 'EXACT_UP_TO', 10):
            queryset = CeleryResult.objects.with_bounded_count()
            self.assertEqual(queryset[5:25].count(), 20)
            self.assertEqual(len(queryset), 30)
            self.assertNotIsInstance(queryset.count(), Estimate)


class LogEntryRestrictTest(TestCase):
    """To read lines of a log, users must be allowed to view lines, and to view the run."""

    @classmethod
    def setUpTestData(cls):
        cls.user = User.objects.create_user(username='alice')
        cls.mine, cls.others = make_result(user=cls.user), make_result()
        cls.line, = make_log(cls.mine, 'mine')
        cls.secret, = make_log(cls.others, 'secret')

    def visible(self):
        # Permissions are cached on the user
        return list(CeleryLogEntry.objects.restrict(User.objects.get(pk=self.user.pk), 'view'))

    def test_neither(self):
        self.assertEqual(self.visible(), [])

    def test_lines_without_runs(self):
        grant(self.user, CeleryLogEntry)
        self.assertEqual(self.visible(), [])

    def test_runs_without_lines(self):
        grant(self.user, CeleryResult)
        self.assertEqual(self.visible(), [])

    def test_both(self):
        grant(self.user, CeleryLogEntry, CeleryResult)
        self.assertEqual(self.visible(), [self.line, self.secret])

    def test_constraint_on_runs(self):
        grant(self.user, CeleryLogEntry)
        grant(self.user, CeleryResult, constraints={'user': '$user'})
        self.assertEqual(self.visible(), [self.line])

    def test_constraint_on_lines(self):
        grant(self.user, CeleryLogEntry, constraints={'message': 'secret'})
        grant(self.user, CeleryResult)
        self.assertEqual(self.visible(), [self.secret])

    def test_superuser(self):
        admin = User.objects.create_superuser(username='admin')
        self.assertEqual(CeleryLogEntry.objects.restrict(admin, 'view').count(), 2)
