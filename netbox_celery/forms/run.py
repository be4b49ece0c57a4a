"""The form with which a person runs a task: its parameters, and how this run is to be sent."""
from django import forms
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from utilities.datetime import local_now
from utilities.forms.rendering import FieldSet
from utilities.forms.widgets import DateTimePicker

from ..engine.catalogue import InvalidArguments, check_arguments
from .parameters import OMITTED, field_for, parameter_help

__all__ = (
    'RunForm',
)

#: Fields of parameters are named apart from those of options: a task may well have a parameter `queue`.
PREFIX = 'parameter_'


class RunForm(forms.Form):
    """Arguments and options of a run.

    Once it is valid, `arguments` is the pair `(args, kwargs)` and `options` what `netbox_celery.actions.run` takes.
    """
    name = forms.CharField(
        label=gettext_lazy('Name'),
        required=False,
        max_length=255,
        help_text=gettext_lazy("What is shown for this run, instead of the task's name")
    )
    schedule_at = forms.DateTimeField(
        label=gettext_lazy('Schedule at'),
        required=False,
        widget=DateTimePicker()
    )
    queue = forms.CharField(
        label=gettext_lazy('Queue'),
        required=False,
        max_length=255,
        help_text=gettext_lazy('By default what the task or the configuration says')
    )
    priority = forms.IntegerField(
        label=gettext_lazy('Priority'),
        required=False,
        min_value=0,
        max_value=255,
        help_text=gettext_lazy('With Redis 0 is the highest, with RabbitMQ the lowest')
    )

    #: Options that stand under another name here than in `CeleryResult.enqueue`.
    RENAMED = {'name': 'netbox_name'}
    OPTIONS = ('name', 'schedule_at', 'queue', 'priority')

    def __init__(self, task, data=None, **kwargs):
        super().__init__(data, **kwargs)
        self.task = task
        self.arguments = ([], {})
        described = parameter_help(task.documentation)
        for parameter in task.parameters:
            self.fields[PREFIX + parameter['name']] = field_for(parameter, described.get(parameter['name'], ''))
        self.fieldsets = (
            FieldSet(*(PREFIX + parameter['name'] for parameter in task.parameters), name=_('Parameters')),
            FieldSet(*self.OPTIONS, name=_('Options')),
        )[0 if task.parameters else 1:]
        self.fields['schedule_at'].help_text = format_html(
            '{} <strong>{}</strong>',
            _('Earliest time of the start; by default at once. The time is now'),
            local_now().strftime('%Y-%m-%d %H:%M:%S %Z')
        )

    def clean_schedule_at(self):
        time = self.cleaned_data['schedule_at']
        if time and time < local_now():
            raise forms.ValidationError(_('The time must be in the future.'))
        return time

    def clean(self):
        super().clean()
        if self.errors:
            return
        try:
            self.arguments = self._bind()
            check_arguments(self.task, *self.arguments)
        except InvalidArguments as exc:
            for name, message in exc.errors.items():
                field = PREFIX + name
                self.add_error(field if field in self.fields else None, f'{name} {message}'.removeprefix('__all__ '))

    def _bind(self):
        """Return positional and keyword arguments. By name wherever that is possible: a run shows what was what."""
        values = {p['name']: self.cleaned_data[PREFIX + p['name']] for p in self.task.parameters}
        further, kwargs, by_position = [], {}, {}
        for parameter in self.task.parameters:
            if parameter['kind'] == 'var_positional' and values[parameter['name']] is not OMITTED:
                further = values[parameter['name']]
        for parameter in self.task.parameters:
            name, kind, value = parameter['name'], parameter['kind'], values[parameter['name']]
            if kind == 'positional_only' or kind == 'positional_or_keyword' and further:
                by_position[name] = parameter.get('default', OMITTED) if value is OMITTED else value
            elif kind == 'var_keyword' and value is not OMITTED:
                # Always the last one
                if twice := sorted(kwargs.keys() & value.keys()):
                    raise InvalidArguments({name: _('repeats {names}').format(names=', '.join(twice))})
                kwargs |= value
            elif kind in ('positional_or_keyword', 'keyword_only') and value is not OMITTED:
                kwargs[name] = value
        return [*self._in_order(by_position, further), *further], kwargs

    @staticmethod
    def _in_order(by_position, further):
        """Return arguments by position: the last ones can be left out, but none before another."""
        names = list(by_position)
        while names and not further and by_position[names[-1]] is OMITTED:
            names.pop()
        if missing := [name for name in names if by_position[name] is OMITTED]:
            raise InvalidArguments({name: _('is required before the arguments after it') for name in missing})
        return [by_position[name] for name in names]

    @property
    def options(self):
        """The options that were given, for `netbox_celery.actions.run`."""
        return {
            self.RENAMED.get(name, name): self.cleaned_data[name] for name in self.OPTIONS
            if self.cleaned_data[name] not in (None, '')
        }
