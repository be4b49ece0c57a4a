"""The plugin's settings, `PLUGINS_CONFIG["netbox_celery"]`: defaults, validation, and the only place that reads them.
"""
import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta, tzinfo
from functools import lru_cache
from importlib.metadata import entry_points
from types import NoneType
from typing import Any, Self
from zoneinfo import ZoneInfo

from django.core.exceptions import ImproperlyConfigured

from .broker import taken_keys
from .queuenames import why_reserved

__all__ = (
    'MOST_DAYS',
    'Config',
    'get_config',
    'suggestion',
    'wrong',
)

PLUGIN = 'netbox_celery'

#: Longest time that runs can be kept, days: `datetime` can still go back a thousand years from now.
MOST_DAYS = 365_000

#: Upper limit of all times, seconds: a day. Python cannot wait much longer, and no setting needs more.
MOST_SECONDS = 86_400

# Types of a setting's values, by its annotation
SETTING_TYPES: dict[object, tuple[type, ...]] = {
    dict[str, Any]: (dict,), float: (int, float), int: (int,), int | None: (int, NoneType), list[str]: (list, tuple),
    str: (str,),
}

# Types of a Celery setting's values, besides `None`: by its name, or by the type that Celery gives it
CELERY_TYPES: dict[object, tuple[type, ...]] = {
    'bool': (bool, int),
    'int': (int, float),
    'float': (int, float, timedelta),
    'dict': (dict,),
    'tuple': (list, tuple),
    'broker_use_ssl': (bool, dict),
    'redis_backend_use_ssl': (bool, dict),
    'task_queues': (list, tuple, dict),
    'timezone': (str, tzinfo),
    'worker_concurrency': (int,),
}

