"""netbox-celery: Celery for NetBox.

NetBox imports this module from within its settings. It therefore contains only the plugin's configuration class and
uses no models or settings. Plugin authors import from `netbox_celery.tasks`. The Celery app, for
`celery -A netbox_celery`, is in `netbox_celery.celery`.
"""
from typing import Any

from netbox.plugins import PluginConfig

# Imported here and not where it is used: a later import of the module `config` would overwrite the attribute `config`
# below, which NetBox looks up. The module uses no models or settings.
from .config import Config

__version__ = '0.2.0'


class NetBoxCeleryConfig(PluginConfig):
    name = 'netbox_celery'
    verbose_name = 'Celery'
    description = 'Background tasks for NetBox and its plugins, run by Celery and followed live'
    version = __version__
    author = 'The netbox-celery authors'
    base_url = 'celery'
    min_version = '4.7.0'
    max_version = '4.7.99'
    default_settings: dict[str, Any] = {}
    middleware: list[str] = ['netbox_celery.middleware.ReadOnlyMiddleware']

    @classmethod
    def validate(cls, user_config, netbox_version):
        """Prevent NetBox from starting with an unknown or invalid setting (`ImproperlyConfigured` names it)."""
        super().validate(user_config, netbox_version)
        Config.from_dict(user_config)

    def ready(self):
        super().ready()
        from django.db.models.signals import pre_migrate

        # `celery` sets the current Celery app in every NetBox process, so that `shared_task` binds to it; `checks` and
        # `deletion` register their functions; `housekeeping` and `jobs` define the plugin's own tasks and jobs.
        from . import branching, celery, checks, commands, deletion, housekeeping, jobs  # noqa: F401
        commands.register()
        branching.install()
        pre_migrate.connect(checks.stop_migration, sender=self)


config = NetBoxCeleryConfig
