"""The filter forms of the lists of runs, tasks, schedules and workers."""
from typing import TYPE_CHECKING, Any

from django import forms
from django.utils.translation import gettext_lazy as _

from core.models import ObjectType
from netbox.forms import NetBoxModelFilterSetForm
from netbox.forms.mixins import SavedFiltersMixin
from users.models import User
from utilities.forms import BOOLEAN_WITH_BLANK_CHOICES, FilterForm
from utilities.forms.fields import ContentTypeChoiceField, DynamicModelMultipleChoiceField, TagFilterField
from utilities.forms.rendering import FieldSet
from utilities.forms.widgets import DateTimePicker

from .. import filtersets
from ..choices import (
    ResultReasonChoices,
    ResultStatusChoices,
    ScheduleKindChoices,
    ScheduleMissedChoices,
    ScheduleOriginChoices,
    ScheduleOverlapChoices,
)
from ..host import current_user
from ..models import CeleryResult, CelerySchedule, CeleryTask, CeleryWorker
from ..reading.viewing import nameable

__all__ = (
    'CeleryResultFilterForm',
    'CeleryScheduleFilterForm',
    'CeleryTaskFilterForm',
    'CeleryWorkerFilterForm',
)


def time_field(label: Any) -> forms.DateTimeField:
    return forms.DateTimeField(label=label, required=False, widget=DateTimePicker())


def boolean_field(label: Any) -> forms.NullBooleanField:
    return forms.NullBooleanField(
        label=label, required=False, widget=forms.Select(choices=BOOLEAN_WITH_BLANK_CHOICES)
    )


if TYPE_CHECKING:
    from django.forms import Form as MixinBase
else:
    MixinBase = object


class StrictMixin(MixinBase):
    """Shows the errors of a filter at its field, including those of other lookups of the field (`task_id__isw`).

    Attributes:
        filterset: The class of the filters.
    """
    filterset: Any = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # The list and the form show the names of the selected objects
        if (user := current_user()) is not None:
            for field in self.fields.values():
                model = getattr(getattr(field, 'queryset', None), 'model', None)
                if model in (User, CelerySchedule, CeleryTask):
                    field.queryset = nameable(model, user)
                    # NetBox wraps the widget that shows the selected objects
                    getattr(field.widget, 'original_widget', field.widget).choices = field.choices

    def clean(self):
        super().clean()
        wrong = self.filterset(self.data).errors if self.data else {}
        for name, errors in wrong.items():
            field = name if name in self.fields else name.partition('__')[0]
            if field in self.fields and field not in self.errors:
                self.add_error(field, list(errors))


class CeleryResultFilterForm(StrictMixin, NetBoxModelFilterSetForm):
    model = CeleryResult
    filterset = filtersets.CeleryResultFilterSet
    fieldsets = (
        FieldSet('q', 'filter_id', 'tag'),
        FieldSet(
            'status', 'reason', 'celery_name', 'name', 'user_id', 'schedule_id', 'branch', 'object_type_id',
            name=_('Run')
        ),
        FieldSet('queue', 'worker', 'concurrency_key', name=_('Execution')),
        FieldSet(
            'created__after', 'created__before', 'scheduled__after', 'scheduled__before', 'started__after',
            'started__before', 'completed__after', 'completed__before', name=_('Times')
        ),
        FieldSet('task_id', 'root_id', 'request_id', name=_('IDs')),
    )
    status = forms.MultipleChoiceField(
        label=_('Status'),
        choices=ResultStatusChoices,
        required=False
    )
    reason = forms.MultipleChoiceField(
        label=_('Reason'),
        choices=ResultReasonChoices,
        required=False
    )
    celery_name = DynamicModelMultipleChoiceField(
        queryset=CeleryTask.objects.all(),
        to_field_name='name',
        required=False,
        label=_('Task')
    )
    name = forms.CharField(
        label=_('Name'),
        required=False
    )
    user_id = DynamicModelMultipleChoiceField(
        queryset=User.objects.all(),
        required=False,
        label=_('User')
    )
    schedule_id = DynamicModelMultipleChoiceField(
        queryset=CelerySchedule.objects.all(),
        required=False,
        label=_('Schedule')
    )
    branch = forms.CharField(
        label=_('Branch'),
        required=False,
        help_text=_('Name or schema ID')
    )
    object_type_id = ContentTypeChoiceField(
        queryset=ObjectType.objects.public(),
        required=False,
        label=_('Object type')
    )
    queue = forms.CharField(
        label=_('Queue'),
        required=False
    )
    worker = forms.CharField(
        label=_('Worker'),
        required=False
    )
    concurrency_key = forms.CharField(
        label=_('Concurrency key'),
        required=False
    )
    created__after = time_field(_('Created after'))
    created__before = time_field(_('Created before'))
    scheduled__after = time_field(_('Scheduled after'))
    scheduled__before = time_field(_('Scheduled before'))
    started__after = time_field(_('Started after'))
    started__before = time_field(_('Started before'))
    completed__after = time_field(_('Completed after'))
    completed__before = time_field(_('Completed before'))
    task_id = forms.CharField(
        label=_('Task ID'),
        required=False
    )
    root_id = forms.CharField(
        label=_('Root ID'),
        required=False,
        help_text=_('All runs of a workflow')
    )
    request_id = forms.CharField(
        label=_('Request ID'),
        required=False
    )
    tag = TagFilterField(model)


