"""Form fields for the parameters of a task, by what the catalogue knows of them: annotation, default, docstring."""
import json
import re
from contextlib import suppress

from django import forms
from django.utils.html import escape, format_html
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy as _

from utilities.forms.widgets import DatePicker, DateTimePicker

from ..engine.catalogue.annotations import Alternative, alternatives
from ..engine.store.payload import DEEPEST, dumps_any, is_deep, to_jsonb

__all__ = (
    'EMPTY',
    'OMITTED',
    'field_for',
    'parameter_help',
    'present',
)


class _Omitted:
    """Stands for a parameter that is left to its default."""

    def __repr__(self):
        return 'OMITTED'


OMITTED = _Omitted()

EMPTY = (None, '')


class ParameterMixin:
    """A field whose value is left out of the call if nothing was entered."""
    if_empty = OMITTED

    def clean(self, value):
        if value in EMPTY and not self.required:
            return self.if_empty
        return super().clean(value)


class TextParameter(ParameterMixin, forms.CharField):
    pass


class DefaultTextParameter(TextParameter):
    """An empty text is a value where the default is a text."""
    if_empty = ''


class IntegerParameter(ParameterMixin, forms.IntegerField):
    pass


class FloatParameter(ParameterMixin, forms.FloatField):
    pass


class DateParameter(ParameterMixin, forms.DateField):
    pass


class DateTimeParameter(ParameterMixin, forms.DateTimeField):

    def prepare_value(self, value):
        try:
            return super().prepare_value(value)
        except OverflowError:
            return value.isoformat()  # so near to the end of the calendar that it has no local time


class ChoiceParameter(ParameterMixin, forms.TypedChoiceField):
    pass


class JSONParameter(ParameterMixin, forms.CharField):
    """JSON of one of some Python types.

    Args:
        accepts: The types; all if there are none.
    """
    widget = forms.Textarea(attrs={'rows': 3, 'class': 'font-monospace'})
    default_error_messages = {
        'invalid_json': _('Enter valid JSON: {error}'),
        'invalid_type': _('Enter a JSON {expected}.'),
        'too_deep': _('This is nested too deeply: more than {deepest} arrays and objects in each other.'),
    }
    NAMES = {list: _('array, such as [1, 2]'), dict: _('object, such as {"name": "value"}')}

    def __init__(self, *args, accepts=(), **kwargs):
        self.accepts = accepts
        super().__init__(*args, **kwargs)

    def prepare_value(self, value):
        return value if isinstance(value, str | None) else dumps_any(value, ensure_ascii=False)

    def to_python(self, value):
        text = super().to_python(value)
        if text in EMPTY:
            return text
        try:
            value = json.loads(text)
            # Python reads NaN and numbers that are too large; JSON has none
            json.dumps(value, allow_nan=False)
            to_jsonb(value, DEEPEST - 1)
        except RecursionError as exc:
            raise self._too_deep() from exc
        except ValueError as exc:
            if is_deep(text, DEEPEST - 1):
                raise self._too_deep() from exc
            raise forms.ValidationError(
                self.error_messages['invalid_json'].format(error=exc), code='invalid_json'
            ) from exc
        if self.accepts and not isinstance(value, self.accepts):
            expected = self.NAMES[self.accepts[0]]
            raise forms.ValidationError(
                self.error_messages['invalid_type'].format(expected=expected), code='invalid_type'
            )
        return value

    def _too_deep(self):
        return forms.ValidationError(self.error_messages['too_deep'].format(deepest=DEEPEST - 1), code='too_deep')

    def clean(self, value):
        if self.required and value in EMPTY:
            raise forms.ValidationError(self.error_messages['required'], code='required')
        return super().clean(value)

    def validate(self, value):
        # `null`, `[]` and `{}` are values
        pass

    def run_validators(self, value):
        # Those of text do not apply to what it stands for
        pass


class FreeParameter(JSONParameter):
    """A value of a type that nobody declared: JSON where it is JSON, and text where it is not."""
    widget = forms.TextInput(attrs={'class': 'font-monospace'})

    def __init__(self, *args, initial=None, **kwargs):
        super().__init__(*args, initial=self.quote(initial), **kwargs)

    @staticmethod
    def quote(value):
        # In quotes, or the text "5" would come back as the number
        return json.dumps(value, ensure_ascii=False) if isinstance(value, str) and _is_json(value) else value

    def to_python(self, value):
        try:
            return super().to_python(value)
        except forms.ValidationError as exc:
            if exc.code == 'too_deep':
                raise
            return value


def _is_json(text):
    try:
        json.loads(text)
    except (RecursionError, ValueError):
        return False
    return True


