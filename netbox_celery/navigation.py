"""The menu."""
from django.utils.translation import gettext_lazy as _

from netbox.plugins import PluginMenu, PluginMenuItem

__all__ = (
    'menu',
)


def item(model, text):
    return PluginMenuItem(
        link=f'plugins:netbox_celery:{model}_list',
        link_text=text,
        permissions=[f'netbox_celery.view_{model}']
    )


menu = PluginMenu(
    label=_('Celery'),
    icon_class='mdi mdi-sprout',
    groups=(
        (_('Tasks'), (
            item('celeryresult', _('Results')),
            item('celerytask', _('Tasks')),
        )),
        (_('Execution'), (
            item('celeryworker', _('Workers')),
        )),
    )
)