# Rows and messages are JSON only: to unpickle a message is to run whatever is in it.
JSON_ONLY: dict[str, tuple[Any, ...]] = {
    'accept_content': (['json'], ('json',)),
    'result_accept_content': (['json'], ('json',), None),
    'task_serializer': ('json',),
    'result_serializer': ('json',),
    'event_serializer': ('json',),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """The plugin's settings, validated. Times are in seconds, sizes in characters."""

    #: URL of Celery's broker; by default NetBox's `REDIS["tasks"]`.
    broker_url: str = ''
    #: URL of Celery's result backend; by default NetBox's `REDIS["tasks"]`.
    result_backend: str = ''
    #: Celery's own settings, lower-case, passed through.
    celery: dict[str, Any] = field(default_factory=dict)
    #: Prefix of all keys in Redis, so that NetBox's own jobs in the same database are untouched.
    key_prefix: str = 'netbox_celery:'
    #: Which tasks have a row for each run: `base` (tasks on CeleryBaseTask) or `all`.
    track: str = 'base'
    #: How long log lines and progress are collected before they are written, seconds.
    flush_interval: float = 0.2
    #: Longest message of a log line, characters; the rest is cut off and counted.
    log_message_length: int = 10_000
    #: Maximum number of lines in the log of one run; further ones are counted.
    log_lines: int = 100_000
    #: Lowest level of Python log records that are added to the run's log.
    log_level: int = 20
    #: Largest arguments, result or data stored in a row, characters of JSON.
    payload_length: int = 65_536
    #: Time between two heartbeats of a worker, seconds.
    heartbeat_interval: float = 5
    #: A worker without a heartbeat for this long is lost, seconds.
    worker_lost_after: float = 30
    #: Time between two sweeps for lost runs and messages, seconds.
    sweep_interval: float = 10
    #: Django management commands that are also tasks: options of the task by name of the command, or a list of names.
    command_tasks: dict[str, Any] = field(default_factory=dict)
    #: Queues that users can send to, besides those that are configured or consumed: names, or patterns such as `lab-*`.
    allowed_queues: list[str] = field(default_factory=list)
    #: Days for which finished runs and their logs are kept; 0: forever; by default NetBox's JOB_RETENTION.
    retention: int | None = None

    @classmethod
    def from_dict(cls, user_config: Any) -> Self:
        """Build the settings from NetBox's configuration.

        Raises:
            ImproperlyConfigured: A setting is unknown, of the wrong type or out of range.
        """
        if not isinstance(user_config, dict):
            raise ImproperlyConfigured(f'PLUGINS_CONFIG["{PLUGIN}"] must be a dict, not {user_config!r}')
        known, values = {f.name: f for f in fields(cls)}, {}
        for name, value in user_config.items():
            if name not in known:
                hint = suggestion(name, known) or '.'
                raise wrong(name, f'is not a setting{hint} Available settings: {", ".join(sorted(known))}')
            if name == 'command_tasks' and isinstance(value, dict | list | tuple):
                value = _options_by_name(name, value)
            _check_type(name, value, SETTING_TYPES[known[name].type])
            values[name] = value
        config = cls(**values)
        config._check_values()
        _check_celery(config.celery)
        config._check_queues()
        return config

    def _check_values(self) -> None:
        for name in ('log_message_length', 'log_lines', 'payload_length'):
            if getattr(self, name) <= 0:
                raise wrong(name, f'must be greater than 0, not {getattr(self, name)!r}')
        for name in ('flush_interval', 'heartbeat_interval', 'worker_lost_after', 'sweep_interval'):
            if not 0 < getattr(self, name) <= MOST_SECONDS:
                raise wrong(
                    name, f'must be greater than 0 and at most {MOST_SECONDS} seconds, not {getattr(self, name)!r}'
                )
        if self.retention is not None and not 0 <= self.retention <= MOST_DAYS:
            raise wrong(
                'retention', f'must be a number of days up to {MOST_DAYS}, or 0 for no limit, not {self.retention!r}'
            )
        if self.track not in ('base', 'all'):
            raise wrong('track', f"must be 'base' or 'all', not {self.track!r}")
        if self.worker_lost_after < 3 * self.heartbeat_interval:
            raise wrong(
                'worker_lost_after',
                f'must be at least three times heartbeat_interval ({self.heartbeat_interval}), '
                f'not {self.worker_lost_after!r}: otherwise a single late heartbeat ends the runs of a live worker'
            )
        if not self.key_prefix.isascii():
            # Kombu removes it by its length in characters, from keys that are bytes
            raise wrong('key_prefix', f'must contain ASCII characters only, not {self.key_prefix!r}')
        for name in ('broker_url', 'result_backend'):
            value = getattr(self, name)
            if value and ':' not in value:
                raise wrong(name, f"must be a URL such as 'redis://host:6379/0', not {value!r}")
            if value:
                _check_scheme(name, value)

    def _check_queues(self) -> None:
        """Refuse names that a queue cannot have, in every setting that names queues."""
        named: list[tuple[str, Any]] = [('allowed_queues', name) for name in self.allowed_queues]
        named += [(f'celery["{setting}"]', name) for setting, name in _queues_of(self.celery)]
        keys = taken_keys(self)
        for setting, name in named:
            if not isinstance(name, str):
                raise wrong(setting, f'must contain names of queues, not {name!r}')
            if why := why_reserved(name, keys):
                raise wrong(setting, f'names the queue {name!r}, which is not allowed: {why}')
        # Without the setting, the default queue has Celery's name for it
        if 'task_default_queue' not in self.celery and why_reserved('celery', keys):
            raise wrong('celery["broker_transport_options"]', "uses the name of the default queue, 'celery'")


def _queues_of(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the names of queues in Celery's settings, as pairs of a setting and a name."""
    if settings.get('task_default_queue') is not None:
        yield 'task_default_queue', settings['task_default_queue']
    for queue in settings.get('task_queues') or ():
        yield 'task_queues', getattr(queue, 'name', queue)
    for target in _targets(settings.get('task_routes')):
        try:
            queue = dict(target).get('queue')
        except (TypeError, ValueError):
            queue = target
        if queue is not None:
            yield 'task_routes', getattr(queue, 'name', queue)
    for entry in (settings.get('beat_schedule') or {}).values():
        queue = (entry.get('options') or {}).get('queue') if isinstance(entry, dict) else None
        if queue is not None:
            yield 'beat_schedule', getattr(queue, 'name', queue)


def _targets(routes: Any) -> Iterator[Any]:
    """Yield the targets of routes that are not functions: names of queues, and dicts of options.

    Routes are a dict by names of tasks, the same as a list of pairs, or a list of these and of routers.
    """
    for route in routes if isinstance(routes, list | tuple) else [routes]:
        if isinstance(route, dict):
            yield from route.values()
        elif isinstance(route, list | tuple):
            for pair in route:
                if isinstance(pair, list | tuple) and len(pair) == 2:
                    yield pair[1]


def _check_type(name: str, value: object, accepted: tuple[type, ...]) -> None:
    if not isinstance(value, accepted) or isinstance(value, bool) and bool not in accepted:
        types = ' or '.join(kind.__name__ for kind in accepted if kind is not NoneType)
        raise wrong(name, f'must be of type {types}, not {type(value).__name__} ({value!r})')


def _check_scheme(name: str, url: str) -> None:
    from celery.app.backends import BACKEND_ALIASES
    from kombu.transport import TRANSPORT_ALIASES

    known = set(TRANSPORT_ALIASES) if name == 'broker_url' else {
        *BACKEND_ALIASES, *entry_points(group='celery.result_backends').names
    }
    for part in url.split(';'):
        scheme = part.split('://')[0].split('+')[0]
        # Celery imports a class by its dotted name
        if scheme not in known and '.' not in scheme:
            hint = suggestion(scheme, known)
            raise wrong(name, f'must start with one of {", ".join(sorted(known))}, not {scheme!r}{hint}')


def _options_by_name(setting: str, value: Any) -> dict[str, dict[str, Any]]:
    """Return options by name, also for a list of names."""
    pairs = value.items() if isinstance(value, dict) else [(name, None) for name in value]
    for name, options in pairs:
        if not isinstance(name, str) or not isinstance(options, dict | None):
            raise wrong(setting, f'must contain options by name, as in {{"name": {{}}}}, not {name!r}: {options!r}')
    return {name: options or {} for name, options in pairs}


def _check_celery(settings: dict[str, Any]) -> None:
    from celery.app.defaults import NAMESPACES, flatten

    known = dict(flatten(NAMESPACES))
    for name, value in settings.items():
        if name in ('broker_url', 'result_backend'):
            raise wrong(f'celery["{name}"]', f'belongs one level up: PLUGINS_CONFIG["{PLUGIN}"]["{name}"]')
        if name not in known:
            hint = (
                f' (Celery settings are lower-case here: {name.lower()!r})' if str(name).lower() in known
                else suggestion(name, known)
            )
            raise wrong(f'celery["{name}"]', f'is not a Celery setting{hint}')
        if name.endswith('transport_options') and not isinstance(value, dict):
            raise wrong(f'celery["{name}"]', f'must be a dict, not {value!r}')
        if name in JSON_ONLY and value not in JSON_ONLY[name]:
            raise wrong(f'celery["{name}"]', f'must be {JSON_ONLY[name][0]!r}: only JSON is accepted from the broker')
        if accepted := CELERY_TYPES.get(name) or CELERY_TYPES.get(known[name].type):
            _check_type(f'celery["{name}"]', value, (*accepted, NoneType))
        if name == 'timezone' and isinstance(value, str):
            try:
                ZoneInfo(value)
            except (OSError, ValueError, KeyError):
                what = f"must be a time zone such as 'Europe/Berlin', not {value!r}"
                raise wrong(f'celery["{name}"]', what) from None


def suggestion(name: object, known: Iterable[str]) -> str:
    """Return a sentence with the known name that is closest to a wrong one, or an empty string."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f'. Did you mean {close[0]!r}?' if close else ''


def wrong(name: str, what: str) -> ImproperlyConfigured:
    """Return the error for a setting, with what is wrong with it."""
    return ImproperlyConfigured(f'PLUGINS_CONFIG["{PLUGIN}"]: {name} {what}')


@lru_cache(maxsize=1)
def get_config() -> Config:
    """Return the settings of this NetBox."""
    from django.conf import settings

    return Config.from_dict(settings.PLUGINS_CONFIG.get(PLUGIN, {}))
