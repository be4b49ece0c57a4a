"""The form that runs a task: its parameters, and the options of the run."""
from typing import Any

from django import forms
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from utilities.datetime import local_now
from utilities.forms.rendering import FieldSet
from utilities.forms.widgets import DateTimePicker

from ..celery import app
from ..engine.catalogue.queues import check_choice
from ..engine.exceptions import QueueRefused
from ..models.fields import validate_time
from .arguments import ArgumentsMixin

__all__ = (
    'RunForm',
)


class RunForm(ArgumentsMixin, forms.Form):
    """Arguments and options of a run.

    Once the form is valid, `arguments` is the pair `(args, kwargs)`, and `options` is for
    `netbox_celery.services.runs.run`.
    """
    name = forms.CharField(
        label=gettext_lazy('Name'),
        required=False,
        max_length=255,
        help_text=gettext_lazy('Display name; defaults to the task name')
    )
    schedule_at = forms.DateTimeField(
        label=gettext_lazy('Schedule at'),
        required=False,
        validators=(validate_time,),
        widget=DateTimePicker()
    )
    queue = forms.CharField(
        label=gettext_lazy('Queue'),
        required=False,
        max_length=255,
        help_text=gettext_lazy("Leave blank for the task's default")
    )
    priority = forms.IntegerField(
        label=gettext_lazy('Priority'),
        required=False,
        min_value=0,
        max_value=255,
        help_text=gettext_lazy('0 is highest on Redis, lowest on RabbitMQ')
    )

    #: Options whose name here differs from that in `CeleryResult.enqueue`.
    RENAMED = {'name': 'netbox_name'}
    OPTIONS = ('name', 'schedule_at', 'queue', 'priority')

    def __init__(self, task, data=None, **kwargs):
        super().__init__(data, **kwargs)
        self.add_parameters(task)
        self.fieldsets = (
            FieldSet(*self.parameter_fields, name=_('Parameters')),
            FieldSet(*self.OPTIONS, name=_('Options')),
        )[0 if task.parameters else 1:]
        self.fields['schedule_at'].help_text = format_html(
            '{} <strong>{}</strong>',
            _('Start no earlier than this time (default: now). Current time:'),
            local_now().strftime('%Y-%m-%d %H:%M:%S %Z')
        )

    def clean_schedule_at(self):
        time = self.cleaned_data['schedule_at']
        if time and time < local_now():
            raise forms.ValidationError(_('Must be in the future.'))
        return time

    def clean_queue(self):
        if queue := self.cleaned_data['queue']:
            try:
                check_choice(app, queue)
            except QueueRefused as exc:
                raise forms.ValidationError(str(exc)) from exc
        return queue

    def clean(self):
        super().clean()
        if not self.errors:
            self.bind_arguments()

    @property
    def options(self) -> dict[str, Any]:
        """The options that were set, for `netbox_celery.services.runs.run`."""
        return {
            self.RENAMED.get(name, name): self.cleaned_data[name] for name in self.OPTIONS
            if self.cleaned_data[name] not in (None, '')
        }
