"""The form with which people run a task: fields by annotation, arguments as the task expects them."""
from datetime import date, datetime

from django.utils import timezone

from netbox_celery.forms import RunForm
from netbox_celery.forms.parameters import parameter_help
from netbox_celery.models import CeleryTask
from utilities.testing import TestCase


def parameter(name='value', annotation='', kind='positional_or_keyword', **default):
    variadic = kind.startswith('var_')
    return {
        'name': name, 'kind': kind, 'annotation': annotation, 'required': not default and not variadic, **default
    }


class RunFormTestCase(TestCase):

    def form(self, *parameters, **data):
        task = CeleryTask(name='plugin:task', parameters=list(parameters))
        return RunForm(task, {f'parameter_{name}': value for name, value in data.items()})

    def arguments(self, *parameters, **data):
        form = self.form(*parameters, **data)
        self.assertTrue(form.is_valid(), form.errors)
        return form.arguments

    def errors(self, *parameters, **data):
        form = self.form(*parameters, **data)
        self.assertFalse(form.is_valid())
        return {name.removeprefix('parameter_'): list(errors) for name, errors in form.errors.items()}

    def assertArgument(self, expected, described, entered):
        args, kwargs = self.arguments(described, value=entered)
        self.assertEqual((args, kwargs), ([], {'value': expected}))
        self.assertIs(type(kwargs['value']), type(expected))

    def assertOmitted(self, described, entered=''):
        self.assertEqual(self.arguments(described, value=entered), ([], {}))


class TypeTest(RunFormTestCase):

    def test_values(self):
        for annotation, entered, expected in (
            ('str', ' Bob ', ' Bob '), ('str', '5', '5'), ('str | None', 'x', 'x'), ('Optional[str]', 'x', 'x'),
            ('int', '5', 5), ('int | None', '-5', -5), ('typing.Optional[int]', '5', 5), ('None | int', '5', 5),
            ('float', '0.5', 0.5), ('float', '5', 5.0),
            ('bool', 'on', True), ('bool', '', False),
            ('list', '[1, "a"]', [1, 'a']), ('list[str]', '[]', []), ('list[int | str]', '[1]', [1]),
            ('dict', '{"a": 1}', {'a': 1}), ('dict[str, int]', '{}', {}), ('tuple[int, ...]', '[1]', [1]),
            ("Literal['a', 'b']", 'b', 'b'), ('typing.Literal[1, 2]', '2', 2),
            ('datetime.date', '2026-05-01', date(2026, 5, 1)),
            ("typing.Literal['a'] | None", 'a', 'a'), ('Union[int, None]', '5', 5), ('', '[NaN]', '[NaN]'),
            ('', '5', 5), ('', 'Bob', 'Bob'), ('', '"5"', '5'), ('', '[1]', [1]), ('', 'null', None),
            ('int | str', '5', 5), ('int | str', 'x', 'x'), ('Decimal', '1.5', 1.5), ('Any', 'true', True),
        ):
            with self.subTest(annotation=annotation, entered=entered):
                self.assertArgument(expected, parameter(annotation=annotation), entered)

    def test_datetime(self):
        __, kwargs = self.arguments(parameter(annotation='datetime.datetime'), value='2026-05-01 12:30:00')
        expected = timezone.make_aware(datetime(2026, 5, 1, 12, 30))
        self.assertEqual(kwargs['value'], expected)

    def test_defaults_tell_the_type_where_nothing_is_declared(self):
        self.assertArgument('5', parameter(default='World'), '5')
        self.assertArgument(5, parameter(default=1), '5')
        self.assertArgument(False, parameter(default=True), '')
        self.assertArgument({'a': 1}, parameter(default={}), '{"a": 1}')

    def test_optional_boolean(self):
        """Yes, no, or the task's default."""
        described = parameter(annotation='bool | None', default=None)
        self.assertArgument(True, described, 'true')
        self.assertArgument(False, described, 'false')
        self.assertOmitted(described)

    def test_invalid_values(self):
        for annotation, entered, message in (
            ('int', 'x', 'Enter a whole number.'), ('float', 'x', 'Enter a number.'),
            ('list', '{}', 'Enter a JSON array'), ('dict', '[]', 'Enter a JSON object'),
            ('dict', '{', 'Invalid JSON'), ('list', '[NaN]', 'Invalid JSON'),
            ('list', '[1e999]', 'Invalid JSON'), ('dict', '{"a": [-Infinity]}', 'Invalid JSON'),
            ('float', 'nan', 'Enter a number.'), ("Literal['a']", 'x', 'Select a valid choice'),
            ('datetime.date', 'x', 'Enter a valid date'),
        ):
            with self.subTest(annotation=annotation, entered=entered):
                errors = self.errors(parameter(annotation=annotation), value=entered)
                self.assertEqual(list(errors), ['value'])
                self.assertIn(message, errors['value'][0])

    def test_required(self):
        for annotation in ('str', 'int', 'float', 'list', 'dict', '', "Literal['a']", 'datetime.date'):
            with self.subTest(annotation):
                self.assertEqual(
                    self.errors(parameter(annotation=annotation), value=''), {'value': ['This field is required.']}
                )

    def test_left_to_the_default(self):
        for annotation in ('str | None', 'int', 'float', 'list', 'dict', '', "Literal['a']", 'datetime.date'):
            with self.subTest(annotation):
                self.assertOmitted(parameter(annotation=annotation, default=None))

    def test_empty_text_is_a_value_where_the_default_is_a_text(self):
        self.assertArgument('', parameter(annotation='str', default='World'), '')

    def test_defaults_are_shown(self):
        for described, shown in (
            (parameter(annotation='str', default='World'), 'value="World"'),
            (parameter(annotation='int', default=0), 'value="0"'),
            (parameter(annotation='float', default=0.5), 'value="0.5"'),
            (parameter(annotation='bool', default=True), 'checked'),
            (parameter(annotation='list', default=[1, 'é']), '[1, &quot;é&quot;]'),
            (parameter(annotation="Literal['a', 'b']", default='b'), '<option value="b"\n selected'),
            (parameter(annotation='Any', default='5'), 'value="&quot;5&quot;"'),
        ):
            with self.subTest(shown):
                task = CeleryTask(name='plugin:task', parameters=[described])
                self.assertIn(shown, str(RunForm(task)['parameter_value']))

    def test_what_was_entered_is_shown_again(self):
        form = self.form(parameter(annotation='Any'), parameter('other', 'int'), value='5', other='x')
        self.assertFalse(form.is_valid())
        self.assertIn('value="5"', str(form['parameter_value']))

    def test_odd_annotations(self):
        for annotation in ('Literal[', 'Literal[x()]', '|', '[]', 'Callable[[int], str] | None', '<b>'):
            with self.subTest(annotation):
                self.assertArgument(5, parameter(annotation=annotation), '5')


