"""Run now, enable, disable and take over a schedule from its page; enable and rename many from the list."""
from contextlib import contextmanager
from unittest.mock import patch

from django.contrib.contenttypes.models import ContentType
from django.utils import timezone
from kombu.exceptions import OperationalError

from core.models import ObjectChange
from dcim.models import Site
from netbox_celery.models import CeleryResult, CelerySchedule, CeleryTask
from tests.factories import HELLO_WORLD, grant, make_schedule
from tests.views.bases import PageTestCase
from users.models import User
from utilities.testing import disable_warnings

LIST = '/plugins/celery/schedules/'

#: The permission on the schedule that each action needs; all need `run` on its task.
ACTIONS = {'run': 'view', 'enable': 'change', 'disable': 'change', 'take-over': 'change'}
#: What the button on the page says.
LABELS = {'run': 'Run Now', 'enable': 'Enable', 'disable': 'Disable', 'take-over': 'Take Ownership'}


class ActionTestCase(PageTestCase):

    def setUp(self):
        super().setUp()
        self.owner = User.objects.create_user('olga')
        grant(self.owner, CeleryTask, actions=['run'])
        self.schedule = make_schedule(owner=self.owner, kwargs={'name': 'Bob'}, queue='slow')

    def url(self, action):
        return f'{LIST}{self.schedule.pk}/{action}/'

    def permit(self):
        return grant(self.user, CelerySchedule, actions=['view', 'change']), grant(
            self.user, CeleryTask, actions=['view', 'run']
        )

    def stored(self):
        return CelerySchedule.objects.get(pk=self.schedule.pk)

    def state(self):
        """Return everything that the actions change."""
        schedule = self.stored()
        return schedule.enabled, schedule.owner, schedule.next_run, CeleryResult.objects.count()

    def prepare(self, action):
        """Bring the schedule into a state in which an action has an effect."""
        CelerySchedule.objects.update(enabled=action != 'enable', owner=self.owner)
        self.before = self.state()

    def post(self, action):
        """Do the action, and return the text of the page that follows."""
        return self.client.post(self.url(action), follow=True).content.decode()


class PermissionTest(ActionTestCase):

    @contextmanager
    def permissions(self, *permissions):
        """Grant some permissions for a while: arguments of `grant`."""
        granted = [grant(self.user, *models, **arguments) for models, arguments in permissions]
        yield
        for permission in granted:
            permission.delete()

    def assertRefused(self, action, code):
        with disable_warnings('django.request'):
            self.assertHttpStatus(self.client.get(self.url(action)), code)
            self.assertHttpStatus(self.client.post(self.url(action)), code)
        self.assertEqual(self.state(), self.before)

    def each(self):
        for action, permission in ACTIONS.items():
            with self.subTest(action):
                self.prepare(action)
                yield action, permission

    def test_permitted(self):
        """With just the permissions that it needs."""
        for action, permission in self.each():
            with self.permissions(
                ((CelerySchedule,), {'actions': ['view', permission], 'constraints': {'pk': self.schedule.pk}}),
                ((CeleryTask,), {'actions': ['run'], 'constraints': {'name': HELLO_WORLD}}),
            ):
                self.assertHttpStatus(self.client.post(self.url(action)), 302)
            self.assertNotEqual(self.state(), self.before)

    def test_without_run(self):
        for action, permission in self.each():
            with self.permissions(
                ((CelerySchedule,), {'actions': ['view', 'add', 'change', 'delete']}),
                ((CeleryTask,), {'actions': ['view', 'add', 'change', 'delete']}),
            ):
                self.assertRefused(action, 403)

    def test_run_on_another_task(self):
        for action, permission in self.each():
            with self.permissions(
                ((CelerySchedule,), {'actions': ['view', 'change']}),
                ((CeleryTask,), {'actions': ['run'], 'constraints': {'name': 'plugin:other'}}),
            ):
                self.assertRefused(action, 403)

    def test_without_the_schedule(self):
        for action, permission in self.each():
            with self.permissions(
                ((CelerySchedule,), {'actions': ['add', 'delete', *({'view'} - {permission})]}),
                ((CeleryTask,), {'actions': ['view', 'run']}),
            ):
                self.assertRefused(action, 403)

    def test_another_schedule(self):
        for action, permission in self.each():
            with self.permissions(
                ((CelerySchedule,), {'actions': [permission], 'constraints': {'name': 'another'}}),
                ((CeleryTask,), {'actions': ['view', 'run']}),
            ):
                self.assertRefused(action, 404)

    def test_constraints_before_and_after(self):
        """Constraints apply to the object before and after, as in NetBox's own views; else nothing happens."""
        grant(self.user, CelerySchedule)
        for action, constraints in (
            ('enable', {'enabled': False}), ('disable', {'enabled': True}), ('take-over', {'owner': self.owner.pk}),
        ):
            with self.subTest(action), self.permissions(
                ((CelerySchedule,), {'actions': ['change'], 'constraints': constraints}),
                ((CeleryTask,), {'actions': ['view', 'run']}),
            ):
                self.prepare(action)
                self.assertHttpStatus(self.client.post(self.url(action)), 302)
                self.assertEqual(self.state(), self.before)
                self.assertFalse(ObjectChange.objects.exists())
                self.assertIn('permissions violation', self.post(action))

    def test_anonymous(self):
        self.client.logout()
        for action, permission in self.each():
            self.assertRefused(action, 302)

    def test_buttons(self):
        """They are shown to users who may do it, where it has an effect."""
        grant(self.user, CelerySchedule)
        for action, permission in self.each():
            self.assertNotIn(self.url(action), self.page(self.schedule.get_absolute_url()))
            with self.permissions(
                ((CelerySchedule,), {'actions': [permission]}), ((CeleryTask,), {'actions': ['run']}),
            ):
                page = self.page(self.schedule.get_absolute_url())
                self.assertIn(self.url(action), page)
                self.assertIn(LABELS[action], page)
                CelerySchedule.objects.update(enabled=action == 'enable', owner=self.user)
                CeleryTask.objects.update(enabled=False)
                self.assertNotIn(self.url(action), self.page(self.schedule.get_absolute_url()))
                CeleryTask.objects.update(enabled=True)

    def test_question_has_no_effect(self):
        self.permit()
        for action, permission in self.each():
            page = self.page(self.url(action))
            self.assertIn('<form', page)
            self.assertIn('<html', page)
            dialog = self.page(self.url(action), headers=self.htmx)
            self.assertIn('<form', dialog)
            self.assertNotIn('<html', dialog)
            self.assertEqual(self.state(), self.before)


