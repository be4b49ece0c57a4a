"""`schedules/`, and below `schedules/{id}/`: `run/`, `preview/` and `take-over/`."""
from datetime import datetime, timedelta
from unittest.mock import patch

from django.urls import reverse
from django.utils import timezone
from kombu.exceptions import OperationalError
from rest_framework import status

from core.models import ObjectChange
from dcim.models import Site
from netbox_celery.models import CeleryResult, CelerySchedule, CeleryTask
from tests.factories import HELLO_WORLD, grant, make_schedule, make_task
from users.constants import TOKEN_PREFIX
from users.models import Token, User
from utilities.testing import APITestCase, APIViewTestCases


class CeleryScheduleTest(APIViewTestCases.APIViewTestCase):
    model = CelerySchedule
    view_namespace = 'plugins-api:netbox_celery'
    brief_fields = ['description', 'display', 'enabled', 'id', 'name', 'next_run', 'url']
    graphql_base_name = 'celery_schedule'
    update_data = {'crontab': '30 2 * * *', 'kwargs': {'name': 'Eve'}, 'description': 'Changed'}
    bulk_update_data = {'overlap': 'skip', 'missed': 'run_all', 'missed_max': 3}
    bulk_update_invalid_data = {'overlap': 'perhaps'}
    user_permissions = ('netbox_celery.run_celerytask',)

    @classmethod
    def setUpTestData(cls):
        task = make_task()
        for name in ('A', 'B', 'C'):
            make_schedule(name)
        cls.create_data = [
            {'name': 'D', 'task': task.pk, 'crontab': '0 1 * * mon', 'timezone': 'Europe/Berlin'},
            {'name': 'E', 'task': task.pk, 'kind': 'interval', 'interval': 90, 'kwargs': {'name': 'Bob'}},
            {'name': 'F', 'task': task.pk, 'kind': 'interval', 'interval': 60, 'args': ['Bob'], 'queue': 'slow'},
        ]
        cls.bulk_create_invalid_data = [
            {'name': 'G', 'task': task.pk, 'crontab': '61 * * * *'}, *cls.create_data[1:],
        ]


