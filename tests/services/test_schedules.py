"""Who may create and change schedules, and as whom their runs act, however they are changed."""
from functools import partial
from uuid import uuid4

from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied, ValidationError
from django.urls import reverse
from django.utils import timezone

from dcim.models import Site
from netbox_celery.models import CelerySchedule, CeleryTask
from netbox_celery.services import schedules as scheduling
from tests.factories import HELLO_WORLD, grant, make_result, make_schedule, make_task
from tests.views.bases import PageTestCase
from users.constants import TOKEN_PREFIX
from users.models import Token, User
from utilities.testing import disable_warnings

LIST = '/plugins/celery/schedules/'


class WaysMixin:
    """The ways to create and to change a schedule. Each returns the answer; the effect is looked up."""

    def setUp(self):
        super().setUp()
        token = Token.objects.create(user=self.user)
        self.rest_client = {'HTTP_AUTHORIZATION': f'Bearer {TOKEN_PREFIX}{token.key}.{token.token}'}
        self.task = make_task()
        self.other_task = make_task('plugin:other')

    def rest(self, method, path, data):
        with disable_warnings('django.request'):
            return getattr(self.client, method)(
                f'/api{LIST}{path}', data, content_type='application/json', **self.rest_client
            )

    def form_data(self, schedule=None, **changes):
        row = {
            'name': f'made-{uuid4()}', 'enabled': 'on', 'kind': 'crontab', 'crontab': '0 * * * *', 'timezone': 'UTC',
            'task': self.task.pk, 'arguments_as': 'json', 'args': '[]', 'kwargs': '{}', 'missed': 'run_once',
            'missed_max': 10, 'overlap': 'allow',
        }
        if schedule is not None:
            row |= {'name': schedule.name, 'task': schedule.task_id, 'enabled': 'on' if schedule.enabled else ''}
        for name, value in changes.items():
            row[name] = {True: 'on', False: ''}.get(value, value) if isinstance(value, bool) else value
        return row

    def make_by_form(self, **values):
        return self.client.post(f'{LIST}add/', self.form_data(**values))

    def make_by_rest(self, **values):
        row = {'name': f'made-{uuid4()}', 'task': self.task.pk, 'crontab': '0 * * * *'}
        return self.rest('post', '', row | values)

    def make_by_import(self, **values):
        row = {'name': f'made-{uuid4()}', 'task': CeleryTask.objects.get(pk=values.pop('task', self.task.pk)).name,
               'crontab': '0 * * * *', **values}
        return self.import_(row)

    def import_(self, row):
        return self.client.post(f'{LIST}import/', {
            'data': ','.join(row) + '\n' + ','.join(map(str, row.values())), 'format': 'csv', 'csv_delimiter': ',',
        })

    def change_by_form(self, schedule, **changes):
        return self.client.post(f'{LIST}{schedule.pk}/edit/', self.form_data(schedule, **changes))

    def change_by_rest(self, schedule, **changes):
        return self.rest('patch', f'{schedule.pk}/', changes)

    def change_by_bulk_rest(self, schedule, **changes):
        return self.rest('patch', '', [{'id': schedule.pk, **changes}])

    def change_by_bulk_edit(self, schedule, **changes):
        changes = {name: {True: 2, False: 3}[value] if isinstance(value, bool) else value
                   for name, value in changes.items()}
        return self.client.post(f'{LIST}edit/', {'pk': [schedule.pk], '_apply': True, **changes})

    def change_by_import(self, schedule, **changes):
        return self.import_({'id': schedule.pk, **changes})

    def change_by_rename(self, schedule, name):
        return self.client.post(f'{LIST}rename/', {
            'pk': [schedule.pk], 'find': '.+', 'replace': name, 'use_regex': 'on', '_apply': '1',
        })

    MAKING = ('make_by_form', 'make_by_rest', 'make_by_import')
    CHANGING = ('change_by_form', 'change_by_rest', 'change_by_bulk_rest', 'change_by_bulk_edit', 'change_by_import')

    def each(self, ways):
        for way in ways:
            with self.subTest(way):
                yield getattr(self, way)


