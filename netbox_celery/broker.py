"""Celery's settings, derived from NetBox's: the broker, the result backend, and the content that is accepted.

`REDIS["tasks"]` is read as NetBox reads it for RQ (`netbox.settings`, "TASKS_REDIS"): host or URL, any user name and
password, database, TLS, Sentinel. The plugin's settings `broker_url` and `result_backend` override it, and
`celery={...}` is passed through.
"""
import ssl
import sys
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from redis.backoff import NoBackoff
from redis.retry import Retry

__all__ = (
    'celery_settings',
    'speaks_redis',
    'taken_keys',
)

#: Celery settings that are derived here. A user's values for them are merged into these, key by key.
MERGED = frozenset((
    'broker_transport_options', 'result_backend_transport_options', 'broker_use_ssl', 'redis_backend_use_ssl',
))


def celery_settings(redis, config, timezone='UTC'):
    """Return the settings of the Celery app.

    Args:
        redis: NetBox's `REDIS["tasks"]`, a dict.
        config: The plugin's settings, a `netbox_celery.config.Config`.
        timezone: NetBox's `TIME_ZONE`.
    """
    settings = {
        'accept_content': ['json'],
        'task_serializer': 'json',
        'result_serializer': 'json',
        'timezone': timezone,
        'enable_utc': True,
        'broker_connection_retry_on_startup': True,
        'beat_scheduler': 'netbox_celery.scheduler:DatabaseScheduler',
        # Celery closes Django's connections around every task otherwise; `engine.worker.signals` keeps them healthy
        'CELERY_DB_REUSE_MAX': sys.maxsize,
    }
    settings |= {key: value for key, value in config.celery.items() if key not in MERGED}

    settings['broker_url'] = config.broker_url or _redis_url(redis)
    settings['result_backend'] = config.result_backend or _redis_url(redis)
    for key, url, own in (
        ('broker_transport_options', settings['broker_url'], not config.broker_url),
        ('result_backend_transport_options', settings['result_backend'], not config.result_backend),
    ):
        options = {}
        if speaks_redis(url):
            options['global_keyprefix'] = config.key_prefix
        if own:
            options |= _sentinel_options(redis)
        if key == 'broker_transport_options' and _speaks_amqp(url):
            # Otherwise a call returns before RabbitMQ has stored the message, which may then be lost silently
            options['confirm_publish'] = True
        settings[key] = _merged(options, config.celery.get(key, {}))
    tls = _tls(redis)
    for key, is_elsewhere in (
        ('broker_use_ssl', config.broker_url), ('redis_backend_use_ssl', config.result_backend)
    ):
        ours, theirs = None if is_elsewhere else tls, config.celery.get(key)
        if ours and (theirs is None or theirs is True):
            settings[key] = ours  # the user sets no option of its own
        elif theirs is not None:
            settings[key] = _merged(ours, theirs)
    return settings


def _merged(ours, theirs):
    """Return our options with a user's merged over them, at every depth."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours | {key: _merged(ours.get(key), value) for key, value in theirs.items()}
    return theirs


def speaks_redis(url):
    """Whether the URL of a broker or a result backend is that of a Redis server."""
    return url.split(':', 1)[0].split('+')[0] in ('redis', 'rediss', 'sentinel')


def taken_keys(config):
    """Return prefixes of Redis keys that the settings use for something other than queues.

    Args:
        config: The plugin's settings, a `netbox_celery.config.Config`.
    """
    options = config.celery.get('broker_transport_options') or {}
    named = [options.get(f'unacked_{what}') for what in ('key', 'index_key', 'mutex_key')]
    named.append(options.get('deadletter_queue'))
    # A result backend may use another prefix in the same database
    prefix = options.get('global_keyprefix', config.key_prefix)
    results = (config.celery.get('result_backend_transport_options') or {}).get('global_keyprefix', config.key_prefix)
    if results != prefix and results.startswith(prefix):
        named.append(results[len(prefix):])
    return tuple(name for name in named if isinstance(name, str) and name)


def _speaks_amqp(url):
    return url.split(':', 1)[0] in ('amqp', 'amqps', 'pyamqp')


def _redis_url(redis):
    if sentinels := redis.get('SENTINELS'):
        return ';'.join(
            f'sentinel://{_credentials(redis)}{host}:{port}/{redis.get("DATABASE", 0)}' for host, port in sentinels
        )
    if url := redis.get('URL'):
        return _completed(url, redis)
    scheme = 'rediss' if redis.get('SSL') else 'redis'
    host = redis.get('HOST', 'localhost')
    if ':' in host and not host.startswith('['):
        host = f'[{host}]'  # an IPv6 address
    return f'{scheme}://{_credentials(redis)}{host}:{redis.get("PORT", 6379)}/{redis.get("DATABASE", 0)}'


def _completed(url, redis):
    """Add to a URL the options that NetBox allows beside it. Celery's name for redis-py's `unix://` is `redis+socket://`.

    Of the URL parameters of redis-py, Kombu accepts those of TLS and fails for any other.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    database = query.get('db') or parts.scheme != 'unix' and parts.path.strip('/') or redis.get('DATABASE', 0)
    netloc = parts.netloc if '@' in parts.netloc else _credentials(redis) + parts.netloc
    if parts.scheme == 'unix':
        # urlunsplit() would leave out an empty "//"
        return f'redis+socket://{netloc}{parts.path}?virtual_host={database}'
    tls = urlencode({key: value for key, value in query.items() if key.startswith('ssl_')}, quote_via=quote)
    return urlunsplit((parts.scheme, netloc, f'/{database}', tls, ''))


def _credentials(redis):
    username, password = redis.get('USERNAME') or '', redis.get('PASSWORD') or ''
    if not username and not password:
        return ''
    return f'{quote(username, safe="")}:{quote(password, safe="")}@'


def _tls(redis):
    """Return TLS options, or `None` if the connection is not encrypted."""
    if not redis.get('SSL') and not str(redis.get('URL') or '').startswith('rediss:'):
        return None
    tls = {'ssl_cert_reqs': ssl.CERT_NONE if redis.get('INSECURE_SKIP_TLS_VERIFY') else ssl.CERT_REQUIRED}
    if path := redis.get('CA_CERT_PATH'):
        tls['ssl_ca_certs'] = path
    return tls | {key: value for key, value in (redis.get('KWARGS') or {}).items() if key.startswith('ssl_')}


def _sentinel_options(redis):
    if not redis.get('SENTINELS'):
        return {}
    return {
        'master_name': redis.get('SENTINEL_SERVICE', 'default'),
        'sentinel_kwargs': {
            'socket_connect_timeout': redis.get('SENTINEL_TIMEOUT', 10),
            # If a Sentinel cannot be reached, try the next immediately: redis-py waits seconds, for each connection
            'retry': Retry(NoBackoff(), 0),
        },
    }