class BindingTest(RunFormTestCase):
    """Arguments are passed by name where possible: a run then shows what each one is."""

    def test_by_name(self):
        self.assertEqual(
            self.arguments(
                parameter('a', 'int'), parameter('b', 'int', default=2), parameter('c', 'int', 'keyword_only'),
                a='1', b='', c='3'
            ),
            ([], {'a': 1, 'c': 3})
        )

    def test_by_position(self):
        described = (
            parameter('a', 'int', 'positional_only'), parameter('b', 'int', 'positional_only', default=2),
            parameter('c', 'int', default=3),
        )
        self.assertEqual(self.arguments(*described, a='1', b='', c=''), ([1, 2], {}))
        self.assertEqual(self.arguments(*described, a='1', b='5', c='6'), ([1, 5], {'c': 6}))

    def test_default_that_is_not_known(self):
        """A default that is not JSON can be left to the task, but not before another argument."""
        first = {**parameter('a', kind='positional_only'), 'required': False}
        second = {**parameter('b', 'int', kind='positional_only'), 'required': False}
        self.assertEqual(self.arguments(first, second, a='', b=''), ([], {}))
        self.assertEqual(list(self.errors(first, second, a='', b='1')), ['a'])

    def test_variadic(self):
        described = (
            parameter('a', 'int'), parameter('rest', kind='var_positional'), parameter('more', kind='var_keyword'),
        )
        self.assertEqual(self.arguments(*described, a='1', rest='', more=''), ([], {'a': 1}))
        self.assertEqual(
            self.arguments(*described, a='1', rest='[2, 3]', more='{"x": 4}'), ([1, 2, 3], {'x': 4})
        )
        self.assertEqual(list(self.errors(*described, a='1', rest='{}', more='[]')), ['rest', 'more'])

    def test_defaults_before_further_arguments(self):
        """Defaults before them must be passed, too, and are valid even if the annotation does not allow them."""
        described = (
            parameter('items', 'list', default=None), parameter('choice', "Literal['a']", default=None),
            parameter('more', 'int', kind='var_positional'), parameter('rest', 'int', kind='var_keyword'),
        )
        self.assertEqual(
            self.arguments(*described, items='', choice='', more='[1]', rest=''), ([None, None, 1], {})
        )
        self.assertEqual(
            self.errors(*described, items='', choice='', more='["x"]', rest='{"a": "y"}'),
            {'more': ["more must be int, not 'x'"], 'rest': ["rest must be int, not 'y'"]}
        )

    def test_signature_is_checked(self):
        """What fields cannot check is checked as in REST."""
        described = (
            parameter('a', 'int', 'positional_only'), parameter('b', 'int'), parameter('more', kind='var_keyword'),
        )
        self.assertEqual(self.errors(*described, a='1', b='2', more='{"b": 3}'), {'more': ['more repeats b']})
        untyped = parameter('flag', 'bool | int')
        self.assertEqual(list(self.errors(untyped, flag='yes')), ['flag'])

    def test_names_of_options_are_free(self):
        """A task may have parameters with the names of run options."""
        form = RunForm(
            CeleryTask(name='plugin:task', parameters=[parameter('queue', 'str'), parameter('name', 'str')]),
            {'parameter_queue': 'a', 'parameter_name': 'b', 'queue': 'slow', 'name': ''}
        )
        self.assertTrue(form.is_valid(), form.errors)
        self.assertEqual(form.arguments, ([], {'queue': 'a', 'name': 'b'}))
        self.assertEqual(form.options, {'queue': 'slow'})

    def test_unknown_queues(self):
        for queue in ('odd', 'unacked', 'amq.gen'):
            form = RunForm(CeleryTask(name='plugin:task', parameters=[]), {'queue': queue})
            self.assertEqual(list(form.errors), ['queue'])

    def test_no_parameters(self):
        form = RunForm(CeleryTask(name='plugin:task', parameters=[]), {})
        self.assertTrue(form.is_valid(), form.errors)
        self.assertEqual((form.arguments, form.options), (([], {}), {}))
        self.assertEqual(len(form.fieldsets), 1)


class HelpTest(TestCase):

    def test_google_style(self):
        self.assertEqual(parameter_help(
            'Do it.\n\nArgs:\n    site: The slug\n        of a site\n    delay (float): Seconds: a few\n'
            '    **more: The rest\n\nReturns:\n    nothing: really\n'
        ), {'site': 'The slug of a site', 'delay': 'Seconds: a few', 'more': 'The rest'})

    def test_nothing(self):
        for text in ('', 'Do it.', 'Args:', 'Args:\n', 'Args: none'):
            with self.subTest(text):
                self.assertEqual(parameter_help(text), {})
