"""
The web service of `docker-compose.yml`: bring the database up to date, fill it with the example data, serve.

On an empty database NetBox's migrations take some minutes. The other services wait until this one is healthy, so that
only this one applies them.
"""

import os

import django
from django.core.management import call_command

from development.stack import seed

if __name__ == '__main__':
    django.setup()
    call_command('migrate', interactive=False)
    call_command('collectstatic', interactive=False, verbosity=0)
    seed.add_devices()
    seed.add_superuser('admin', os.environ['ADMIN_PASSWORD'])
    os.execvp('gunicorn', [
        'gunicorn', 'development.wsgi', '--bind', '0.0.0.0:8080', '--workers', '2', '--threads', '4',
        '--timeout', '120', '--access-logfile', '-', '--no-control-socket',
    ])
