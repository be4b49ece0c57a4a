"""Sentry's SDK in a worker with an embedded beat, with a server of our own."""
import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from django.utils import timezone
from netbox_test_plugin import tasks

from netbox_celery.engine.schedules.sync import sync_catalogue
from netbox_celery.engine.store.headers import hide_tracing
from netbox_celery.models import CeleryResult, CelerySchedule, CeleryTask
from tests.integration.support import Worker, ended, until

INIT = '''
import sentry_sdk
from sentry_sdk.integrations.celery import CeleryIntegration

sentry_sdk.init(
    dsn={dsn!r}, traces_sample_rate=1.0, integrations=[CeleryIntegration(monitor_beat_tasks=True)],
)
'''


class Server(ThreadingHTTPServer):
    """Receives what is sent to Sentry: `items` holds the parts, a type and a dict each."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.items = []

    @property
    def dsn(self):
        return f'http://public@127.0.0.1:{self.server_port}/1'

    def check_ins(self, slug):
        return [item for kind, item in self.items if kind == 'check_in' and item['monitor_slug'] == slug]

    def transactions(self, task_id):
        """Return what was sent about a run, with its trace."""
        return [item for kind, item in self.items if kind in ('transaction', 'event')
                and (item.get('tags') or {}).get('celery_task_id') == str(task_id)]


class Handler(BaseHTTPRequestHandler):

    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        if self.headers.get('Content-Encoding') == 'gzip':
            body = gzip.decompress(body)
        kind = None
        for line in body.splitlines()[1:]:
            part = json.loads(line)
            if kind is None:
                kind = part.get('type')
            else:
                self.server.items.append((kind, part))
                kind = None
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{}')

    def log_message(self, *args):
        """Log nothing."""


@pytest.fixture(scope='module')
def sentry():
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope='module')
def traced(sentry, make_instance, worker_log, side, django_db_blocker):
    """A worker with beat, whose settings start Sentry's SDK."""
    instance = make_instance('sentry')
    with (instance.root / 'conf' / 'configuration.py').open('a') as configuration:
        configuration.write(INIT.format(dsn=sentry.dsn))
    worker = Worker(instance, worker_log, 'sentry', options=['-B'])
    with django_db_blocker.unblock():
        worker.start().ready()
    yield worker
    worker.stop()


@pytest.fixture
def make_due(user):
    """Make a schedule that is due now, of a task that a worker runs."""
    user.is_superuser = True
    user.save()

    def make(name, task, worker, **values):
        sync_catalogue()
        return CelerySchedule.objects.create(**{
            'name': name, 'task': CeleryTask.objects.get(name=task.name), 'kind': 'interval', 'interval': 3600,
            'queue': worker.queue, 'owner': user, 'enabled': True, 'next_run': timezone.now(), **values,
        })
    return make


@pytest.mark.parametrize('task, values, status, told, when', [
    (tasks.echo, {'args': [1]}, 'completed', 'ok', {'type': 'interval', 'value': 1, 'unit': 'hour'}),
    (tasks.fail, {'args': ['value']}, 'errored', 'error', {'type': 'interval', 'value': 1, 'unit': 'hour'}),
    (tasks.echo, {'kind': 'crontab', 'crontab': '5 4 * * 1-5', 'interval': None, 'timezone': 'Europe/Berlin'},
     'completed', 'ok', {'type': 'crontab', 'value': '5 4 * * 1-5'}),
], ids=['ok', 'error', 'crontab'])
def test_beat_monitoring(sentry, traced, make_due, task, values, status, told, when, request):
    """Beat checks in what it starts, and the end of the run checks it out; its row has nothing of that."""
    name = f'monitored-{request.node.callspec.id}'
    schedule = make_due(name, task, traced, **values)
    CelerySchedule.objects.filter(pk=schedule.pk).update(next_run=timezone.now())
    run = ended(until(lambda: CeleryResult.objects.filter(schedule=schedule).first(), 40))
    assert run.status == status

    begun, done = until(lambda: len(found := sentry.check_ins(name)) == 2 and found, 40)
    assert (begun['status'], done['status']) == ('in_progress', told)
    assert begun['check_in_id'] == done['check_in_id']
    assert begun['monitor_config']['schedule'] == when
    assert begun['monitor_config']['timezone'] == values.get('timezone', 'UTC')
    assert set(run.display_options['headers']) == {'netbox_celery_due'}


def test_trace(sentry, traced):
    """Calls of a task belong to its trace, which is kept in neither row."""
    parent = traced.run(tasks.call, traced.queue)
    child = ended(until(lambda: CeleryResult.objects.filter(parent_id=parent.task_id).first()))
    first, second = (
        until(lambda: sentry.transactions(run.task_id), 40)[0]['contexts']['trace']['trace_id']
        for run in (parent, child)
    )
    assert first == second
    for run in (parent, child):
        assert 'headers' not in run.options
        assert hide_tracing(run.options) is run.options
