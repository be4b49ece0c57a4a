"""The panels of the pages of runs, tasks, schedules and workers.

Those of a run are *live*: each stands in an element of its own, which an answer to a poll replaces.
"""
from datetime import datetime

from django.utils.html import format_html
from django.utils.safestring import mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from netbox.ui import attrs, panels

from . import __version__
from .choices import ResultReasonChoices, ResultStatusChoices, ScheduleMissedChoices, ScheduleOverlapChoices
from .engine.payload import plain
from .forms import LogForm
from .forms.parameters import parameter_help
from .live import is_worker_alive, open_log
from .progress import measure_pace
from .scheduling import why_not_runnable_as_owner
from .upcoming import upcoming

__all__ = (
    'LIVE',
    'PayloadPanel',
    'ResultArgumentsPanel',
    'ResultAttemptsPanel',
    'ResultDataPanel',
    'ResultErrorPanel',
    'ResultLogPanel',
    'ResultRunPanel',
    'ResultStatusPanel',
    'ResultValuePanel',
    'ScheduleArgumentsPanel',
    'ScheduleNextPanel',
    'ScheduleOptionsPanel',
    'SchedulePanel',
    'SchedulePolicyPanel',
    'ScheduleTimesPanel',
    'TaskDocumentationPanel',
    'TaskPanel',
    'TaskParametersPanel',
    'TaskSchedulesPanel',
    'WorkerPanel',
    'explain_status',
)


def explain_status(result):
    """Return in a sentence why a run is in its status, or what it waits for; an empty string if there is no more."""
    if result.is_cancelling:
        return _('Somebody cancelled it. It ends as soon as its worker, or the task itself, takes note.')
    if result.reason:
        return _describe(ResultReasonChoices, result.reason)
    if result.status == ResultStatusChoices.STATUS_PENDING and not is_worker_alive():
        return _('No worker is running: the run will start when one does.')
    return _describe(ResultStatusChoices, result.status)


def _describe(choices, value):
    return next((choice.description for choice in choices.CHOICES if choice.value == value), '')


#
# Building blocks
#

class LiveMixin:
    """A panel that can be replaced while the page is open."""
    #: ID of the element that it stands in.
    live_id = None

    def render(self, context, live=False):
        """
        Args:
            context: The template context.
            live: Whether this is to replace the panel on an open page.
        """
        swap = mark_safe(' hx-swap-oob="true"') if live else ''
        return format_html('<div id="{}" class="celery-live"{}>{}</div>', self.live_id, swap, super().render(context))


class SparseAttributesPanel(panels.ObjectAttributesPanel):
    """Shows the attributes that have a value. Of a run most have none, and which ones those are tells nothing."""

    def get_context(self, context):
        ctx = super().get_context(context)
        ctx['attrs'] = [attr for attr in ctx['attrs'] if attr['value'] != attrs.ObjectAttribute.placeholder]
        return ctx


class PayloadPanel(panels.JSONPanel):
    """A JSON field that holds values as Celery sends them, shown as plain JSON; nothing if it is empty."""

    def get_context(self, context):
        ctx = super().get_context(context)
        return ctx | {'data': plain(ctx['data'])}

    def should_render(self, context):
        return context['data'] not in (None, {}, [])


class ProgressAttr(attrs.ObjectAttribute):
    """A bar, the numbers behind it, the rate and the time left."""
    template_name = 'netbox_celery/attrs/progress.html'

    def get_context(self, obj, attr, value, context):
        return {'object': obj, 'pace': measure_pace(obj)}


class StatusAttr(attrs.ChoiceAttr):
    """The status with its reason in words."""
    template_name = 'netbox_celery/attrs/status.html'

    def get_context(self, obj, attr, value, context):
        return super().get_context(obj, attr, value, context) | {'object': obj, 'explanation': explain_status(obj)}


class PolicyAttr(attrs.ChoiceAttr):
    """A policy, and what it means.

    Args:
        choices: Its `ChoiceSet`.
    """
    template_name = 'netbox_celery/attrs/status.html'

    def __init__(self, accessor, choices, **kwargs):
        super().__init__(accessor, **kwargs)
        self.choices = choices

    def get_context(self, obj, attr, value, context):
        return super().get_context(obj, attr, value, context) | {
            'explanation': _describe(self.choices, getattr(obj, self.accessor))
        }


class MissedMaxAttr(attrs.NumericAttr):
    """How many missed runs are made up for, if more than one may be."""

    def get_value(self, obj):
        return super().get_value(obj) if obj.missed == ScheduleMissedChoices.MISSED_RUN_ALL else None


class LaterAttemptAttr(attrs.NumericAttr):
    """The number of an attempt, from the second on."""

    def get_value(self, obj):
        value = super().get_value(obj)
        return value if value > 1 else None


class WaitingUntilAttr(attrs.DateTimeAttr):
    """A time that matters until the run begins."""

    def get_value(self, obj):
        return super().get_value(obj) if obj.status in ResultStatusChoices.WAITING else None


