"""`celery -A netbox_celery worker`: how it starts, what it prints, and its row."""
import os
import re
import signal
import subprocess

import pytest
from netbox_test_plugin import tasks
from netbox_test_plugin.side import notes

from development.stack.processes import wait_until
from netbox_celery import __version__
from netbox_celery.celery import app
from netbox_celery.models import CeleryTask, CeleryWorker

from .support import CELERY, ended, until


def test_banner(make_worker, tmp_path):
    """A worker starts in any folder with only NetBox's environment, and prints what it will do."""
    worker = make_worker('banner', cwd=tmp_path, concurrency=1)
    worker.command[worker.command.index('-Q') + 1] = 'banner,second'
    worker.start().ready()
    run = worker.send(tasks.echo, 'x')
    assert ended(run).status == 'completed'
    output = until(lambda: 'succeeded' in worker.output and worker.output)

    assert re.search(r'app: +netbox_celery:', output)
    assert re.search(r'transport: +redis://', output)
    assert re.search(r'results: +redis://', output)
    assert re.search(r'concurrency: +1 \(prefork\)', output)
    assert re.search(r'task events: +ON', output)
    assert '.> banner' in output
    assert '.> second' in output
    # Those of several plugins
    for name in ('netbox_example_plugin:hello_world', 'netbox_test_plugin:echo', 'netbox_test_plugin:lambda'):
        assert f'  . {name}\n' in output
    assert 'banner@' in output
    assert f'Task netbox_test_plugin:echo[{run.id}] received' in output
    assert f'Task netbox_test_plugin:echo[{run.id}] succeeded in' in output
    assert app.conf.broker_url not in output
    assert worker.tracebacks() == []


def test_tasks_are_registered(prefork):
    """`inspect registered` lists the tasks of all plugins."""
    registered, = app.control.inspect([prefork.row.name]).registered().values()

    assert {'netbox_example_plugin:hello_world', 'netbox_test_plugin:echo'} <= set(registered)


def test_worker_row(worker):
    """A worker's row has its identity and its queues, and its heartbeat continues."""
    found = worker.row

    assert (found.pid, found.pool, found.queues) == (worker.pid, worker.pool, [worker.queue])
    assert found.concurrency == (4 if worker.pool == 'threads' else 2)
    assert found.host == os.uname().nodename
    assert found.versions['netbox-celery'] == __version__
    assert set(found.versions) >= {'netbox', 'celery', 'python'}
    assert found.is_alive
    before = found.heartbeat
    until(lambda: worker.row.heartbeat > before, 5)


def test_worker_that_cannot_register(make_worker):
    """A worker whose row PostgreSQL refuses runs no task: it stops, and says why."""
    worker = make_worker('refused', concurrency=1)
    worker.command[worker.command.index('-n') + 1] = 'refused@' + 'n' * 300
    run = worker.send(tasks.echo)
    worker.start()

    assert worker.wait(90) not in (0, None)
    assert 'This worker stops, since it could not be registered: value too long' in worker.output
    assert notes(run.id) == []


def test_deleted_worker_row(prefork):
    """A worker whose row was deleted registers again; its runs are not declared lost."""
    CeleryWorker.objects.filter(pk=prefork.row.pk).delete()

    until(lambda: prefork.row, 5)
    assert prefork.run(tasks.echo).status == 'completed'


def test_catalogue(prefork):
    """A worker writes its tasks into the catalogue, with their docstrings and signatures."""
    until(lambda: CeleryTask.objects.filter(name='netbox_test_plugin:unbound').exists())
    echo = CeleryTask.objects.get(name='netbox_test_plugin:echo')
    unbound = CeleryTask.objects.get(name='netbox_test_plugin:unbound')

    assert (echo.plugin, echo.description, echo.present) == ('netbox_test_plugin', 'Return what came in.', True)
    assert [(p['name'], p['required']) for p in unbound.parameters] == [
        ('first', True), ('second', False), ('third', False)
    ]
    retry = CeleryTask.objects.get(name='netbox_test_plugin:retry')
    assert retry.defaults['max_retries'] == 20
    assert not CeleryTask.objects.filter(name__startswith='celery.').exists()


def test_children_inherit_no_connection(prefork):
    """Each process has its own connection, which it keeps from task to task."""
    results = [prefork.run(tasks.query).result for __ in range(12)]
    by_process = {}
    for __, connection, pid in results:
        by_process.setdefault(pid, []).append(connection)

    assert set(by_process) <= set(prefork.children)
    assert all(len(set(connections)) <= 2 for connections in by_process.values())


def test_first_run_comes_soon(make_worker):
    """A worker's first run starts within seconds: NetBox's system checks are skipped."""
    worker = make_worker('soon', concurrency=1)
    run = worker.send(tasks.echo)
    worker.start()

    result = ended(run, 60)
    assert result.status == 'completed'
    assert (result.started - result.created).total_seconds() < 20


def test_killed_children_die_with_their_parent(make_worker, gate):
    """No process continues a run that other workers will declare lost."""
    worker = make_worker('orphans', concurrency=2).start().ready()
    run = worker.send(tasks.hold, gate)
    until(lambda: notes(run.id))
    children = worker.children
    worker.kill()

    assert wait_until(lambda: not any(os.path.exists(f'/proc/{pid}/exe') for pid in children), 5)


def test_restart_by_hangup(make_worker):
    """SIGHUP restarts a worker with the same process ID: it signs off, and on again."""
    worker = make_worker('again', concurrency=1).start().ready()
    first = worker.row
    worker.signal(signal.SIGHUP)
    until(lambda: worker.output.count(' ready.') == 2, 60)

    assert worker.row.key != first.key
    assert CeleryWorker.objects.get(pk=first.pk).stopped is not None
    assert worker.run(tasks.echo).status == 'completed'


@pytest.mark.parametrize('config, message', [
    ({'heartbeat': 1}, "heartbeat is not a setting. Did you mean 'heartbeat_interval'?"),
    ({'log_lines': 'many'}, "log_lines must be of type int, not str ('many')"),
    ({'celery': {'task_serializer': 'pickle'}}, 'only JSON is accepted from the broker'),
    ({'celery': {'CELERY_TIMEZONE': 'UTC'}}, 'celery["CELERY_TIMEZONE"] is not a Celery setting'),
    ({'command_tasks': ['clearsession']}, "command_tasks names 'clearsession', which is not a command"),
], ids=str)
def test_wrong_settings_stop_the_start(make_instance, config, message):
    """An unknown or invalid setting stops NetBox and its workers, and the message says which and why."""
    instance = make_instance('wrong', **config)
    result = subprocess.run(
        [CELERY, '-A', 'netbox_celery', 'worker'], env={**os.environ, **instance.environ}, capture_output=True,
        text=True, timeout=60,
    )

    assert result.returncode
    assert message in result.stdout + result.stderr


def test_settings_pass_through(make_worker, make_instance):
    """Celery's own settings are applied: here the pool's size and the default queue."""
    instance = make_instance('through', celery={'worker_concurrency': 3, 'task_default_queue': 'elsewhere'})
    worker = make_worker('through', instance=instance)
    for option in ('-c', '-Q'):
        index = worker.command.index(option)
        del worker.command[index:index + 2]
    worker.start().ready()

    assert (worker.row.concurrency, worker.row.queues) == (3, ['elsewhere'])
