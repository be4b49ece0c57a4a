"""Redis Sentinel, with TLS and access control lists, promotes a replica while runs are active."""
import os
import signal
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
from django.db import transaction
from kombu.exceptions import OperationalError
from netbox_test_plugin import tasks
from netbox_test_plugin.side import notes, open_gate
from netbox_test_plugin.tasks import canvas
from redis import Redis
from redis.exceptions import RedisError

from development.stack.processes import wait_until
from netbox_celery.broker import celery_settings
from netbox_celery.config import Config
from netbox_celery.models import CeleryResult

from .conftest import CONFIG
from .support import ended, speaking_to, until
from .test_redis import CustomInstance, acl, certificates, start  # noqa: F401 - fixtures

SERVICE = 'netbox-service'
#: What Celery needs: its keys, and the channels of its own that have no prefix.
LEAST = '~netbox_celery:*', '&*', '+@all', '-@admin', '-@dangerous', '+info'

#: Called by a process of NetBox's own.
CHORD = '''
import django; django.setup()
from celery import chord
from kombu.exceptions import OperationalError
from netbox_test_plugin import tasks
from netbox_test_plugin.tasks import canvas
parts = tasks.hold.s('{gate}'), canvas.add.s(1, 2)
body = tasks.echo.s().set(queue='{queue}')
print(chord([part.set(queue='{queue}') for part in parts], body).apply_async().id)
'''


@pytest.fixture
def site(start, certificates):  # noqa: F811
    """A master, a replica and three sentinels, and the settings for NetBox."""
    tls = {'ssl_ca_certs': str(certificates / 'ca.pem')}

    def client(port, username, password):
        return Redis('127.0.0.1', port, username=username, password=password, ssl=True, socket_timeout=5, **tls)

    own = [*acl('ours', 'replicating'), 'tls-replication yes', 'masteruser ours', 'masterauth replicating',
           'repl-diskless-sync-delay 0']
    netbox = acl('netbox', 'secret')[0].partition(' ~')[0] + ' ' + ' '.join(LEAST)
    master = start(netbox, *own, tls=certificates)
    replica = start(netbox, *own, f'replicaof 127.0.0.1 {master.port}', tls=certificates)
    assert wait_until(lambda: b'up' in replied(client(replica.port, 'ours', 'replicating'), 'master_link_status'), 30)
    sentinels = [start(
        *acl('watcher', 'watching'), 'tls-replication yes', f'sentinel monitor {SERVICE} 127.0.0.1 {master.port} 2',
        f'sentinel auth-user {SERVICE} ours', f'sentinel auth-pass {SERVICE} replicating',
        'sentinel sentinel-user watcher', 'sentinel sentinel-pass watching',
        f'sentinel down-after-milliseconds {SERVICE} 1500', f'sentinel failover-timeout {SERVICE} 5000',
        sentinel=True, tls=certificates,
    ) for __ in range(3)]

    def watcher():
        return client(sentinels[-1].port, 'watcher', 'watching')

    def current():
        """Return the port of the master that Sentinel names."""
        return int(watcher().execute_command('SENTINEL', 'GET-MASTER-ADDR-BY-NAME', SERVICE)[1])

    assert wait_until(lambda: known(watcher()) == (2, 1), 30)
    kwargs = {'ssl': True, 'username': 'watcher', 'password': 'watching', 'socket_connect_timeout': 5, **tls}
    redis = {
        'SENTINELS': [('127.0.0.1', sentinel.port) for sentinel in sentinels], 'SENTINEL_SERVICE': SERVICE,
        'SENTINEL_TIMEOUT': 5, 'USERNAME': 'netbox', 'PASSWORD': 'secret', 'DATABASE': 0, 'SSL': True,
        'CA_CERT_PATH': str(certificates / 'ca.pem'),
    }
    celery = {
        f'{of}_transport_options': {'master_name': SERVICE, 'sentinel_kwargs': kwargs}
        for of in ('broker', 'result_backend')
    }
    return SimpleNamespace(redis=redis, celery=celery, master=master, replica=replica, current=current)


def replied(client, field):
    with suppress(RedisError):
        return str(client.info('replication').get(field)).encode()
    return b''


def known(sentinel):
    """Return how many other sentinels and replicas a sentinel knows."""
    with suppress(RedisError):
        state = sentinel.execute_command('SENTINEL', 'MASTER', SERVICE)
        state = {decoded(key): decoded(value) for key, value in (
            state.items() if isinstance(state, dict) else zip(state[::2], state[1::2])
        )}
        return int(state['num-other-sentinels']), int(state['num-slaves'])
    return None


def decoded(value):
    return value.decode() if isinstance(value, bytes) else value


def test_failover(services, site, make_worker, without_shared_workers, gate):
    """The master is killed: no run is lost, none runs twice, and a chord that was counted there continues."""
    instance = CustomInstance(
        services.directory / 'failover', services.cluster, services.redis, for_tests=True,
        plugins=['netbox_celery', 'netbox_example_plugin', 'netbox_test_plugin'],
        plugins_config={'netbox_celery': CONFIG | {'celery': site.celery}},
    )
    instance.tasks = site.redis
    settings = celery_settings(site.redis, Config.from_dict({'celery': site.celery}))
    broker = {name: settings[name] for name in ('broker_transport_options', 'broker_use_ssl')}
    worker = make_worker('failover', instance=instance.write(), concurrency=6).start().ready()
    with speaking_to(settings['broker_url'], **broker):
        before = [worker.send(tasks.echo, number) for number in range(20)]
        assert {ended(run).status for run in before} == {'completed'}
        held = [worker.send(task, gate) for task in (tasks.hold, tasks.hold_late)]
        until(lambda: all(notes(run.id) for run in held))
        waits = [worker.send(tasks.hold, gate) for __ in range(2)]
        waits += [worker.send(tasks.echo, number, countdown=2) for number in range(10)]

        called = subprocess.run(
            [sys.executable, '-c', CHORD.format(gate=gate, queue=worker.queue)],
            env={**os.environ, **instance.environ}, capture_output=True, text=True, timeout=120,
        )
        assert called.returncode == 0, called.stderr
        body = called.stdout.split()[-1]
        until(lambda: CeleryResult.objects.filter(celery_name=canvas.add.name, status='completed').exists(), 60)

        os.kill(site.master.process.pid, signal.SIGKILL)
        with transaction.atomic():
            during = [worker.send(tasks.echo, number) for number in range(3)]
        # There is no new master yet, except on a slow machine
        with suppress(OperationalError):
            worker.send(tasks.echo)
        until(lambda: site.current() == site.replica.port, 60)
        open_gate(gate)
        after = [worker.send(tasks.echo, number) for number in range(20)]
        every = [*held, *waits, *during, *after]
        assert {ended(run, 120).status for run in every} == {'completed'}
        # Its parts are counted in Redis
        until(lambda: CeleryResult.objects.filter(task_id=body).exists(), 120)
        assert ended(body).result == [[[gate, 3]], {}]

    begun = [[what for __, what in notes(run.id) if what in ('ran', 'started')] for run in every]
    assert {len(each) for each in begun} == {1}
    assert set(CeleryResult.objects.exclude(status='completed').values_list('reason', flat=True)) <= {'publish_failed'}
    assert worker.tracebacks() == []