class UnfinishedAttr(attrs.DateTimeAttr):
    """A time that matters until the run ends."""

    def get_value(self, obj):
        return None if obj.is_finished else super().get_value(obj)


#
# A run
#

class ResultStatusPanel(LiveMixin, SparseAttributesPanel):
    live_id = 'celery-status'
    title = gettext_lazy('Status')
    status = StatusAttr('status', label=gettext_lazy('Status'))
    progress = ProgressAttr('value', label=gettext_lazy('Progress'))
    step = attrs.TextAttr('step', label=gettext_lazy('Step'))
    attempt = LaterAttemptAttr('attempt', label=gettext_lazy('Attempt'))
    scheduled = WaitingUntilAttr('scheduled', label=gettext_lazy('Not before'))
    started = attrs.DateTimeAttr('started', label=gettext_lazy('Started'))
    completed = attrs.DateTimeAttr('completed', label=gettext_lazy('Ended'))
    duration = attrs.DurationAttr('duration', label=gettext_lazy('Duration'))
    worker = attrs.TextAttr('worker', label=gettext_lazy('Worker'))


class ResultRunPanel(SparseAttributesPanel):
    title = gettext_lazy('Run')
    task = attrs.TemplatedAttr(
        'celery_name', label=gettext_lazy('Task'), template_name='netbox_celery/attrs/task.html'
    )
    object = attrs.GenericForeignKeyAttr('object', label=gettext_lazy('Object'), linkify=True)
    user = attrs.RelatedObjectAttr('user', label=gettext_lazy('User'), linkify=True)
    schedule = attrs.RelatedObjectAttr('schedule', label=gettext_lazy('Schedule'), linkify=True)
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
        'parent_id', label=gettext_lazy('Started by'), template_name='netbox_celery/attrs/parent.html'
    )


class ResultErrorPanel(LiveMixin, panels.ObjectPanel):
    live_id = 'celery-error'
    template_name = 'netbox_celery/panels/error.html'
    title = gettext_lazy('Error')

    def should_render(self, context):
        return bool(context['object'].error or context['object'].traceback)


class ResultAttemptsPanel(LiveMixin, panels.ObjectPanel):
    live_id = 'celery-attempts'
    template_name = 'netbox_celery/panels/attempts.html'
    title = gettext_lazy('Attempts')

    def get_context(self, context):
        ctx = super().get_context(context)
        return ctx | {'attempts': [self._readable(attempt) for attempt in ctx['object'].attempts]}

    @staticmethod
    def _readable(attempt):
        started, ended = (
            attempt.get(name) and datetime.fromisoformat(attempt[name]) for name in ('started', 'ended')
        )
        return attempt | {'started': started, 'ended': ended, 'duration': ended and started and ended - started}

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


class ResultArgumentsPanel(panels.ObjectPanel):
    """What the task was called with, as its caller wants it to be shown."""
    template_name = 'netbox_celery/panels/arguments.html'
    title = gettext_lazy('Arguments')

    def get_context(self, context):
        ctx = super().get_context(context)
        args, kwargs = ctx['object'].display_args, ctx['object'].display_kwargs
        return ctx | {
            'positional': list(enumerate(args, start=1)) if isinstance(args, list) else [],
            'named': list(kwargs.items()) if isinstance(kwargs, dict) else [],
            'representations': [shown for shown in (args, kwargs) if isinstance(shown, str)],
            'kept': ctx['object'].is_rerunnable,
        }