class MakeTest(WaysMixin, PageTestCase):

    def setUp(self):
        super().setUp()
        grant(self.user, CelerySchedule, actions=['view', 'add'])
        grant(self.user, CeleryTask)

    def test_without_run(self):
        for make in self.each(self.MAKING):
            make()
            self.assertFalse(CelerySchedule.objects.exists())

    def test_other_permissions_on_the_task_do_not_help(self):
        grant(self.user, CeleryTask, actions=['view', 'add', 'change', 'delete'])
        for make in self.each(self.MAKING):
            make()
            self.assertFalse(CelerySchedule.objects.exists())

    def test_constraints(self):
        grant(self.user, CeleryTask, actions=['run'], constraints={'name': HELLO_WORLD})
        for make in self.each(self.MAKING):
            make(task=self.other_task.pk)
            self.assertFalse(CelerySchedule.objects.exists())
            make()
            schedule = CelerySchedule.objects.get()
            self.assertEqual((schedule.owner, schedule.task), (self.user, self.task))
            schedule.delete()

    def test_run_alone_does_not_help(self):
        """Schedules have their own permissions."""
        self.user.object_permissions.all().delete()
        grant(self.user, CelerySchedule)
        grant(self.user, CeleryTask, actions=['view', 'run'])
        with disable_warnings('django.request'):
            for make in self.each(self.MAKING):
                self.assertHttpStatus(make(), 403)
                self.assertFalse(CelerySchedule.objects.exists())

    def test_owner_is_the_requesting_user(self):
        """Whatever the request gives as owner."""
        boss = User.objects.create_superuser('boss')
        grant(self.user, CeleryTask, actions=['run'])
        for make in self.each(('make_by_form', 'make_by_rest')):
            make(owner=boss.pk)
            schedule = CelerySchedule.objects.get()
            self.assertEqual(schedule.owner, self.user)
            schedule.delete()
        self.make_by_import(owner=boss.pk)  # there is no such column
        self.assertFalse(CelerySchedule.objects.exists())

    def test_reason(self):
        """A user without permission gets the reason."""
        self.assertIn('You do not have permission to run the task.', self.make_by_form().content.decode())
        self.assertIn('You do not have permission to run the task.', self.make_by_import().content.decode())
        response = self.make_by_rest()
        self.assertHttpStatus(response, 403)
        self.assertIn('You do not have permission to run the task.', response.json()['detail'])

    def test_parameters_of_hidden_tasks_stay_hidden(self):
        """Neither the form nor an error shows parameters of a task that the user may not view, or not run."""
        self.user.object_permissions.all().delete()
        grant(self.user, CelerySchedule, actions=['view', 'add'])
        CeleryTask.objects.update(parameters=[
            {'name': 'secretive', 'kind': 'keyword_only', 'annotation': '', 'required': True}
        ])
        for page in (
            self.page(f'{LIST}add/', {'task': self.task.pk}),
            self.client.post(f'{LIST}add/', {'task': self.task.pk}, headers=self.htmx).content.decode(),
            self.make_by_form().content.decode(),
            self.make_by_rest().content.decode(),
        ):
            self.assertNotIn('secretive', page)


