"""Ten other plugins in one NetBox with ours, as their authors published them."""
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from development.stack.instance import PLUGINS, Instance, netbox
from development.stack.paths import CACHE
from development.stack.postgres import DATABASE, major_version
from development.stack.processes import locked
from development.stack.scratch import scratch
from development.stack.template import dump_path, ensure_dump, workshop

from ..integration.conftest import CONFIG, TESTPLUGIN
from ..integration.support import Worker
from .packages import digest, fetched

#: Packages by name of the plugin.
TEN = {
    'netbox_acls': 'netbox-acls==2.1.0',
    'netbox_attachments': 'netbox-attachments==12.0.0',
    'netbox_bgp': 'netbox-bgp==0.20.2',
    'netbox_data_flows': 'netbox-data-flows==1.6.0',
    'netbox_dns': 'netbox-plugin-dns==1.7.3',
    'netbox_floorplan': 'netbox-floorplan-plugin==0.10.0',
    'netbox_inventory': 'netbox-inventory==2.7.1',
    'netbox_qrcode': 'netbox-qrcode==1.0.0',
    'netbox_reorder_rack': 'netbox-reorder-rack==1.1.5',
    'netbox_topology_views': 'netbox-topology-views==5.0.0',
}
#: What they require and NetBox has not.
REQUIRED = ['dnspython==2.9.2', 'qrcode==8.2']

# Most of the time of a migration is spent in garbage collection that finds nothing
MIGRATE = """
import gc
gc.set_threshold(200_000, 20, 1_000)
import django; django.setup()
gc.freeze()
from django.core.management import call_command
call_command('migrate', interactive=False, verbosity=0)
"""


@pytest.fixture(scope='module')
def packages():
    return fetched([*TEN.values(), *REQUIRED])


@pytest.fixture(scope='module')
def environ(packages):
    return {'PYTHONPATH': f'{packages}:{TESTPLUGIN}'}


@pytest.fixture(scope='module')
def dump(environ):
    """A database dump with the migrations of NetBox and of the ten plugins: some minutes, once."""
    names = digest([*TEN.values(), *REQUIRED])
    path = CACHE / f'plugins-{names}-netbox-{version("netbox")}-postgresql-{major_version()}.dump'
    with locked(CACHE / 'plugins.lock'):
        if not path.exists():
            ensure_dump()
            with scratch('migrate') as directory, workshop(directory / 'postgres') as (cluster, redis):
                cluster.create_database(DATABASE)
                cluster.restore(DATABASE, dump_path())
                instance = Instance(directory / 'netbox', cluster, redis, plugins=list(TEN)).write()
                subprocess.run([sys.executable, '-c', MIGRATE], env=os.environ | instance.environ | environ, check=True)
                draft = path.with_suffix(f'.{os.getpid()}')
                cluster.dump(DATABASE, draft)
            draft.replace(path)
    return path


@pytest.fixture(scope='module')
def crowded(services, dump, environ):
    """A NetBox with the ten plugins, in which ours is new."""
    services.cluster.create_database('crowded')
    services.cluster.restore('crowded', dump)
    instance = Instance(
        services.directory / 'crowded', services.cluster, services.redis, database='crowded', redis_databases=(2, 3),
        # Ours in the middle: some are set up before it, and some after it
        plugins=[*list(TEN)[:5], *PLUGINS, 'netbox_test_plugin', *list(TEN)[5:]],
        plugins_config={'netbox_celery': CONFIG}, for_tests=True,
    ).write()
    netbox(instance, 'migrate', '--no-input', env=environ)
    return instance


@pytest.fixture(scope='module')
def found(crowded, environ, worker_log, side):
    """What `among_plugins.py` finds there, while a worker runs."""
    worker = Worker(crowded, worker_log, 'crowded', env=environ).start()
    try:
        worker.ready(240)
        result = subprocess.run(
            [sys.executable, Path(__file__).with_name('among_plugins.py'), worker.queue],
            env=os.environ | crowded.environ | environ, capture_output=True, text=True, timeout=600,
        )
        assert result.returncode == 0, result.stderr[-5_000:]
        return json.loads(result.stdout.splitlines()[-1]) | {'worker': worker.output, 'errors': worker.tracebacks()}
    finally:
        worker.stop()


def test_start(found):
    """NetBox and a worker start with all of them."""
    assert set(TEN) <= set(found['apps'])
    assert 'netbox_example_plugin:hello_world' in found['worker']
    assert found['errors'] == []


def test_runs_on_their_objects(found):
    """A run about another plugin's object finishes, its page links the object, and the object's page lists it."""
    assert set(found['runs']) == {
        'netbox_dns.View', 'netbox_inventory.Supplier', 'netbox_data_flows.Application', 'netbox_bgp.CommunityList',
    }
    for run in found['runs'].values():
        assert run == {'status': 'completed', 'got': None, 'lines': 2, 'object': True, 'linked': True, 'listed': True}


def test_pages(found):
    """Our pages answer, and so do theirs."""
    assert len(found['pages']) > 10
    assert {url: status for url, status in found['pages'].items() if status != 200} == {}


def test_interfaces(found):
    """REST, its schema and GraphQL work with all of them."""
    assert found['rest'][0] == 201, found['rest']
    assert {'celery', 'netbox-dns', 'inventory', 'bgp', 'access-lists'} <= set(found['schema'])
    assert found['graphql'] == 5
