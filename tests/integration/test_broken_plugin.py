"""A worker with a plugin whose tasks cannot be imported; and the pool's size in a worker's row."""
import subprocess
import sys
from pathlib import Path

import pytest
from netbox_test_plugin import tasks

from development.stack.instance import PLUGINS, Instance
from netbox_celery.models import CeleryResult, CeleryTask
from tests.integration.conftest import CONFIG

from .support import CELERY, ended, until

PLUGIN, MODULE = 'netbox_broken_plugin', 'netbox_broken_plugin.tasks'
WHY = "ModuleNotFoundError: No module named 'library_that_nobody_has'"


@pytest.fixture(scope='module')
def broken(services):
    """A NetBox whose workers lack a library, and whose settings name a missing module."""
    return Instance(
        services.directory / 'broken', services.cluster, services.redis, for_tests=True,
        plugins=[PLUGIN, *PLUGINS, 'netbox_test_plugin'],
        plugins_config={'netbox_celery': {**CONFIG, 'celery': {'imports': ['nowhere.at_all']}}},
    ).write()


@pytest.fixture(scope='module')
def solo(broken, make_module_worker, django_db_blocker):
    with django_db_blocker.unblock():
        return make_module_worker('broken', instance=broken, pool='solo').start().ready()


def test_other_tasks_run(solo):
    """The worker runs the tasks that it has, and reports the missing ones in its log, banner and row."""
    assert solo.run(tasks.echo, 'here').status == 'completed'
    assert [(failure['plugin'], failure['module']) for failure in solo.row.not_loaded] == [
        (PLUGIN, MODULE), ('nowhere', 'nowhere.at_all')
    ]
    assert solo.row.not_loaded[0]['error'] == WHY
    assert solo.row.not_loaded[0]['place'] == f'{PLUGIN}/tasks.py:9'
    assert solo.output.count('    import library_that_nobody_has') == 1
    assert f'[not loaded]\n  . {MODULE}: {WHY} ({PLUGIN}/tasks.py:9)' in solo.output
    assert solo.row.concurrency == 1


def test_run_says_why(solo):
    """A run of a missing task finishes with a reason; a partly imported module's tasks are not run."""
    # As another worker left it in the catalogue, under a name without the plugin
    CeleryTask.objects.get_or_create(name='half', defaults={'plugin': PLUGIN})
    for name in (f'{PLUGIN}:half', 'half'):
        row = ended(CeleryResult.enqueue(name, queue=solo.queue))
        assert (row.status, row.reason) == ('errored', 'unregistered')
        assert f'This worker could not import {MODULE}: {WHY}' in row.error


def test_commands(broken, solo):
    """`netbox check` warns, and `celery report` lists it; neither fails."""
    env = {**solo.env, 'CELERY_SKIP_CHECKS': '1'}

    def output(*command):
        return subprocess.run(
            command, env=env, cwd='/', stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        ).stdout

    said = output(Path(sys.executable).with_name('netbox'), 'check')
    assert f'(netbox_celery.W001) The tasks of {PLUGIN} cannot be imported: {MODULE}: {WHY}' in said
    assert f'{MODULE}: {WHY}' in output(CELERY, '-A', 'netbox_celery', 'report')


def test_pool(make_worker):
    """A worker's row has the limits of its autoscaler, also after they changed."""
    worker = make_worker('scaled', options=['--autoscale=4,1']).start().ready()
    assert (worker.row.concurrency, worker.row.autoscale) == (4, {'min': 1, 'max': 4})

    worker.control('autoscale', max=5, min=2)
    until(lambda: worker.row.concurrency == 5)
    assert worker.row.autoscale == {'min': 2, 'max': 5}


def test_grown_pool(shared_workers):
    """It also has the number of processes after the pool was grown or shrunk."""
    worker = shared_workers('prefork')
    assert (worker.row.concurrency, worker.row.autoscale) == (2, None)
    worker.control('pool_grow', n=2)
    until(lambda: worker.row.concurrency == 4)
    worker.control('pool_shrink', n=2)
    until(lambda: worker.row.concurrency == 2)