class HiddenObjectTest(WaysMixin, PageTestCase):
    """Users cannot find out whether an object exists that they may not view."""

    def setUp(self):
        super().setUp()
        grant(self.user, CelerySchedule, actions=['view', 'add', 'change'])
        grant(self.user, CeleryTask, actions=['view', 'run'])
        grant(self.user, Site, constraints={'name': 'Known'})
        self.known, self.hidden = (Site.objects.create(name=name, slug=name.lower()) for name in ('Known', 'Hidden'))
        self.schedule = make_schedule(owner=self.user)

    @staticmethod
    def said(response):
        return response.json() if 'json' in response['Content-Type'] else response.context['form'].errors

    def assertAlike(self, act, **values):
        hidden, none = (
            act(object_id=pk, **values) for pk in (self.hidden.pk, 4711)
        )
        self.assertEqual(hidden.status_code, none.status_code)
        self.assertEqual(self.said(hidden), self.said(none))
        self.assertIn('Object not found.', str(self.said(none)))
        self.assertEqual(CelerySchedule.objects.filter(object_id__in=(self.hidden.pk, 4711)).count(), 0)

    def test_made(self):
        for make in self.each(('make_by_rest', 'make_by_import')):
            self.assertAlike(make, object_type='dcim.site', name='New')
            # Also with another error, which one of them would reveal
            self.assertAlike(make, object_type='dcim.site', name='New', crontab='61 * * * *')
            make(object_type='dcim.site', object_id=self.known.pk, name='New')
            self.assertEqual(CelerySchedule.objects.get(name='New').object, self.known)
            CelerySchedule.objects.filter(name='New').delete()

    def test_changed(self):
        for way in self.each(('change_by_rest', 'change_by_bulk_rest', 'change_by_import')):
            CelerySchedule.objects.update(object_type=None, object_id=None)
            change = partial(way, self.schedule)
            self.assertAlike(change, object_type='dcim.site')
            self.assertAlike(change, object_type='dcim.site', crontab='61 * * * *')
            change(object_type='dcim.site', object_id=self.known.pk)
            self.assertEqual(CelerySchedule.objects.get().object, self.known)
            self.assertAlike(change)
            # A user who cannot view the current one keeps it
            CelerySchedule.objects.update(object_id=self.hidden.pk)
            change(description=str(way))
            self.assertEqual(CelerySchedule.objects.get().object, self.hidden)

    def test_type_of_a_removed_plugin(self):
        ContentType.objects.create(app_label='gone_plugin', model='thing')
        for make in self.each(('make_by_rest', 'make_by_import')):
            self.assertAlike(make, object_type='gone_plugin.thing', name='New')

    def test_form(self):
        """The form, also when it is rendered again, treats both alike."""
        about = {'object_content_type': ContentType.objects.get_for_model(Site).pk}
        for change in (self.make_by_form, partial(self.change_by_form, self.schedule)):
            hidden, none = (
                change(name='New', object_object_id=pk, **about).context['form'].errors for pk in (self.hidden.pk, 4711)
            )
            self.assertTrue(none)
            self.assertEqual(hidden, none)
        for path in ('add/', f'{self.schedule.pk}/edit/'):
            for pk in (self.hidden.pk, self.known.pk):
                data = self.form_data(object_object_id=pk, **about)
                page = self.client.post(f'{LIST}{path}', data, headers=self.htmx).content.decode()
                self.assertEqual('Known' in page, pk == self.known.pk)
                self.assertNotIn('Hidden', page)
                self.assertNotIn('Hidden', self.client.post(f'{LIST}preview/', data).content.decode())


