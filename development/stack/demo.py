"""
The demo: NetBox, a Celery worker, beat and NetBox's own worker, with example data, kept between starts.

`start()` makes it run and answer, whatever state it was left in; running processes are kept. Started processes are
recorded in `development/.state/demo/processes.json`, so that `stop()` ends all of them, including those that another
command has started or that have survived a `kill -9`. `development/.state/demo.json` has the URL and the credentials.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from .instance import Instance, executable
from .paths import ROOT, STATE
from .postgres import Cluster, major_version
from .processes import Process, StackError, free_port, locked, tail, wait_until, write_json
from .redis import RedisServer
from .scratch import secret
from .template import copy_template, migrations, say, template_key

__all__ = (
    'Demo',
)

USERNAME = 'admin'
WEB_PORT = 8000

PLUGINS_CONFIG = {'netbox_celery': {'command_tasks': ['clearsessions']}}

STATIC_FILES = (
    ROOT / 'netbox_celery' / 'static',
)

# Never through a proxy: the server is local
browser = build_opener(ProxyHandler({}))


@dataclass(frozen=True)
class Program:
    """
    One of NetBox's processes.

    Args:
        name: Of the process and of its log
        command: What is run; `{port}` and `{root}` are filled in
        ready: Text in its log when it is ready; the web process gets a request instead
    """
    name: str
    command: tuple
    ready: str = ''


PROGRAMS = (
    Program('web', (
        'gunicorn', 'development.wsgi', '--pythonpath', '{root}', '--bind', '127.0.0.1:{port}', '--workers', '2',
        '--threads', '4', '--timeout', '120', '--graceful-timeout', '5', '--access-logfile', '-', '--no-control-socket',
    )),
    Program('worker', (
        'celery', '-A', 'netbox_celery', 'worker', '-E', '-l', 'INFO', '--concurrency', '2', '--hostname', 'demo@%h',
    ), ready=' ready.'),
    Program('beat', (
        'celery', '-A', 'netbox_celery', 'beat', '-l', 'INFO',
    ), ready='this one is active'),
    Program('rqworker', ('netbox', 'rqworker', 'high', 'default', 'low'), ready='Listening on'),
)


class Demo:
    """
    Args:
        foreground: Whether everything ends with this process, even if that is killed
    """

    def __init__(self, *, foreground=False):
        self.foreground = foreground
        self.directory = STATE / 'demo'
        self.logs = STATE / 'log'
        self.card = STATE / 'demo.json'
        self.ledger = self.directory / 'processes.json'
        self.lock = STATE / 'demo.lock'
        self.root = self.directory / 'netbox'

    #
    # Earlier starts
    #

    def load(self):
        state = {'ports': {}, 'processes': {}, 'migrations': {}, 'migrated': '', 'static': ''}
        with suppress(FileNotFoundError, ValueError):
            state |= json.loads(self.ledger.read_text())
        self.state = state
        processes = {name: Process(**fields) for name, fields in state['processes'].items()}
        self.processes = {name: process for name, process in processes.items() if not is_of_another(process)}

    def save(self):
        self.state['processes'] = {name: process.to_dict() for name, process in self.processes.items()}
        write_json(self.ledger, self.state)

    def is_running(self, name):
        return name in self.processes and self.processes[name].running

    #
    # Starting
    #

    def start(self):
        """
        Start what is not running, and return when everything answers.
        """
        with locked(self.lock):
            self.load()
            try:
                if all(map(self.is_running, ('postgres', 'redis', *(program.name for program in PROGRAMS))))\
                        and self.web_answers():
                    say('The demo is running already')
                else:
                    self.card.unlink(missing_ok=True)
                    self.start_services()
                    self.prepare()
                    self.start_programs()
                    self.wait_until_ready()
                    self.write_card()
                    self.run_tasks()
            except BaseException:
                self.stop_all()
                raise
        self.tell()

    def start_services(self):
        if self.is_running('postgres') and self.is_running('redis'):
            self.connect()
            return
        # Processes that are connected to the old ones are useless now
        self.stop_all()
        self.load()
        ports = self.state['ports']
        durable = {'durable': True}
        self.cluster = Cluster(self.directory / 'postgres', secret('password'), **durable)
        if self.cluster.exists and (why := self.why_useless()):
            say(f'{why}: starting with a new database')
            shutil.rmtree(self.cluster.directory)
        if not self.cluster.exists:
            shutil.rmtree(self.cluster.directory, ignore_errors=True)
            # Messages in the queues belong to deleted rows
            shutil.rmtree(self.directory / 'redis', ignore_errors=True)
            draft = copy_template(self.directory / 'postgres.draft', **durable)
            draft.directory.rename(self.cluster.directory)
            self.state |= {'migrated': template_key(), 'migrations': migrations()}
        self.redis = RedisServer(self.directory / 'redis', secret('password'), **durable)
        for name, server in (('postgres', self.cluster), ('redis', self.redis)):
            log = self.logs / f'{name}.log'
            log.unlink(missing_ok=True)
            server.start(log, port=ports.get(name), die_with_parent=self.foreground)
            ports[name] = server.port
            self.processes[name] = server.process
            self.save()
        self.write_instance()

    def why_useless(self):
        """
        Return why the database of an earlier start can no longer be used, or nothing if it can.
        """
        if self.cluster.major_version != major_version():
            return f'The database was made by PostgreSQL {self.cluster.major_version}, which is no longer installed'
        for name, digest in self.state['migrations'].items():
            if migrations().get(name) != digest:
                return f'{name} has changed since it was applied'
        return ''

    def connect(self):
        """
        Use the servers that an earlier command has started.
        """
        self.cluster = Cluster(self.directory / 'postgres', secret('password'))
        self.redis = RedisServer(self.directory / 'redis', secret('password'))
        self.cluster.port = self.state['ports']['postgres']
        self.redis.port = self.state['ports']['redis']
        self.write_instance()

    def write_instance(self):
        self.instance = Instance(
            self.root, self.cluster, self.redis, secret_key=secret('secret_key', 64), pepper=secret('pepper', 64),
            plugins_config=PLUGINS_CONFIG,
        ).write()

    def prepare(self):
        """
        Bring the database up to date: the checkout may have changed since the last start.
        """
        migrated, static = template_key(), static_key()
        say('Preparing NetBox')
        self.seed(
            'prepare',
            username=USERNAME,
            password=secret('admin', 16),
            token_key=secret('token_key', 12),
            token=secret('token', 40),
            migrate=migrated != self.state['migrated'],
            collectstatic=static != self.state['static'],
        )
        self.state |= {'migrated': migrated, 'migrations': migrations(), 'static': static}
        self.save()

    def seed(self, function, **arguments):
        result = subprocess.run(
            [sys.executable, '-m', 'development.stack.seed', function],
            input=json.dumps(arguments), env={**os.environ, **self.instance.environ}, cwd=ROOT,
            capture_output=True, text=True,
        )
        if result.returncode:
            raise StackError(f'Preparing the demo failed:\n\n{result.stdout}{result.stderr}')
        return result.stdout

    def start_programs(self):
        ports = self.state['ports']
        for program in PROGRAMS:
            if self.is_running(program.name):
                continue
            if program.name == 'web':
                ports['web'] = free_port(ports.get('web', WEB_PORT))
            say(f'Starting {program.name}')
            log = self.logs / f'{program.name}.log'
            log.unlink(missing_ok=True)
            command, *arguments = (part.format(port=ports['web'], root=ROOT) for part in program.command)
            self.processes[program.name] = Process.start(
                program.name, [executable(command), *arguments], log,
                env={**self.instance.environ, 'PYTHONUNBUFFERED': '1'}, cwd=self.root,
                die_with_parent=self.foreground,
            )
            self.save()

    def wait_until_ready(self, timeout=180):
        deadline = time.monotonic() + timeout
        for program in PROGRAMS:
            log = self.logs / f'{program.name}.log'

            def ready():
                if program.name == 'web':
                    return self.web_answers()
                return program.ready in log.read_text(errors='replace')

            wait_until(lambda: not self.is_running(program.name) or ready(), deadline - time.monotonic(), interval=0.2)
            if not self.is_running(program.name):
                raise StackError(f'{program.name} has ended. Its log, {log}, ends with:\n\n{tail(log, 30)}')
            if not ready():
                raise StackError(f'{program.name} does not answer. Its log, {log}, ends with:\n\n{tail(log, 30)}')

    def web_answers(self):
        with suppress(URLError, OSError), browser.open(f'{self.url}login/', timeout=10) as response:
            return response.status == 200
        return False

    def run_tasks(self):
        say('Running netbox_example_plugin:hello_world\n')
        print(self.seed('runs', username=USERNAME), flush=True)

    #
    # Output
    #

    @property
    def url(self):
        return f'http://127.0.0.1:{self.state["ports"]["web"]}/'

    def write_card(self):
        write_json(self.card, {
            'url': self.url,
            'username': USERNAME,
            'password': secret('admin'),
            # Everything after "Bearer", as pynetbox and curl expect it
            'token': f'nbt_{secret("token_key")}.{secret("token")}',
            'database_url': self.cluster.url(),
            'redis_url': self.redis.url(),
            'netbox_root': str(self.root),
            'python': sys.executable,
        })

    def tell(self):
        print(f'''\
NetBox     {self.url}   ({USERNAME}, {secret('admin')})
Tasks      {self.url}plugins/celery/tasks/
Results    {self.url}plugins/celery/results/
Schedules  {self.url}plugins/celery/schedules/
REST       {self.url}api/plugins/celery/
Logs       {self.logs}/*.log
Access     {self.card}
''', flush=True)

    #
    # Stopping
    #

    def stop(self):
        """
        Stop everything that was started, by any command, and remove the URL and the credentials.
        """
        with locked(self.lock):
            self.load()
            return self.stop_all()

    def stop_all(self):
        running = [name for name in self.processes if self.is_running(name)]
        # The users of the servers first, all at the same time
        servers = ('redis', 'postgres')
        Process.stop_together([process for name, process in self.processes.items() if name not in servers])
        Process.stop_together([process for name, process in self.processes.items() if name in servers])
        Cluster(self.directory / 'postgres', '').evict()
        self.processes = {}
        self.save()
        self.card.unlink(missing_ok=True)
        return running

    #
    # Watching
    #

    def watch(self):
        """
        Stay until all processes have ended, and print a line when one ends.
        """
        self.load()
        ended = set()
        while len(ended) < len(self.processes):
            for name in self.processes:
                if name not in ended and not self.is_running(name):
                    ended.add(name)
                    # With `make down` in another terminal all of them end
                    if self.card.exists():
                        say(f'{name} has ended: see {self.logs / name}.log; `make up` starts it again')
            time.sleep(0.5)
            if not self.card.exists():
                break


def is_of_another(process):
    """
    Return whether a process belongs to another checkout, from which this one was copied with its records.
    """
    with suppress(OSError):
        return not Path(os.readlink(f'/proc/{process.pid}/cwd')).is_relative_to(ROOT)
    return False


def static_key():
    """
    Return what the collected static files depend on.
    """
    digest = hashlib.sha256(version('netbox').encode())
    for folder in STATIC_FILES:
        for path in sorted(Path(folder).rglob('*')):
            if path.is_file():
                digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()
