"""NetBox's ways to configure Redis, each with a real server: passwords, ACL users, TLS, Sentinel."""
import os
import shutil
import ssl
import subprocess
import sys
from urllib.parse import quote
from uuid import uuid4

import pytest
from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis

from development.stack.instance import Instance
from development.stack.processes import Process, free_port, wait_until
from netbox_celery.broker import celery_settings
from netbox_celery.config import Config

USER = 'net:box@here'
PASSWORD = 'p@ss:w/o%72d?#& é"\'\\+=~'
DATABASE = 3


@pytest.fixture(scope='module')
def certificates(tmp_path_factory):
    """A CA, its certificate for 127.0.0.1, and an unrelated CA."""
    folder = tmp_path_factory.mktemp('certificates')

    def openssl(*arguments):
        subprocess.run(['openssl', *arguments], cwd=folder, check=True, capture_output=True)

    for name in ('ca', 'stranger'):
        openssl('req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', f'/CN={name}',
                '-addext', 'keyUsage=critical,keyCertSign,cRLSign', '-keyout', f'{name}.key', '-out', f'{name}.pem')
    openssl('req', '-newkey', 'rsa:2048', '-nodes', '-subj', '/CN=redis', '-keyout', 'server.key', '-out', 'server.csr')
    # All that Python 3.13 and later ask for (`ssl.VERIFY_X509_STRICT`)
    (folder / 'server.ext').write_text('subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n')
    openssl('x509', '-req', '-in', 'server.csr', '-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-days', '2',
            '-extfile', 'server.ext', '-out', 'server.pem')
    return folder


class Server:
    """A `redis-server` with its own configuration."""

    def __init__(self, folder, *lines, sentinel=False, tls=None, clients='no'):
        folder.mkdir(parents=True)
        self.port = free_port()
        # Sentinel writes into its configuration
        configuration = folder / 'redis.conf'
        listen = [f'port {self.port}'] if tls is None else [
            'port 0', f'tls-port {self.port}', f'tls-cert-file {tls}/server.pem', f'tls-key-file {tls}/server.key',
            f'tls-ca-cert-file {tls}/ca.pem', f'tls-auth-clients {clients}',
        ]
        own = [] if sentinel else ['save ""', 'appendonly no', f'unixsocket {folder}/redis.sock']
        configuration.write_text('\n'.join(['bind 127.0.0.1', f'dir {folder}', *listen, *own, *lines]) + '\n')
        self.folder = folder
        self.process = Process.start(
            'redis', [shutil.which('redis-server') or shutil.which('valkey-server'), configuration,
                      *(['--sentinel'] if sentinel else [])],
            folder / 'redis.log', die_with_parent=True,
        )
        log = folder / 'redis.log'
        signs = ('Ready to accept', '+monitor')
        assert wait_until(lambda: any(sign in log.read_text() for sign in signs), 20), log.read_text()


