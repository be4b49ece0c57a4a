"""The tables of runs, tasks, schedules and workers."""
import re
from typing import Any

import django_tables2 as tables
from django.template.defaultfilters import truncatechars
from django.utils.functional import lazy
from django.utils.html import escape, format_html
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy as _
from django_tables2.utils import OrderByTuple

from netbox.tables import NetBoxTable, columns
from utilities.string import humanize_duration

from .engine.store import branches
from .models import CeleryResult, CelerySchedule, CeleryTask, CeleryWorker
from .reading.viewing import BESIDE, Reader, hidden_text, load_beside, no_tasks_text, order_by_visible

__all__ = (
    'CeleryResultTable',
    'CeleryScheduleTable',
    'CeleryTaskTable',
    'CeleryWorkerTable',
)

RESULT_BUTTONS = """
{% load i18n %}
{% if record.is_finished %}
  {% if perms.netbox_celery.rerun_celeryresult %}
    {% url 'plugins:netbox_celery:celeryresult_rerun' pk=record.pk as url %}
    <a class="btn btn-sm btn-primary" href="{{ url }}" title="{% trans "Run again" %}"
        aria-label="{% trans "Run again" %}"><i class="mdi mdi-replay" aria-hidden="true"></i></a>
  {% endif %}
{% elif perms.netbox_celery.cancel_celeryresult and not record.is_cancelling %}
  {% url 'plugins:netbox_celery:celeryresult_cancel' pk=record.pk as url %}
  <a class="btn btn-sm btn-warning" href="{{ url }}?return_url={{ request.get_full_path|urlencode:"" }}"
      title="{% trans "Cancel" %}" aria-label="{% trans "Cancel" %}"
    ><i class="mdi mdi-stop-circle-outline" aria-hidden="true"></i></a>
{% endif %}
"""

TASK_BUTTONS = """
{% load i18n %}
{% if perms.netbox_celery.run_celerytask and record.enabled and record.present %}
  <a class="btn btn-sm btn-primary" href="{% url 'plugins:netbox_celery:celerytask_run' pk=record.pk %}"
      title="{% trans "Run" %}" aria-label="{% trans "Run" %}"><i class="mdi mdi-play" aria-hidden="true"></i></a>
{% endif %}
"""

SCHEDULE_BUTTONS = """
{% load i18n %}
{% if perms.netbox_celery.run_celerytask and record.task.enabled and record.task.present %}
  <a class="btn btn-sm btn-primary" href="{% url 'plugins:netbox_celery:celeryschedule_run' pk=record.pk %}"
      title="{% trans "Run now" %}" aria-label="{% trans "Run now" %}"
    ><i class="mdi mdi-play" aria-hidden="true"></i></a>
{% endif %}
"""

RUN_COUNT = """
{% if value %}
  <a href="{% url 'plugins:netbox_celery:celeryresult_list' %}?celery_name={{ record.name|urlencode:"" }}">
    {% if value > 1000 %}1000+{% else %}{{ value }}{% endif %}</a>
{% else %}0{% endif %}
"""


NAME_ATTRS = {'td': {'style': 'min-width: 10rem; overflow-wrap: anywhere'}}


def _breakable(name):
    """Return a name that may wrap after each of its parts, so that it does not push other columns out of view."""
    return mark_safe(re.sub('([:._])', r'\1<wbr>', escape(name)))


class NameColumn(tables.Column):
    """A name that may wrap, such as that of a task."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{'attrs': NAME_ATTRS} | kwargs)

    def render(self, value):
        return _breakable(value)

    def value(self, value):
        return str(value)


def _address(value, table):
    """Return the address of a related object if the user may view it, otherwise `None`."""
    return value.get_absolute_url() if hasattr(value, 'get_absolute_url') and table.reader.may_view(value) else None


class BesideColumn(tables.Column):
    """A related object. Users who may not view it only see that there is one (see `netbox_celery.reading.viewing`)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, linkify=_address, **kwargs)

    def render(self, value, table):
        return self._show(value) if table.reader.may_view(value) else hidden_text()

    def value(self, value, table):
        return str(value) if table.reader.may_view(value) else hidden_text()

    def _show(self, value):
        return value


