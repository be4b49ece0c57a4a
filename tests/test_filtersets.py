"""Each model field has a filter, and filters find what they should."""
from datetime import timedelta
from types import SimpleNamespace
from uuid import UUID, uuid4

from django.contrib.contenttypes.models import ContentType
from django.test import TestCase
from django.utils import timezone

from core.models import ObjectChange
from dcim.models import Site
from netbox_celery.filtersets import (
    CeleryLogEntryFilterSet,
    CeleryResultFilterSet,
    CeleryScheduleFilterSet,
    CeleryTaskFilterSet,
    CeleryWorkerFilterSet,
)
from netbox_celery.models import CeleryLogEntry, CeleryResult, CelerySchedule, CeleryTask, CeleryWorker
from tests.factories import grant, make_log, make_result, make_schedule, make_task, make_worker
from users.models import User
from utilities.testing.filtersets import BaseFilterSetTestMixin, ChangeLoggedFilterSetTestMixin


class FilterAssertions:

    def assertFinds(self, params, *expected):
        """The filters find these rows and no others; a list is a repeated URL parameter."""
        filterset = self.filterset(params, self.queryset)
        self.assertTrue(filterset.is_valid(), filterset.errors)
        self.assertEqual({row.pk for row in filterset.qs}, {row.pk for row in expected})

    def assertRejected(self, params):
        """REST answers 400, and a list without strict filters is empty: an invalid filter is not ignored."""
        self.assertFalse(self.filterset(params, self.queryset).is_valid())
        self.assertTrue(self.queryset.exists())
        self.assertQuerySetEqual(self.filterset(params, self.queryset).qs, [])


