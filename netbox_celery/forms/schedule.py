"""The form that creates or edits a schedule.

It has the fields of the selected kind and task; changing either re-renders them through htmx
(`netbox_celery.views.schedules`). Arguments are entered by parameter or, if they do not match the parameters or the
user prefers it, as JSON. Switching between the two keeps what was entered.
"""
import json
from functools import cache
from math import isfinite
from re import fullmatch
from typing import Any
from zoneinfo import available_timezones

from django import forms
from django.core.exceptions import PermissionDenied, ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from core.models import ObjectType
from netbox.forms import NetBoxModelForm
from utilities.datetime import local_now
from utilities.forms import GenericObjectFormMixin
from utilities.forms.fields import DynamicModelChoiceField, GenericObjectChoiceField
from utilities.forms.rendering import FieldSet, InlineFields
from utilities.forms.widgets import DateTimePicker, HTMXSelect, Select

from ..choices import ScheduleKindChoices as Kind
from ..choices import ScheduleMissedChoices, ScheduleOverlapChoices
from ..engine.store.payload import StrictDecoder, dumps_any
from ..models import CelerySchedule, CeleryTask
from ..reading.viewing import no_tasks_text
from ..services import schedules as scheduling
from .arguments import ArgumentsMixin, as_entered, spread
from .payload import PayloadField

__all__ = (
    'CeleryScheduleForm',
    'descriptions',
    'timezones',
)

BY_PARAMETER, AS_JSON = 'parameters', 'json'

#: Seconds in each unit of an interval, the longest last.
UNITS = {
    1: gettext_lazy('seconds'), 60: gettext_lazy('minutes'), 3600: gettext_lazy('hours'), 86400: gettext_lazy('days'),
}

#: The fields of the timing, by kind.
WHEN = {
    Kind.KIND_CRONTAB: ('crontab', 'timezone', 'start', 'end'),
    Kind.KIND_INTERVAL: ('interval', 'interval_unit', 'start', 'end'),
    Kind.KIND_ONCE: ('at',),
}


@cache
def timezones() -> list[tuple[str, str]]:
    """Return the time zones as choices of a field."""
    return [(name, name) for name in sorted(available_timezones())]


def descriptions(choices: Any) -> dict[Any, Any]:
    """Return the descriptions of a choice set, for a widget that shows them."""
    return {choice.value: choice.description for choice in choices.CHOICES}


def rerendering_select(target: str, include: str | None = None, **kwargs: Any) -> HTMXSelect:
    """Return a select that re-renders a fieldset when its value changes.

    Args:
        target: ID of the fieldset.
        include: ID of the element whose fields it depends on; defaults to the fieldset.
        **kwargs: Arguments of the widget.
    """
    return HTMXSelect(method='post', hx_include_id=include or target, hx_target_id=target, **kwargs)


