"""The panels of the page of a task."""
from django.utils.translation import gettext_lazy

from netbox.ui import attrs, panels

from ..forms.parameters import parameter_help
from ..reading.unloaded import unloaded_modules

__all__ = (
    'TaskDocumentationPanel',
    'TaskPanel',
    'TaskParametersPanel',
    'TaskSchedulesPanel',
    'TaskUnloadedPanel',
)


class TaskPanel(panels.ObjectAttributesPanel):
    title = gettext_lazy('Task')
    name = attrs.TextAttr('name', label=gettext_lazy('Name'), style='font-monospace', copy_button=True)
    plugin = attrs.TextAttr('plugin', label=gettext_lazy('Plugin'))
    description = attrs.TextAttr('description', label=gettext_lazy('Description'))
    enabled = attrs.BooleanAttr('enabled', label=gettext_lazy('Enabled'))
    present = attrs.BooleanAttr('present', label=gettext_lazy('Registered'))
    last_seen = attrs.DateTimeAttr('last_seen', label=gettext_lazy('Last seen'))


class TaskDocumentationPanel(panels.ObjectPanel):
    template_name = 'netbox_celery/panels/documentation.html'
    title = gettext_lazy('Documentation')

    def should_render(self, context):
        return bool(context['object'].documentation)


class TaskParametersPanel(panels.ObjectPanel):
    template_name = 'netbox_celery/panels/parameters.html'
    title = gettext_lazy('Parameters')
    #: Prefixes of variadic parameters.
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
    """The schedules of a task; hidden if there are none."""
    title = gettext_lazy('Schedules')

    def get_context(self, context):
        return super().get_context(context) | {
            'is_scheduled': context['object'].schedules.restrict(context['request'].user, 'view').exists()
        }

    def should_render(self, context):
        return context['is_scheduled'] and super().should_render(context)


class TaskUnloadedPanel(panels.ObjectPanel):
    """Where and why modules of the task's plugin could not be imported; hidden if all were."""
    template_name = 'netbox_celery/panels/unloaded.html'

    def get_context(self, context):
        plugin = context['object'].plugin
        return super().get_context(context) | {
            'unloaded': unloaded_modules(context['request'].user, plugin) if plugin else []
        }

    def should_render(self, context):
        return bool(context['unloaded'])