class ChangeTest(WaysMixin, PageTestCase):

    def setUp(self):
        super().setUp()
        grant(self.user, CelerySchedule, actions=['view', 'add', 'change'])
        grant(self.user, CeleryTask)
        self.owner = User.objects.create_user('olga')
        grant(self.owner, CeleryTask, actions=['run'])
        self.schedule = make_schedule(owner=self.owner, timezone='UTC')

    def stored(self):
        return CelerySchedule.objects.get(pk=self.schedule.pk)

    def test_without_run(self):
        for change in self.each(self.CHANGING):
            change(self.schedule, description='Changed')
            self.assertEqual(self.stored().description, '')

    def test_enabling_needs_run(self):
        for enabled in (True, False):
            CelerySchedule.objects.update(enabled=enabled)
            for change in self.each(self.CHANGING):
                change(self.schedule, enabled=not enabled)
                self.assertEqual(self.stored().enabled, enabled)

    def test_renamed(self):
        """A new name is a change of the schedule, but not of what it runs."""
        ways = ('change_by_form', 'change_by_rest', 'change_by_bulk_rest', 'change_by_import', 'change_by_rename')
        for change in self.each(ways):
            change(self.schedule, name='Renamed')
            self.assertEqual(self.stored().name, 'Hello')
        grant(self.user, CeleryTask, actions=['run'])
        for change in self.each(ways):
            change(self.schedule, name='Renamed')
            self.assertEqual((self.stored().name, self.stored().owner), ('Renamed', self.owner))
            CelerySchedule.objects.update(name='Hello')

    def test_arguments_that_no_longer_fit(self):
        """Such a schedule can be disabled and described, but not enabled."""
        grant(self.user, CeleryTask, actions=['run'])
        for change in self.each(self.CHANGING):
            CelerySchedule.objects.update(enabled=True, kwargs={'nobody': 1})
            if change == self.change_by_form:
                change = partial(change, kwargs='{"nobody": 1}')
            change(self.schedule, enabled=False, description='Broken')
            self.assertEqual((self.stored().enabled, self.stored().description), (False, 'Broken'))
            change(self.schedule, enabled=True)
            self.assertFalse(self.stored().enabled)
            self.assertEqual(self.stored().owner, self.owner)

    def test_deleted_object(self):
        """The rest can be changed; the reference stays unless the user removes it."""
        grant(self.user, CeleryTask, actions=['run'])
        site = Site.objects.create(name='Site 1', slug='site-1')
        about_site = ContentType.objects.get_for_model(Site), site.pk
        site.delete()
        # Its plugin is removed; and what that leaves is cleaned up
        about_type = ContentType.objects.create(app_label='gone_plugin', model='thing'), 5
        for object_type, object_id in (about_site, about_type, (None, 5)):
            CelerySchedule.objects.update(object_type=object_type, object_id=object_id)
            for number, change in enumerate(self.each(self.CHANGING)):
                CelerySchedule.objects.update(enabled=True)
                change(self.schedule, enabled=False, description=f'Changed {number}')
                schedule = self.stored()
                self.assertEqual((schedule.enabled, schedule.description), (False, f'Changed {number}'))
                self.assertEqual((schedule.object_type, schedule.object_id), (object_type, object_id))
                self.assertEqual(schedule.owner, self.owner)
                change(self.schedule, enabled=True)
                self.assertTrue(self.stored().enabled)
            self.change_by_rename(self.schedule, f'Renamed {object_id}')
            self.assertEqual(self.stored().name, f'Renamed {object_id}')
            self.schedule.refresh_from_db()

    def test_deleted_object_cannot_be_chosen(self):
        """Nor can another object that does not exist replace it."""
        grant(self.user, CeleryTask, actions=['run'])
        grant(self.user, Site)
        CelerySchedule.objects.update(object_type=ContentType.objects.get_for_model(Site), object_id=4711)
        for change in self.each(('change_by_rest', 'change_by_bulk_rest', 'change_by_import')):
            change(self.schedule, object_id=4712)
            self.assertEqual(self.stored().object_id, 4711)
        self.change_by_rest(self.schedule, object_type=None, object_id=None)
        self.assertEqual((self.stored().object_id, self.stored().owner), (None, self.user))

    def test_constraints(self):
        grant(self.user, CeleryTask, actions=['run'], constraints={'name': 'plugin:other'})
        for change in self.each(self.CHANGING):
            change(self.schedule, description='Changed')
            self.assertEqual(self.stored().description, '')

    def test_without_change(self):
        """`run` on the task does not replace `change` on the schedule."""
        self.user.object_permissions.all().delete()
        grant(self.user, CelerySchedule, actions=['view', 'add'])
        grant(self.user, CeleryTask, actions=['view', 'run'])
        for change in self.each(self.CHANGING):
            with disable_warnings('django.request'):
                change(self.schedule, description='Changed')
            self.assertEqual(self.stored().description, '')

    def test_constraints_before_and_after(self):
        """Constraints apply to a schedule before and after a change, for one or many."""
        self.user.object_permissions.all().delete()
        grant(self.user, CelerySchedule, actions=['view', 'add'])
        grant(self.user, CeleryTask, actions=['view', 'run'])
        grant(self.user, CelerySchedule, actions=['change'], constraints={'enabled': True, 'owner': self.owner.pk})
        for change in self.each(self.CHANGING):
            change(self.schedule, description='Changed')
            self.assertEqual(self.stored().description, 'Changed')
            change(self.schedule, enabled=False)
            self.assertTrue(self.stored().enabled)
            change(self.schedule, queue='slow')  # which would make it theirs
            self.assertEqual((self.stored().queue, self.stored().owner), ('', self.owner))
            CelerySchedule.objects.update(description='')

    def test_owner_stays(self):
        """A user who changes nothing of what is run does not become the owner."""
        grant(self.user, CeleryTask, actions=['run'])
        for number, change in enumerate(self.each(self.CHANGING)):
            change(self.schedule, description=f'Changed {number}', overlap='skip', enabled=False)
            schedule = self.stored()
            self.assertEqual((schedule.description, schedule.enabled), (f'Changed {number}', False))
            self.assertEqual(schedule.owner, self.owner)
            CelerySchedule.objects.update(enabled=True)

    def test_changing_what_is_run_changes_the_owner(self):
        """The runs act as the user who changed what is run."""
        grant(self.user, CeleryTask, actions=['run'])
        grant(self.user, Site)
        for change in self.each(self.CHANGING):
            change(self.schedule, queue='slow')
            self.assertEqual((self.stored().queue, self.stored().owner), ('slow', self.user))
            CelerySchedule.objects.update(queue='', owner=self.owner)
        site = Site.objects.create(name='Site 1', slug='site-1')
        for changes in (
            {'kwargs': {'name': 'Eve'}}, {'args': ['Eve']}, {'task': self.other_task.pk}, {'priority': 3},
            {'expires': 60}, {'object_type': 'dcim.site', 'object_id': site.pk},
        ):
            with self.subTest(changes):
                before = CelerySchedule.objects.filter(pk=self.schedule.pk).values()[0]
                self.assertHttpStatus(self.change_by_rest(self.schedule, **changes), 200)
                self.assertEqual(self.stored().owner, self.user)
                CelerySchedule.objects.filter(pk=self.schedule.pk).update(**before)

    def test_task_of_another(self):
        """To exchange the task, a user must be allowed to run both."""
        for name in (HELLO_WORLD, 'plugin:other'):
            permission = grant(self.user, CeleryTask, actions=['run'], constraints={'name': name})
            for change in self.each(('change_by_form', 'change_by_rest')):
                change(self.schedule, task=self.other_task.pk)
                self.assertEqual(self.stored().task, self.task)
            permission.delete()
        grant(self.user, CeleryTask, actions=['run'])
        self.change_by_form(self.schedule, task=self.other_task.pk)
        self.assertEqual((self.stored().task, self.stored().owner), (self.other_task, self.user))

    def test_true_is_not_one(self):
        """They are equal in Python; to a task they are not."""
        CeleryTask.objects.update(parameters=[
            {'name': 'value', 'kind': 'keyword_only', 'annotation': '', 'required': True}
        ])
        CelerySchedule.objects.update(kwargs={'value': 1})
        grant(self.user, CeleryTask, actions=['run'])
        self.change_by_rest(self.schedule, kwargs={'value': True})
        self.assertIs(self.stored().kwargs['value'], True)
        self.assertEqual(self.stored().owner, self.user)

    def test_enabled_without_an_owner(self):
        """A schedule whose owner may not run its task would only fail, so it must be taken over first."""
        grant(self.user, CeleryTask, actions=['run'])
        for owner in (None, User.objects.create_user('guest')):
            CelerySchedule.objects.update(enabled=False, owner=owner)
            self.schedule.refresh_from_db()
            for change in self.each(self.CHANGING):
                change(self.schedule, enabled=True)
                self.assertFalse(self.stored().enabled)

    def test_settings_and_code(self):
        """Only what people decide is changed, in whichever way."""
        grant(self.user, CeleryTask, actions=['run'])
        for origin in ('settings', 'code'):
            CelerySchedule.objects.update(origin=origin, owner=None)
            self.schedule.refresh_from_db()
            for change in self.each(self.CHANGING):
                change(self.schedule, queue='slow')
                self.assertEqual(self.stored().queue, '')
                change(self.schedule, enabled=False, overlap='queue')
                self.assertEqual((self.stored().enabled, self.stored().overlap), (False, 'queue'))
                self.assertIsNone(self.stored().owner)
                CelerySchedule.objects.update(enabled=True, overlap='allow')