class CeleryResultFilterSetTest(FilterAssertions, TestCase, ChangeLoggedFilterSetTestMixin):
    queryset = CeleryResult.objects.all()
    filterset = CeleryResultFilterSet
    # Data of tasks, and what only the engine uses
    ignore_fields = (
        'args', 'kwargs', 'options', 'data', 'result', 'traceback', 'attempts', 'message', 'holder', 'claims',
        'exact_call', 'exact_result', 'nesting', 'in_backend', 'concurrency_slot', 'concurrency_limit',
        # NetBox's own class of generic foreign keys is passed over, but no subclass of it
        'object',
    )

    @classmethod
    def setUpTestData(cls):
        cls.now = timezone.now().replace(microsecond=0)
        cls.site = Site.objects.create(name='Site 1', slug='site-1')
        cls.user = User.objects.create_user(username='alice')
        cls.root, cls.group = uuid4(), uuid4()
        cls.running = make_result(
            'running', celery_name='plugin_a:backup', name='Backup', user=cls.user, queue='slow', worker='celery@one',
            object_type=ContentType.objects.get_for_model(Site), object_id=cls.site.pk, value=10, value_max=100,
            step='Site 1', attempt=2, started=cls.now
        )
        cls.failed = make_result(
            'errored', celery_name='plugin_a:audit', name='Audit', reason='time_limit', error='Took too long',
            queue='celery', worker='celery@two', parent_id=uuid4(), root_id=cls.root, group_id=cls.group,
            request_id=uuid4(), attempt=1, started=cls.now - timedelta(hours=2),
            completed=cls.now - timedelta(hours=1)
        )
        cls.scheduled = make_result(
            'scheduled', celery_name='plugin_b:report', name='Report', queue='celery', root_id=cls.root,
            scheduled=cls.now + timedelta(hours=1), expires=cls.now + timedelta(hours=2), sent=cls.now
        )
        cls.revoked = make_result('revoked', celery_name='plugin_b:report', name='Report', cancelled=cls.now)

    def test_search(self):
        self.assertFinds({'q': 'rep'}, self.scheduled, self.revoked)
        self.assertFinds({'q': 'PLUGIN_A'}, self.running, self.failed)
        self.assertFinds({'q': 'too long'}, self.failed)
        self.assertFinds({'q': str(self.failed.task_id)}, self.failed)
        self.assertFinds({'q': f' {self.failed.task_id.hex.upper()} '}, self.failed)
        self.assertFinds({'q': '  '}, self.running, self.failed, self.scheduled, self.revoked)

    def test_status(self):
        self.assertFinds({'status': ['running', 'errored']}, self.running, self.failed)
        self.assertFinds({'status__n': ['running', 'errored']}, self.scheduled, self.revoked)
        self.assertFinds({'status__ic': ['running']}, self.running)
        self.assertRejected({'status': ['idle']})

    def test_unfinished_runs_are_found_by_their_index(self):
        """Unfinished runs are found quickly among millions of finished ones."""
        for statuses, indexed in (
            (['running'], True), (['pending', 'retrying'], True), (['running', 'errored'], False), ([], False),
        ):
            query = str(self.filterset({'status': statuses}, self.queryset).qs.query)
            self.assertEqual('"completed" IS NULL' in query, indexed)
        self.assertFinds({'status': ['running', 'scheduled']}, self.running, self.scheduled)

    def test_reason(self):
        self.assertFinds({'reason': ['time_limit']}, self.failed)
        self.assertRejected({'reason': ['boredom']})

    def test_names(self):
        self.assertFinds({'celery_name': ['plugin_a:backup', 'plugin_a:audit']}, self.running, self.failed)
        self.assertFinds({'celery_name__isw': ['plugin_b']}, self.scheduled, self.revoked)
        self.assertFinds({'name': ['Audit']}, self.failed)

    def test_ids(self):
        self.assertFinds({'task_id': [str(self.running.task_id), str(self.failed.task_id)]}, self.running, self.failed)
        self.assertFinds({'task_id__isw': [str(self.failed.task_id)[:13]]}, self.failed)
        self.assertFinds({'root_id': [str(self.root)]}, self.failed, self.scheduled)
        self.assertFinds({'group_id': [str(self.group)]}, self.failed)
        self.assertFinds({'parent_id': [str(self.failed.parent_id)]}, self.failed)
        self.assertFinds({'request_id': [str(self.failed.request_id)]}, self.failed)
        self.assertFinds({'root_id': [str(UUID(int=0))]})
        for name in ('task_id', 'root_id', 'group_id', 'parent_id', 'request_id'):
            self.assertRejected({name: ['not-a-uuid']})
            self.assertRejected({f'{name}__n': ['not-a-uuid']})
        self.assertRejected({'task_id': [str(self.running.task_id), 'abc'], 'status': ['running']})

    def test_user(self):
        self.assertFinds({'user': ['alice']}, self.running)
        self.assertFinds({'user_id': [self.user.pk]}, self.running)

    def test_schedule(self):
        schedule = make_schedule('Nightly')
        CeleryResult.objects.filter(pk=self.failed.pk).update(schedule=schedule)
        self.assertFinds({'schedule': ['Nightly']}, self.failed)
        self.assertFinds({'schedule_id': [schedule.pk]}, self.failed)
        self.assertRejected({'schedule': ['Daily']})

    def test_concurrency(self):
        CeleryResult.objects.filter(pk=self.running.pk).update(concurrency_key='device:7', stale_after=self.now)
        self.assertFinds({'concurrency_key': ['device:7']}, self.running)
        self.assertFinds({'concurrency_key__isw': ['device:']}, self.running)
        self.assertFinds({'stale_after__lte': [self.now.isoformat()]}, self.running)

    def test_object(self):
        self.assertFinds({'object_type': ['dcim.site'], 'object_id': [self.site.pk]}, self.running)
        self.assertFinds({'object_type_id': [ContentType.objects.get_for_model(Site).pk]}, self.running)
        self.assertFinds({'object_type': ['dcim.device']})

    def test_where(self):
        self.assertFinds({'queue': ['celery']}, self.failed, self.scheduled)
        self.assertFinds({'worker': ['celery@one']}, self.running)
        self.assertFinds({'worker__ic': ['celery@']}, self.running, self.failed)

    def test_progress(self):
        self.assertFinds({'value__gte': [10]}, self.running)
        self.assertFinds({'value_max': [100]}, self.running)
        self.assertFinds({'step__ic': ['site']}, self.running)
        self.assertFinds({'attempt__gt': [1]}, self.running)
        self.assertFinds({'value': [10 ** 30]})
        self.assertRejected({'value': ['ten']})
        self.assertRejected({'value_max__empty': 'perhaps'})

    def test_error(self):
        self.assertFinds({'error__ic': ['LONG']}, self.failed)

    def test_times(self):
        hour_ago = (self.now - timedelta(minutes=90)).isoformat()
        self.assertFinds({'started__before': hour_ago}, self.failed)
        self.assertFinds({'started__after': hour_ago}, self.running)
        self.assertFinds({'started__gte': [hour_ago]}, self.running)
        self.assertFinds({'completed__before': self.now.isoformat()}, self.failed)
        self.assertFinds({'completed__after': hour_ago}, self.failed, self.revoked)
        self.assertFinds({'scheduled__after': self.now.isoformat()}, self.scheduled)
        self.assertFinds({'scheduled__before': self.now.isoformat()})
        self.assertFinds({'expires__gt': [self.now.isoformat()]}, self.scheduled)
        self.assertFinds({'sent': [self.now.isoformat()]}, self.scheduled)
        self.assertFinds({'cancelled__empty': False}, self.revoked)
        self.assertFinds({'created__before': (self.now - timedelta(days=1)).isoformat()})
        self.assertFinds({'created__after': (self.now - timedelta(days=1)).isoformat()}, *CeleryResult.objects.all())

    def test_changed_by_request(self):
        """`request_id` is the run's own; the request of the user who started it is in the change log."""
        request_id = uuid4()
        change = self.failed.to_objectchange('create')
        change.request_id, change.user = request_id, self.user
        change.save()
        self.assertEqual(ObjectChange.objects.count(), 1)
        self.assertFinds({'created_by_request': str(request_id)}, self.failed)

    def test_no_distinct(self):
        """A filter on the table's own columns does not make PostgreSQL sort all matching rows."""
        filterset = self.filterset({
            'celery_name': ['a', 'b'], 'status': ['running'], 'task_id': [str(uuid4())], 'error__ic': ['x'],
            'object_type': ['dcim.site'], 'user': ['alice'],
        }, self.queryset)
        self.assertTrue(filterset.is_valid(), filterset.errors)
        self.assertNotIn('DISTINCT', str(filterset.qs.query))


