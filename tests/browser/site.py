"""A complete NetBox for browsers: its web process and a worker, with their own database, and devices in it."""
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from urllib.request import ProxyHandler, Request, build_opener

from development.stack.instance import executable
from development.stack.paths import ROOT
from development.stack.processes import Process, free_port, tail, wait_until

__all__ = (
    'Site',
)

USERNAME = 'alice'
PASSWORD = 'Alice-can-l00k'
TOKEN_KEY = 'browserTests'
TOKEN = '0123456789abcdef0123456789abcdef01234567'


class Site:
    """
    A context manager.

    Args:
        services: The running `development.stack.services.Services`
    """
    username = USERNAME
    password = PASSWORD

    def __init__(self, services):
        self.services = services
        self.logs = services.directory / 'log'

    def __enter__(self):
        instance = self.services.another_instance('browser', redis_databases=(5, 6), for_tests=False)
        self.environ = {**instance.environ, 'PYTHONUNBUFFERED': '1'}
        self.seed()
        port = free_port()
        self.url = f'http://127.0.0.1:{port}'
        with ExitStack() as stack:
            for name, command, ready in (
                # The development server also serves static files
                ('web', ['netbox', 'runserver', '--insecure', '--noreload', f'127.0.0.1:{port}'], self.answers),
                ('worker', ['celery', '-A', 'netbox_celery', 'worker', '-l', 'INFO', '-c', '2'], self.works),
            ):
                log = self.logs / f'browser-{name}.log'
                process = Process.start(
                    name, [executable(command[0]), *command[1:]], log, env=self.environ, cwd=instance.root,
                    die_with_parent=True,
                )
                stack.callback(process.stop)
                wait_until(lambda: ready() or not process.running, timeout=90, interval=0.2)
                if not process.running or not ready():
                    raise RuntimeError(f'{name} is not ready:\n\n{tail(log, 30)}')
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception):
        self._stack.__exit__(*exception)

    def seed(self):
        subprocess.run(
            [sys.executable, '-m', 'development.stack.seed', 'prepare'],
            input=json.dumps({
                'username': USERNAME, 'password': PASSWORD, 'token_key': TOKEN_KEY, 'token': TOKEN,
                'migrate': False, 'collectstatic': False,
            }),
            env={**os.environ, **self.environ}, cwd=ROOT, text=True, check=True,
        )

    def answers(self):
        try:
            return self.open('/login/').status == 200
        except OSError:
            return False

    def works(self):
        return ' ready.' in (self.logs / 'browser-worker.log').read_text(errors='replace')

    def open(self, path, data=None):
        """Request a URL, as a program with a token does."""
        request = Request(
            f'{self.url}{path}',
            data=None if data is None else json.dumps(data).encode(),
            headers={'Authorization': f'Bearer nbt_{TOKEN_KEY}.{TOKEN}', 'Content-Type': 'application/json'},
        )
        # Never through a proxy: it is here
        return build_opener(ProxyHandler({})).open(request, timeout=30)

    def rest(self, path, data=None):
        """Send a REST request, and return the answer."""
        return json.load(self.open(f'/api/plugins/celery/{path}', data))

    def task(self, name):
        """Return the primary key of a task of the example plugin."""
        return self.rest(f'tasks/?name=netbox_example_plugin:{name}')['results'][0]['id']

    def run(self, name, /, **kwargs):
        """Start a task of the example plugin, and return the primary key of the run."""
        return self.rest(f'tasks/{self.task(name)}/run/', {'kwargs': kwargs})['id']

    def wait(self, pk, timeout=30):
        """Wait until a run has finished, and return it."""
        return wait_until(
            lambda: (run := self.rest(f'results/{pk}/'))['completed'] and run, timeout=timeout, interval=0.2
        )
