"""NetBox's `REDIS["tasks"]` as Celery's settings; tests/integration/test_redis.py uses them with real servers."""
import ssl
import sys

import pytest
from celery import Celery
from celery.app.backends import by_url
from celery.fixups.django import DjangoWorkerFixup
from kombu import Connection

from netbox_celery.broker import celery_settings, speaks_redis
from netbox_celery.celery import app
from netbox_celery.config import Config
from netbox_celery.engine.results.layers import tracked_backend

ODD = ('p@ss:w/o%72d?#& é"\'\\+=~;,', '%41', '/', '@', ':', '#', ';', ' ', 'None', '0', 'x' * 300, '\n\t', '日本')


def settings(redis, **config):
    return celery_settings(redis, Config.from_dict(config))


def of_backend(redis, **config):
    """Return the connection parameters of the result backend."""
    app = Celery('t', set_as_current=False)
    app.conf.update(settings(redis, **config))
    cls, url = by_url(app.conf.result_backend, app.loader)
    return tracked_backend(cls)(app=app, url=url).connparams


@pytest.mark.parametrize('secret', ODD)
@pytest.mark.parametrize('place', [
    {'HOST': 'h'}, {'URL': 'redis://h'}, {'URL': 'rediss://h:1/2?db=3'}, {'SENTINELS': [('a', 1), ('b', 2)]},
], ids=['host', 'url', 'url-tls', 'sentinel'])
@pytest.mark.parametrize('user', ['', 'net:box@here/%41;'])
def test_credentials(place, user, secret):
    """Whatever characters they have, Kombu and the result backend read the same ones back."""
    given = place | {'USERNAME': user, 'PASSWORD': secret}
    for url in settings(given)['broker_url'].split(';'):
        connection = Connection(url)
        assert (connection.userid or '', connection.password) == (user, secret)
    made = of_backend(given)
    for host in made.get('hosts', [made]):
        assert (host.get('username') or '', host['password']) == (user, secret)


@pytest.mark.parametrize('redis, url', [
    ({}, 'redis://localhost:6379/0'),
    ({'PASSWORD': None, 'USERNAME': None}, 'redis://localhost:6379/0'),
    ({'HOST': 'h', 'PORT': 1, 'DATABASE': 15}, 'redis://h:1/15'),
    ({'HOST': 'h', 'SSL': True}, 'rediss://h:6379/0'),
    ({'HOST': '::1'}, 'redis://[::1]:6379/0'),
    ({'HOST': '[::1]'}, 'redis://[::1]:6379/0'),
    ({'USERNAME': 'u', 'HOST': 'h'}, 'redis://u:@h:6379/0'),
    # A URL is taken as it is, and completed
    ({'URL': 'redis://h:2/3', 'HOST': 'other', 'DATABASE': 9}, 'redis://h:2/3'),
    ({'URL': 'redis://h:2', 'DATABASE': 9}, 'redis://h:2/9'),
    ({'URL': 'redis://h:2/'}, 'redis://h:2/0'),
    ({'URL': 'redis://a:b@h/1', 'USERNAME': 'c', 'PASSWORD': 'd'}, 'redis://a:b@h/1'),
    ({'URL': 'redis://[::1]:2'}, 'redis://[::1]:2/0'),
    ({'URL': 'redis://h/3?db=4', 'DATABASE': 5}, 'redis://h/4'),
    ({'URL': 'redis://h?db=0&socket_timeout=5&protocol=3', 'DATABASE': 5}, 'redis://h/0'),
    ({'URL': 'rediss://h/3?ssl_ca_certs=/ca%20file&socket_timeout=5'}, 'rediss://h/3?ssl_ca_certs=%2Fca%20file'),
    ({'URL': 'unix:///run/redis.sock', 'DATABASE': 4}, 'redis+socket:///run/redis.sock?virtual_host=4'),
    ({'URL': 'unix://:p@/run/redis.sock?db=5', 'DATABASE': 4}, 'redis+socket://:p@/run/redis.sock?virtual_host=5'),
    ({'URL': 'unix:///run/redis.sock', 'PASSWORD': 'p'}, 'redis+socket://:p@/run/redis.sock?virtual_host=0'),
    # Sentinel beats both, as it does for RQ
    ({'SENTINELS': (('a', 1), ('b', 2)), 'URL': 'redis://h', 'HOST': 'h', 'DATABASE': 3},
     'sentinel://a:1/3;sentinel://b:2/3'),
    ({'SENTINELS': [], 'HOST': 'h'}, 'redis://h:6379/0'),
], ids=str)
def test_urls(redis, url):
    """A URL that NetBox accepts can be read by Kombu and the result backend."""
    made = settings(redis)
    assert made['broker_url'] == made['result_backend'] == url
    Connection(url)
    assert of_backend(redis)


