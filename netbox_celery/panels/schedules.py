"""The panels of the page of a schedule."""
from django.utils.translation import gettext_lazy

from netbox.ui import attrs, panels

from .. import __version__
from ..choices import ScheduleMissedChoices, ScheduleOverlapChoices
from ..reading.upcoming import upcoming
from ..reading.viewing import Reader, hidden_text
from ..services.schedules import why_not_runnable_as_owner
from .parts import (
    BranchAttr,
    SparseAttributesPanel,
    VisibleGenericAttr,
    VisibleRelatedAttr,
    description_of,
    shown_arguments,
)

__all__ = (
    'ScheduleArgumentsPanel',
    'ScheduleNextPanel',
    'ScheduleOptionsPanel',
    'SchedulePanel',
    'SchedulePolicyPanel',
    'ScheduleTimesPanel',
)


class PolicyAttr(attrs.ChoiceAttr):
    """A policy and its description.

    Args:
        choices: The `ChoiceSet` of the policy.
    """
    template_name = 'netbox_celery/attrs/status.html'

    def __init__(self, accessor, choices, **kwargs):
        super().__init__(accessor, **kwargs)
        self.choices = choices

    def get_context(self, obj, attr, value, context):
        return super().get_context(obj, attr, value, context) | {
            'explanation': description_of(self.choices, getattr(obj, self.accessor))
        }


class MissedMaxAttr(attrs.NumericAttr):
    """The catch-up limit; shown only if all missed runs are caught up."""

    def get_value(self, obj):
        return super().get_value(obj) if obj.missed == ScheduleMissedChoices.MISSED_RUN_ALL else None


class OwnerAttr(attrs.RelatedObjectAttr):
    """The user as whom the runs act, and why they cannot run if so."""
    template_name = 'netbox_celery/attrs/owner.html'
    placeholder = ''

    def get_context(self, obj, attr, value, context):
        reader = Reader(context['perms'].user)
        return super().get_context(obj, attr, value, context) | {
            'object': obj,
            'obstacle': why_not_runnable_as_owner(obj, reader),
            'hidden': hidden_text() if obj.owner and not reader.may_view(obj.owner) else '',
        }

    def get_value(self, obj):
        # A schedule without an owner has a text to show, too
        return super().get_value(obj) or obj


class SchedulePanel(panels.ObjectAttributesPanel):
    title = gettext_lazy('Schedule')
    name = attrs.TextAttr('name', label=gettext_lazy('Name'))
    description = attrs.TextAttr('description', label=gettext_lazy('Description'))
    enabled = attrs.BooleanAttr('enabled', label=gettext_lazy('Enabled'))
    task = VisibleRelatedAttr('task', label=gettext_lazy('Task'), linkify=True)
    owner = OwnerAttr('owner', label=gettext_lazy('Runs as'))
    origin = attrs.TemplatedAttr(
        'origin', label=gettext_lazy('Origin'), template_name='netbox_celery/attrs/origin.html'
    )


class ScheduleTimesPanel(SparseAttributesPanel):
    title = gettext_lazy('When')
    in_words = attrs.TextAttr('in_words', label=gettext_lazy('Schedule'))
    kind = attrs.ChoiceAttr('kind', label=gettext_lazy('Type'))
    crontab = attrs.TextAttr('crontab', label=gettext_lazy('Crontab'), style='font-monospace', copy_button=True)
    start = attrs.DateTimeAttr('start', label=gettext_lazy('Start'))
    end = attrs.DateTimeAttr('end', label=gettext_lazy('End'))
    last_run = attrs.DateTimeAttr('last_run', label=gettext_lazy('Last scheduled time'))
    next_run = attrs.DateTimeAttr('next_run', label=gettext_lazy('Next run'))
    stopped = attrs.DateTimeAttr('stopped', label=gettext_lazy('Stopped'))


class ScheduleNextPanel(panels.ObjectPanel):
    """The next runs, in the time zone of the browser."""
    template_name = 'netbox_celery/panels/next_runs.html'
    title = gettext_lazy('Next Runs')

    def get_context(self, context):
        ctx = super().get_context(context)
        return ctx | upcoming(ctx['object']) | {'version': __version__}


class ScheduleArgumentsPanel(panels.ObjectPanel):
    template_name = 'netbox_celery/panels/arguments.html'
    title = gettext_lazy('Arguments')

    def get_context(self, context):
        ctx = super().get_context(context)
        return ctx | shown_arguments(ctx['object']) | {'kept': True}


class ScheduleOptionsPanel(SparseAttributesPanel):
    title = gettext_lazy('Options')
    branch = BranchAttr('branch', label=gettext_lazy('Branch'))
    object = VisibleGenericAttr('object', label=gettext_lazy('Object'), linkify=True)
    queue = attrs.TextAttr('queue', label=gettext_lazy('Queue'))
    priority = attrs.NumericAttr('priority', label=gettext_lazy('Priority'))
    expires = attrs.TextAttr(
        'expires', label=gettext_lazy('Expires'), format_string=gettext_lazy('{} seconds after the scheduled time')
    )

    def should_render(self, context):
        return bool(context['attrs'])


class SchedulePolicyPanel(SparseAttributesPanel):
    title = gettext_lazy('Policies')
    overlap = PolicyAttr('overlap', ScheduleOverlapChoices, label=gettext_lazy('Overlap'))
    missed = PolicyAttr('missed', ScheduleMissedChoices, label=gettext_lazy('Missed runs'))
    missed_max = MissedMaxAttr('missed_max', label=gettext_lazy('Catch-up limit'))
