"""The panels of the page of a run.

Most are *live*: each has an element of its own, which the response to a poll replaces.
"""
from typing import TYPE_CHECKING

from django.utils.html import format_html
from django.utils.safestring import mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from netbox.ui import attrs, panels
from utilities.string import humanize_duration

from .. import __version__
from ..choices import ResultReasonChoices, ResultStatusChoices
from ..engine.store.times import moment
from ..forms import LogForm
from ..reading.live import is_worker_alive, open_log
from ..reading.pace import measure_pace
from ..reading.viewing import Reader
from .parts import (
    BranchAttr,
    PayloadPanel,
    SparseAttributesPanel,
    VisibleGenericAttr,
    VisibleRelatedAttr,
    description_of,
    shown_arguments,
)

__all__ = (
    'LIVE',
    'ResultArgumentsPanel',
    'ResultAttemptsPanel',
    'ResultDataPanel',
    'ResultErrorPanel',
    'ResultLogPanel',
    'ResultOptionsPanel',
    'ResultRunPanel',
    'ResultStatusPanel',
    'ResultValuePanel',
    'explain_status',
)


def explain_status(result):
    """Return why a run has its status, or what it waits for, in one sentence; an empty string if nothing is known."""
    if result.is_cancelling:
        return _('Cancellation requested; waiting for the task to stop')
    if result.reason:
        return description_of(ResultReasonChoices, result.reason)
    if result.status == ResultStatusChoices.STATUS_PENDING and not is_worker_alive():
        return _('No worker is running; the run starts when one does')
    return description_of(ResultStatusChoices, result.status)


if TYPE_CHECKING:
    from netbox.ui.panels import Panel as MixedInto
else:
    MixedInto = object


class LiveMixin(MixedInto):
    """A panel that can be replaced while the page is open."""
    #: ID of the panel's element.
    live_id: str | None = None

    def render(self, context, live=False):
        """
        Args:
            context: The template context.
            live: Whether the result replaces the panel on an open page.
        """
        swap = mark_safe(' hx-swap-oob="true"') if live else ''
        return format_html('<div id="{}" class="celery-live"{}>{}</div>', self.live_id, swap, super().render(context))


class ProgressAttr(attrs.ObjectAttribute):
    """A progress bar with its numbers, the rate and the time left."""
    template_name = 'netbox_celery/attrs/progress.html'

    def get_context(self, obj, attr, value, context):
        return {'object': obj, 'pace': measure_pace(obj)}


class StatusAttr(attrs.ChoiceAttr):
    """The status with an explanation."""
    template_name = 'netbox_celery/attrs/status.html'

    def get_context(self, obj, attr, value, context):
        return super().get_context(obj, attr, value, context) | {'object': obj, 'explanation': explain_status(obj)}


class LaterAttemptAttr(attrs.NumericAttr):
    """The number of the attempt; hidden for the first."""

    def get_value(self, obj):
        value = super().get_value(obj)
        return value if value > 1 else None


class WaitingUntilAttr(attrs.DateTimeAttr):
    """A time that is shown until the run starts."""

    def get_value(self, obj):
        return super().get_value(obj) if obj.status in ResultStatusChoices.WAITING else None


class UnfinishedAttr(attrs.DateTimeAttr):
    """A time that is shown until the run finishes."""

    def get_value(self, obj):
        return None if obj.is_finished else super().get_value(obj)


class ResultStatusPanel(LiveMixin, SparseAttributesPanel):
    live_id = 'celery-status'
    title = gettext_lazy('Status')
    status = StatusAttr('status', label=gettext_lazy('Status'))
    culprit = attrs.TemplatedAttr(
        'culprit_id', label=gettext_lazy('Caused by'), template_name='netbox_celery/attrs/other_run.html'
    )
    progress = ProgressAttr('value', label=gettext_lazy('Progress'))
    step = attrs.TextAttr('step', label=gettext_lazy('Step'))
    attempt = LaterAttemptAttr('attempt', label=gettext_lazy('Attempt'))
    scheduled = WaitingUntilAttr('scheduled', label=gettext_lazy('Earliest start'))
    started = attrs.DateTimeAttr('started', label=gettext_lazy('Started'))
    completed = attrs.DateTimeAttr('completed', label=gettext_lazy('Completed'))
    duration = attrs.DurationAttr('duration', label=gettext_lazy('Duration'))
    worker = attrs.TextAttr('worker', label=gettext_lazy('Worker'))


