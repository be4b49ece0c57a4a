"""
A small NetBox plugin with Celery tasks: start reading in `tasks.py`.

Celery needs no set-up here: netbox-celery finds the `tasks` module of every plugin that NetBox loads.
"""

from netbox.plugins import PluginConfig


class ExamplePluginConfig(PluginConfig):
    name = 'netbox_example_plugin'
    verbose_name = 'Example Plugin'
    description = 'Example of a NetBox plugin with Celery tasks'
    version = '0.1.0'
    base_url = 'example'
    min_version = '4.7.0'
    max_version = '4.7.99'


config = ExamplePluginConfig