@pytest.mark.parametrize('redis, tls', [
    ({}, None),
    ({'URL': 'redis://h'}, None),
    ({'INSECURE_SKIP_TLS_VERIFY': True, 'CA_CERT_PATH': '/ca'}, None),
    ({'SSL': True}, {'ssl_cert_reqs': ssl.CERT_REQUIRED}),
    ({'URL': 'rediss://h'}, {'ssl_cert_reqs': ssl.CERT_REQUIRED}),
    ({'SENTINELS': [('a', 1)], 'SSL': True}, {'ssl_cert_reqs': ssl.CERT_REQUIRED}),
    ({'SSL': True, 'INSECURE_SKIP_TLS_VERIFY': True}, {'ssl_cert_reqs': ssl.CERT_NONE}),
    ({'SSL': True, 'CA_CERT_PATH': '/ca'}, {'ssl_cert_reqs': ssl.CERT_REQUIRED, 'ssl_ca_certs': '/ca'}),
    ({'SSL': True, 'CA_CERT_PATH': False}, {'ssl_cert_reqs': ssl.CERT_REQUIRED}),
    ({'SSL': True, 'KWARGS': {'ssl_certfile': '/c', 'ssl_check_hostname': False, 'socket_timeout': 5}},
     {'ssl_cert_reqs': ssl.CERT_REQUIRED, 'ssl_certfile': '/c', 'ssl_check_hostname': False}),
    ({'KWARGS': {'ssl_certfile': '/c'}}, None),
], ids=str)
def test_tls(redis, tls):
    """Certificates are verified unless that is turned off; there is no TLS unless it is turned on."""
    made = settings(redis)
    assert made.get('broker_use_ssl') == made.get('redis_backend_use_ssl') == tls


@pytest.mark.parametrize('own, other', [
    ('broker_url', 'redis_backend_use_ssl'), ('result_backend', 'broker_use_ssl'),
])
def test_tls_is_not_for_another_server(own, other):
    """What `REDIS` says about certificates and Sentinel applies to the server in `REDIS` only."""
    redis = {'SENTINELS': [('a', 1)], 'SENTINEL_SERVICE': 's', 'SSL': True}
    made = settings(redis, **{own: 'redis://elsewhere/1'})

    assert made[own] == 'redis://elsewhere/1'
    assert [name for name in ('broker_use_ssl', 'redis_backend_use_ssl') if name in made] == [other]
    options = {'broker_url': 'broker_transport_options', 'result_backend': 'result_backend_transport_options'}
    assert ['master_name' in made[options[name]] for name in (own, *options.keys() - {own})] == [False, True]


@pytest.mark.parametrize('url, broker_options, is_redis', [
    ('redis://h', {'global_keyprefix': 'mine:'}, True),
    ('rediss://h', {'global_keyprefix': 'mine:'}, True),
    ('redis+socket:///s', {'global_keyprefix': 'mine:'}, True),
    ('sentinel://a:1;sentinel://b:2', {'global_keyprefix': 'mine:'}, True),
    ('amqp://h', {'confirm_publish': True}, False),
    ('amqps://h;amqps://i', {'confirm_publish': True}, False),
    ('pyamqp://h', {'confirm_publish': True}, False),
    ('memory://', {}, False),
])
def test_options_by_broker(url, broker_options, is_redis):
    assert settings({}, broker_url=url, key_prefix='mine:')['broker_transport_options'] == broker_options
    assert speaks_redis(url) is is_redis


