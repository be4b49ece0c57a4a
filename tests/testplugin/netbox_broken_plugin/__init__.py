"""A NetBox plugin that is installed without a library that its tasks need."""
from netbox.plugins import PluginConfig


class BrokenPluginConfig(PluginConfig):
    name = 'netbox_broken_plugin'
    verbose_name = 'Broken Plugin'
    version = '0.1.0'
    base_url = 'broken'


config = BrokenPluginConfig