class BesideNameColumn(BesideColumn):
    """A related object whose name may wrap."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{'attrs': NAME_ATTRS} | kwargs)

    def _show(self, value):
        return _breakable(value)


class BranchColumn(tables.Column):
    """The name of the row's branch, or its schema ID if the branch was deleted."""

    def render(self, value, table):
        branch = table.branch(value)
        return format_html('<a href="{}">{}</a>', branch['url'], branch['name']) if branch else value

    def value(self, value, table):
        branch = table.branch(value)
        return branch['name'] if branch else value


class BesideTable(NetBoxTable):
    """A table of rows with related objects, some of which the user may not be allowed to view."""

    class Meta(NetBoxTable.Meta):
        pass

    @property
    def reader(self):
        """The `Reader`, which has looked up all objects that the page shows."""
        if self._reader is None:
            page = getattr(self, 'page', None)
            shown = [column.name for column in self.columns if column.visible]
            self._read([row.record for row in page.object_list] if page else [], shown)
        return self._reader

    _reader: Reader | None = None

    def branch(self, value: str) -> dict[str, Any] | None:
        """Return the name and URL of a branch, a dict, or `None`. All branches of a page are looked up together."""
        if self._branches is None:
            page = getattr(self, 'page', None)
            rows = [row.record for row in page.object_list] if page else self.data
            self._branches = branches.shown({row.branch for row in rows})
        return self._branches.get(value)

    _branches: dict[str, Any] | None = None

    def _read(self, rows, names):
        # Without a request, the reader is unknown
        request = getattr(self, 'request', None)
        self._reader = Reader(getattr(request, 'user', None))
        load_beside(self._reader, rows, names)

    def as_values(self, exclude_columns=None):
        # An export contains all rows, not only those of a page
        self._read(list(self.data), set(self.columns.names()) - set(exclude_columns or ()))
        yield from super().as_values(exclude_columns)

    def configure(self, request):
        # The order must not reveal the names of objects that the user may not view
        for name in BESIDE.intersection(self.columns.names()) - {'object'}:
            self.columns[name].column.order_by = OrderByTuple([
                order_by_visible(self._meta.model, request.user, name)
            ])
        super().configure(request)

    def before_render(self, request):
        # Some NetBox pages do not configure their tables
        self.request = request
        super().before_render(request)


class ResultStatusColumn(columns.ChoiceFieldColumn):
    """The annotated status of the last run of a task or schedule, as a badge that links to the run."""

    def render(self, record, bound_column, value):
        run = CeleryResult(status=value)
        return format_html(
            '<a href="{}" class="badge text-bg-{}">{}</a>',
            CeleryResult(pk=record.last_result).get_absolute_url(), run.get_status_color(), run.get_status_display()
        )

    def value(self, value):
        return value