class RunTest(ActionTestCase):

    def test_run(self):
        """It runs as the user who asks, besides its times, and is in the schedule's history."""
        self.permit()
        grant(self.user, CeleryResult)
        response = self.client.post(self.url('run'))
        result = CeleryResult.objects.get()
        self.assertEqual(response.url, result.get_absolute_url())
        self.assertEqual((result.user, result.schedule, result.kwargs), (self.user, self.schedule, {'name': 'Bob'}))
        self.assertEqual((result.queue, result.celery_name), ('slow', HELLO_WORLD))
        self.assertEqual(self.stored().next_run, self.schedule.next_run)
        self.assertEqual(self.stored().owner, self.owner)
        change = ObjectChange.objects.get()
        self.assertEqual((change.user, change.changed_object), (self.user, result))
        self.assertIn('Hello', change.message)

    def test_without_a_view_of_runs(self):
        """A user who may not view the run stays on the page."""
        self.permit()
        self.assertEqual(self.client.post(self.url('run')).url, self.schedule.get_absolute_url())

    def test_disabled_schedule(self):
        """The button can be used to try a schedule before it is enabled."""
        self.permit()
        CelerySchedule.objects.update(enabled=False, owner=None)
        self.client.post(self.url('run'))
        self.assertEqual(CeleryResult.objects.get().user, self.user)

    def test_long_name(self):
        """The message in the change log is cut, not the run."""
        self.permit()
        CelerySchedule.objects.update(name='x' * 255)
        self.assertHttpStatus(self.client.post(self.url('run')), 302)
        self.assertEqual(CeleryResult.objects.count(), 1)
        self.assertIn('xxx…', ObjectChange.objects.get().message)

    def test_overlap(self):
        """The policy also applies to a run that a user starts, and the page says so."""
        self.permit()
        CelerySchedule.objects.update(overlap='skip')
        self.post('run')
        page = self.post('run')
        self.assertEqual(sorted(CeleryResult.objects.values_list('status', flat=True)), ['ignored', 'pending'])
        self.assertNotIn('Started', page)

    def test_not_runnable(self):
        self.permit()
        for columns, reason in (
            ({'enabled': False}, 'is disabled'), ({'present': False}, 'not registered'),
        ):
            with self.subTest(columns):
                CeleryTask.objects.update(**{'enabled': True, 'present': True, **columns})
                self.assertIn(reason, self.page(self.url('run')).lower())
                self.assertIn(reason, self.post('run').lower())
                self.assertFalse(CeleryResult.objects.exists())

    def test_not_started(self):
        self.permit()
        with patch('netbox_celery.models.CelerySchedule.run_now', side_effect=OperationalError('refused')):
            self.assertIn('broker cannot be reached', self.post('run'))
        CelerySchedule.objects.update(kwargs={'nobody': 1})
        self.assertIn('was not started', self.post('run'))
        self.assertFalse(CeleryResult.objects.exists())


