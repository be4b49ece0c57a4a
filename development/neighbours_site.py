"""
A NetBox with NetBox Branching and with a plugin whose tasks cannot be imported, for the duration of a block.

The screenshots of the documentation that need such plugins are taken there.
"""

import json
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from .stack.demo import PLUGINS_CONFIG, USERNAME
from .stack.instance import PLUGINS, executable
from .stack.paths import ROOT
from .stack.processes import Process, StackError, free_port, tail, wait_until
from .stack.scratch import secret
from .stack.services import Services

__all__ = (
    'neighbours_site',
)

PLUGIN = '''
from netbox.plugins import PluginConfig


class Config(PluginConfig):
    name = 'netbox_config_backup'
    verbose_name = 'Config Backup'
    version = '0.1.0'
    base_url = 'config-backup'


config = Config
'''

PROGRAMS = {
    # In its log when it is ready
    'web': (('netbox', 'runserver', '--insecure', '--noreload', '127.0.0.1:{port}'), ''),
    'worker': (
        ('celery', '-A', 'netbox_celery', 'worker', '-l', 'INFO', '-c', '2', '--hostname', 'demo@%h'), ' ready.'
    ),
}

# A branch with a run and a schedule in it
BRANCH = '''
import django; django.setup()
import json
from netbox_branching.models import Branch
from netbox_branching.utilities import activate_branch
from netbox_celery.models import CelerySchedule, CeleryTask
from netbox_example_plugin.tasks import audit_devices
from users.models import User
user = User.objects.get()
branch = Branch(name='Renumber Amsterdam', owner=user)
branch.save(provision=False)
branch.provision(user)
branch = Branch.objects.get(pk=branch.pk)
with activate_branch(branch):
    run = audit_devices.delay(site='ams', delay=0.1, netbox_user=user, netbox_name='Audit before the merge')
    schedule = CelerySchedule(
        name='Audit the branch', task=CeleryTask.objects.get(name='netbox_example_plugin:audit_devices'),
        crontab='0 7 * * *', kwargs={'site': 'ams'}, owner=user,
    )
    schedule.full_clean()
    schedule.save()
print(json.dumps({'branch': branch.schema_id, 'run': run.id, 'schedule': schedule.pk}))
'''


@contextmanager
def neighbours_site():
    """
    Yield a dict: `url`, `username`, `password`, a `branch`, and its `run` and `schedule`.
    """
    with ExitStack() as stack:
        services = stack.enter_context(Services(
            'neighbours', plugins=[*PLUGINS, 'netbox_config_backup'], plugins_config=PLUGINS_CONFIG, branching=True
        ))
        write_plugin(services.directory / 'plugins' / 'netbox_config_backup')
        environ = {
            **os.environ, **services.instance.environ, 'PYTHONUNBUFFERED': '1',
            'PYTHONPATH': os.pathsep.join(filter(None, (
                str(services.directory / 'plugins'), os.environ.get('PYTHONPATH')
            ))),
        }
        card = {'username': USERNAME, 'password': secret('admin')}
        subprocess.run(
            [sys.executable, '-m', 'development.stack.seed', 'prepare'], cwd=ROOT, env=environ, text=True, check=True,
            input=json.dumps({
                **card, 'token_key': 'neighbours00', 'token': secret('token', 40), 'migrate': True,
                'collectstatic': False,
            }),
        )
        port = free_port()
        card['url'] = f'http://127.0.0.1:{port}/'
        for name, (command, ready) in PROGRAMS.items():
            log = services.directory / 'log' / f'{name}.log'
            process = Process.start(
                name, [executable(command[0]), *(word.format(port=port) for word in command[1:])], log, env=environ,
                cwd=services.instance.root, die_with_parent=True,
            )
            stack.callback(process.stop)
            is_ready = (lambda: ready in log.read_text(errors='replace')) if ready else (lambda: answers(card['url']))
            wait_until(lambda: is_ready() or not process.running, timeout=180, interval=0.5)
            if not process.running or not is_ready():
                raise StackError(f'{name} is not ready:\n\n{tail(log, 30)}')
        yield card | json.loads(subprocess.run(
            [sys.executable, '-c', BRANCH], env=environ, cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.splitlines()[-1])


def write_plugin(folder):
    folder.mkdir(parents=True)
    (folder / '__init__.py').write_text(PLUGIN)
    (folder / 'tasks.py').write_text('import napalm\n')


def answers(url):
    try:
        # Never through a proxy: the server is local
        return build_opener(ProxyHandler({})).open(f'{url}login/', timeout=10).status == 200
    except (URLError, OSError):
        return False