class CeleryScheduleForm(GenericObjectFormMixin, ArgumentsMixin, NetBoxModelForm):
    """
    Args:
        user: The user who fills in the form. They become the owner if they change what runs.
    """
    kind = forms.ChoiceField(
        label=gettext_lazy('Type'),
        choices=Kind,
        initial=Kind.KIND_CRONTAB,
        widget=rerendering_select('schedule-when', descriptions=descriptions(Kind))
    )
    timezone = forms.ChoiceField(
        label=gettext_lazy('Time zone'),
        choices=timezones
    )
    interval = forms.FloatField(
        label=gettext_lazy('Every'),
        widget=forms.NumberInput(attrs={'step': 'any', 'min': 0})
    )
    interval_unit = forms.TypedChoiceField(
        label=gettext_lazy('Unit'),
        choices=tuple(UNITS.items()),
        coerce=int,
        initial=60
    )
    task = DynamicModelChoiceField(
        label=gettext_lazy('Task'),
        queryset=CeleryTask.objects.all(),
        query_params={'runnable': 'true', 'enabled': 'true', 'present': 'true'},
        help_text=gettext_lazy('Only tasks you are allowed to run')
    )
    arguments_as = forms.ChoiceField(
        label=gettext_lazy('Arguments'),
        choices=((BY_PARAMETER, gettext_lazy('By parameter')), (AS_JSON, gettext_lazy('As JSON'))),
        initial=BY_PARAMETER,
        required=False,
        widget=rerendering_select('schedule-what')
    )
    args = PayloadField(
        label=gettext_lazy('Positional arguments'),
        required=False,
        widget=forms.Textarea(attrs={'rows': 2}),
        help_text=gettext_lazy('An array, such as <code>["ams", 5]</code>')
    )
    kwargs = PayloadField(
        label=gettext_lazy('Keyword arguments'),
        required=False,
        widget=forms.Textarea(attrs={'rows': 5}),
        help_text=gettext_lazy('An object, such as <code>{"site": "ams"}</code>')
    )
    overlap = forms.ChoiceField(
        label=gettext_lazy('Overlap'),
        choices=ScheduleOverlapChoices,
        widget=Select(descriptions=descriptions(ScheduleOverlapChoices)),
        help_text=CelerySchedule._meta.get_field('overlap').help_text
    )
    missed = forms.ChoiceField(
        label=gettext_lazy('Missed runs'),
        choices=ScheduleMissedChoices,
        widget=Select(descriptions=descriptions(ScheduleMissedChoices)),
        help_text=CelerySchedule._meta.get_field('missed').help_text
    )
    object = GenericObjectChoiceField(
        label=gettext_lazy('Object'),
        content_type_queryset=ObjectType.objects.with_feature('tags'),
        required=False,
        selector=True,
        hx_method='post',
        hx_include_id='schedule-options',
        hx_target_id='schedule-options',
        help_text=gettext_lazy('Related object; runs are listed on its page')
    )

    class Meta:
        model = CelerySchedule
        fields = (
            'name', 'description', 'enabled', 'kind', 'crontab', 'timezone', 'interval', 'at', 'start', 'end', 'task',
            'args', 'kwargs', 'queue', 'priority', 'expires', 'missed', 'missed_max', 'overlap', 'tags',
        )
        widgets = {
            'crontab': forms.TextInput(attrs={
                'class': 'font-monospace', 'placeholder': '30 2 * * mon-fri', 'autocomplete': 'off',
            }),
            'at': DateTimePicker(), 'start': DateTimePicker(), 'end': DateTimePicker(),
        }

    def __init__(self, *args, user, **kwargs):
        super().__init__(*args, **kwargs)
        self.user = user
        self._init_texts()
        fieldsets = [FieldSet('name', 'description', 'enabled', 'tags', name=_('Schedule'))]
        if self.instance.is_read_only:
            for name in (*self.instance.SOURCED, 'interval_unit', 'arguments_as'):
                self.fields.pop(name, None)
            fieldsets.append(FieldSet('object', name=_('Options'), html_id='schedule-options'))
        else:
            fieldsets += [
                FieldSet('kind', *self._init_when(), name=_('When'), html_id='schedule-when'),
                FieldSet('task', *self._init_what(), name=_('What'), html_id='schedule-what'),
                FieldSet('queue', 'priority', 'expires', 'object', name=_('Options'), html_id='schedule-options'),
            ]
        self.fieldsets = (*fieldsets, FieldSet('overlap', 'missed', 'missed_max', name=_('Policies')))

    #: Whether the stored arguments can be shown by parameter.
    is_fitting = True

    def _init_texts(self):
        fields = self.fields
        now = local_now()
        server_time = _('Server time ({zone}); now {time}').format(
            zone=now.strftime('%Z'), time=now.strftime('%Y-%m-%d %H:%M:%S')
        )
        for name in ('at', 'start', 'end'):
            fields[name].help_text = f'{fields[name].help_text}. {server_time}'
        fields['task'].help_text = no_tasks_text() or fields['task'].help_text
        fields['task'].widget.attrs |= rerendering_select('schedule-what', 'id_task').attrs
        fields['queue'].help_text = _("Leave blank for the task's default")

    def _value(self, name):
        """Return the value of a field before it is cleaned."""
        return self.data.get(name) if self.is_bound else self.get_initial_for_field(self.fields[name], name)

    def _init_when(self):
        """Keep only the fields of the selected kind, and return their names."""
        kind = self._value('kind')
        wanted = WHEN.get(kind, WHEN[Kind.KIND_CRONTAB])
        for name in set().union(*WHEN.values()) - set(wanted):
            del self.fields[name]
        for name in ('crontab', 'interval', 'at'):
            if name in self.fields:
                self.fields[name].required = True
        if 'interval' in self.fields:
            self._init_interval()
            return (InlineFields('interval', 'interval_unit', label=_('Interval')), 'start', 'end')
        return wanted

    def _init_interval(self):
        """Show an interval in the longest unit that divides it, as 5 and not as 5.0."""
        try:
            interval = float(self.initial.get('interval') or 'nan')  # text in the form of a clone
        except ValueError:
            return
        if not isfinite(interval):
            return
        if 'interval_unit' not in self.initial:
            unit = next(unit for unit in reversed(UNITS) if interval % unit == 0 or unit == 1)
            interval, self.initial['interval_unit'] = interval / unit, unit
        self.initial['interval'] = f'{interval:g}'

    def _init_what(self):
        """Add the fields for the arguments of the selected task, and return their names."""
        task = self._chosen_task()
        if task is None:
            return self._without('args', 'kwargs', 'arguments_as')
        values = self._values(task)
        if values is None or self._value('arguments_as') == AS_JSON:
            self.initial['arguments_as'] = AS_JSON
            self.task = task
            return 'arguments_as', 'args', 'kwargs'
        self._without('args', 'kwargs')
        self.add_parameters(task, values)
        if not task.parameters:
            return self._without('arguments_as')
        return 'arguments_as', *self.parameter_fields

    def _without(self, *names):
        for name in names:
            del self.fields[name]
        return ()

    def _chosen_task(self):
        chosen = self._value('task')
        pk = getattr(chosen, 'pk', chosen)
        if self.instance.task_id is not None and str(pk) == str(self.instance.task_id):
            return self.instance.task
        if not fullmatch('[0-9]{1,18}', str(pk)):
            return None
        # Do not reveal the parameters of a task that the user may not view
        return CeleryTask.objects.restrict(self.user, 'view').filter(pk=pk).first()

    def _values(self, task):
        """Return the values of the parameter fields, by name, or `None` if the arguments must be shown as JSON.

        When the user switches to JSON, this also converts the values that were entered by parameter.
        """
        args, kwargs = ([], {}) if task.pk != self.instance.task_id else (self.instance.args, self.instance.kwargs)
        if self.is_bound:
            values = spread(task, args, kwargs)
            self.is_fitting = values is not None
            return values or {}
        given = {name: self.initial.pop(name) for name in list(self.initial) if name.startswith('parameter_')}
        if self.initial.get('arguments_as') == AS_JSON:
            if given:
                self.initial['args'], self.initial['kwargs'] = (
                    dumps_any(value, ensure_ascii=False) for value in as_entered(task, given)
                )
            return None
        for name, value in (('args', args), ('kwargs', kwargs)):
            entered = self.initial.get(name)
            if isinstance(entered, str) and entered:
                try:
                    value = json.loads(entered, cls=StrictDecoder)
                except ValueError:
                    return None
            args, kwargs = (value, kwargs) if name == 'args' else (args, value)
        return spread(task, args, kwargs)

    # Validation

    def clean(self):
        schedule = self.instance
        about = schedule.object_type_id, schedule.object_id
        is_object_gone = schedule.is_object_gone
        super().clean()
        data = self.cleaned_data
        if is_object_gone and schedule.object_id is None:
            # The form cannot show a deleted object, so the user has not removed it
            schedule.object_type_id, schedule.object_id = about
        if schedule.is_read_only:
            return data
        if data.get('interval') is not None and data.get('interval_unit'):
            data['interval'] *= data['interval_unit']
            if data['interval'] < 1:
                # The message of the model counts seconds, whatever the unit
                self.add_error('interval', _('The interval must be at least one second.'))
        for name, empty in (('crontab', ''), ('interval', None), ('at', None), ('start', None), ('end', None)):
            if name not in self.fields:
                setattr(schedule, name, empty)
        if 'args' in self.fields:
            data['args'] = [] if data.get('args') is None else data['args']
            data['kwargs'] = {} if data.get('kwargs') is None else data['kwargs']
        elif self.task is not None and not self.errors:
            # Do not write the defaults that the fields show into a schedule whose arguments were not changed
            is_another = schedule.task_id != self.task.pk or not self.is_fitting
            if is_another or set(self.changed_data) & set(self.parameter_fields):
                self.bind_arguments()
                schedule.args, schedule.kwargs = self.arguments
        return data

    def _post_clean(self):
        super()._post_clean()
        if self.errors:
            return
        try:
            scheduling.authorize(self.user, self.instance)
        except PermissionDenied as exc:
            self.add_error('task' if 'task' in self.fields else None, str(exc))
        except ValidationError as exc:
            self._update_errors(exc)

    def _update_errors(self, errors):
        """Show the errors of model fields that the form does not have."""
        if hasattr(errors, 'error_dict'):
            shown: dict[str, list[Any]] = {}
            for name, messages in errors.error_dict.items():
                if name in self.errors:
                    continue  # the form has rejected the value, so the model has none
                name = 'object' if name in ('object_type', 'object_id') else name
                shown.setdefault(name if name in self.fields else forms.forms.NON_FIELD_ERRORS, []).extend(messages)
            errors = ValidationError(shown)
        super()._update_errors(errors)