class CeleryTaskFilterForm(StrictMixin, NetBoxModelFilterSetForm):
    model = CeleryTask
    filterset = filtersets.CeleryTaskFilterSet
    fieldsets = (
        FieldSet('q', 'filter_id', 'tag'),
        FieldSet('name', 'plugin', 'enabled', 'present', name=_('Task')),
    )
    name = forms.CharField(
        label=_('Name'),
        required=False
    )
    plugin = forms.CharField(
        label=_('Plugin'),
        required=False
    )
    enabled = boolean_field(_('Enabled'))
    present = boolean_field(_('Registered'))
    tag = TagFilterField(model)


class CeleryScheduleFilterForm(StrictMixin, NetBoxModelFilterSetForm):
    model = CelerySchedule
    filterset = filtersets.CeleryScheduleFilterSet
    fieldsets = (
        FieldSet('q', 'filter_id', 'tag'),
        FieldSet('enabled', 'task_id', 'owner_id', 'origin', 'present', name=_('Schedule')),
        FieldSet('kind', 'timezone', 'next_run__after', 'next_run__before', name=_('When')),
        FieldSet('overlap', 'missed', name=_('Policies')),
        FieldSet('queue', 'branch', 'object_type_id', name=_('Options')),
    )
    enabled = boolean_field(_('Enabled'))
    task_id = DynamicModelMultipleChoiceField(
        queryset=CeleryTask.objects.all(),
        required=False,
        label=_('Task')
    )
    owner_id = DynamicModelMultipleChoiceField(
        queryset=User.objects.all(),
        required=False,
        null_option=_('None'),
        label=_('Owner')
    )
    origin = forms.MultipleChoiceField(
        label=_('Origin'),
        choices=ScheduleOriginChoices,
        required=False
    )
    present = boolean_field(_('Defined'))
    kind = forms.MultipleChoiceField(
        label=_('Type'),
        choices=ScheduleKindChoices,
        required=False
    )
    timezone = forms.CharField(
        label=_('Time zone'),
        required=False
    )
    next_run__after = time_field(_('Next run after'))
    next_run__before = time_field(_('Next run before'))
    overlap = forms.MultipleChoiceField(
        label=_('Overlap'),
        choices=ScheduleOverlapChoices,
        required=False
    )
    missed = forms.MultipleChoiceField(
        label=_('Missed runs'),
        choices=ScheduleMissedChoices,
        required=False
    )
    queue = forms.CharField(
        label=_('Queue'),
        required=False
    )
    branch = forms.CharField(
        label=_('Branch'),
        required=False,
        help_text=_('Name or schema ID')
    )
    object_type_id = ContentTypeChoiceField(
        queryset=ObjectType.objects.public(),
        required=False,
        label=_('Object type')
    )
    tag = TagFilterField(model)


class CeleryWorkerFilterForm(StrictMixin, SavedFiltersMixin, FilterForm):
    model = CeleryWorker
    filterset = filtersets.CeleryWorkerFilterSet
    fieldsets = (
        FieldSet('q', 'filter_id'),
        FieldSet('running', 'name', 'host', name=_('Worker')),
    )
    running = boolean_field(_('Running'))
    name = forms.CharField(
        label=_('Name'),
        required=False
    )
    host = forms.CharField(
        label=_('Host'),
        required=False
    )