class StoppedTest(WaysMixin, PageTestCase):
    """A schedule that beat stopped stays stopped until people enable it; then they can disable it."""

    def setUp(self):
        super().setUp()
        grant(self.user, CelerySchedule, actions=['view', 'add', 'change'])
        grant(self.user, CeleryTask, actions=['view', 'run'])
        self.schedule = make_schedule(owner=self.user, timezone='UTC')

    def stored(self):
        return CelerySchedule.objects.get(pk=self.schedule.pk)

    def test_stopped(self):
        for change in self.each(self.CHANGING):
            stopped = timezone.now()
            CelerySchedule.objects.update(enabled=False, next_run=None, stopped=stopped, description='')
            self.schedule.refresh_from_db()
            change(self.schedule, description='Changed')
            self.assertEqual((self.stored().description, self.stored().stopped), ('Changed', stopped))
            for enabled in (True, False):
                change(self.schedule, enabled=enabled)
                self.assertEqual((self.stored().enabled, self.stored().stopped), (enabled, None))

    def test_another_owner(self):
        """A user who changes what it runs and leaves it disabled has decided that it does not run."""
        for change in self.each(self.CHANGING):
            CelerySchedule.objects.update(enabled=False, next_run=None, stopped=timezone.now(), owner=None, queue='')
            self.schedule.refresh_from_db()
            change(self.schedule, queue='slow')
            self.assertEqual((self.stored().owner, self.stored().enabled), (self.user, False))
            self.assertIsNone(self.stored().stopped)

    def test_clients_cannot_write_it(self):
        now = timezone.now()
        self.change_by_rest(self.schedule, enabled=False, stopped=now.isoformat())
        self.change_by_import(self.schedule, description='x', stopped=now.isoformat())
        self.assertIsNone(self.stored().stopped)
        CelerySchedule.objects.update(enabled=False, stopped=now)
        self.change_by_rest(self.schedule, stopped=None)
        self.assertEqual(self.stored().stopped, now)


