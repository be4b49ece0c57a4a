"""Flower, run as `celery -A netbox_celery flower`: its pages, and what its REST API does to runs and workers."""
import json
import socket
import urllib.error
import urllib.request
from contextlib import suppress
from urllib.parse import quote, urlencode
from uuid import uuid4

import pytest
from netbox_test_plugin import tasks
from netbox_test_plugin.side import open_gate

from netbox_celery.models import CeleryResult
from tests.integration.support import CELERY, Program, ended, row, until, waiting


class Flower(Program):
    def __init__(self, instance, directory):
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            self.port = free.getsockname()[1]
        super().__init__(
            instance, directory / 'flower.log',
            [CELERY, '-A', 'netbox_celery', 'flower', '--address=127.0.0.1', f'--port={self.port}'],
            env={'FLOWER_UNAUTHENTICATED_API': 'true'}
        )

    def is_there(self):
        with suppress(OSError):
            return self.open('/api/workers')[0] == 200

    def open(self, path, data=None):
        """Return the status and the text of an answer; `data` is sent as JSON if it is a dict, else as a form."""
        body = None if data is None else json.dumps(data).encode() if isinstance(data, dict) else data.encode()
        request = urllib.request.Request(f'http://127.0.0.1:{self.port}{path}', data=body)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read().decode()

    def get(self, path):
        status, text = self.open(path)
        assert status == 200, f'{path}: {status} {text}'
        return text

    def post(self, path, **form):
        status, text = self.open(path, urlencode(form))
        assert status == 200, f'{path}: {status} {text}'
        return text

    def call(self, path, **body):
        status, text = self.open(path, body)
        assert status == 200, f'{path}: {status} {text}'
        return json.loads(text)


@pytest.fixture(scope='module')
def flower(instance, worker_log, shared_workers):
    shared_workers('prefork')
    flower = Flower(instance, worker_log)
    flower.start()
    try:
        until(flower.is_there, 90, lambda: flower.output)
        until(lambda: 'prefork@' in flower.get('/api/workers?refresh=1'), 60, lambda: flower.output)
        yield flower
    finally:
        flower.stop()


@pytest.fixture
def prefork(shared_workers):
    return shared_workers('prefork')


@pytest.fixture
def name(prefork):
    return prefork.row.name


@pytest.mark.parametrize('terminate', ['0', '1', 'false', 'true', None])
def test_revoke_without_a_worker(flower, terminate):
    """A revoke takes effect though no worker receives it."""
    run = CeleryResult.enqueue(tasks.echo, queue=f'nobody-{uuid4().hex}')
    flower.post(f'/api/task/revoke/{run.task_id}', **({} if terminate is None else {'terminate': terminate}))
    assert (row(run).status, row(run).reason) == ('revoked', 'cancelled')


@pytest.mark.parametrize('signal', ['SIGTERM', 'SIGKILL', 'SIGUSR1'])
def test_terminate(flower, prefork, gate, signal):
    """An active run is terminated, and its row says that it was cancelled."""
    run = waiting(prefork.send(tasks.hold, gate), 'running')
    flower.post(f'/api/task/revoke/{run.task_id}', terminate='1', signal=signal)
    assert ended(run).status == 'revoked'


def test_revoke_of_what_runs(flower, prefork, gate):
    """A revoke without `terminate` lets a run continue."""
    run = waiting(prefork.send(tasks.hold, gate), 'running')
    flower.post(f'/api/task/revoke/{run.task_id}', terminate='0')
    open_gate(gate)
    assert ended(run).status == 'completed'


def test_calls(flower, prefork):
    """Calls from Flower have rows like any call."""
    path = quote(tasks.echo.name)
    body = {'args': [1], 'kwargs': {'a': 'b'}, 'queue': prefork.queue}
    answer = flower.call(f'/api/task/apply/{path}', **body)
    assert (answer['state'], answer['result']) == ('SUCCESS', [[1], {'a': 'b'}])
    sent = [answer, *(flower.call(f'/api/task/{how}/{path}', **body) for how in ('async-apply', 'send-task'))]
    for answer in sent:
        run = ended(answer['task-id'])
        assert (run.status, run.args, run.result) == ('completed', [1], [[1], {'a': 'b'}])
    result = flower.get(f'/api/task/result/{sent[-1]["task-id"]}')
    assert json.loads(result)['result'] == [[1], {'a': 'b'}]


def test_pages(flower, prefork, name):
    """Its pages show our runs from Celery's events."""
    run = prefork.run(tasks.echo, 'shown')
    info = until(lambda: (answer := flower.open(f'/api/task/info/{run.task_id}'))[0] == 200 and json.loads(answer[1]))
    assert info['name'] == tasks.echo.name
    until(lambda: json.loads(flower.get(f'/api/task/info/{run.task_id}'))['state'] == 'SUCCESS')
    for page in ('/', '/workers', '/tasks', '/broker'):
        assert '<html' in flower.get(page)
    assert str(run.task_id) in flower.get(f'/task/{run.task_id}')
    listed = json.loads(flower.get('/tasks/datatable?' + urlencode({
        'draw': 1, 'start': 0, 'length': 100, 'search[value]': str(run.task_id), 'order[0][column]': 0,
        'columns[0][data]': 'name', 'order[0][dir]': 'asc',
    })))
    assert [(task['uuid'], task['state']) for task in listed['data']] == [(str(run.task_id), 'SUCCESS')]
    assert name in flower.get(f'/worker/{name}')
    assert str(run.task_id) in flower.get('/api/tasks')
    assert tasks.echo.name in flower.get('/api/task/types')
    assert 'prefork' in flower.get(f'/api/queues/length?queue={prefork.queue}')


def test_pool(flower, prefork, name):
    """A pool that grows or shrinks is that of the worker's row."""
    flower.post(f'/api/worker/pool/grow/{name}', n=1)
    until(lambda: prefork.row.concurrency == 3)
    flower.post(f'/api/worker/pool/shrink/{name}', n=1)
    until(lambda: prefork.row.concurrency == 2)
    # There is no autoscaler, which Flower says
    status, text = flower.open(f'/api/worker/pool/autoscale/{name}', urlencode({'min': 1, 'max': 2}))
    assert (status, 'Autoscale not enabled' in text) == (403, True)


def test_queues(flower, prefork, name):
    """So are the queues that it consumes, and what is sent there runs."""
    queue = f'flower-{uuid4().hex}'
    flower.post(f'/api/worker/queue/add-consumer/{name}', queue=queue)
    until(lambda: queue in prefork.row.queues)
    assert ended(CeleryResult.enqueue(tasks.echo, queue=queue)).status == 'completed'
    flower.post(f'/api/worker/queue/cancel-consumer/{name}', queue=queue)
    until(lambda: queue not in prefork.row.queues)


def test_limits(flower, prefork, name):
    """Rate and time limits can be set, and runs continue. (Celery 5.7 keeps the time limits of the start.)"""
    path = quote(tasks.hold.name)
    flower.post(f'/api/task/rate-limit/{path}', workername=name, ratelimit='100/s')
    flower.post(f'/api/task/timeout/{path}', workername=name, hard=300, soft=200)
    gates = [uuid4().hex for __ in range(3)]
    for gate in gates:
        open_gate(gate)
    for run in [prefork.send(tasks.hold, gate) for gate in gates]:
        assert ended(run).status == 'completed'
