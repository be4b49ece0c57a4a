"""Creating and changing schedules in the user interface: the form with its preview, import and bulk edit."""
import json
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

from django.utils import timezone

from core.models import ObjectType
from dcim.models import Site
from extras.models import CustomField
from netbox_celery.models import CelerySchedule, CeleryTask
from tests.factories import HELLO_WORLD, grant, make_schedule, make_task
from tests.views.bases import PageTestCase
from users.models import User
from utilities.testing import disable_warnings

LIST = '/plugins/celery/schedules/'


class FormTest(PageTestCase):
    """The form: dependent fields, errors, and what is saved."""

    def setUp(self):
        super().setUp()
        grant(self.user, CelerySchedule, actions=['view', 'add', 'change'])
        grant(self.user, CeleryTask, actions=['view', 'run'])
        self.task = make_task()
        self.data = {
            'name': 'Nightly', 'enabled': 'on', 'kind': 'crontab', 'crontab': '30 2 * * *', 'timezone': 'Europe/Berlin',
            'task': self.task.pk, 'arguments_as': 'parameters', 'parameter_name': 'Bob', 'missed': 'run_once',
            'missed_max': 10, 'overlap': 'allow',
        }

    def post(self, schedule=None, leave=(), **values):
        url = f'{schedule.get_absolute_url()}edit/' if schedule else f'{LIST}add/'
        data = {name: value for name, value in {**self.data, **values}.items() if name not in leave}
        return self.client.post(url, data)

    def part(self, **values):
        """Return the form as it is rendered again, after a choice on which other fields depend."""
        response = self.client.post(f'{LIST}add/', {**self.data, **values}, headers=self.htmx)
        self.assertHttpStatus(response, 200)
        self.assertFalse(CelerySchedule.objects.exists())
        return response.content.decode()

    def form(self, **values):
        return self.client.post(f'{LIST}add/', {**self.data, **values}, headers=self.htmx).context['form']

    def assertWrong(self, response, field, text):
        self.assertHttpStatus(response, 200)
        self.assertIn(text, ' '.join(response.context['form'].errors.get(field, ())))

    def test_no_tasks(self):
        """If there is no task to choose, the form says what fills the list."""
        hint = 'No tasks yet. Start a worker'
        self.assertNotIn(hint, self.page(f'{LIST}add/'))
        CeleryTask.objects.update(present=False)
        CeleryTask.objects.get().delete()
        self.assertIn(hint, self.page(f'{LIST}add/'))

    def test_kind_has_its_fields(self):
        for kind, names, others in (
            ('crontab', ('crontab', 'timezone', 'start', 'end'), ('interval', 'at')),
            ('interval', ('interval', 'interval_unit', 'start', 'end'), ('crontab', 'timezone', 'at')),
            ('once', ('at',), ('crontab', 'timezone', 'interval', 'start', 'end')),
        ):
            with self.subTest(kind):
                page = self.part(kind=kind)
                for name in names:
                    self.assertIn(f'name="{name}"', page)
                for name in others:
                    self.assertNotIn(f'name="{name}"', page)

    def test_task_has_its_parameters(self):
        other = make_task('plugin:other', parameters=[
            {'name': 'count', 'kind': 'keyword_only', 'annotation': 'int', 'required': True},
        ])
        page = self.part(task=other.pk)
        self.assertIn('name="parameter_count"', page)
        self.assertNotIn('name="parameter_name"', page)

    def test_arguments_as_json(self):
        page = self.part(arguments_as='json')
        self.assertIn('{&quot;name&quot;:&quot;Bob&quot;}', ''.join(page.split()))
        self.assertNotIn('name="parameter_name"', page)
        response = self.post(arguments_as='json', kwargs='{"name": "Eve"}')
        self.assertHttpStatus(response, 302)
        self.assertEqual(CelerySchedule.objects.get().kwargs, {'name': 'Eve'})

    def test_input_is_kept(self):
        """From the parameters to JSON and back, also values that are invalid, missing or misplaced so far."""
        task = make_task('plugin:kinds', parameters=[
            {'name': 'pos', 'kind': 'positional_only', 'annotation': 'int', 'required': True},
            {'name': 'text', 'kind': 'positional_or_keyword', 'annotation': 'str', 'required': True},
            {'name': 'items', 'kind': 'positional_or_keyword', 'annotation': 'list', 'required': False},
            {'name': 'more', 'kind': 'var_positional', 'annotation': 'int', 'required': False},
            {'name': 'when', 'kind': 'keyword_only', 'annotation': 'datetime.date', 'required': False},
            {'name': 'rest', 'kind': 'var_keyword', 'annotation': '', 'required': False},
        ])
        day = {'__type__': 'date', '__value__': '2026-05-01'}
        for entered, args, kwargs, shown in (
            ({'pos': 'five', 'text': 'a', 'when': '2026-05-01'}, ['five'], {'text': 'a', 'when': day}, {}),
            ({'pos': '5', 'items': '[1,'}, [5], {'items': '[1,'}, {}),
            ({'pos': '5', 'when': 'soon'}, [5], {'when': 'soon'}, {}),
            ({'text': 'a'}, [], {'text': 'a'}, {}),
            ({'pos': '5', 'text': 'a', 'rest': '{"x": 1}'}, [5], {'text': 'a', 'x': 1}, {}),
            ({'pos': '5', 'text': 'a', 'rest': '{"more": 1, "pos": 2}'}, [5], {'text': 'a', 'more': 1, 'pos': 2}, {}),
            # Wrong by the signature, each for itself right
            ({'pos': '5', 'text': 'a', 'items': '[]', 'more': '["x"]'}, [5, 'a', [], 'x'], {}, {}),
            # What is left out before others is a gap
            ({'text': 'a', 'more': '[6]'}, [None, 'a', None, 6], {}, {}),
            # What could not stand there by itself is kept in something that can
            ({'pos': '5', 'rest': '{"x'}, [5], {'rest': '{"x'}, {'rest': '{"rest": "{\\"x"}'}),
            ({'pos': '5', 'text': 'a', 'rest': '{"text": 1}'}, [5], {'text': 'a', 'rest': {'text': 1}},
             {'rest': '{"rest": {"text": 1}}'}),
            ({'pos': '5', 'more': '[6'}, [5, None, None, '[6'], {}, {'more': '["[6"]'}),
        ):
            with self.subTest(entered):
                parameters = {
                    f'parameter_{name}': entered.get(name, '') for name in (p['name'] for p in task.parameters)
                }
                form = self.form(task=task.pk, arguments_as='json', **parameters)
                self.assertEqual([json.loads(form[name].value()) for name in ('args', 'kwargs')], [args, kwargs])
                back = self.form(task=task.pk, args=form['args'].value(), kwargs=form['kwargs'].value())
                self.assertEqual(
                    {name: str(back[f'parameter_{name}'].value() or '') for name in entered | shown}, entered | shown
                )

    def test_created(self):
        self.assertHttpStatus(self.post(end='2099-01-01 00:00:00', expires=60, priority=3, queue='slow'), 302)
        schedule = CelerySchedule.objects.get()
        self.assertEqual((schedule.owner, schedule.origin, schedule.kwargs), (self.user, 'user', {'name': 'Bob'}))
        self.assertEqual((schedule.expires, schedule.priority, schedule.queue), (60, 3, 'slow'))
        self.assertEqual(schedule.end.year, 2099)
        self.assertGreater(schedule.next_run, timezone.now())

    def test_interval(self):
        self.post(kind='interval', interval='1.5', interval_unit=3600, leave=('crontab', 'timezone'))
        schedule = CelerySchedule.objects.get()
        self.assertEqual((schedule.interval, schedule.crontab), (5400, ''))
        # Shown in the longest unit that has no fraction
        page = self.page(f'{schedule.get_absolute_url()}edit/')
        self.assertIn('name="interval" value="90"', page)
        self.assertIn('<optionvalue="60"selected>', ''.join(page.split()))
        self.post(schedule, kind='crontab')
        schedule.refresh_from_db()
        self.assertEqual((schedule.interval, schedule.crontab), (None, '30 2 * * *'))

    def test_once(self):
        at = timezone.now() + timedelta(hours=1)
        self.post(kind='once', at=at.strftime('%Y-%m-%d %H:%M:%S'), leave=('crontab', 'timezone'))
        schedule = CelerySchedule.objects.get()
        self.assertEqual(schedule.next_run, at.replace(microsecond=0))

    def test_invalid(self):
        """The errors are at their fields, and nothing is created."""
        make_schedule('Taken')
        for values, field, text in (
            ({'crontab': '61 * * * *'}, 'crontab', 'is not a valid minute'),
            ({'crontab': ''}, 'crontab', 'required'),
            ({'crontab': '0 0 30 2 *'}, 'crontab', 'never matches'),
            ({'kind': 'interval', 'interval': '0.5', 'interval_unit': 1}, 'interval', 'at least one second'),
            ({'kind': 'interval', 'interval': '0.01', 'interval_unit': 60}, 'interval', 'at least one second'),
            ({'kind': 'interval', 'interval': '-5', 'interval_unit': 60}, 'interval', 'at least one second'),
            ({'kind': 'interval', 'interval': '0', 'interval_unit': 60}, 'interval', 'at least one second'),
            ({'kind': 'interval', 'interval': 'nan', 'interval_unit': 60}, 'interval', 'Enter a number'),
            ({'kind': 'interval', 'interval': '', 'interval_unit': 60}, 'interval', 'required'),
            ({'kind': 'interval', 'interval': '9e99', 'interval_unit': 86400}, 'interval', 'a hundred years'),
            ({'kind': 'once', 'at': '2020-01-01 00:00:00'}, 'at', 'Must be in the future'),
            ({'end': '2020-01-01 00:00:00'}, 'end', 'Must be in the future'),
            ({'start': '2099-01-02 00:00:00', 'end': '2099-01-01 00:00:00'}, 'end', 'later than the start'),
            ({'timezone': 'Mars/Olympus'}, 'timezone', ''),
            ({'name': 'Taken'}, 'name', 'already exists'),
            ({'priority': 256}, 'priority', '255'),
            ({'expires': 0}, 'expires', '1'),
            ({'task': 0}, 'task', ''),
            ({'arguments_as': 'json', 'kwargs': '{"nobody": 1}'}, 'kwargs', 'is not a parameter of this task'),
            ({'arguments_as': 'json', 'kwargs': '{'}, 'kwargs', ''),
            ({'arguments_as': 'json', 'kwargs': '["Bob"]'}, 'kwargs', 'must be an object'),
            ({'arguments_as': 'json', 'args': '["Bob", 1]'}, 'kwargs', 'positional'),
        ):
            with self.subTest(values):
                response = self.post(**values)
                self.assertWrong(response, field, text)
                # Once
                self.assertEqual(len(response.context['form'].errors[field]), 1)
                self.assertEqual(CelerySchedule.objects.count(), 1)

    def test_parameters_are_checked(self):
        CeleryTask.objects.update(parameters=[
            {'name': 'count', 'kind': 'keyword_only', 'annotation': 'int', 'required': True},
        ])
        for value in ('', 'many'):
            response = self.post(parameter_count=value)
            self.assertIn('parameter_count', response.context['form'].errors)
        self.post(parameter_count='3')
        self.assertEqual(CelerySchedule.objects.get().kwargs, {'count': 3})

    def test_object(self):
        site = Site.objects.create(name='Site 1', slug='site-1')
        site_type = ObjectType.objects.get_for_model(Site)
        page = self.part(object_content_type=site_type.pk)
        self.assertIn('/api/dcim/sites/', page)
        response = self.post(object_content_type=site_type.pk, object_object_id=site.pk)
        self.assertHttpStatus(response, 200)  # a user who may not view it does not learn that it exists
        grant(self.user, Site)
        self.assertHttpStatus(self.post(object_content_type=site_type.pk, object_object_id=site.pk), 302)
        self.assertEqual(CelerySchedule.objects.get().object, site)

    def test_custom_fields(self):
        field = CustomField.objects.create(name='ticket', type='text', required=True)
        field.object_types.set([ObjectType.objects.get_for_model(CelerySchedule)])
        self.assertIn('name="cf_ticket"', self.page(f'{LIST}add/'))
        self.assertIn('cf_ticket', self.post().context['form'].errors)
        self.assertHttpStatus(self.post(cf_ticket='NET-1'), 302)
        schedule = CelerySchedule.objects.get()
        self.assertEqual(schedule.custom_field_data, {'ticket': 'NET-1'})
        self.assertIn('NET-1', self.page(schedule.get_absolute_url()))

    def test_clone(self):
        """All but the name and the owner, who is the user."""
        boss = User.objects.create_superuser('boss')
        original = make_schedule(
            owner=boss, kwargs={'name': 'Bob'}, crontab='5 4 * * *', timezone='Asia/Kolkata', overlap='skip'
        )
        page = self.page(original.get_absolute_url())
        url = next(part for part in page.split('"') if part.startswith(f'{LIST}add/?') and 'crontab' in part)
        self.assertEqual(parse_qs(urlsplit(url.replace('&amp;', '&')).query)['crontab'], ['5 4 * * *'])
        form = self.page(url.replace('&amp;', '&'))
        for text in ('value="54***"', '<optionvalue="Asia/Kolkata"selected>', 'value="Bob"'):
            self.assertIn(text, ''.join(form.split()))
        self.post(crontab='5 4 * * *')
        self.assertEqual(CelerySchedule.objects.get(name='Nightly').owner, self.user)

    def test_prefilled(self):
        """Values from the URL are shown for correction, or left out."""
        for query, shown in (
            ('interval=5400', 'name="interval"value="90"'), ('interval=1.5', 'name="interval"value="1.5"'),
            ('interval=x', 'name="interval"value="x"'), ('interval=inf', 'name="interval"value="inf"'),
            ('interval=', 'name="interval"'), ('task=x&kwargs={', 'name="interval"'),
            (f'task={self.task.pk}&kwargs={{&arguments_as=x', 'name="kwargs"'),
            (f'task={self.task.pk}&kwargs={{"name":"Eve"}}', 'value="Eve"'),
        ):
            with self.subTest(query):
                self.assertIn(shown, ''.join(self.page(f'{LIST}add/?kind=interval&{query}').split()))

    def test_sourced(self):
        """Only the fields that people decide are shown."""
        schedule = make_schedule(origin='settings', kwargs={'name': 'Bob'})
        page = self.page(f'{schedule.get_absolute_url()}edit/')
        self.assertIn('Defined in the settings', page)
        for name in ('enabled', 'overlap', 'missed', 'missed_max', 'description'):
            self.assertIn(f'name="{name}"', page)
        for name in ('name', 'crontab', 'task', 'kwargs', 'parameter_name', 'queue'):
            self.assertNotIn(f'name="{name}"', page)
        self.post(schedule, overlap='skip', enabled='', description='Mine')
        schedule.refresh_from_db()
        self.assertEqual((schedule.overlap, schedule.enabled, schedule.description), ('skip', False, 'Mine'))
        self.assertEqual((schedule.name, schedule.crontab, schedule.kwargs), ('Hello', '0 * * * *', {'name': 'Bob'}))

    def test_notes(self):
        """The form says beforehand as whom the schedule runs, and whether it can be saved at all."""
        schedule = make_schedule(owner=User.objects.create_user('olga'))
        page = self.page(f'{schedule.get_absolute_url()}edit/')
        self.assertIn('Its runs act as (hidden).', page)
        self.assertNotIn('olga', page)
        grant(self.user, User)
        self.assertIn('Its runs act as olga.', self.page(f'{schedule.get_absolute_url()}edit/'))
        self.user.object_permissions.all().delete()
        grant(self.user, CelerySchedule, actions=['view', 'change'])
        self.assertIn('You cannot save changes', self.page(f'{schedule.get_absolute_url()}edit/'))