class ResultRunPanel(SparseAttributesPanel):
    title = gettext_lazy('Run')
    task = attrs.TemplatedAttr(
        'celery_name', label=gettext_lazy('Task'), template_name='netbox_celery/attrs/task.html'
    )
    branch = BranchAttr('branch', label=gettext_lazy('Branch'))
    object = VisibleGenericAttr('object', label=gettext_lazy('Object'), linkify=True)
    user = VisibleRelatedAttr('user', label=gettext_lazy('User'), linkify=True)
    schedule = VisibleRelatedAttr('schedule', label=gettext_lazy('Schedule'), linkify=True)
    created = attrs.DateTimeAttr('created', label=gettext_lazy('Created'))
    expires = WaitingUntilAttr('expires', label=gettext_lazy('Expires'))
    queue = attrs.TextAttr('queue', label=gettext_lazy('Queue'))
    concurrency_key = attrs.TextAttr(
        'concurrency_key', label=gettext_lazy('Concurrency key'), style='font-monospace'
    )
    stale_after = UnfinishedAttr('stale_after', label=gettext_lazy('Stale after'))
    task_id = attrs.TextAttr(
        'task_id', label=gettext_lazy('Task ID'), style='font-monospace', copy_button=True
    )
    parent = attrs.TemplatedAttr(
        'parent_id', label=gettext_lazy('Started by'), template_name='netbox_celery/attrs/other_run.html'
    )


class ResultErrorPanel(LiveMixin, panels.ObjectPanel):
    live_id = 'celery-error'
    template_name = 'netbox_celery/panels/error.html'
    title = gettext_lazy('Error')

    def get_context(self, context):
        ctx = super().get_context(context)
        return ctx | {'error': Reader(ctx['perms'].user).error_of(ctx['object'])}

    def should_render(self, context):
        return bool(context['error'] or context['object'].traceback)


class ResultAttemptsPanel(LiveMixin, panels.ObjectPanel):
    live_id = 'celery-attempts'
    template_name = 'netbox_celery/panels/attempts.html'
    title = gettext_lazy('Attempts')

    def get_context(self, context):
        ctx = super().get_context(context)
        return ctx | {'attempts': [
            self._readable(attempt) for attempt in Reader(ctx['perms'].user).attempts_of(ctx['object'])
        ]}

    @staticmethod
    def _readable(attempt):
        started, ended = (moment(attempt.get(name)) for name in ('started', 'ended'))
        return attempt | {
            'started': started,
            'ended': ended,
            'duration': humanize_duration(ended - started) if started and ended else '',
        }

    def should_render(self, context):
        return len(context['attempts']) > 1


class ResultValuePanel(LiveMixin, PayloadPanel):
    live_id = 'celery-result'
    title = gettext_lazy('Result')

    def __init__(self, **kwargs):
        super().__init__('result', **kwargs)


class ResultDataPanel(LiveMixin, PayloadPanel):
    live_id = 'celery-data'
    title = gettext_lazy('Data')

    def __init__(self, **kwargs):
        super().__init__('data', **kwargs)


class ResultOptionsPanel(PayloadPanel):
    """The options of the call, without those that other tools add for tracing."""
    title = gettext_lazy('Options')

    def __init__(self, **kwargs):
        super().__init__('options', **kwargs)

    def get_context(self, context):
        return super().get_context(context) | {'data': context['object'].display_options}


class ResultArgumentsPanel(panels.ObjectPanel):
    """The arguments of the call, redacted as the caller asked."""
    template_name = 'netbox_celery/panels/arguments.html'
    title = gettext_lazy('Arguments')

    def get_context(self, context):
        ctx = super().get_context(context)
        return ctx | shown_arguments(ctx['object']) | {'kept': ctx['object'].is_rerunnable}


class ResultLogPanel(panels.ObjectPanel):
    """The log, opened at its end and followed while the run is active.

    Args:
        whole_page: Whether the page shows nothing but the log.
    """
    template_name = 'netbox_celery/panels/log.html'
    title = gettext_lazy('Log')

    def __init__(self, whole_page=False, **kwargs):
        super().__init__(**kwargs)
        self.whole_page = whole_page

    def get_context(self, context):
        ctx = super().get_context(context)
        form = LogForm(ctx['request'].GET)
        window = open_log(ctx['object'], ctx['request'].user, form.wanted)
        return ctx | {
            'form': form,
            'window': window,
            'whole_page': self.whole_page,
            'following': not window.is_complete,
            'version': __version__,
        }


#: Panels that an open page replaces when more than the progress of the run has changed.
LIVE = (
    ResultStatusPanel(),
    ResultErrorPanel(),
    ResultAttemptsPanel(),
    ResultValuePanel(),
    ResultDataPanel(),
)
