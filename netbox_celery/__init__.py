"""netbox-celery: Celery for NetBox.

NetBox imports this module from inside its settings, so it touches no model and no setting: it holds the plugin's
configuration class alone. What plugin authors import is in `netbox_celery.tasks`; the Celery app, for
`celery -A netbox_celery`, is in `netbox_celery.celery`.
"""
from netbox.plugins import PluginConfig

# Here and not where it is used: importing a module of the name `config` would later take the place of the class below,
# which NetBox looks up by that name. It touches no model and no setting.
from .config import Config

__version__ = '0.1.0'


class NetBoxCeleryConfig(PluginConfig):
    name = 'netbox_celery'
    verbose_name = 'Celery'
    description = 'Background tasks for NetBox and its plugins, run by Celery and followed live'
    version = __version__
    author = 'The netbox-celery authors'
    base_url = 'celery'
    min_version = '4.7.0'
    max_version = '4.7.99'
    default_settings = {}

    @classmethod
    def validate(cls, user_config, netbox_version):
        """Stop NetBox's start on a setting that is unknown or wrong (`ImproperlyConfigured` names it)."""
        super().validate(user_config, netbox_version)
        Config.from_dict(user_config)

    def ready(self):
        super().ready()

        # `celery` makes ours the current Celery app in every NetBox process, so that `shared_task` binds to it;
        # `signals` connects itself to the deletion of runs and tasks; the others have tasks and jobs of their own.
        from . import celery, checks, commands, housekeeping, jobs, signals  # noqa: F401
        commands.register()


config = NetBoxCeleryConfig
