"""
A NetBox instance: the folder that `NETBOX_ROOT` names, with a configuration of concrete values.

A process needs only `NETBOX_ROOT` to be part of an instance, from any folder:

    NETBOX_ROOT=... netbox shell
    NETBOX_ROOT=... celery -A netbox_celery worker
"""

import os
import secrets
import subprocess
import sys
from pathlib import Path
from pprint import pformat

from .postgres import USER
from .processes import StackError

__all__ = (
    'Instance',
    'environment',
    'netbox',
)

PLUGINS = ['netbox_celery', 'netbox_example_plugin']

CONFIGURATION = '''\
"""Written by development/stack/instance.py at each start: changes made here are lost."""

import os

ALLOWED_HOSTS = ['*']

DATABASES = {databases}

REDIS = {redis}

SECRET_KEY = {secret_key!r}

API_TOKEN_PEPPERS = {{1: {pepper!r}}}

PLUGINS = {plugins}

PLUGINS_CONFIG = {plugins_config}

# Lets `netbox makemigrations` run
DEVELOPER = os.environ.get('DEVELOPER', '').lower() in ('1', 'true', 'yes')

DEBUG = False

# Send nothing about this instance to other hosts, and request nothing from them
CENSUS_REPORTING_ENABLED = False
ISOLATED_DEPLOYMENT = True

AUTH_PASSWORD_VALIDATORS = []

LOGGING = {{
    'version': 1,
    'disable_existing_loggers': False,
    'formatters': {{
        'line': {{'format': '[%(asctime)s: %(levelname)s/%(processName)s] %(name)s: %(message)s'}},
    }},
    'handlers': {{
        'console': {{'class': 'logging.StreamHandler', 'formatter': 'line'}},
    }},
    'root': {{'handlers': ['console'], 'level': os.environ.get('LOG_LEVEL', 'WARNING')}},
}}
'''

# As in NetBox's own configuration for tests: it grants nothing by default, and runs no background job
FOR_TESTS = '''
DEFAULT_PERMISSIONS = {}

RQ = {'COMMIT_MODE': 'auto'}
'''

# As documented by netbox-branching
BRANCHING = '''
from netbox_branching.utilities import DynamicSchemaDict

DATABASES = DynamicSchemaDict(DATABASES)

DATABASE_ROUTERS = ['netbox_branching.database.BranchAwareRouter']

PLUGINS = [*PLUGINS, 'netbox_branching']
'''


class Instance:
    """
    Args:
        root: The folder
        cluster: The running PostgreSQL cluster
        redis: The running Redis server
        database: The database's name in the cluster
        redis_databases: The numbers of Redis' databases for tasks and for caching
        plugins: Value of `PLUGINS`
        plugins_config: Value of `PLUGINS_CONFIG`
        for_tests: Whether to use the settings that NetBox's own tests expect
        database_settings: Further keys of `DATABASES['default']`, such as `OPTIONS`
        branching: Whether NetBox Branching is one of the plugins
        secret_key, pepper: Kept by callers whose sessions and tokens have to survive a restart
    """

    def __init__(
        self, root, cluster, redis, *, database='netbox', redis_databases=(0, 1), plugins=PLUGINS, plugins_config=None,
        for_tests=False, database_settings=None, branching=False, secret_key=None, pepper=None,
    ):
        self.root = Path(root)
        self.cluster = cluster
        self.redis = redis
        self.database = database
        self.redis_databases = redis_databases
        self.plugins = plugins
        self.plugins_config = plugins_config or {}
        self.for_tests = for_tests
        self.database_settings = database_settings or {}
        self.branching = branching
        self.secret_key = secret_key or secrets.token_urlsafe(48)
        self.pepper = pepper or secrets.token_urlsafe(48)

    @property
    def environ(self):
        return environment(self.root)

    def write(self):
        """
        Write the configuration, and create the folders that NetBox expects.
        """
        for name in ('conf', 'media', 'reports', 'scripts', 'static'):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        text = CONFIGURATION.format(
            databases=pformat({
                'default': {
                    'NAME': self.database,
                    'USER': USER,
                    'PASSWORD': self.cluster.password,
                    'HOST': '127.0.0.1',
                    'PORT': self.cluster.port,
                    'CONN_MAX_AGE': 300,
                    **self.database_settings,
                },
            }, sort_dicts=False),
            redis=pformat(
                dict(zip(('tasks', 'caching'), map(self._redis, self.redis_databases))), sort_dicts=False
            ),
            secret_key=self.secret_key,
            pepper=self.pepper,
            plugins=self.plugins,
            plugins_config=pformat(self.plugins_config),
        )
        path = self.root / 'conf' / 'configuration.py'
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), 'w') as handle:
            handle.write(text + (FOR_TESTS if self.for_tests else '') + (BRANCHING if self.branching else ''))
        return self

    def _redis(self, database):
        return {
            'HOST': '127.0.0.1',
            'PORT': self.redis.port,
            'USERNAME': '',
            'PASSWORD': self.redis.password,
            'DATABASE': database,
            'SSL': False,
        }


def environment(root):
    """
    Return the variables of a process that belongs to the instance in a folder.
    """
    return {'NETBOX_ROOT': str(root), 'DJANGO_SETTINGS_MODULE': 'netbox.settings'}


def netbox(instance, *arguments, env=None):
    """
    Run a management command of NetBox and return its output.
    """
    result = subprocess.run(
        [executable('netbox'), *arguments],
        env={**os.environ, **instance.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise StackError(f'netbox {" ".join(arguments)} failed:\n\n{result.stdout}{result.stderr}')
    return result.stdout


def executable(name):
    """
    Return the path of a command that is installed beside the current interpreter.
    """
    return str(Path(sys.executable).with_name(name))
