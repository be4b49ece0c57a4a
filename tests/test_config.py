"""The plugin's settings: an unknown or invalid one stops the start, and the message says which and why."""
from dataclasses import FrozenInstanceError, fields
from datetime import timedelta

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from kombu import Queue

from netbox_celery.celery import app
from netbox_celery.config import Config, get_config

SIZES = ('log_message_length', 'log_lines', 'payload_length')
TIMES = ('flush_interval', 'heartbeat_interval', 'worker_lost_after', 'sweep_interval')


@pytest.mark.parametrize('name', [field.name for field in fields(Config)])
def test_defaults(name):
    """Defaults that are written out change nothing."""
    default = getattr(Config(), name)
    assert Config.from_dict({name: default}) == Config.from_dict({}) == Config()


@pytest.mark.parametrize('given', [
    {'retention': 0}, {'retention': 1}, {'track': 'all'}, {'flush_interval': 1}, {'flush_interval': 0.001},
    {'heartbeat_interval': 10, 'worker_lost_after': 30}, {'broker_url': 'amqp://h'}, {'log_level': 0},
    {'celery': {'task_serializer': 'json', 'accept_content': ('json',), 'result_accept_content': None}},
    {'celery': {'broker_use_ssl': True, 'beat_schedule': {}, 'worker_prefetch_multiplier': 1}},
    {'celery': {'broker_use_ssl': {'ca_certs': '/ca'}, 'redis_backend_use_ssl': False, 'task_queues': []}},
    {'celery': {'imports': [], 'include': ('a', 'b')}},
    {'celery': {'result_expires': timedelta(hours=1), 'task_time_limit': 60.5, 'worker_concurrency': None}},
    {'celery': {'timezone': 'Europe/Berlin', 'task_routes': ('a.Router', {'a:*': 'b'}), 'task_annotations': {}}},
    {'broker_url': 'sentinel://a:1;sentinel://b:2', 'result_backend': 'rpc://'},
    {'broker_url': 'redis+socket:///run/redis.sock?virtual_host=1', 'result_backend': 'db+postgresql://h/d'},
    {'broker_url': 'my.transport:Class://h', 'result_backend': 'my.backend:Class://h'},
], ids=str)
def test_accepted(given):
    config = Config.from_dict(given)
    assert {name: getattr(config, name) for name in given} == given


