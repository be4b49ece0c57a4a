"""celery-batches, whose tasks take messages by a `Strategy`. Its metadata excludes Celery 5.7; it works."""
import os
import subprocess
import sys
from textwrap import dedent
from uuid import uuid4

import pytest
from celery.exceptions import CeleryError
from netbox_test_plugin.side import noted

from netbox_celery.celery import app
from netbox_celery.models import CeleryResult, CeleryTask
from tests.integration.support import Worker, ended, until

TASKS = '''
    from celery import current_app, shared_task
    from celery_batches import Batches

    from netbox_celery.tasks import CeleryBaseTask
    from netbox_test_plugin.side import note


    class Ours(Batches, CeleryBaseTask):
        pass


    def answer(requests):
        for request in requests:
            note(request.id, f'one of {len(requests)}')
            current_app.backend.mark_as_done(request.id, request.args[0] * 2, request=request)


    @shared_task(name='batches:plain', base=Batches, flush_every=3, flush_interval=1)
    def plain(requests):
        answer(requests)


    @shared_task(name='batches:ours', base=Ours, flush_every=3, flush_interval=1)
    def ours(task_id, requests):
        answer(requests)
'''


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with celery-batches and a module of tasks."""
    folder = tmp_path_factory.mktemp('batches')
    subprocess.run([
        sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', folder, 'celery-batches==0.11',
    ], check=True)
    (folder / 'batch_tasks.py').write_text(dedent(TASKS))
    return folder


@pytest.fixture(scope='module')
def batching(folder, make_instance, worker_log, side, django_db_blocker):
    """A worker with them."""
    instance = make_instance('batches', celery={'imports': ['batch_tasks']})
    worker = Worker(instance, worker_log, 'batches', env={'PYTHONPATH': f'{folder}:{os.environ["PYTHONPATH"]}'})
    with django_db_blocker.unblock():
        worker.start().ready()
        until(lambda: CeleryTask.objects.filter(name='batches:ours').exists(), 30)
    yield worker
    worker.stop()


@pytest.fixture
def known(folder, monkeypatch):
    """Let this process know the tasks, too."""
    monkeypatch.syspath_prepend(folder)
    import batch_tasks

    for task in (batch_tasks.plain, batch_tasks.ours):
        app.tasks.register(app.tasks[task.name])
    yield batch_tasks
    del sys.modules['batch_tasks']
    for name in ('batches:plain', 'batches:ours'):
        app.tasks.pop(name, None)


def said(result):
    return noted(result.id)


@pytest.mark.parametrize('name', ['batches:plain', 'batches:ours'])
def test_unknown_here(batching, name):
    """Called by name where the task is unknown, it runs once, and the rows say that they are not updated."""
    results = [app.send_task(name, (number,), queue=batching.queue) for number in (1, 2)]
    for number, result in zip((1, 2), results):
        row = ended(result)
        assert row.status == 'ignored'
        assert row.error.startswith(f'Not tracked: {name} has a custom Strategy (celery_batches.Batches.Strategy)')
        assert result.get(timeout=20) == number * 2
        assert said(result) == ['one of 2']


@pytest.mark.parametrize('name', ['batches:plain', 'batches:ours'])
def test_known(batching, known, name):
    """Called as with plain Celery, three calls are a batch, and none has a row."""
    results = [app.tasks[name].apply_async((number,), queue=batching.queue) for number in (1, 2, 3)]
    assert [result.get(timeout=20) for result in results] == [2, 4, 6]
    assert [said(result) for result in results] == [['one of 3']] * 3
    assert not CeleryResult.objects.filter(celery_name=name).exists()
    with pytest.raises(CeleryError, match='has a custom Strategy'):
        CeleryResult.enqueue(name, args=[1])


def test_cancelled(batching):
    """A call that was cancelled before a worker got it does not run."""
    queue = f'batches-{uuid4().hex}'
    first, second = (app.send_task('batches:plain', (number,), queue=queue) for number in (1, 2))
    assert CeleryResult.objects.get(task_id=first.id).cancel()
    batching.control('add_consumer', queue=queue)
    assert second.get(timeout=20) == 4
    assert said(second) == ['one of 1']
    assert (ended(first).status, said(first)) == ('revoked', [])


def test_catalogue(batching):
    """The worker says in the catalogue that people cannot run it."""
    assert CeleryTask.objects.get(name='batches:plain').defaults['strategy'] == 'celery_batches.Batches.Strategy'
