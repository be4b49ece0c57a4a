"""Real workers, shared by all tests that do not stop them.

They belong to a NetBox of their own, on the database and the Redis of the test process: it has one more plugin
(`tests/testplugin`), and settings by which what is lost is found within seconds. What a test calls is committed and
sent for real, and is cleared away after it.
"""
import os
import secrets
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from development.stack.instance import PLUGINS, Instance
from development.stack.rabbitmq import RabbitMQServer

TESTPLUGIN = Path(__file__).parents[1] / 'testplugin'
CONFIG = {
    'heartbeat_interval': 0.5,
    'worker_lost_after': 4,
    'sweep_interval': 0.5,
    # A run's log can reach its limit within a test
    'log_lines': 2_000,
    'command_tasks': {
        'clearsessions': {'unique': True},
        'speak': {
            'max_retries': 1,
            'default_retry_delay': 0,
            'autoretry_for': ['builtins.ValueError', 'django.core.management.CommandError'],
        },
    },
}

sys.path.insert(0, str(TESTPLUGIN))


@pytest.fixture(scope='session', autouse=True)
def side(services):
    """The folder in which tasks record what they did."""
    folder = services.directory / 'side'
    folder.mkdir()
    os.environ['NETBOX_TEST_SIDE'] = str(folder)
    os.environ['PYTHONPATH'] = f'{TESTPLUGIN}:{os.environ.get("PYTHONPATH", "")}'
    return folder


@pytest.fixture(scope='session')
def make_instance(services):
    """Make a NetBox for workers with other plugin settings, on the same database and Redis."""
    def make(name='workers', redis=None, database_settings=None, branching=False, **config):
        return Instance(
            services.directory / name, services.cluster, redis or services.redis, for_tests=True,
            plugins=[*PLUGINS, 'netbox_test_plugin'], plugins_config={'netbox_celery': {**CONFIG, **config}},
            database_settings=database_settings, branching=branching,
        ).write()
    return make


@pytest.fixture(scope='session')
def instance(make_instance):
    return make_instance()


@pytest.fixture(scope='session')
def worker_log(services):
    return services.directory / 'log'


@pytest.fixture(scope='session')
def shared_workers(instance, worker_log, side, django_db_blocker):
    """Start each kind of worker once, when it is first needed; they stop with the session."""
    from .support import Worker

    workers = {}

    def get(pool):
        if pool not in workers or workers[pool].process.poll() is not None:
            workers[pool] = Worker(
                instance, worker_log, pool, pool=pool, concurrency={'threads': 4, 'prefork': 2, 'solo': 1}[pool]
            )
            with django_db_blocker.unblock():
                workers[pool].start().ready()
        workers[pool].forget()
        return workers[pool]

    def stop():
        for worker in workers.values():
            worker.stop()

    get.stop = stop
    yield get
    stop()


@pytest.fixture
def prefork(shared_workers):
    """A worker with two processes."""
    return shared_workers('prefork')


@pytest.fixture
def threads(shared_workers):
    """A worker with four threads."""
    return shared_workers('threads')


@pytest.fixture(params=['prefork', 'threads'])
def worker(request, shared_workers):
    """A worker of each kind in turn."""
    return shared_workers(request.param)


@pytest.fixture(params=['prefork', 'threads', 'solo'])
def any_worker(request, shared_workers):
    """A worker of each kind in turn, with one that has no pool."""
    return shared_workers(request.param)


@pytest.fixture
def on(prefork):
    """Put a signature into the queue of the worker with processes."""
    return lambda step: step.set(queue=prefork.queue)


@contextmanager
def workers_made(instance, worker_log):
    from .support import Worker

    made = []

    def make(name, *, instance=instance, **options):
        made.append(Worker(instance, worker_log, name, **options))
        return made[-1]

    yield make
    for worker in made:
        worker.stop()


@pytest.fixture
def make_worker(instance, worker_log, side):
    """Make a worker for this test alone, which it may kill; it is stopped after the test."""
    with workers_made(instance, worker_log) as make:
        yield make


@pytest.fixture(scope='module')
def make_module_worker(instance, worker_log, side):
    """Make a worker for all tests of a module."""
    with workers_made(instance, worker_log) as make:
        yield make


@pytest.fixture(scope='module')
def without_shared_workers(shared_workers):
    """Stop the shared workers: messages that a test sends by another broker are not theirs to find."""
    shared_workers.stop()


@pytest.fixture(scope='session')
def rabbitmq(services):
    """A RabbitMQ server."""
    if not RabbitMQServer.is_installed():
        if os.geteuid() == 0 and shutil.which('apt-get'):
            pytest.fail('RabbitMQ is missing, which `make test` should have installed: apt-get install rabbitmq-server')
        pytest.skip('RabbitMQ is not installed: sudo apt-get install rabbitmq-server')
    server = RabbitMQServer(services.directory / 'rabbitmq', secrets.token_hex(8))
    server.start(services.directory / 'log' / 'rabbitmq.log', die_with_parent=True)
    yield server
    server.stop()


@pytest.fixture
def make_beat(instance, worker_log, side):
    """Make a beat for this test alone, which it may kill; it is stopped after the test."""
    from .support import Beat

    made = []

    def make(name='beat', *, instance=instance, **options):
        made.append(Beat(instance, worker_log, name, **options))
        return made[-1].start()

    yield make
    for beat in made:
        beat.stop()


@pytest.fixture(autouse=True)
def committed(django_db_blocker, cleaner):
    """Let the test commit, and delete what it leaves. Rows of workers and tasks stay, since workers continue to run."""
    from netbox_celery.engine.store.recorder import recorder

    with django_db_blocker.unblock():
        yield
        recorder.flush()
        cleaner(keep=('netbox_celery_celeryworker', 'netbox_celery_celerytask'))


@pytest.fixture
def gate():
    """The name of a gate at which tasks wait: `open_gate()` opens it, and so does the end of the test."""
    from netbox_test_plugin.side import open_gate

    name = uuid4().hex
    yield name
    open_gate(name)


@pytest.fixture
def user():
    from users.models import User

    return User.objects.create_user('alice')
