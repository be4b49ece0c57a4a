"""
Every test runs on a real NetBox with a real PostgreSQL and a real Redis, which belong to this run of pytest alone.

They are started before Django reads its settings, from a cluster that has all migrations applied (see
`development/stack/`), and end with the run. So any number of test runs can run at a time, `pytest` needs no
arguments and no environment, and what a test commits is seen by real workers: the database is the one that the
configuration in `NETBOX_ROOT` names, not a second one of Django's making.

`make test` prepares the template and runs pytest, all tests in two processes with services of their own; with the
template there, `.venv/bin/pytest tests/...` is the same in one.
"""

import atexit
import os
import signal
from pathlib import Path

import django
import pytest
from django.core.management import call_command
from django.test import TransactionTestCase

from development.stack.services import Services

NEIGHBOURS = Path(__file__).parent / 'neighbours'

running_services = Services(
    'test', for_tests=True,
    plugins_config={'netbox_celery': {
        'command_tasks': {'clearsessions': {'unique': True, 'time_limit': 600}},
        'allowed_queues': ['slow', 'lab-*'],
    }},
)
CLEANER = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption(
        '--neighbours', action='store_true',
        help='Run the tests with other software, tests/neighbours, in a NetBox that has NetBox Branching too',
    )


def pytest_ignore_collect(collection_path, config):
    return True if collection_path == NEIGHBOURS and not config.getoption('neighbours') else None


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Start NetBox, but not in a process that only hands the tests out to others, which come here themselves."""
    if config.getoption('numprocesses', None):
        return
    # Clean up before stopping
    signal.signal(signal.SIGTERM, interrupt)
    running_services.options['branching'] = config.getoption('neighbours')
    running_services.__enter__()
    atexit.register(stop_services, os.getpid())
    os.environ.update(running_services.instance.environ)
    django.setup()

    if config.getoption('neighbours'):
        call_command('migrate', 'netbox_branching', verbosity=0)

    from utilities.testing import query_counts

    # NetBox's test bases count the queries of lists, and keep the numbers inside the app. After a change that is meant:
    # UPDATE_QUERY_COUNTS=1 .venv/bin/pytest tests/api tests/views
    query_counts._baseline_path = lambda app_label: Path(__file__).parent / 'query_counts.json'
    clean = config.stash[CLEANER] = Cleaner(running_services.cluster)
    TransactionTestCase._fixture_teardown = lambda self: clean()


def interrupt(number, frame):
    raise KeyboardInterrupt


def stop_services(owner):
    # Not in a process that a test has forked
    if os.getpid() == owner:
        running_services.__exit__(None, None, None)


@pytest.fixture(scope='session')
def services():
    """
    The private services: `services.instance.environ` is what a subprocess needs to be part of this NetBox, and
    `services.another_instance(...)` makes one that is configured differently.
    """
    return running_services


#
# The database
#

@pytest.fixture(scope='session')
def django_db_setup():
    """
    Use the database as it is: it has been made for this run, with all migrations applied.
    """


class Cleaner:
    """
    Puts the database back after a test that commits (`django_db(transaction=True)`, `TransactionTestCase`).

    Django truncates every table, those filled by migrations included, and fills some of them again: seconds, with
    NetBox's 200 tables. Here only the tables that were empty and are not so any more are emptied. Without triggers and
    foreign keys, `DELETE` takes no lock that a worker's open connection would be in the way of.
    """

    def __init__(self, cluster):
        self.cluster = cluster
        with cluster.connect('netbox') as connection:
            tables = [name for name, in connection.execute(
                "SELECT quote_ident(relname) FROM pg_class"
                " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
            )]
            filled = set(self.filled(connection, tables))
        self.tables = [name for name in tables if name not in filled]

    @staticmethod
    def filled(connection, tables):
        query = ' UNION ALL '.join(f"(SELECT '{name}' FROM {name} LIMIT 1)" for name in tables)
        return [name for name, in connection.execute(query)]

    def __call__(self, keep=()):
        with self.cluster.connect('netbox') as connection:
            connection.execute("SET session_replication_role = replica; SET lock_timeout = '20s'")
            for name in self.filled(connection, [name for name in self.tables if name not in keep]):
                connection.execute(f'DELETE FROM {name}')


@pytest.fixture(scope='session')
def cleaner(pytestconfig):
    """
    Empties the tables that a test has filled: `cleaner(keep=[...])` leaves some of them.
    """
    return pytestconfig.stash[CLEANER]


@pytest.fixture
def make_task():
    """Register a task for the duration of the test: `make_task(function, name=...)`, as `netbox_celery_task` does."""
    from netbox_celery.celery import app
    from netbox_celery.tasks import CeleryBaseTask

    made = []

    def make(function, **options):
        task = app.task(**{'base': CeleryBaseTask, 'bind': True, 'lazy': False, 'shared': False, **options})(function)
        made.append(task.name)
        return task

    yield make
    for name in made:
        app.tasks.pop(name, None)


@pytest.fixture
def eager(monkeypatch):
    """Run calls in this process, as with Celery's setting `task_always_eager`."""
    from netbox_celery.celery import app

    monkeypatch.setitem(app.conf.changes, 'task_always_eager', True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Put tests with browsers behind the others, and those with workers last: workers run until the end of the session.

    Within each part `pytest-randomly` has shuffled files, classes and tests; `--randomly-seed=N` repeats an order.

    Tests with browsers and workers are tried a second time, since they have deadlines. The report counts them as rerun;
    with `-p no:rerunfailures` each test runs once.
    """
    for item in items:
        if place_of(item) and not item.get_closest_marker('flaky'):
            item.add_marker(pytest.mark.flaky(reruns=1))
    items.sort(key=place_of)


def place_of(item):
    """Return 0 for a test that starts no program, and more for the others, in the order of the parts of a session."""
    return next((place for place, name in enumerate(('browser', 'integration', 'neighbours'), 1)
                 if name in item.path.parts), 0)