class CeleryResultTable(BesideTable):
    name = NameColumn(
        verbose_name=_('Name'),
        linkify=True
    )
    celery_name = NameColumn(
        verbose_name=_('Task')
    )
    status = columns.ChoiceFieldColumn(
        verbose_name=_('Status')
    )
    user = BesideColumn(
        verbose_name=_('User')
    )
    schedule = BesideNameColumn(
        verbose_name=_('Schedule')
    )
    branch = BranchColumn(
        verbose_name=_('Branch')
    )
    object_type = columns.ContentTypeColumn(
        verbose_name=_('Object Type')
    )
    object = BesideColumn(
        verbose_name=_('Object'),
        orderable=False
    )
    progress = columns.TemplateColumn(
        verbose_name=_('Progress'),
        accessor='percentage',
        template_name='netbox_celery/columns/progress.html',
        export_raw=True,
        orderable=False,
        attrs={'td': {'style': 'min-width: 7rem'}}
    )
    created = columns.DateTimeColumn(
        verbose_name=_('Created')
    )
    scheduled = columns.DateTimeColumn(
        verbose_name=_('Scheduled')
    )
    started = columns.DateTimeColumn(
        verbose_name=_('Started')
    )
    completed = columns.DateTimeColumn(
        verbose_name=_('Completed')
    )
    duration = tables.Column(
        verbose_name=_('Duration'),
        orderable=False
    )
    error = tables.Column(
        verbose_name=_('Error')
    )
    concurrency_key = tables.Column(
        verbose_name=_('Concurrency Key')
    )
    stale_after = columns.DateTimeColumn(
        verbose_name=_('Stale After')
    )
    request_id = tables.Column(
        verbose_name=_('Request ID')
    )
    tags = columns.TagColumn(
        url_name='plugins:netbox_celery:celeryresult_list'
    )
    actions = columns.ActionsColumn(
        actions=('delete', 'changelog'),
        split_actions=False,
        extra_buttons=RESULT_BUTTONS
    )

    class Meta(NetBoxTable.Meta):
        model = CeleryResult
        fields = (
            'pk', 'id', 'name', 'celery_name', 'status', 'reason', 'progress', 'step', 'user', 'schedule',
            'branch', 'object_type', 'object', 'queue', 'worker', 'attempt', 'created', 'scheduled', 'expires', 'sent',
            'started', 'completed', 'duration', 'error', 'concurrency_key', 'stale_after', 'task_id', 'request_id',
            'parent_id', 'root_id', 'group_id', 'tags', 'last_updated',
        )
        default_columns = (
            'pk', 'id', 'name', 'status', 'progress', 'user', 'object', 'created', 'duration',
        )

    def render_error(self, record):
        return truncatechars(self.reader.error_of(record), 120)

    def value_error(self, record):
        return self.reader.error_of(record)

    def render_duration(self, value):
        return humanize_duration(value)

    def value_duration(self, value):
        return round(value.total_seconds(), 3)


class CeleryTaskTable(NetBoxTable):
    name = NameColumn(
        verbose_name=_('Name'),
        linkify=True
    )
    plugin = tables.Column(
        verbose_name=_('Plugin')
    )
    description = tables.Column(
        verbose_name=_('Description')
    )
    enabled = columns.BooleanColumn(
        verbose_name=_('Enabled')
    )
    present = columns.BooleanColumn(
        verbose_name=_('Registered')
    )
    last_status = ResultStatusColumn(
        verbose_name=_('Last Run')
    )
    run_count = columns.TemplateColumn(
        verbose_name=_('Runs'),
        template_code=RUN_COUNT,
        export_raw=True
    )
    last_seen = columns.DateTimeColumn(
        verbose_name=_('Last Seen')
    )
    tags = columns.TagColumn(
        url_name='plugins:netbox_celery:celerytask_list'
    )
    actions = columns.ActionsColumn(
        actions=('edit', 'changelog'),
        extra_buttons=TASK_BUTTONS
    )

    class Meta(NetBoxTable.Meta):
        model = CeleryTask
        # Evaluated only by the template of an empty table
        empty_text = lazy(lambda: no_tasks_text() or _('No tasks found'), str)()
        fields = (
            'pk', 'id', 'name', 'plugin', 'description', 'enabled', 'present', 'last_status', 'run_count', 'last_seen',
            'tags', 'created', 'last_updated',
        )
        default_columns = (
            'pk', 'name', 'plugin', 'description', 'enabled', 'present', 'last_status', 'run_count',
        )


