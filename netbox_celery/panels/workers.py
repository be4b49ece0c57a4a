"""The panels of the page of a worker."""
from django.utils.translation import gettext_lazy

from netbox.ui import attrs, panels

from .parts import PayloadPanel

__all__ = (
    'NotLoadedPanel',
    'VersionsPanel',
    'WorkerPanel',
)


class WorkerPanel(panels.ObjectAttributesPanel):
    title = gettext_lazy('Worker')
    name = attrs.TextAttr('name', label=gettext_lazy('Name'), style='font-monospace', copy_button=True)
    is_alive = attrs.BooleanAttr('is_alive', label=gettext_lazy('Online'))
    host = attrs.TextAttr('host', label=gettext_lazy('Host'))
    pid = attrs.NumericAttr('pid', label=gettext_lazy('Process ID'))
    pool = attrs.TextAttr('pool', label=gettext_lazy('Pool'))
    concurrency = attrs.TextAttr('display_concurrency', label=gettext_lazy('Concurrency'))
    queues = attrs.ArrayAttr('queues', label=gettext_lazy('Queues'))
    started = attrs.DateTimeAttr('started', label=gettext_lazy('Started'))
    heartbeat = attrs.DateTimeAttr('heartbeat', label=gettext_lazy('Heartbeat'))
    stopped = attrs.DateTimeAttr('stopped', label=gettext_lazy('Stopped'))


class VersionsPanel(PayloadPanel):
    """The package versions of a worker."""

    def get_context(self, context):
        return super().get_context(context) | {'data': context['object'].package_versions}


class NotLoadedPanel(panels.ObjectPanel):
    """The modules that a worker could not import, and why."""
    template_name = 'netbox_celery/panels/not_loaded.html'
    title = gettext_lazy('Not Loaded')

    def should_render(self, context):
        return bool(context['object'].not_loaded)