class WriteTest(APITestCase):
    """What can be written of a schedule, and the answers to invalid values."""
    view_namespace = 'plugins-api:netbox_celery'
    model = CelerySchedule

    def setUp(self):
        super().setUp()
        self.task = make_task()
        grant(self.user, CelerySchedule, actions=['view', 'add', 'change', 'delete'])
        grant(self.user, CeleryTask, actions=['view', 'run'])

    def post(self, **data):
        data = {'name': 'Nightly', 'task': {'name': HELLO_WORLD}, 'crontab': '30 2 * * *', **data}
        return self.client.post(self._get_list_url(), data, format='json', **self.header)

    def patch(self, schedule, **data):
        return self.client.patch(self._get_detail_url(schedule), data, format='json', **self.header)

    def assertWrong(self, response, field, text=''):
        self.assertHttpStatus(response, status.HTTP_400_BAD_REQUEST)
        self.assertIn(field, response.json())
        self.assertIn(text, str(response.json()[field]))

    def test_unknown_queues(self):
        self.assertWrong(self.post(queue='odd'), 'queue', 'There is no queue')
        for queue in ('unacked', '_kombu.x'):
            self.assertWrong(self.post(queue=queue), 'queue', 'A queue cannot be named')
        schedule = make_schedule(owner=self.user, queue='odd')
        self.assertWrong(self.patch(schedule, queue='unacked_mutex'), 'queue', 'A queue cannot be named')
        self.assertWrong(self.patch(schedule, queue='other'), 'queue', 'Queues are: celery')
        # Fields that are not given stay; a null is written
        self.assertHttpStatus(self.patch(schedule, description='x', enabled=False), status.HTTP_200_OK)
        self.assertHttpStatus(self.patch(schedule, enabled=True), status.HTTP_200_OK)
        self.assertHttpStatus(self.patch(schedule, queue='slow'), status.HTTP_200_OK)
        self.assertHttpStatus(self.patch(schedule, queue=''), status.HTTP_200_OK)

    def test_pages_by_cursor(self):
        """NetBox's `start` is where a page starts, also for a model with a field of that name."""
        first, second = make_schedule('A'), make_schedule('B', start=timezone.now())
        response = self.client.get(f'{self._get_list_url()}?start={second.pk}&limit=1', **self.header)
        self.assertHttpStatus(response, status.HTTP_200_OK)
        self.assertEqual([row['id'] for row in response.json()['results']], [second.pk])
        response = self.client.get(f'{self._get_list_url()}?start=1&limit=1', **self.header)
        self.assertEqual([row['id'] for row in response.json()['results']], [first.pk])
        self.assertIn(f'start={second.pk}', response.json()['next'])

    def test_created(self):
        response = self.post(timezone='Europe/Berlin', kwargs={'name': 'Bob'})
        self.assertHttpStatus(response, status.HTTP_201_CREATED)
        data = response.json()
        self.assertEqual(data['owner']['username'], self.user.username)
        self.assertEqual(data['origin']['value'], 'user')
        self.assertEqual(data['in_words'], 'At 02:30 (Europe/Berlin)')
        self.assertGreater(datetime.fromisoformat(data['next_run']), timezone.now())

    def test_invalid_arguments(self):
        for arguments, field, text in (
            ({'kwargs': {'greeting': 'Hi'}}, 'kwargs', 'greeting: is not a parameter of this task'),
            ({'kwargs': {'name': 1}}, 'kwargs', 'name: must be str, not 1'),
            ({'args': ['Bob'], 'kwargs': {'name': 'Bob'}}, 'kwargs', 'given twice'),
            ({'args': ['Bob', 'Eve']}, 'kwargs', 'takes 1 positional argument, not 2'),
            ({'args': {'name': 'Bob'}}, 'args', 'must be a list'),
            ({'kwargs': ['Bob']}, 'kwargs', 'must be an object'),
            ({'kwargs': {'name': 'a\0b'}}, 'kwargs', 'unsupported values'),
        ):
            with self.subTest(arguments):
                self.assertWrong(self.post(**arguments), field, text)
        self.assertFalse(CelerySchedule.objects.exists())

    def test_invalid_times(self):
        for data, field in (
            ({'crontab': '0 25 * * *'}, 'crontab'),
            ({'crontab': ''}, 'crontab'),
            ({'kind': 'interval'}, 'interval'),
            ({'kind': 'interval', 'crontab': '', 'interval': 0}, 'interval'),
            ({'kind': 'never'}, 'kind'),
            ({'timezone': 'Mars/Olympus'}, 'timezone'),
            ({'end': '2020-01-01T00:00:00Z'}, 'end'),
            ({'kind': 'once', 'crontab': '', 'at': '2020-01-01T00:00:00Z'}, 'at'),
            ({'task': {'name': 'plugin:unknown'}}, 'task'),
        ):
            with self.subTest(data):
                self.assertWrong(self.post(**data), field)

    def test_names_are_unique(self):
        make_schedule('Nightly')
        self.assertWrong(self.post(), 'name')

    def test_read_only_fields(self):
        """Beat's columns, the source and the owner cannot be written."""
        other = User.objects.create_user('other', is_superuser=True)
        response = self.post(owner=other.pk, origin='code', next_run='2020-01-01T00:00:00Z', present=False)
        self.assertHttpStatus(response, status.HTTP_201_CREATED)
        schedule = CelerySchedule.objects.get()
        self.assertEqual((schedule.owner, schedule.origin, schedule.present), (self.user, 'user', True))
        self.assertGreater(schedule.next_run, timezone.now())
        self.assertHttpStatus(self.patch(schedule, owner=other.pk), status.HTTP_200_OK)
        schedule.refresh_from_db()
        self.assertEqual(schedule.owner, self.user)

    def test_object(self):
        site = Site.objects.create(name='Site 1', slug='site-1')
        about = {'object_type': 'dcim.site', 'object_id': site.pk}
        self.assertWrong(self.post(**about), 'object_id', 'Object not found')
        grant(self.user, Site)
        response = self.post(**about)
        self.assertHttpStatus(response, status.HTTP_201_CREATED)
        self.assertEqual(response.json()['object']['id'], site.pk)
        self.assertEqual(CelerySchedule.objects.get().object, site)

    def test_settings_and_code(self):
        """Of schedules from settings and code, only what people decide is written; they stay where they are."""
        schedule = make_schedule(origin='settings')
        for data in ({'crontab': '5 * * * *'}, {'kwargs': {'name': 'Bob'}}, {'queue': 'slow'}, {'name': 'x'}):
            with self.subTest(data):
                self.assertWrong(self.patch(schedule, **data), *data, 'is defined in Settings')
        self.assertHttpStatus(self.patch(schedule, enabled=False, overlap='skip'), status.HTTP_200_OK)
        response = self.client.delete(self._get_detail_url(schedule), **self.header)
        self.assertHttpStatus(response, status.HTTP_400_BAD_REQUEST)
        self.assertIn('would reappear', response.json()['detail'])
        CelerySchedule.objects.update(present=False)
        response = self.client.delete(self._get_detail_url(schedule), **self.header)
        self.assertHttpStatus(response, status.HTTP_204_NO_CONTENT)

    def test_change_log(self):
        schedule = CelerySchedule.objects.get(pk=self.post().json()['id'])
        self.patch(schedule, kwargs={'name': 'Eve'})
        create, update = ObjectChange.objects.order_by('pk')
        self.assertEqual((create.action, update.action, update.user), ('create', 'update', self.user))
        self.assertEqual(update.postchange_data['kwargs'], {'name': 'Eve'})

    def test_ordering_and_fields(self):
        for name, hour in (('A', 3), ('B', 1)):
            make_schedule(name, crontab=f'0 {hour} 1 1 *')
        rows = self.client.get(
            self._get_list_url(), {'ordering': 'next_run', 'fields': 'name,in_words'}, **self.header
        ).json()['results']
        self.assertEqual([(row['name'], set(row)) for row in rows], [(name, {'name', 'in_words'}) for name in 'BA'])