class PreviewTest(PageTestCase):
    """When a schedule would be due, while the form is filled in."""
    url = f'{LIST}preview/'

    def setUp(self):
        super().setUp()
        self.data = {'kind': 'crontab', 'crontab': '30 2 * * mon-fri', 'timezone': 'Europe/Berlin', 'enabled': 'on'}

    def post(self, query='', status=200, **values):
        with disable_warnings('django.request'):
            response = self.client.post(f'{self.url}{query}', {**self.data, **values}, headers=self.htmx)
        self.assertHttpStatus(response, status)
        self.assertFalse(CelerySchedule.objects.filter(name='').exists())
        return response.content.decode()

    def test_times(self):
        grant(self.user, CelerySchedule, actions=['add'])
        page = self.post()
        self.assertIn('At 02:30, Monday through Friday (Europe/Berlin)', page)
        self.assertEqual(page.count('data-celery-time'), 10)
        self.assertEqual(page.count('02:30:00</td>'), 10)
        self.assertNotIn('Sat ', page)
        page = self.post(kind='interval', interval='2', interval_unit='3600')
        self.assertIn('Every 2 hours', page)
        self.assertEqual(page.count('data-celery-time'), 10)
        page = self.post(kind='once', at='2099-01-01 00:00:00')
        self.assertEqual(page.count('data-celery-time'), 1)
        self.assertIn('The schedule is disabled', self.post(enabled=''))

    def test_end(self):
        grant(self.user, CelerySchedule, actions=['add'])
        start = timezone.now() + timedelta(days=1)
        page = self.post(
            kind='interval', interval='1', interval_unit='86400', start=start.strftime('%Y-%m-%d %H:%M:%S'),
            end=(start + timedelta(days=3)).strftime('%Y-%m-%d %H:%M:%S')
        )
        self.assertEqual(page.count('data-celery-time'), 4)

    def test_invalid(self):
        """Errors of its times are shown, those of other fields are not."""
        grant(self.user, CelerySchedule, actions=['add'])
        self.assertIn('is not a valid minute', self.post(crontab='61 * * * *'))
        self.assertIn('A crontab has 5 fields', self.post(crontab='30 2'))
        self.assertIn('Must be in the future', self.post(kind='once', at='2020-01-01 00:00:00'))
        for values in ({'crontab': ''}, {'kind': 'interval'}, {'kind': 'interval', 'interval': ''}, {'kind': 'once'}):
            self.assertIn('Enter a schedule to preview', self.post(**values))

    def test_permission(self):
        self.post(status=403)
        grant(self.user, CelerySchedule, actions=['view', 'change'])
        self.post(status=403)

    def test_session_has_expired(self):
        """The input stays: no login form replaces it."""
        self.client.logout()
        self.assertIn('Your session has expired', self.post())
        with disable_warnings('django.request'):
            response = self.client.post(f'{LIST}add/', self.data, headers=self.htmx)
        self.assertHttpStatus(response, 403)  # htmx leaves the form as it is
        self.assertHttpStatus(self.client.post(f'{LIST}add/', self.data), 302)

    def test_permission_to_change(self):
        schedule, other = make_schedule(), make_schedule('Other')
        grant(self.user, CelerySchedule, actions=['view', 'add'])
        self.post(f'?id={schedule.pk}', status=404)
        grant(self.user, CelerySchedule, actions=['change'], constraints={'name': 'Hello'})
        self.assertEqual(self.post(f'?id={schedule.pk}').count('data-celery-time'), 10)
        for pk in (other.pk, 0, 'x'):
            self.post(f'?id={pk}', status=404)
        schedule.refresh_from_db()
        self.assertEqual(schedule.crontab, '0 * * * *')