def test_passed_through():
    """Options in `celery` beat the computed ones, one by one."""
    made = settings({'SENTINELS': [('a', 1)], 'SSL': True}, celery={
        'timezone': 'Europe/Berlin', 'broker_use_ssl': False, 'worker_concurrency': 3,
        'broker_transport_options': {'global_keyprefix': 'x', 'visibility_timeout': 5},
    })
    assert (made['timezone'], made['broker_use_ssl'], made['worker_concurrency']) == ('Europe/Berlin', False, 3)
    options = made['broker_transport_options']
    assert (options['global_keyprefix'], options['visibility_timeout']) == ('x', 5)
    assert options['master_name'] == 'default'
    assert made['result_backend_transport_options']['global_keyprefix'] == 'netbox_celery:'
    assert made['accept_content'] == ['json']


SENTINELS = {'SENTINELS': [('a', 1)], 'SENTINEL_SERVICE': 's', 'SENTINEL_TIMEOUT': 3}


@pytest.mark.parametrize('key', ['broker_transport_options', 'result_backend_transport_options'])
def test_merged(key):
    """Options inside options are merged as well: Sentinel's password does not remove its timeout."""
    theirs = {
        'sentinel_kwargs': {'password': 'p', 'ssl': True}, 'retry_policy': {'timeout': 5.0}, 'min_other_sentinels': 1,
    }
    mine = {key: theirs}
    made = settings(SENTINELS, celery=mine)[key]

    assert made['sentinel_kwargs'].pop('retry') is not None
    assert made == {
        'global_keyprefix': 'netbox_celery:', 'master_name': 's', 'min_other_sentinels': 1,
        'sentinel_kwargs': {'socket_connect_timeout': 3, 'password': 'p', 'ssl': True},
        'retry_policy': {'timeout': 5.0},
    }
    assert theirs['sentinel_kwargs'] == {'password': 'p', 'ssl': True}
    # Theirs wins, also with nothing
    theirs = {
        'sentinel_kwargs': {'socket_connect_timeout': 0.5, 'retry': None}, 'master_name': 'm', 'global_keyprefix': '',
    }
    assert settings(SENTINELS, celery={key: theirs})[key] == theirs
    assert settings(SENTINELS, celery={key: {'sentinel_kwargs': None}})[key]['sentinel_kwargs'] is None


@pytest.mark.parametrize('theirs, expected', [
    ({'ssl_certfile': '/c'}, {'ssl_cert_reqs': ssl.CERT_REQUIRED, 'ssl_ca_certs': '/ca', 'ssl_certfile': '/c'}),
    ({'ssl_ca_certs': '/x'}, {'ssl_cert_reqs': ssl.CERT_REQUIRED, 'ssl_ca_certs': '/x'}),
    ({}, {'ssl_cert_reqs': ssl.CERT_REQUIRED, 'ssl_ca_certs': '/ca'}),
    (True, {'ssl_cert_reqs': ssl.CERT_REQUIRED, 'ssl_ca_certs': '/ca'}),
    (False, False),
    (None, {'ssl_cert_reqs': ssl.CERT_REQUIRED, 'ssl_ca_certs': '/ca'}),
])
@pytest.mark.parametrize('key', ['broker_use_ssl', 'redis_backend_use_ssl'])
def test_merged_tls(key, theirs, expected):
    """So are those for TLS: a client certificate does not turn off the verification of the server."""
    redis = {'SSL': True, 'CA_CERT_PATH': '/ca'}
    assert settings(redis, celery={key: theirs})[key] == expected
    assert settings({}, celery={key: theirs}).get(key) == theirs
    url = 'broker_url' if key == 'broker_use_ssl' else 'result_backend'
    assert settings(redis, celery={key: theirs}, **{url: 'rediss://elsewhere'}).get(key) == theirs


def test_nothing_is_changed():
    """NetBox's settings and the plugin's stay as they are."""
    redis, mine = {'SENTINELS': [('a', 1)], 'SSL': True}, {'broker_transport_options': {'visibility_timeout': 5}}
    settings(redis, celery=mine)
    assert redis == {'SENTINELS': [('a', 1)], 'SSL': True}
    assert mine == {'broker_transport_options': {'visibility_timeout': 5}}


def test_connections_to_the_database_are_kept():
    """Celery's fixup for Django would close them before and after each task."""
    assert DjangoWorkerFixup(app).db_reuse_max == sys.maxsize