class ResultLogPanel(panels.ObjectPanel):
    """The log, opened at its end and followed while the run goes on.

    Args:
        whole_page: Whether the log is all there is on the page.
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


#: What an open page has replaced when more than the progress of a run has changed.
LIVE = (
    ResultStatusPanel(),
    ResultErrorPanel(),
    ResultAttemptsPanel(),
    ResultValuePanel(),
    ResultDataPanel(),
)


#
# A task
#

class TaskPanel(panels.ObjectAttributesPanel):
    title = gettext_lazy('Task')
    name = attrs.TextAttr('name', label=gettext_lazy('Name'), style='font-monospace', copy_button=True)
    plugin = attrs.TextAttr('plugin', label=gettext_lazy('Plugin'))
    description = attrs.TextAttr('description', label=gettext_lazy('Description'))
    enabled = attrs.BooleanAttr('enabled', label=gettext_lazy('Enabled'))
    present = attrs.BooleanAttr('present', label=gettext_lazy('Present'))
    last_seen = attrs.DateTimeAttr('last_seen', label=gettext_lazy('Last seen'))


class TaskDocumentationPanel(panels.ObjectPanel):
    template_name = 'netbox_celery/panels/documentation.html'
    title = gettext_lazy('Documentation')

    def should_render(self, context):
        return bool(context['object'].documentation)


class TaskParametersPanel(panels.ObjectPanel):
    template_name = 'netbox_celery/panels/parameters.html'
    title = gettext_lazy('Parameters')
    #: How variadic parameters are written.
    STARS = {'var_positional': '*', 'var_keyword': '**'}

    def get_context(self, context):
        ctx = super().get_context(context)
        described = parameter_help(ctx['object'].documentation)
        return ctx | {'parameters': [
            parameter | {
                'label': self.STARS.get(parameter['kind'], '') + parameter['name'],
                'has_default': 'default' in parameter,
                'help': described.get(parameter['name'], ''),
            } for parameter in ctx['object'].parameters
        ]}


class TaskSchedulesPanel(panels.ObjectsTablePanel):
    """The schedules of a task, if there are any."""
    title = gettext_lazy('Schedules')

    def get_context(self, context):
        return super().get_context(context) | {
            'is_scheduled': context['object'].schedules.restrict(context['request'].user, 'view').exists()
        }

    def should_render(self, context):
        return context['is_scheduled'] and super().should_render(context)


#
# A schedule
#

class OwnerAttr(attrs.RelatedObjectAttr):
    """In whose name it runs, and what is wrong with that."""
    template_name = 'netbox_celery/attrs/owner.html'
    placeholder = ''

    def get_context(self, obj, attr, value, context):
        return super().get_context(obj, attr, value, context) | {
            'object': obj, 'obstacle': why_not_runnable_as_owner(obj)
        }

    def get_value(self, obj):
        # Nobody is somebody to tell of
        return super().get_value(obj) or obj


class SchedulePanel(panels.ObjectAttributesPanel):
    title = gettext_lazy('Schedule')
    name = attrs.TextAttr('name', label=gettext_lazy('Name'))
    description = attrs.TextAttr('description', label=gettext_lazy('Description'))
    enabled = attrs.BooleanAttr('enabled', label=gettext_lazy('Enabled'))
    task = attrs.RelatedObjectAttr('task', label=gettext_lazy('Task'), linkify=True)
    owner = OwnerAttr('owner', label=gettext_lazy('Runs act as'))
    origin = attrs.TemplatedAttr(
        'origin', label=gettext_lazy('Origin'), template_name='netbox_celery/attrs/origin.html'
    )


class ScheduleTimesPanel(SparseAttributesPanel):
    title = gettext_lazy('When')
    in_words = attrs.TextAttr('in_words', label=gettext_lazy('In words'))
    kind = attrs.ChoiceAttr('kind', label=gettext_lazy('Kind'))
    crontab = attrs.TextAttr('crontab', label=gettext_lazy('Crontab'), style='font-monospace', copy_button=True)
    start = attrs.DateTimeAttr('start', label=gettext_lazy('Start'))
    end = attrs.DateTimeAttr('end', label=gettext_lazy('End'))
    last_run = attrs.DateTimeAttr('last_run', label=gettext_lazy('Last due'))
    next_run = attrs.DateTimeAttr('next_run', label=gettext_lazy('Next run'))


class ScheduleNextPanel(panels.ObjectPanel):
    """The next runs, by the clock of who looks."""
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
        return ctx | {
            'positional': list(enumerate(plain(ctx['object'].args), start=1)),
            'named': list(plain(ctx['object'].kwargs).items()),
            'representations': [],
            'kept': True,
        }


class ScheduleOptionsPanel(SparseAttributesPanel):
    title = gettext_lazy('Options')
    object = attrs.GenericForeignKeyAttr('object', label=gettext_lazy('Object'), linkify=True)
    queue = attrs.TextAttr('queue', label=gettext_lazy('Queue'))
    priority = attrs.NumericAttr('priority', label=gettext_lazy('Priority'))
    expires = attrs.TextAttr(
        'expires', label=gettext_lazy('Expires'), format_string=gettext_lazy('{} seconds after it was due')
    )

    def should_render(self, context):
        return bool(context['attrs'])


class SchedulePolicyPanel(SparseAttributesPanel):
    title = gettext_lazy('Policies')
    overlap = PolicyAttr('overlap', ScheduleOverlapChoices, label=gettext_lazy('Overlap'))
    missed = PolicyAttr('missed', ScheduleMissedChoices, label=gettext_lazy('Missed runs'))
    missed_max = MissedMaxAttr('missed_max', label=gettext_lazy('Most missed runs'))


#
# A worker
#

class WorkerPanel(panels.ObjectAttributesPanel):
    title = gettext_lazy('Worker')
    name = attrs.TextAttr('name', label=gettext_lazy('Name'), style='font-monospace', copy_button=True)
    is_alive = attrs.BooleanAttr('is_alive', label=gettext_lazy('Alive'))
    host = attrs.TextAttr('host', label=gettext_lazy('Host'))
    pid = attrs.NumericAttr('pid', label=gettext_lazy('Process ID'))
    pool = attrs.TextAttr('pool', label=gettext_lazy('Pool'))
    concurrency = attrs.NumericAttr('concurrency', label=gettext_lazy('Concurrency'))
    queues = attrs.ArrayAttr('queues', label=gettext_lazy('Queues'))
    started = attrs.DateTimeAttr('started', label=gettext_lazy('Started'))
    heartbeat = attrs.DateTimeAttr('heartbeat', label=gettext_lazy('Heartbeat'))
    stopped = attrs.DateTimeAttr('stopped', label=gettext_lazy('Stopped'))