class ConcurrentTest(WaysMixin, PageTestCase):

    def test_owner_goes_with_what_is_run(self):
        """Saving an old copy does not attribute its content to the user who changed it meanwhile."""
        grant(self.user, CeleryTask, actions=['run'])
        owner = User.objects.create_user('olga')
        schedule = make_schedule(owner=owner, kwargs={'name': 'Old'})
        CelerySchedule.objects.update(kwargs={'name': 'New'})
        schedule.description = 'Changed'
        scheduling.authorize(self.user, schedule)
        schedule.save()
        schedule.refresh_from_db()
        self.assertEqual((schedule.kwargs, schedule.owner), ({'name': 'Old'}, self.user))


class TakeOverTest(PageTestCase):
    """`scheduling.take_over`; the button is tested with the others, in `test_schedule_actions.py`."""

    def setUp(self):
        super().setUp()
        self.schedule = make_schedule(owner=None, enabled=False)
        grant(self.user, CelerySchedule, actions=['change'])

    def test_needs_run(self):
        with self.assertRaises(PermissionDenied):
            scheduling.take_over(self.user, self.schedule)

    def test_stopped_schedule_is_enabled(self):
        """Whatever runs there have been since."""
        CelerySchedule.objects.update(stopped=timezone.now())
        make_result('completed', schedule=self.schedule)
        self.schedule.refresh_from_db()
        grant(self.user, CeleryTask, actions=['run'])
        scheduling.take_over(self.user, self.schedule)
        self.schedule.refresh_from_db()
        self.assertEqual((self.schedule.owner, self.schedule.enabled), (self.user, True))
        self.assertIsNotNone(self.schedule.next_run)
        self.assertIsNone(self.schedule.stopped)

    def test_disabled_schedule_stays_disabled(self):
        make_result('failed', schedule=self.schedule, reason='not_permitted')
        grant(self.user, CeleryTask, actions=['run'])
        scheduling.take_over(self.user, self.schedule)
        self.schedule.refresh_from_db()
        self.assertEqual((self.schedule.owner, self.schedule.enabled), (self.user, False))

    def test_authorize_says_what_is_wrong(self):
        grant(self.user, CeleryTask, actions=['run'])
        self.schedule.enabled = True
        with self.assertRaises(ValidationError) as caught:
            scheduling.authorize(self.user, self.schedule)
        self.assertIn('Its owner was deleted', caught.exception.message_dict['enabled'][0])
        self.assertEqual(reverse('plugins:netbox_celery:celeryschedule_list'), LIST)