class ImportTest(PageTestCase):

    def setUp(self):
        super().setUp()
        grant(self.user, CelerySchedule, actions=['view', 'add', 'change'])
        grant(self.user, CeleryTask, actions=['view', 'run'])
        make_task()

    def post(self, data, format='json'):
        return self.client.post(f'{LIST}import/', {'data': data, 'format': format, 'csv_delimiter': ','})

    def test_page(self):
        self.assertNotIn('&lt;code&gt;', self.page(f'{LIST}import/'))

    def test_json(self):
        """Arguments are as in JSON, and what is left out is as in a new schedule."""
        response = self.post(json.dumps([
            {'name': 'A', 'task': HELLO_WORLD, 'crontab': '0 1 * * *', 'kwargs': {'name': 'Bob'}},
            {'name': 'B', 'task': HELLO_WORLD, 'kind': 'interval', 'interval': 90, 'args': ['Bob'], 'enabled': False},
        ]))
        self.assertHttpStatus(response, 302)
        a, b = CelerySchedule.objects.all()
        self.assertEqual((a.kwargs, a.enabled, a.kind, a.missed, a.overlap), (
            {'name': 'Bob'}, True, 'crontab', 'run_once', 'allow'
        ))
        self.assertEqual((b.args, b.enabled, b.interval, b.crontab), (['Bob'], False, 90, ''))
        self.assertEqual({a.owner, b.owner}, {self.user})

    def test_yaml(self):
        self.post(f'- name: A\n  task: {HELLO_WORLD}\n  crontab: "0 1 * * *"\n  kwargs: {{name: Bob}}\n', 'yaml')
        self.assertEqual(CelerySchedule.objects.get().kwargs, {'name': 'Bob'})

    def test_all_or_none(self):
        """If one is invalid none is imported, and the page says which."""
        good = {'name': 'A', 'task': HELLO_WORLD, 'crontab': '0 1 * * *'}
        for wrong, text in (
            ({'crontab': '61 * * * *'}, 'is not a valid minute'), ({'kwargs': {'nobody': 1}}, 'is not a parameter'),
            ({'task': 'plugin:unknown'}, 'task'), ({'overlap': 'perhaps'}, 'overlap'),
        ):
            with self.subTest(wrong):
                page = self.post(json.dumps([good, {**good, 'name': 'B', **wrong}])).content.decode()
                self.assertIn(text, page)
                self.assertFalse(CelerySchedule.objects.exists())