class PreviewTest(APITestCase):
    view_namespace = 'plugins-api:netbox_celery'
    model = CelerySchedule

    def get(self, schedule, **params):
        url = reverse('plugins-api:netbox_celery-api:celeryschedule-preview', kwargs={'pk': schedule.pk})
        return self.client.get(url, params, **self.header)

    def test_times(self):
        grant(self.user, CelerySchedule)
        schedule = make_schedule(kind='interval', interval=3600)
        data = self.get(schedule).json()
        self.assertEqual(data['in_words'], 'Every hour')
        times = [datetime.fromisoformat(text) for text in data['next_runs']]
        self.assertEqual(times, [schedule.next_run + timedelta(hours=n) for n in range(10)])
        self.assertEqual(len(self.get(schedule, count=100).json()['next_runs']), 100)
        for count in (0, 101, 'x'):
            self.assertHttpStatus(self.get(schedule, count=count), status.HTTP_400_BAD_REQUEST)

    def test_wrong_by_now(self):
        grant(self.user, CelerySchedule)
        schedule = make_schedule()
        CelerySchedule.objects.update(timezone='Gone/Away')
        response = self.get(schedule)
        self.assertHttpStatus(response, status.HTTP_400_BAD_REQUEST)
        self.assertIn('is not a valid time zone', response.json()['detail'])

    def test_permission(self):
        schedule = make_schedule()
        self.assertHttpStatus(self.get(schedule), status.HTTP_403_FORBIDDEN)
        grant(self.user, CelerySchedule, constraints={'name': 'another'})
        self.assertHttpStatus(self.get(schedule), status.HTTP_404_NOT_FOUND)


class RunTest(APITestCase):
    """`run/` needs the permissions to view the schedule and to run its task; it runs as the requesting user."""
    view_namespace = 'plugins-api:netbox_celery'
    model = CelerySchedule

    def setUp(self):
        super().setUp()
        self.schedule = make_schedule(owner=User.objects.create_user('olga'), kwargs={'name': 'Bob'}, queue='slow')

    def post(self, **header):
        url = reverse('plugins-api:netbox_celery-api:celeryschedule-run', kwargs={'pk': self.schedule.pk})
        return self.client.post(url, **(header or self.header))

    def assertRefused(self, code, **header):
        self.assertHttpStatus(self.post(**header), code)
        self.assertFalse(CeleryResult.objects.exists())

    def test_permitted(self):
        grant(self.user, CelerySchedule)
        grant(self.user, CeleryTask, actions=['run'], constraints={'name': HELLO_WORLD})
        next_run = self.schedule.next_run
        response = self.post()
        self.assertHttpStatus(response, status.HTTP_201_CREATED)
        result = CeleryResult.objects.get(pk=response.json()['id'])
        self.assertEqual((result.user, result.schedule, result.kwargs), (self.user, self.schedule, {'name': 'Bob'}))
        self.assertEqual(result.queue, 'slow')
        self.assertEqual(response.json()['schedule']['id'], self.schedule.pk)
        self.schedule.refresh_from_db()
        self.assertEqual(self.schedule.next_run, next_run)
        self.assertEqual(ObjectChange.objects.get().changed_object, result)

    def test_refused(self):
        self.assertRefused(status.HTTP_403_FORBIDDEN)
        grant(self.user, CeleryTask, actions=['view', 'run'])
        self.assertRefused(status.HTTP_403_FORBIDDEN)
        grant(self.user, CelerySchedule, constraints={'name': 'another'})
        self.assertRefused(status.HTTP_404_NOT_FOUND)

    def test_task_is_not_theirs(self):
        grant(self.user, CelerySchedule, actions=['view', 'add', 'change', 'delete'])
        grant(self.user, CeleryTask, actions=['view', 'change'])
        self.assertRefused(status.HTTP_403_FORBIDDEN)
        grant(self.user, CeleryTask, actions=['run'], constraints={'name': 'another'})
        self.assertRefused(status.HTTP_403_FORBIDDEN)

    def test_read_only_token(self):
        grant(self.user, CelerySchedule)
        grant(self.user, CeleryTask, actions=['run'])
        token = Token.objects.create(user=self.user, write_enabled=False)
        header = {'HTTP_AUTHORIZATION': f'Bearer {TOKEN_PREFIX}{token.key}.{token.token}'}
        self.assertRefused(status.HTTP_403_FORBIDDEN, **header)

    def test_as_things_stand(self):
        grant(self.user, CelerySchedule)
        grant(self.user, CeleryTask, actions=['run'])
        with patch('netbox_celery.services.schedules.CelerySchedule.run_now', side_effect=OperationalError('refused')):
            self.assertRefused(status.HTTP_503_SERVICE_UNAVAILABLE)
        CelerySchedule.objects.update(kwargs={'nobody': 1})
        self.assertRefused(status.HTTP_400_BAD_REQUEST)
        CeleryTask.objects.update(enabled=False)
        self.assertIn('is disabled', self.post().json()['detail'])


