"""The plugin's additions to NetBox's pages, and to the head of its own."""
from django.contrib.contenttypes.models import ContentType
from django.template.loader import render_to_string
from django.utils.translation import gettext_lazy as _

from netbox.plugins import PluginTemplateExtension
from netbox.ui.panels import ObjectsTablePanel

from . import __version__
from .models import CeleryResult

__all__ = (
    'template_extensions',
)


class Stylesheet(PluginTemplateExtension):
    """Links the stylesheet on the plugin's own pages only."""

    def head(self):
        match = self.context['request'].resolver_match
        if match is None or 'netbox_celery' not in match.namespaces:
            return ''
        return render_to_string('netbox_celery/inc/head.html', {'version': __version__})


class ObjectRuns(PluginTemplateExtension):
    """Lists the runs that concern an object on its page. Objects without runs cost one index lookup."""

    def full_width_page(self):
        obj, user = self.context['object'], self.context['request'].user
        about = {
            'object_type_id': ContentType.objects.get_for_model(obj, for_concrete_model=False).pk,
            'object_id': obj.pk,
        }
        if not CeleryResult.objects.restrict(user, 'view').filter(**about).exists():
            return ''
        return ObjectsTablePanel(
            model='netbox_celery.CeleryResult',
            title=_('Celery Runs'),
            filters=about,
            exclude_columns=['object', 'object_type'],
        ).render(self.context)


template_extensions = (
    Stylesheet,
    ObjectRuns,
)