class BulkEditTest(PageTestCase):

    def setUp(self):
        super().setUp()
        grant(self.user, CelerySchedule, actions=['view', 'change'])
        grant(self.user, CeleryTask, actions=['view', 'run'])
        self.a, self.b = make_schedule('A', owner=self.user), make_schedule('B', owner=self.user)

    def post(self, **changes):
        return self.client.post(f'{LIST}edit/', {'pk': [self.a.pk, self.b.pk], '_apply': True, **changes})

    def enabled(self):
        return list(CelerySchedule.objects.values_list('enabled', flat=True))

    def test_enable_and_disable(self):
        for value, enabled in ((3, False), (2, True)):
            self.assertHttpStatus(self.post(enabled=value), 302)
            self.assertEqual(self.enabled(), [enabled] * 2)
            self.assertEqual(CelerySchedule.objects.filter(next_run__isnull=enabled).count(), 0)

    def test_all_or_none(self):
        """The page says which schedule prevents it."""
        CelerySchedule.objects.update(enabled=False)
        CelerySchedule.objects.filter(pk=self.b.pk).update(owner=None)
        page = self.post(enabled=2).content.decode()
        self.assertIn('B: Its owner was deleted', page)
        self.assertEqual(self.enabled(), [False, False])
        self.assertHttpStatus(self.post(timezone='Asia/Kolkata'), 302)
        CelerySchedule.objects.filter(pk=self.b.pk).update(origin='settings')
        self.post(timezone='Europe/Berlin')
        self.assertEqual(set(CelerySchedule.objects.values_list('timezone', flat=True)), {'Asia/Kolkata'})