class TakeOverTest(APITestCase):
    """`take-over/` needs the permissions to change the schedule and to run its task."""
    view_namespace = 'plugins-api:netbox_celery'
    model = CelerySchedule

    def setUp(self):
        super().setUp()
        self.schedule = make_schedule(enabled=False, stopped=timezone.now())

    def post(self, **header):
        url = reverse('plugins-api:netbox_celery-api:celeryschedule-take-over', kwargs={'pk': self.schedule.pk})
        return self.client.post(url, **(header or self.header))

    def assertRefused(self, code, **header):
        self.assertHttpStatus(self.post(**header), code)
        self.schedule.refresh_from_db()
        self.assertEqual((self.schedule.owner, self.schedule.enabled), (None, False))

    def test_permitted(self):
        grant(self.user, CelerySchedule, actions=['view', 'change'], constraints={'name': 'Hello'})
        grant(self.user, CeleryTask, actions=['run'], constraints={'name': HELLO_WORLD})
        response = self.post()
        self.assertHttpStatus(response, status.HTTP_200_OK)
        data = response.json()
        self.assertEqual((data['owner']['username'], data['enabled']), (self.user.username, True))
        self.assertIsNone(data['stopped'])
        self.schedule.refresh_from_db()
        self.assertEqual((self.schedule.owner, self.schedule.enabled), (self.user, True))
        change = ObjectChange.objects.get()
        self.assertEqual((change.prechange_data['owner'], change.postchange_data['owner']), (None, self.user.pk))

    def test_refused(self):
        self.assertRefused(status.HTTP_403_FORBIDDEN)
        grant(self.user, CeleryTask, actions=['view', 'run'])
        self.assertRefused(status.HTTP_403_FORBIDDEN)
        grant(self.user, CelerySchedule, actions=['view', 'add', 'delete'])
        self.assertRefused(status.HTTP_403_FORBIDDEN)
        grant(self.user, CelerySchedule, actions=['change'], constraints={'name': 'another'})
        self.assertRefused(status.HTTP_403_FORBIDDEN)

    def test_constraints_before_and_after(self):
        """Constraints apply to the object before and after."""
        grant(self.user, CelerySchedule)
        grant(self.user, CeleryTask, actions=['view', 'run'])
        for constraints in ({'enabled': False}, {'owner': None}):
            permission = grant(self.user, CelerySchedule, actions=['change'], constraints=constraints)
            self.assertRefused(status.HTTP_403_FORBIDDEN)
            self.assertIsNotNone(self.schedule.stopped)
            permission.delete()
        self.assertFalse(ObjectChange.objects.exists())

    def test_task_is_not_theirs(self):
        grant(self.user, CelerySchedule, actions=['view', 'change'])
        grant(self.user, CeleryTask, actions=['view', 'change'])
        self.assertRefused(status.HTTP_403_FORBIDDEN)

    def test_read_only_token(self):
        grant(self.user, CelerySchedule, actions=['view', 'change'])
        grant(self.user, CeleryTask, actions=['run'])
        token = Token.objects.create(user=self.user, write_enabled=False)
        header = {'HTTP_AUTHORIZATION': f'Bearer {TOKEN_PREFIX}{token.key}.{token.token}'}
        self.assertRefused(status.HTTP_403_FORBIDDEN, **header)

    def test_never_due_again(self):
        grant(self.user, CelerySchedule, actions=['view', 'change'])
        grant(self.user, CeleryTask, actions=['run'])
        CelerySchedule.objects.update(kind='once', crontab='', at=timezone.now())
        response = self.post()
        self.assertHttpStatus(response, status.HTTP_400_BAD_REQUEST)
        self.assertIn('never be due', response.json()['at'][0])