@pytest.fixture(scope='module')
def start(tmp_path_factory):
    servers = []

    def start(*lines, **options):
        servers.append(Server(tmp_path_factory.mktemp('redis') / 'server', *lines, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.process.stop()


def acl(user, password):
    """Return the configuration of a server with one user."""
    from hashlib import sha256

    return f'user {user} on #{sha256(password.encode()).hexdigest()} ~* &* +@all', 'user default off'


@pytest.fixture(scope='module')
def acl_server(start):
    # Redis takes no user name with odd characters from a file
    server = start(*acl('admin', 'admin'))
    client = Redis(port=server.port, username='admin', password='admin')
    client.acl_setuser(USER, enabled=True, passwords=[f'+{PASSWORD}'], keys=['*'], channels=['*'], categories=['+@all'])
    return server


@pytest.fixture(scope='module')
def password_server(start):
    server = start()
    Redis(port=server.port).config_set('requirepass', PASSWORD)
    return server


@pytest.fixture(scope='module')
def tls_server(start, certificates):
    return start(*acl('netbox', 'secret'), tls=certificates)


def round_trip(redis, **config):
    """Send a message and store a result with NetBox's settings for Redis, and read both back."""
    app = Celery('round-trip', set_as_current=False)
    app.conf.update(celery_settings(redis, Config.from_dict(config)))
    app.conf.update(result_backend_transport_options={
        **app.conf.result_backend_transport_options, 'retry_policy': {'max_retries': 1},
    })
    name = uuid4().hex
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, timeout=10)
        with connection.SimpleQueue(name) as queue:
            queue.put({'x': 1})
            message = queue.get(timeout=5)
            message.ack()
        assert message.payload == {'x': 1}
    app.backend.store_result(name, 'stored', 'SUCCESS')
    assert app.AsyncResult(name).get(timeout=5) == 'stored'
    return app


def keys(server, database, **options):
    return {key.decode() for key in Redis(port=server.port, db=database, **options).keys()}


def test_password(password_server):
    """A password may have any characters."""
    round_trip({'HOST': '127.0.0.1', 'PORT': password_server.port, 'PASSWORD': PASSWORD, 'DATABASE': DATABASE})

    found = keys(password_server, DATABASE, password=PASSWORD)
    assert found
    assert all(key.startswith('netbox_celery:') for key in found)
    assert keys(password_server, 0, password=PASSWORD) == set()


def test_user(acl_server):
    """So may a user name (Redis 6 has access control lists)."""
    round_trip({
        'HOST': '127.0.0.1', 'PORT': acl_server.port, 'USERNAME': USER, 'PASSWORD': PASSWORD, 'DATABASE': DATABASE,
    })

    with pytest.raises(OperationalError):
        round_trip({'HOST': '127.0.0.1', 'PORT': acl_server.port, 'USERNAME': USER, 'PASSWORD': 'wrong'})


def test_url(acl_server):
    """A URL can have everything that the single settings have; they complete it."""
    credentials = f'{quote(USER, safe="")}:{quote(PASSWORD, safe="")}'
    round_trip({'URL': f'redis://{credentials}@127.0.0.1:{acl_server.port}/5'})
    round_trip({
        'URL': f'redis://127.0.0.1:{acl_server.port}', 'USERNAME': USER, 'PASSWORD': PASSWORD, 'DATABASE': 6,
    })
    round_trip({'URL': f'redis://{credentials}@127.0.0.1:{acl_server.port}?db=11&socket_timeout=5'})

    for database in (5, 6, 11):
        assert keys(acl_server, database, username='admin', password='admin')


def test_unix_socket(password_server):
    """Redis on a Unix socket."""
    credentials = f':{quote(PASSWORD, safe="")}@'
    round_trip({'URL': f'unix://{credentials}{password_server.folder}/redis.sock', 'DATABASE': 7})
    round_trip({'URL': f'unix://{credentials}{password_server.folder}/redis.sock?db=10', 'DATABASE': 7})

    for database in (7, 10):
        assert keys(password_server, database, password=PASSWORD)


def test_tls(tls_server, certificates):
    """TLS with the certificate of a private CA."""
    round_trip({
        'HOST': '127.0.0.1', 'PORT': tls_server.port, 'USERNAME': 'netbox', 'PASSWORD': 'secret', 'SSL': True,
        'CA_CERT_PATH': str(certificates / 'ca.pem'),
    })
    round_trip({
        'URL': f'rediss://netbox:secret@127.0.0.1:{tls_server.port}/1', 'CA_CERT_PATH': str(certificates / 'ca.pem'),
    })


def test_tls_without_verification(tls_server):
    """A self-signed certificate is accepted if verification is turned off."""
    round_trip({
        'HOST': '127.0.0.1', 'PORT': tls_server.port, 'USERNAME': 'netbox', 'PASSWORD': 'secret', 'SSL': True,
        'INSECURE_SKIP_TLS_VERIFY': True,
    })


@pytest.mark.parametrize('ca', [None, 'stranger.pem'])
def test_tls_with_a_strangers_certificate(tls_server, certificates, ca):
    """A certificate of another CA is refused."""
    redis = {
        'HOST': '127.0.0.1', 'PORT': tls_server.port, 'USERNAME': 'netbox', 'PASSWORD': 'secret', 'SSL': True,
    } | ({'CA_CERT_PATH': str(certificates / ca)} if ca else {})

    with pytest.raises((OperationalError, ssl.SSLError), match='(?i)certificate'):
        round_trip(redis)


def test_client_certificate(start, certificates):
    """A server that asks for a client certificate, which NetBox passes to redis-py."""
    server = start(tls=certificates, clients='yes')
    redis = {'HOST': '127.0.0.1', 'PORT': server.port, 'SSL': True, 'CA_CERT_PATH': str(certificates / 'ca.pem')}
    mine = {'ssl_certfile': str(certificates / 'server.pem'), 'ssl_keyfile': str(certificates / 'server.key')}
    round_trip(redis | {'KWARGS': mine})
    with pytest.raises((OperationalError, ssl.SSLError)):
        round_trip(redis)


def test_overriding_urls(password_server, acl_server):
    """`broker_url` and `result_backend` point elsewhere, with the same prefix."""
    url = f'redis://:{quote(PASSWORD, safe="")}@127.0.0.1:{password_server.port}'
    round_trip({'HOST': '127.0.0.1', 'PORT': 1}, broker_url=f'{url}/8', result_backend=f'{url}/9', key_prefix='mine:')

    found = keys(password_server, 9, password=PASSWORD)
    assert found
    assert all(key.startswith('mine:') for key in found)


@pytest.fixture(scope='module')
def sentinel(start, password_server):
    server = start(
        f'sentinel monitor netbox-service 127.0.0.1 {password_server.port} 1',
        'sentinel down-after-milliseconds netbox-service 5000', sentinel=True,
    )
    client = Redis(port=server.port)
    client.execute_command('SENTINEL', 'SET', 'netbox-service', 'auth-pass', PASSWORD)
    assert wait_until(lambda: b'ok' in client.execute_command('SENTINEL', 'CKQUORUM', 'netbox-service').lower(), 20)
    return server


def sentinel_settings(sentinel):
    return {
        'SENTINELS': [('127.0.0.1', 1), ('127.0.0.1', sentinel.port)], 'SENTINEL_SERVICE': 'netbox-service',
        'SENTINEL_TIMEOUT': 5, 'PASSWORD': PASSWORD, 'DATABASE': DATABASE,
    }


def test_sentinel(sentinel):
    """Sentinel names the master; one sentinel that is down does no harm."""
    round_trip(sentinel_settings(sentinel))


class CustomInstance(Instance):
    """An instance with its own `REDIS["tasks"]`."""
    tasks = None

    def _redis(self, database):
        return self.tasks if database == self.redis_databases[0] else super()._redis(database)


CALL = """
import django; django.setup()
from netbox_celery.models import CeleryResult
from netbox_celery.celery import app
result = CeleryResult.enqueue('netbox_example_plugin:hello_world', args=('Redis',), queue='{queue}')
print('GOT', app.AsyncResult(str(result.task_id)).get(timeout=30))
result.refresh_from_db()
print('ROW', result.status)
"""


@pytest.mark.parametrize('kind', ['tls', 'sentinel'])
def test_worker(services, make_worker, request, certificates, kind):
    """A real worker and a real caller use it."""
    instance = CustomInstance(services.directory / f'redis-{kind}', services.cluster, services.redis, for_tests=True)
    if kind == 'tls':
        instance.tasks = {
            'HOST': '127.0.0.1', 'PORT': request.getfixturevalue('tls_server').port, 'USERNAME': 'netbox',
            'PASSWORD': 'secret', 'SSL': True, 'CA_CERT_PATH': str(certificates / 'ca.pem'),
        }
    else:
        instance.tasks = sentinel_settings(request.getfixturevalue('sentinel'))
    worker = make_worker(f'at-{kind}', instance=instance.write(), concurrency=1).start().ready()
    caller = subprocess.run(
        [sys.executable, '-c', CALL.format(queue=worker.queue)], env={**os.environ, **instance.environ},
        capture_output=True, text=True, timeout=60,
    )

    assert 'GOT Hello Redis!' in caller.stdout, caller.stderr
    assert 'ROW completed' in caller.stdout