class CeleryLogEntryFilterSetTest(FilterAssertions, TestCase, BaseFilterSetTestMixin):
    queryset = CeleryLogEntry.objects.all()
    filterset = CeleryLogEntryFilterSet
    ignore_fields = ('object',)

    @classmethod
    def setUpTestData(cls):
        cls.site = Site.objects.create(name='Site 1', slug='site-1')
        cls.first, cls.second = make_result(), make_result()
        cls.info, = make_log(cls.first, 'Looking around')
        cls.warning, = make_log(cls.first, (30, 'No serial number'), object=cls.site, grouping='sites')
        cls.failure, = make_log(cls.second, (40, 'No answer'), attempt=2)

    def test_search(self):
        self.assertFinds({'q': 'no '}, self.warning, self.failure)
        self.assertFinds({'q': ' '}, self.info, self.warning, self.failure)
        self.assertFinds({'message__isw': ['look']}, self.info)

    def test_result(self):
        self.assertFinds({'result_id': [self.first.pk]}, self.info, self.warning)
        self.assertFinds({'task_id': [str(self.second.task_id)]}, self.failure)

    def test_level(self):
        self.assertFinds({'level': [20, 40]}, self.info, self.failure)
        self.assertFinds({'level__gte': [30]}, self.warning, self.failure)

    def test_cursor(self):
        self.assertFinds({'id__gt': [self.info.pk]}, self.warning, self.failure)

    def test_grouping_and_attempt(self):
        self.assertFinds({'grouping': ['sites']}, self.warning)
        self.assertFinds({'attempt': [2]}, self.failure)

    def test_object(self):
        self.assertFinds({'object_type': ['dcim.site'], 'object_id': [self.site.pk]}, self.warning)
        self.assertFinds({'object_type_id': [ContentType.objects.get_for_model(Site).pk]}, self.warning)

    def test_created(self):
        tomorrow = (timezone.now() + timedelta(days=1)).isoformat()
        self.assertFinds({'created__before': tomorrow}, self.info, self.warning, self.failure)
        self.assertFinds({'created__after': tomorrow})