class EnableTest(ActionTestCase):

    def setUp(self):
        super().setUp()
        self.permit()

    def test_disable_and_enable(self):
        self.post('disable')
        self.assertEqual((self.stored().enabled, self.stored().next_run), (False, None))
        self.post('enable')
        self.assertTrue(self.stored().enabled)
        self.assertGreater(self.stored().next_run, timezone.now())
        self.assertEqual(self.stored().owner, self.owner)
        changes = ObjectChange.objects.order_by('pk')
        self.assertEqual([change.postchange_data['enabled'] for change in changes], [False, True])
        self.assertEqual([change.prechange_data['enabled'] for change in changes], [True, False])

    def test_nothing_to_do(self):
        self.assertIn('The schedule is already enabled.', self.post('enable'))
        self.post('disable')
        self.assertIn('The schedule is already disabled.', self.post('disable'))
        self.assertEqual(ObjectChange.objects.count(), 1)

    def test_owner_may_not_run_it(self):
        """It would be stopped at its next time, so it must be taken over first."""
        grant(self.user, User)
        CelerySchedule.objects.update(enabled=False)
        for owner, reason in (
            (None, 'Its owner was deleted.'),
            (User.objects.create_user('guest'), 'Its owner guest is not permitted to run the task'),
            (User.objects.create_superuser('left', is_active=False), 'Its owner left is no longer active.'),
        ):
            with self.subTest(reason):
                CelerySchedule.objects.update(owner=owner)
                self.assertIn(reason, self.page(self.url('enable')))
                self.assertIn('Take ownership first', self.post('enable'))
                self.assertFalse(self.stored().enabled)
                self.assertIn(reason, self.page(self.schedule.get_absolute_url()))

    def test_name_of_an_owner_who_may_not_be_viewed(self):
        CelerySchedule.objects.update(enabled=False, owner=User.objects.create_user('guest'))
        for action in ('enable', 'take-over'):
            self.assertNotIn('guest', self.page(self.url(action)))
            self.assertNotIn('guest', self.page(self.schedule.get_absolute_url()))
        self.assertNotIn('guest', self.post('enable'))

    def test_name_of_a_hidden_owner_whose_schedule_can_be_enabled(self):
        CelerySchedule.objects.update(enabled=False)
        page = self.page(self.url('enable'))
        self.assertIn('running as (hidden).', page)
        self.assertNotIn('olga', page)
        grant(self.user, User)
        self.assertIn('running as olga.', self.page(self.url('enable')))

    def test_invalid_schedule(self):
        """A schedule that has become invalid can always be disabled, and enabled only when it is valid again."""
        wrong = {'kwargs': {'nobody': 'Bob'}}, {'timezone': 'Gone/Away'}, {'crontab': '61 * * * *'}
        for columns in wrong:
            with self.subTest(columns):
                before = CelerySchedule.objects.filter(pk=self.schedule.pk).values(*columns).get()
                CelerySchedule.objects.update(**columns, enabled=True)
                self.page(self.schedule.get_absolute_url())
                self.post('disable')
                self.assertFalse(self.stored().enabled)
                self.post('enable')
                self.assertFalse(self.stored().enabled)
                CelerySchedule.objects.update(**before)
                self.post('enable')
                self.assertTrue(self.stored().enabled)

    def test_deleted_object(self):
        CelerySchedule.objects.update(object_type=ContentType.objects.get_for_model(Site), object_id=4711)
        self.post('disable')
        self.assertFalse(self.stored().enabled)
        self.post('enable')
        self.assertTrue(self.stored().enabled)
        self.post('take-over')
        self.assertEqual((self.stored().owner, self.stored().object_id), (self.user, 4711))

    def test_never_due_again(self):
        CelerySchedule.objects.update(kind='once', crontab='', at=timezone.now(), enabled=False)
        self.assertIn('the schedule would never be due', self.post('enable'))
        self.assertFalse(self.stored().enabled)

    def test_sourced(self):
        """It has no owner and needs none: its runs have no user."""
        CelerySchedule.objects.update(origin='code', owner=None)
        self.post('disable')
        self.assertFalse(self.stored().enabled)
        self.post('enable')
        self.assertTrue(self.stored().enabled)
        self.assertIsNone(self.stored().owner)

    def test_absent(self):
        """A schedule that is no longer in the code does not run, enabled or not."""
        CelerySchedule.objects.update(origin='code', present=False, enabled=False)
        self.post('enable')
        self.assertEqual((self.stored().enabled, self.stored().next_run), (True, None))


