"""The navigation menu."""
from collections.abc import Iterable
from typing import Any

from django.utils.translation import gettext_lazy as _

from netbox.plugins import PluginMenu, PluginMenuButton, PluginMenuItem

__all__ = (
    'menu',
)


def item(model: str, text: Any, buttons: Iterable[PluginMenuButton] = ()) -> PluginMenuItem:
    return PluginMenuItem(
        link=f'plugins:netbox_celery:{model}_list',
        link_text=text,
        permissions=[f'netbox_celery.view_{model}'],
        buttons=buttons
    )


def button(model: str, action: str, title: Any, icon: str) -> PluginMenuButton:
    return PluginMenuButton(
        link=f'plugins:netbox_celery:{model}_{action}',
        title=title,
        icon_class=f'mdi mdi-{icon}',
        permissions=[f'netbox_celery.add_{model}']
    )


menu = PluginMenu(
    label=_('Celery'),
    icon_class='mdi mdi-sprout',
    groups=(
        (_('Tasks'), (
            item('celeryresult', _('Runs')),
            item('celerytask', _('Tasks')),
            item('celeryschedule', _('Schedules'), (
                button('celeryschedule', 'add', _('Add'), 'plus-thick'),
                button('celeryschedule', 'bulk_import', _('Import'), 'upload'),
            )),
        )),
        (_('Execution'), (
            item('celeryworker', _('Workers')),
        )),
    )
)
