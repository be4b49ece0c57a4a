"""A NetBox plugin whose tasks need a library that is not installed."""
from netbox.plugins import PluginConfig


class BrokenPluginConfig(PluginConfig):
    name = 'netbox_broken_plugin'
    verbose_name = 'Broken Plugin'
    version = '0.1.0'
    base_url = 'broken'


config = BrokenPluginConfig