class EscapingTest(ActionTestCase):
    """A name is escaped wherever a page or a message shows it."""

    def test_escaping(self):
        self.user.is_superuser = True
        self.user.save()
        self.schedule.name = self.schedule.description = self.schedule.queue = '<script>alert(1)</script>'
        self.schedule.kwargs = {'name': '<script>alert(1)</script>'}
        self.schedule.save()
        sourced = make_schedule('<script>alert(2)</script>', origin='code')
        for path in ('', *(f'{self.schedule.pk}/{page}' for page in ('', 'edit/', 'runs/', 'delete/', 'run/'))):
            self.assertNotIn('<script>alert(', self.page(f'{LIST}{path}'))
        for path, data in (
            *((f'{self.schedule.pk}/{action}/', {}) for action in ('run', 'disable', 'disable', 'enable', 'take-over')),
            (f'{sourced.pk}/delete/', {'confirm': True}),
            ('delete/', {'pk': [sourced.pk], 'confirm': True, '_confirm': True}),
            ('edit/', {'pk': [sourced.pk], '_apply': True, 'queue': 'x'}),
            ('rename/', {'pk': [sourced.pk], '_apply': True, 'find': '2', 'replace': '3'}),
        ):
            page = self.client.post(f'{LIST}{path}', data, follow=True)
            self.assertHttpStatus(page, 200)
            self.assertNotIn('<script>alert(', page.content.decode())


class TakeOverTest(ActionTestCase):

    def setUp(self):
        super().setUp()
        self.permit()

    def test_taken_over(self):
        grant(self.user, User)
        page = self.page(self.url('take-over'))
        self.assertIn('instead of olga', page)
        self.assertIn('You now own Hello', self.post('take-over'))
        self.assertEqual((self.stored().owner, self.stored().enabled), (self.user, True))
        change = ObjectChange.objects.get()
        self.assertEqual(
            (change.prechange_data['owner'], change.postchange_data['owner']), (self.owner.pk, self.user.pk)
        )
        self.assertIn('You already own it.', self.post('take-over'))

    def test_deleted_owner(self):
        """A schedule stopped for lack of an owner is enabled; one that was disabled by a user stays so."""
        self.owner.delete()
        CelerySchedule.objects.update(enabled=False)
        self.assertIn('The schedule stays disabled.', self.page(self.url('take-over')))
        CelerySchedule.objects.update(stopped=timezone.now())
        self.client.post(self.url('run'))  # to try it first
        self.assertIn('it is re-enabled.', self.page(self.url('take-over')))
        self.post('take-over')
        self.assertEqual((self.stored().owner, self.stored().enabled), (self.user, True))
        self.assertGreater(self.stored().next_run, timezone.now())
        # That is over: one that its new owner disables is not enabled by the next one
        self.post('disable')
        CelerySchedule.objects.update(owner=User.objects.create_user('eve'))
        self.assertIn('The schedule stays disabled.', self.page(self.url('take-over')))
        self.post('take-over')
        self.assertEqual((self.stored().owner, self.stored().enabled), (self.user, False))


class RenameTest(ActionTestCase):

    def post_rename(self, find, replace, step='_apply'):
        return self.client.post(f'{LIST}rename/', {
            'pk': [self.schedule.pk, self.other.pk], 'find': find, 'replace': replace, step: '1',
        })

    def setUp(self):
        super().setUp()
        self.permit()
        self.other = make_schedule('Goodbye', owner=self.owner)

    def names(self):
        return set(CelerySchedule.objects.values_list('name', flat=True))

    def test_renamed(self):
        page = self.post_rename('o', '0', '_preview').content.decode()
        self.assertIn('G00dbye', page)
        self.assertEqual(self.names(), {'Hello', 'Goodbye'})
        self.assertHttpStatus(self.post_rename('o', '0'), 302)
        self.assertEqual(self.names(), {'Hell0', 'G00dbye'})
        self.assertEqual(self.stored().owner, self.owner)
        self.assertEqual(ObjectChange.objects.count(), 2)

    def test_refused(self):
        """All or none, with the name of the one that cannot be renamed."""
        for find, replace in (('Hello', 'Goodbye'), ('Hello', ''), ('Hello', 'x' * 256)):
            with self.subTest(replace):
                self.assertHttpStatus(self.post_rename(find, replace), 200)
                self.assertEqual(self.names(), {'Hello', 'Goodbye'})
        CelerySchedule.objects.filter(pk=self.other.pk).update(origin='code')
        self.assertIn('is defined in Code', self.post_rename('o', '0').content.decode())
        self.assertEqual(self.names(), {'Hello', 'Goodbye'})
        self.assertHttpStatus(self.post_rename('H', 'h'), 302)
        self.assertEqual(self.names(), {'hello', 'Goodbye'})