class CeleryTaskFilterSetTest(FilterAssertions, TestCase, ChangeLoggedFilterSetTestMixin):
    queryset = CeleryTask.objects.all()
    filterset = CeleryTaskFilterSet
    ignore_fields = ('documentation', 'defaults', 'parameters')

    @classmethod
    def setUpTestData(cls):
        cls.now = timezone.now()
        cls.backup = make_task('plugin_a:backup', description='Save configurations')
        cls.audit = make_task('plugin_a:audit', description='Find gaps', enabled=False)
        cls.gone = make_task('plugin_b:gone', present=False, last_seen=cls.now - timedelta(days=1))

    def test_search(self):
        self.assertFinds({'q': 'audit'}, self.audit)
        self.assertFinds({'q': 'plugin_a'}, self.backup, self.audit)
        self.assertFinds({'q': 'config'}, self.backup)
        self.assertFinds({'q': ' '}, self.backup, self.audit, self.gone)

    def test_fields(self):
        self.assertFinds({'name': ['plugin_a:audit', 'plugin_b:gone']}, self.audit, self.gone)
        self.assertFinds({'plugin': ['plugin_b']}, self.gone)
        self.assertFinds({'description__ic': ['gaps']}, self.audit)
        self.assertFinds({'enabled': False}, self.audit)
        self.assertFinds({'present': True}, self.backup, self.audit)
        self.assertFinds({'last_seen__lt': [(self.now - timedelta(hours=1)).isoformat()]}, self.gone)

    def test_runnable(self):
        """Tasks that the user may run."""
        user = User.objects.create_user('alice')
        grant(user, CeleryTask, actions=['run'], constraints={'name': 'plugin_a:backup'})
        for value, expected in ((True, [self.backup]), (False, [self.audit, self.gone])):
            filterset = self.filterset({'runnable': value}, self.queryset, request=SimpleNamespace(user=user))
            self.assertEqual(list(filterset.qs), expected)


