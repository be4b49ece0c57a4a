"""The plugin as NetBox sees it."""
from django.urls import reverse

import netbox_celery
from netbox_celery.config import Config
from tests.factories import make_schedule, make_task
from utilities.testing import TestCase


class PluginTest(TestCase):

    def test_config(self):
        """NetBox finds the plugin's class as `config`, where Python would put the module of that name."""
        self.assertIs(netbox_celery.config, netbox_celery.NetBoxCeleryConfig)
        self.assertEqual(Config.from_dict({}).track, 'base')

    def test_pages_about_plugins(self):
        self.user.is_superuser = True
        self.user.save()
        self.assertContains(self.client.get(reverse('core:plugin_list')), 'Celery')
        self.assertHttpStatus(self.client.get(reverse('core:plugin', args=['netbox_celery'])), 200)

    def test_no_dead_help(self):
        """NetBox's forms have a Help button, to a page that does not exist for the models of plugins."""
        self.user.is_superuser = True
        self.user.save()
        for page in (make_schedule().get_absolute_url(), make_task('tests:other').get_absolute_url()):
            response = self.client.get(f'{page}edit/')
            self.assertContains(response, '<form')
            self.assertNotContains(response, 'View model documentation')


def test_migrations_are_of_main():
    """NetBox Branching runs none of our migrations in a branch's schema: each says so, also future ones."""
    from importlib import import_module
    from pkgutil import iter_modules

    from netbox_celery import migrations

    names = [name for __, name, __ in iter_modules(migrations.__path__) if name[0] != '_']
    assert names
    for name in names:
        assert import_module(f'{migrations.__name__}.{name}').fake_on_branch is True, name
