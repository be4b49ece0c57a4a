"""The form that imports schedules from CSV, JSON or YAML."""
from django import forms
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from netbox.forms import NetBoxModelImportForm
from utilities.forms.fields import CSVChoiceField, CSVContentTypeField, CSVModelChoiceField

from ..choices import ScheduleKindChoices, ScheduleMissedChoices, ScheduleOverlapChoices
from ..host import current_user
from ..models import CelerySchedule, CeleryTask
from ..services import schedules as scheduling
from .payload import PayloadField

__all__ = (
    'CeleryScheduleImportForm',
)


TIMES = ('at', 'start', 'end')


class CeleryScheduleImportForm(NetBoxModelImportForm):
    enabled = forms.BooleanField(
        label=_('Enabled'),
        required=False,
        initial=True
    )
    task = CSVModelChoiceField(
        label=_('Task'),
        queryset=CeleryTask.objects.all(),
        to_field_name='name',
        help_text=_('Name of the task')
    )
    kind = CSVChoiceField(
        label=_('Type'),
        choices=ScheduleKindChoices,
        required=False,
        help_text=_('Defaults to crontab')
    )
    timezone = forms.CharField(
        label=_('Time zone'),
        required=False,
        help_text=_('Defaults to the NetBox time zone')
    )
    args = PayloadField(
        label=_('Arguments'),
        required=False,
        help_text=_('Positional arguments, a JSON array')
    )
    kwargs = PayloadField(
        label=_('Keyword arguments'),
        required=False,
        help_text=_('A JSON object')
    )
    object_type = CSVContentTypeField(
        label=_('Object type'),
        queryset=ContentType.objects.all(),
        required=False,
        help_text=_('Type of the object that the runs concern (app & model)')
    )
    missed = CSVChoiceField(
        label=_('Missed runs'),
        choices=ScheduleMissedChoices,
        required=False
    )
    missed_max = forms.IntegerField(
        label=_('Catch-up limit'),
        required=False
    )
    overlap = CSVChoiceField(
        label=_('Overlap'),
        choices=ScheduleOverlapChoices,
        required=False
    )

    class Meta:
        model = CelerySchedule
        fields = (
            'name', 'description', 'enabled', 'task', 'kind', 'crontab', 'timezone', 'interval', 'at', 'start', 'end',
            'args', 'kwargs', 'queue', 'priority', 'expires', 'object_type', 'object_id', 'missed', 'missed_max',
            'overlap', 'tags',
        )
        help_texts = {
            # The import page shows plain text
            'crontab': _('Minute, hour, day of the month, month, day of the week, such as 30 2 * * mon-fri'),
        }

    def __init__(self, data=None, *args, **kwargs):
        if data is not None and not data.get('id'):
            # Omitted values default to those of a new schedule; an omitted boolean would be read as false
            data = {'enabled': True} | data
        if data is not None:
            # YAML yields numbers, but Django's time fields take text
            data = {name: str(value) if isinstance(value, int | float) and name in TIMES else value
                    for name, value in data.items()}
        super().__init__(data, *args, **kwargs)

    def clean(self):
        data = super().clean() or self.cleaned_data
        for name in ('kind', 'timezone', 'missed', 'missed_max', 'overlap', 'args', 'kwargs'):
            if name in data and data[name] in (None, ''):
                field = CelerySchedule._meta.get_field(name)
                data[name] = field.get_default()
        self._check_object(data)
        return data

    def _check_object(self, data):
        names = 'object_type', 'object_id'
        schedule = self.instance
        try:
            scheduling.check_object(
                current_user(), schedule if schedule.pk else None,
                *(data[name] if name in data else getattr(schedule, name) for name in names)
            )
        except ValidationError as exc:
            for name in names:
                data.pop(name, None)
            self.add_error(next(name for name in reversed(names) if name in self.fields), exc.messages)