@pytest.mark.parametrize('given, message', [
    ({'log_line': 5}, "log_line is not a setting. Did you mean 'log_lines'? Available settings: allowed_queues, "),
    ({'qqq': 5}, 'qqq is not a setting. Available settings: '),
    ({5: 5}, '5 is not a setting. Available settings: '),
    ({'LOG_LINES': 5}, 'LOG_LINES is not a setting'),
    ({'from_dict': 5}, 'from_dict is not a setting'),
    ({'broker_url': ['redis://h']}, "broker_url must be of type str, not list (['redis://h'])"),
    ({'broker_url': None}, 'broker_url must be of type str, not NoneType'),
    ({'broker_url': 'redis.example.com'}, "broker_url must be a URL such as 'redis://host:6379/0'"),
    ({'result_backend': 'redis'}, 'result_backend must be a URL'),
    ({'broker_url': 'rabbitmq://h'}, "not 'rabbitmq'"),
    ({'broker_url': 'redis:6379'}, "not 'redis:6379'"),
    ({'broker_url': 'sentinel://a:1;redsi://b:2'}, "not 'redsi'. Did you mean 'redis'?"),
    ({'broker_url': 'rpc://'}, 'broker_url must start with one of SLMQ, SQS, amqp, amqps'),
    ({'result_backend': 'amqp://h'}, 'result_backend must start with one of arangodb, '),
    ({'result_backend': 'https://h'}, "not 'https'"),
    ({'log_lines': 5.0}, 'log_lines must be of type int, not float'),
    ({'log_lines': True}, 'log_lines must be of type int, not bool'),
    ({'flush_interval': '0.2'}, 'flush_interval must be of type int or float, not str'),
    ({'flush_interval': True}, 'flush_interval must be of type int or float, not bool'),
    ({'log_level': 'INFO'}, "log_level must be of type int, not str ('INFO')"),
    ({'celery': []}, 'celery must be of type dict, not list'),
    *(({name: value}, f'{name} must be greater than 0, not {value}') for name in SIZES for value in (0, -1)),
    # Nothing waits for longer: neither a lock nor PostgreSQL takes just any number
    *(({name: value}, f'{name} must be greater than 0 and at most 86400 seconds, not {value}')
      for name in TIMES for value in (0, -1, 86_401, 10 ** 30, float('nan'), float('inf'))),
    ({'worker_lost_after': 14.9}, 'worker_lost_after must be at least three times heartbeat_interval (5)'),
    ({'heartbeat_interval': 11}, 'worker_lost_after must be at least three times heartbeat_interval (11)'),
    ({'retention': -1}, 'retention must be a number of days up to 365000, or 0 for no limit, not -1'),
    ({'retention': 10 ** 6}, 'retention must be a number of days up to 365000, or 0 for no limit, not 1000000'),
    ({'retention': '30'}, "retention must be of type int, not str ('30')"),
    ({'key_prefix': 'für:'}, "key_prefix must contain ASCII characters only, not 'für:'"),
    ({'allowed_queues': 'slow'}, "allowed_queues must be of type list or tuple, not str ('slow')"),
    ({'allowed_queues': ['slow', 5]}, 'allowed_queues must contain names of queues, not 5'),
    ({'allowed_queues': ['unacked']}, "allowed_queues names the queue 'unacked', which is not allowed: "),
    ({'allowed_queues': ['']}, "allowed_queues names the queue '', which is not allowed: it is empty"),
    *(({'celery': {name: value}}, f'celery["{name}"] names the queue {queue!r}, which is not allowed: ')
      for name, value, queue in (
        ('task_default_queue', 'unacked', 'unacked'), ('task_default_queue', '', ''),
        ('task_queues', [Queue('a'), Queue('_kombu.x')], '_kombu.x'),
        ('task_queues', {'unacked_index': {}}, 'unacked_index'),
        ('task_routes', {'a': 'amq.x'}, 'amq.x'), ('task_routes', {'a': {'queue': 'unacked'}}, 'unacked'),
        ('task_routes', ({'a': 'b'}, [('c', {'queue': 'x\x06\x163'})]), 'x\x06\x163'),
        ('task_routes', [len, 'a.Router', {'a': Queue('celeryev')}], 'celeryev'),
        ('beat_schedule', {'a': {'task': 'b', 'schedule': 5, 'options': {'queue': 'unacked'}}}, 'unacked'),
    )),
    ({'celery': {'broker_transport_options': {'unacked_key': 'mine'}, 'task_default_queue': 'mine'}},
     'celery["task_default_queue"] names the queue \'mine\', which is not allowed: '),
    ({'celery': {'broker_transport_options': {'unacked_key': 'celery'}}},
     'celery["broker_transport_options"] uses the name of the default queue'),
    ({'track': 'none'}, "track must be 'base' or 'all', not 'none'"),
    # Celery's own
    ({'celery': {'broker_url': 'x:'}}, 'celery["broker_url"] belongs one level up: PLUGINS_CONFIG["netbox_celery"]'),
    ({'celery': {'result_backend': 'x:'}}, 'belongs one level up'),
    ({'celery': {'task_serialiser': 'json'}}, "not a Celery setting. Did you mean 'task_serializer'?"),
    ({'celery': {'TASK_ROUTES': {}}}, "Celery settings are lower-case here: 'task_routes'"),
    ({'celery': {5: 5}}, 'celery["5"] is not a Celery setting'),
    ({'celery': {'broker_transport_options': None}}, 'celery["broker_transport_options"] must be a dict, not None'),
    ({'celery': {'result_backend_transport_options': [1]}}, 'must be a dict, not [1]'),
    *(({'celery': {name: value}}, f'celery["{name}"] must be {what}') for name, value, what in (
        ('task_time_limit', '60', "of type int or float or timedelta, not str ('60')"),
        ('task_time_limit', True, 'of type int or float or timedelta, not bool (True)'),
        ('worker_concurrency', 'four', "of type int, not str ('four')"),
        ('task_acks_late', 'no', "of type bool or int, not str ('no')"),
        ('beat_schedule', [], 'of type dict, not list ([])'),
        ('imports', 'my_plugin', "of type list or tuple, not str ('my_plugin')"),
        ('timezone', 'Nowhere/X', "a time zone such as 'Europe/Berlin', not 'Nowhere/X'"),
        ('timezone', '/etc', 'a time zone'), ('timezone', '', 'a time zone'), ('timezone', 5, 'of type str or tzinfo'),
    )),
    *(({'celery': {name: value}}, f'celery["{name}"] must be {right!r}: only JSON') for name, value, right in (
        ('accept_content', ['json', 'pickle'], ['json']), ('accept_content', [], ['json']),
        ('accept_content', 'json', ['json']), ('result_accept_content', ['pickle'], ['json']),
        ('task_serializer', 'pickle', 'json'), ('result_serializer', 'yaml', 'json'),
        ('event_serializer', 'msgpack', 'json'), ('task_serializer', None, 'json'),
    )),
], ids=str)
def test_refused(given, message):
    with pytest.raises(ImproperlyConfigured) as caught:
        Config.from_dict(given)
    assert str(caught.value).startswith('PLUGINS_CONFIG["netbox_celery"]: ')
    assert message in str(caught.value)


@pytest.mark.parametrize('given', [None, [], 'track', 5], ids=str)
def test_no_dict(given):
    with pytest.raises(ImproperlyConfigured, match=r'^PLUGINS_CONFIG\["netbox_celery"\] must be a dict, not '):
        Config.from_dict(given)


def test_settings_are_not_changed():
    given = {'command_tasks': ['check'], 'celery': {'worker_concurrency': 2}}
    config = Config.from_dict(given)
    assert given == {'command_tasks': ['check'], 'celery': {'worker_concurrency': 2}}
    with pytest.raises(FrozenInstanceError):
        config.track = 'all'


def test_read_once():
    """The settings are read in one place, and the Celery app uses them."""
    assert get_config() is get_config()
    assert app.conf.broker_transport_options['global_keyprefix'] == get_config().key_prefix
    with override_settings(PLUGINS_CONFIG={'netbox_celery': {'track': 'all'}}):
        assert get_config().track == 'base'


def test_no_settings_at_all():
    get_config.cache_clear()
    try:
        with override_settings(PLUGINS_CONFIG={}):
            assert get_config() == Config()
    finally:
        get_config.cache_clear()
