"""The plugin as NetBox sees it."""
from django.urls import reverse

import netbox_celery
from netbox_celery.config import Config
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
