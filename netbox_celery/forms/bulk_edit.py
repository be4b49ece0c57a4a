"""Forms that edit several tasks or schedules together."""
from django import forms
from django.utils.translation import gettext_lazy as _

from netbox.forms import NetBoxModelBulkEditForm
from utilities.forms import add_blank_choice
from utilities.forms.rendering import FieldSet
from utilities.forms.widgets import BulkEditNullBooleanSelect, DateTimePicker

from ..choices import ScheduleMissedChoices, ScheduleOverlapChoices
from ..models import CelerySchedule, CeleryTask
from .schedule import timezones

__all__ = (
    'CeleryScheduleBulkEditForm',
    'CeleryTaskBulkEditForm',
)


class CeleryTaskBulkEditForm(NetBoxModelBulkEditForm):
    enabled = forms.NullBooleanField(
        label=_('Enabled'),
        required=False,
        widget=BulkEditNullBooleanSelect
    )

    model = CeleryTask
    fieldsets = (
        FieldSet('enabled'),
    )


class CeleryScheduleBulkEditForm(NetBoxModelBulkEditForm):
    enabled = forms.NullBooleanField(
        label=_('Enabled'),
        required=False,
        widget=BulkEditNullBooleanSelect
    )
    description = forms.CharField(
        label=_('Description'),
        max_length=200,
        required=False
    )
    overlap = forms.ChoiceField(
        label=_('Overlap'),
        choices=add_blank_choice(ScheduleOverlapChoices),
        required=False
    )
    missed = forms.ChoiceField(
        label=_('Missed runs'),
        choices=add_blank_choice(ScheduleMissedChoices),
        required=False
    )
    missed_max = forms.IntegerField(
        label=_('Catch-up limit'),
        min_value=1,
        max_value=1000,
        required=False
    )
    timezone = forms.ChoiceField(
        label=_('Time zone'),
        choices=lambda: add_blank_choice(timezones()),
        required=False
    )
    start = forms.DateTimeField(
        label=_('Start'),
        required=False,
        widget=DateTimePicker()
    )
    end = forms.DateTimeField(
        label=_('End'),
        required=False,
        widget=DateTimePicker()
    )
    queue = forms.CharField(
        label=_('Queue'),
        max_length=255,
        required=False
    )
    priority = forms.IntegerField(
        label=_('Priority'),
        min_value=0,
        max_value=255,
        required=False
    )
    expires = forms.IntegerField(
        label=_('Expires'),
        min_value=1,
        required=False,
        help_text=CelerySchedule._meta.get_field('expires').help_text
    )

    model = CelerySchedule
    fieldsets = (
        FieldSet('enabled', 'description', name=_('Schedule')),
        FieldSet('overlap', 'missed', 'missed_max', name=_('Policies')),
        FieldSet('timezone', 'start', 'end', name=_('When')),
        FieldSet('queue', 'priority', 'expires', name=_('Options')),
    )
    nullable_fields = ('description', 'start', 'end', 'queue', 'priority', 'expires')
