"""What the plugin adds to pages of NetBox that are not its own, and to the head of those that are."""
from django.template.loader import render_to_string

from netbox.plugins import PluginTemplateExtension

from . import __version__

__all__ = (
    'template_extensions',
)


class Stylesheet(PluginTemplateExtension):
    """Links the stylesheet, from the plugin's own pages only."""

    def head(self):
        match = self.context['request'].resolver_match
        if match is None or 'netbox_celery' not in match.namespaces:
            return ''
        return render_to_string('netbox_celery/inc/head.html', {'version': __version__})


template_extensions = (
    Stylesheet,
)
