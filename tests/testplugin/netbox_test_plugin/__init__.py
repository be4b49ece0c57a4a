"""A NetBox plugin whose tasks misbehave in every way that a task can, for the tests on real workers."""
from netbox.plugins import PluginConfig


class TestPluginConfig(PluginConfig):
    name = 'netbox_test_plugin'
    verbose_name = 'Test Plugin'
    version = '0.1.0'
    base_url = 'test'


config = TestPluginConfig
