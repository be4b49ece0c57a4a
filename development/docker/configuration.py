"""NetBox's configuration in the container: the environment sets what differs between installations."""

import os

from celery.schedules import crontab

ALLOWED_HOSTS = os.environ.get('ALLOWED_HOSTS', '*').split()

DATABASES = {
    'default': {
        'NAME': os.environ.get('DB_NAME', 'netbox'),
        'USER': os.environ.get('DB_USER', 'netbox'),
        'PASSWORD': os.environ['DB_PASSWORD'],
        'HOST': os.environ.get('DB_HOST', 'postgres'),
        'PORT': os.environ.get('DB_PORT', '5432'),
        'CONN_MAX_AGE': 300,
    },
}


def redis(database):
    return {
        'HOST': os.environ.get('REDIS_HOST', 'redis'),
        'PORT': int(os.environ.get('REDIS_PORT', '6379')),
        'USERNAME': '',
        'PASSWORD': os.environ['REDIS_PASSWORD'],
        'DATABASE': database,
        'SSL': False,
    }


REDIS = {
    'tasks': redis(0),
    'caching': redis(1),
}

SECRET_KEY = os.environ['SECRET_KEY']

API_TOKEN_PEPPERS = {1: os.environ['API_TOKEN_PEPPER']}

PLUGINS = ['netbox_celery', 'netbox_example_plugin']

PLUGINS_CONFIG = {
    'netbox_celery': {
        # For the health check
        'celery': {'beat_enable_remote_control': True},
        'command_tasks': {'clearsessions': {'schedule': crontab(minute=30, hour=2)}},
    },
}

CENSUS_REPORTING_ENABLED = False
ISOLATED_DEPLOYMENT = True

LOGGING = {
    'version': 1,
    'disable_existing_loggers': False,
    'formatters': {
        'line': {'format': '[%(asctime)s: %(levelname)s/%(processName)s] %(name)s: %(message)s'},
    },
    'handlers': {
        'console': {'class': 'logging.StreamHandler', 'formatter': 'line'},
    },
    'root': {'handlers': ['console'], 'level': os.environ.get('LOG_LEVEL', 'WARNING')},
}