class CeleryScheduleTable(BesideTable):
    name = NameColumn(
        verbose_name=_('Name'),
        linkify=True
    )
    task = BesideNameColumn(
        verbose_name=_('Task')
    )
    in_words = tables.Column(
        verbose_name=_('Schedule'),
        orderable=False,
        attrs={'td': {'style': 'min-width: 9rem'}}
    )
    kind = columns.ChoiceFieldColumn(
        verbose_name=_('Type')
    )
    timezone = tables.Column(
        verbose_name=_('Time Zone')
    )
    enabled = columns.BooleanColumn(
        verbose_name=_('Enabled')
    )
    present = columns.BooleanColumn(
        verbose_name=_('Defined')
    )
    origin = columns.ChoiceFieldColumn(
        verbose_name=_('Origin')
    )
    owner = BesideColumn(
        verbose_name=_('Owner')
    )
    next_run = columns.DateTimeColumn(
        verbose_name=_('Next Run'),
        attrs={'td': {'style': 'min-width: 6.5rem'}}
    )
    last_run = columns.DateTimeColumn(
        verbose_name=_('Last Scheduled Time')
    )
    last_status = ResultStatusColumn(
        verbose_name=_('Last Run'),
        accessor='last_status'
    )
    at = columns.DateTimeColumn(
        verbose_name=_('At')
    )
    start = columns.DateTimeColumn(
        verbose_name=_('Start')
    )
    end = columns.DateTimeColumn(
        verbose_name=_('End')
    )
    overlap = columns.ChoiceFieldColumn(
        verbose_name=_('Overlap')
    )
    missed = columns.ChoiceFieldColumn(
        verbose_name=_('Missed Runs')
    )
    missed_max = tables.Column(
        verbose_name=_('Catch-up Limit')
    )
    branch = BranchColumn(
        verbose_name=_('Branch')
    )
    object_type = columns.ContentTypeColumn(
        verbose_name=_('Object Type')
    )
    object = BesideColumn(
        verbose_name=_('Object'),
        orderable=False
    )
    tags = columns.TagColumn(
        url_name='plugins:netbox_celery:celeryschedule_list'
    )
    actions = columns.ActionsColumn(
        extra_buttons=SCHEDULE_BUTTONS
    )

    class Meta(NetBoxTable.Meta):
        model = CelerySchedule
        fields = (
            'pk', 'id', 'name', 'description', 'task', 'in_words', 'kind', 'crontab', 'timezone', 'interval', 'at',
            'start', 'end', 'enabled', 'next_run', 'last_run', 'last_status', 'owner', 'origin', 'present', 'queue',
            'priority', 'expires', 'branch', 'object_type', 'object', 'overlap', 'missed', 'missed_max', 'tags',
            'created', 'last_updated',
        )
        default_columns = (
            'pk', 'name', 'task', 'in_words', 'enabled', 'next_run', 'last_status', 'owner',
        )


class CeleryWorkerTable(NetBoxTable):
    name = NameColumn(
        verbose_name=_('Name'),
        linkify=True
    )
    is_alive = columns.BooleanColumn(
        verbose_name=_('Online'),
        orderable=False
    )
    pid = tables.Column(
        verbose_name=_('Process ID')
    )
    concurrency = tables.Column(
        verbose_name=_('Concurrency')
    )
    queues = columns.ArrayColumn(
        verbose_name=_('Queues'),
        orderable=False
    )
    started = columns.DateTimeColumn(
        verbose_name=_('Started')
    )
    heartbeat = columns.DateTimeColumn(
        verbose_name=_('Heartbeat')
    )
    stopped = columns.DateTimeColumn(
        verbose_name=_('Stopped')
    )
    # Only the engine writes workers: they cannot be edited and have no change log
    actions = columns.ActionsColumn(
        actions=()
    )

    class Meta(NetBoxTable.Meta):
        model = CeleryWorker
        fields = (
            'pk', 'id', 'name', 'is_alive', 'host', 'pid', 'pool', 'concurrency', 'queues', 'started', 'heartbeat',
            'stopped', 'key',
        )
        default_columns = (
            'name', 'is_alive', 'host', 'pool', 'concurrency', 'queues', 'started', 'heartbeat', 'stopped',
        )

    def render_concurrency(self, record):
        return record.display_concurrency