def _boolean(options):
    if options['required'] or 'initial' in options:
        # A box is always answered
        return forms.BooleanField(**options | {'required': False})
    choices = (('', '---------'), ('true', _('Yes')), ('false', _('No')))
    return ChoiceParameter(choices=choices, coerce=lambda value: value == 'true', **options)


def _choice(values, options):
    by_text = {str(value): value for value in values}
    if 'initial' in options:
        options['initial'] = str(options['initial'])
    blank = [] if options['required'] or 'initial' in options else [('', '---------')]
    return ChoiceParameter(
        choices=[*blank, *((text, text) for text in by_text)], coerce=by_text.__getitem__, **options
    )


def _text(options):
    field = DefaultTextParameter if isinstance(options.get('initial'), str) else TextParameter
    return field(strip=False, **options)


FIELDS = {
    'str': _text,
    'int': lambda options: IntegerParameter(**options),
    'float': lambda options: FloatParameter(widget=forms.NumberInput(attrs={'step': 'any'}), **options),
    'bool': _boolean,
    'date': lambda options: DateParameter(widget=DatePicker(), **options),
    'datetime': lambda options: DateTimeParameter(widget=DateTimePicker(), **options),
    'list': lambda options: JSONParameter(accepts=(list,), **options),
    'tuple': lambda options: JSONParameter(accepts=(list,), **options),
    'set': lambda options: JSONParameter(accepts=(list,), **options),
    'dict': lambda options: JSONParameter(accepts=(dict,), **options),
}


def field_for(parameter, help_text=''):
    """Return a form field for a parameter of a task.

    Args:
        parameter: One of `CeleryTask.parameters`.
        help_text: What its docstring says about the parameter.

    Returns:
        A field whose cleaned value is the argument, or `OMITTED`.
    """
    options = {'label': parameter['name'], 'required': parameter['required'], 'help_text': escape(help_text)}
    if parameter['kind'] == 'var_positional':
        options['help_text'] = options['help_text'] or _('Further positional arguments, as a JSON array')
        return JSONParameter(accepts=(list,), **options | {'label': f'*{parameter["name"]}'})
    if parameter['kind'] == 'var_keyword':
        options['help_text'] = options['help_text'] or _('Further keyword arguments, as a JSON object')
        return JSONParameter(accepts=(dict,), **options | {'label': f'**{parameter["name"]}'})
    if parameter.get('default') is not None:
        options['initial'] = parameter['default']
    return _typed_field(parameter, options)


def _typed_field(parameter, options):
    kind = _kind(parameter)
    if kind.values:
        return _choice(kind.values, options)
    if kind.name in FIELDS:
        return FIELDS[kind.name](options)
    options['help_text'] = _with_note(options['help_text'], parameter['annotation'])
    return FreeParameter(**options)


def _kind(parameter):
    """Return the type of a parameter beside `None`, an `Alternative`; of several, or of none, one without a name."""
    found = [alternative for alternative in alternatives(parameter['annotation']) if alternative.name != 'None']
    if len(found) == 1:
        return found[0]
    if not parameter['annotation'] and parameter.get('default') is not None:
        # Nothing is declared: the default tells
        return Alternative(type(parameter['default']).__name__)
    return Alternative('')


def present(field, value):
    """Show an argument in the field of its parameter, instead of the default."""
    if isinstance(field, ChoiceParameter):
        keys = {key for key, __ in field.choices}
        value = next((key for key in (str(value), str(value).lower()) if key in keys), '')
    elif isinstance(field, FreeParameter):
        value = field.quote(value)
    elif isinstance(field, forms.DateField | forms.DateTimeField):
        # By REST or from a file it came as text
        with suppress(forms.ValidationError):
            value = field.to_python(value)
    field.initial = value


def _with_note(help_text, annotation):
    note = _('Text, or JSON such as 5, true, null, ["a"]')
    if annotation:
        note = format_html('<code>{}</code>: {}', annotation, note)
    return mark_safe(f'{help_text} ({note})') if help_text else note


def parameter_help(documentation):
    """Return what a docstring says about parameters, by name: the section `Args:` as Google's style has it."""
    found = re.search(r'^(Args|Arguments|Parameters):\s*\n((?:[ \t]+.*\n?|\s*\n)*)', documentation, re.MULTILINE)
    if not found:
        return {}
    entries, name, indent = {}, None, None
    for line in found[2].splitlines():
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        indent = depth if indent is None else indent
        start = re.match(r'\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)', line)
        if depth == indent and start:
            name = start[1]
            entries[name] = start[2].strip()
        elif name:
            entries[name] = f'{entries[name]} {line.strip()}'.strip()
    return entries