class CeleryScheduleFilterSetTest(FilterAssertions, TestCase, ChangeLoggedFilterSetTestMixin):
    queryset = CelerySchedule.objects.all()
    filterset = CeleryScheduleFilterSet
    ignore_fields = ('args', 'kwargs', 'options', 'object', 'start')

    @classmethod
    def setUpTestData(cls):
        cls.now = timezone.now().replace(microsecond=0)
        cls.site = Site.objects.create(name='Site 1', slug='site-1')
        cls.user = User.objects.create_user(username='alice')
        cls.backup, cls.audit = make_task('plugin_a:backup'), make_task('plugin_a:audit')
        cls.nightly = make_schedule(
            'Nightly', cls.backup, description='Save configurations', owner=cls.user, timezone='Europe/Berlin',
            queue='slow', priority=3, expires=60, object=cls.site, missed='skip', overlap='queue', missed_max=5
        )
        cls.often = make_schedule('Often', cls.audit, kind='interval', interval=60, origin='code', present=False)
        cls.once = make_schedule(
            'Once', cls.audit, kind='once', at=cls.now + timedelta(days=1), enabled=False,
            start=cls.now, end=cls.now + timedelta(days=2)
        )
        CelerySchedule.objects.filter(pk=cls.nightly.pk).update(
            next_run=cls.now + timedelta(hours=1), last_run=cls.now - timedelta(hours=1)
        )

    def test_search(self):
        self.assertFinds({'q': 'night'}, self.nightly)
        self.assertFinds({'q': 'config'}, self.nightly)
        self.assertFinds({'q': 'PLUGIN_A:audit'}, self.often, self.once)
        self.assertFinds({'q': ' '}, self.nightly, self.often, self.once)

    def test_fields(self):
        for params, *expected in (
            ({'name': ['Nightly', 'Once']}, self.nightly, self.once),
            ({'description__ic': ['save']}, self.nightly),
            ({'enabled': False}, self.once),
            ({'present': False}, self.often),
            ({'origin': ['code']}, self.often),
            ({'kind': ['interval', 'once']}, self.often, self.once),
            ({'crontab': ['0 * * * *']}, self.nightly),
            ({'timezone': ['Europe/Berlin']}, self.nightly),
            ({'interval__lt': [61]}, self.often),
            ({'queue': ['slow']}, self.nightly),
            ({'priority': [3]}, self.nightly),
            ({'expires__gte': [60]}, self.nightly),
            ({'missed': ['skip']}, self.nightly),
            ({'overlap__n': ['allow']}, self.nightly),
            ({'missed_max': [5]}, self.nightly),
            ({'at__gt': [self.now.isoformat()]}, self.once),
            ({'start__gte': [self.now.isoformat()]}, self.once),
            ({'end__gt': [self.now.isoformat()]}, self.once),
        ):
            with self.subTest(params):
                self.assertFinds(params, *expected)
        for name in ('kind', 'origin', 'missed', 'overlap'):
            self.assertRejected({name: ['never']})

    def test_task_and_owner(self):
        self.assertFinds({'task': ['plugin_a:audit']}, self.often, self.once)
        self.assertFinds({'task_id': [self.backup.pk]}, self.nightly)
        self.assertFinds({'owner': ['alice']}, self.nightly)
        self.assertFinds({'owner_id': [self.user.pk]}, self.nightly)
        self.assertFinds({'owner_id': ['null']}, self.often, self.once)

    def test_object(self):
        self.assertFinds({'object_type': ['dcim.site'], 'object_id': [self.site.pk]}, self.nightly)
        self.assertFinds({'object_type_id': [ContentType.objects.get_for_model(Site).pk]}, self.nightly)

    def test_times(self):
        soon = (self.now + timedelta(hours=2)).isoformat()
        CelerySchedule.objects.filter(pk=self.often.pk).update(next_run=self.now + timedelta(days=1))
        self.assertFinds({'next_run__before': soon}, self.nightly)
        self.assertFinds({'next_run__after': soon}, self.often)
        self.assertFinds({'last_run__before': self.now.isoformat()}, self.nightly)
        self.assertFinds({'last_run__after': self.now.isoformat()})
        self.assertFinds({'next_run__empty': True}, self.once)
        CelerySchedule.objects.filter(pk=self.once.pk).update(stopped=self.now)
        self.assertFinds({'stopped__empty': False}, self.once)
        self.assertFinds({'stopped__gte': [self.now.isoformat()]}, self.once)


class CeleryWorkerFilterSetTest(FilterAssertions, TestCase, BaseFilterSetTestMixin):
    queryset = CeleryWorker.objects.all()
    filterset = CeleryWorkerFilterSet
    ignore_fields = ('queues', 'versions')

    @classmethod
    def setUpTestData(cls):
        cls.now = timezone.now()
        cls.one = make_worker('celery@one')
        cls.two = make_worker('celery@two', pool='threads', concurrency=8, pid=99)
        cls.three = make_worker('other@two', stopped=cls.now)

    def test_search(self):
        self.assertFinds({'q': 'two'}, self.two, self.three)
        self.assertFinds({'q': 'other'}, self.three)
        self.assertFinds({'q': ' '}, self.one, self.two, self.three)

    def test_fields(self):
        self.assertFinds({'key': [str(self.one.key)]}, self.one)
        self.assertRejected({'key': ['x']})
        self.assertRejected({'pid': ['x']})
        self.assertRejected({'started__gt': ['soon']})
        for wrong in ('maybe', '1', 'None'):
            self.assertRejected({'running': wrong})
        self.assertFinds({'running': ''}, self.one, self.two, self.three)
        self.assertFinds({'name': ['celery@two']}, self.two)
        self.assertFinds({'host': ['two']}, self.two, self.three)
        self.assertFinds({'pool': ['threads']}, self.two)
        self.assertFinds({'concurrency__gt': [2]}, self.two)
        self.assertFinds({'pid': [99]}, self.two)
        self.assertFinds({'running': True}, self.one, self.two)
        self.assertFinds({'running': False}, self.three)
        self.assertFinds({'heartbeat__gt': [self.now.isoformat()]}, self.one, self.two, self.three)
