"""Form fields for the parameters of a task, chosen by their annotation, default and docstring in the catalogue."""
import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

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
    """Marks a parameter that is left at its default."""

    def __repr__(self):
        return 'OMITTED'


OMITTED = _Omitted()

EMPTY = (None, '')


if TYPE_CHECKING:
    from django.forms import Field as MixinBase
else:
    MixinBase = object


class ParameterMixin(MixinBase):
    """A field whose value is omitted from the call if nothing was entered."""
    if_empty: Any = OMITTED

    def clean(self, value):
        if value in EMPTY and not self.required:
            return self.if_empty
        return super().clean(value)


class TextParameter(ParameterMixin, forms.CharField):
    pass


class DefaultTextParameter(TextParameter):
    """Text whose default is text as well: here an empty text is a value."""
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
            return value.isoformat()  # so close to the end of the calendar that it has no local time


class ChoiceParameter(ParameterMixin, forms.TypedChoiceField):
    pass


class JSONParameter(ParameterMixin, forms.CharField):
    """JSON of certain Python types.

    Args:
        accepts: The accepted types; all if empty.
    """
    widget = forms.Textarea(attrs={'rows': 3, 'class': 'font-monospace'})
    default_error_messages = {
        'invalid_json': _('Invalid JSON: {error}'),
        'invalid_type': _('Enter a JSON {expected}.'),
        'too_deep': _('The value is nested too deeply (limit: {deepest} levels of arrays and objects).'),
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
            # Python also reads NaN and numbers that are too large for JSON
            json.dumps(value, allow_nan=False)
            to_jsonb(value, DEEPEST - 1)
        except RecursionError as exc:
            raise self._too_deep() from exc
        except ValueError as exc:
            if is_deep(text, DEEPEST - 1):
                raise self._too_deep() from exc
            raise forms.ValidationError(
                self.error_messages['invalid_json'].format(error=_why_not_json(text, exc)), code='invalid_json'
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
        # `null`, `[]` and `{}` are valid values
        pass

    def run_validators(self, value):
        # Validators of text do not apply to the parsed value
        pass


class FreeParameter(JSONParameter):
    """A value of an undeclared type: JSON if it parses as JSON, otherwise text."""
    widget = forms.TextInput(attrs={'class': 'font-monospace'})

    def __init__(self, *args, initial=None, **kwargs):
        super().__init__(*args, initial=self.quote(initial), **kwargs)

    @staticmethod
    def quote(value):
        # Quoted, or the text "5" would be read back as a number
        return json.dumps(value, ensure_ascii=False) if isinstance(value, str) and _is_json(value) else value

    def to_python(self, value):
        try:
            return super().to_python(value)
        except forms.ValidationError as exc:
            if exc.code == 'too_deep':
                raise
            return value


def _why_not_json(text, exc):
    """Return in words why a text is not valid JSON."""
    if not isinstance(exc, json.JSONDecodeError):
        return exc
    rest = text[exc.pos:].strip()
    if not rest or exc.msg.startswith('Unterminated string'):
        return _('unexpected end after "{text}"').format(text=text.rstrip()[-30:])
    return _('unexpected "{text}" in line {line}, column {column}').format(
        text=rest[:30], line=exc.lineno, column=exc.colno
    )


def _is_json(text):
    try:
        json.loads(text)
    except (RecursionError, ValueError):
        return False
    return True


def _boolean(options):
    if options['required'] or 'initial' in options:
        # A checkbox always has a value
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


def field_for(parameter: dict[str, Any], help_text: str = '') -> forms.Field:
    """Return a form field for a parameter of a task.

    Args:
        parameter: One of `CeleryTask.parameters`.
        help_text: The description of the parameter in the task's docstring.

    Returns:
        A field whose cleaned value is the argument, or `OMITTED`.
    """
    options = {'label': parameter['name'], 'required': parameter['required'], 'help_text': escape(help_text)}
    if parameter['kind'] == 'var_positional':
        options['help_text'] = options['help_text'] or _('Additional positional arguments, as a JSON array')
        return JSONParameter(accepts=(list,), **options | {'label': f'*{parameter["name"]}'})
    if parameter['kind'] == 'var_keyword':
        options['help_text'] = options['help_text'] or _('Additional keyword arguments, as a JSON object')
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
    """Return the type of a parameter besides `None`, an `Alternative`; it has no name unless there is exactly one."""
    found = [alternative for alternative in alternatives(parameter['annotation']) if alternative.name != 'None']
    if len(found) == 1:
        return found[0]
    if not parameter['annotation'] and parameter.get('default') is not None:
        # Nothing is declared: use the type of the default
        return Alternative(type(parameter['default']).__name__)
    return Alternative('')


def present(field: forms.Field, value: Any) -> None:
    """Show an argument, instead of the default, in the field of its parameter."""
    if isinstance(field, ChoiceParameter):
        keys = {key for key, __ in field.choices}
        value = next((key for key in (str(value), str(value).lower()) if key in keys), '')
    elif isinstance(field, FreeParameter):
        value = field.quote(value)
    elif isinstance(field, forms.DateField | forms.DateTimeField):
        # Values from REST or a file are text
        with suppress(forms.ValidationError):
            value = field.to_python(value)
    field.initial = value


def _with_note(help_text, annotation):
    note = _('Text or JSON (5, true, null, ["a"])')
    if annotation:
        note = format_html('<code>{}</code>: {}', annotation, note)
    return mark_safe(f'{help_text} ({note})') if help_text else note


def parameter_help(documentation: str) -> dict[str, str]:
    """Return the descriptions of parameters in a docstring, by name, from its `Args:` section (Google style)."""
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
