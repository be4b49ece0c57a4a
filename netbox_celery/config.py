"""The plugin's settings, `PLUGINS_CONFIG["netbox_celery"]`: defaults, validation, and the one place that reads them."""
import difflib
import math
from dataclasses import dataclass, field, fields
from functools import lru_cache

from django.core.exceptions import ImproperlyConfigured

__all__ = (
    'MOST_DAYS',
    'Config',
    'get_config',
    'suggestion',
    'wrong',
)

PLUGIN = 'netbox_celery'

#: Longest time that runs can be kept, days: a thousand years before now, there still is a date.
MOST_DAYS = 365_000

# Rows and messages are JSON and nothing else: unpickling what a broker delivers would run it.
JSON_ONLY = {
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
    #: Settings of Celery's own, lower-case, passed through.
    celery: dict = field(default_factory=dict)
    #: Prefix of all keys in Redis, so that NetBox's own jobs in the same database are untouched.
    key_prefix: str = 'netbox_celery:'
    #: Which tasks have a row for each run: `base` (tasks on CeleryBaseTask) or `all`.
    track: str = 'base'
    #: How long log lines and progress wait for company before they are written, seconds.
    flush_interval: float = 0.2
    #: Longest message of a log line, characters; the rest is cut off and counted.
    log_message_length: int = 10_000
    #: Most lines in the log of one run; further ones are counted.
    log_lines: int = 100_000
    #: Lowest level of Python log records that land in the run's log.
    log_level: int = 20
    #: Largest arguments, result or data kept in a row, characters of JSON.
    payload_length: int = 65_536
    #: How often a worker says that it is alive, seconds.
    heartbeat_interval: float = 5
    #: A worker that was silent for so long is lost, seconds.
    worker_lost_after: float = 30
    #: How often workers look for what was lost, seconds.
    sweep_interval: float = 10
    #: Django's management commands that are tasks too: options of the task by name of the command, or names alone.
    command_tasks: dict = field(default_factory=dict)
    #: For how many days runs are kept after their end, with their logs; 0: for ever; by default NetBox's JOB_RETENTION.
    retention: int | None = None

    @classmethod
    def from_dict(cls, user_config):
        """Build the settings from NetBox's configuration.

        Raises:
            ImproperlyConfigured: A setting is unknown, of the wrong type or out of range.
        """
        known, values = {f.name: f for f in fields(cls)}, {}
        for name, value in user_config.items():
            if name not in known:
                hint = suggestion(name, known) or '.'
                raise wrong(name, f'is unknown{hint} Settings are: {", ".join(sorted(known))}')
            if name == 'command_tasks' and isinstance(value, dict | list | tuple):
                value = _options_by_name(name, value)
            _check_type(name, value, known[name].type)
            values[name] = value
        config = cls(**values)
        config._check_values()
        _check_celery(config.celery)
        return config

    def _check_values(self):
        for name in (
            'flush_interval', 'log_message_length', 'log_lines', 'payload_length', 'heartbeat_interval',
            'worker_lost_after', 'sweep_interval',
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise wrong(name, f'must be greater than 0, not {getattr(self, name)!r}')
        if self.retention is not None and not 0 <= self.retention <= MOST_DAYS:
            raise wrong(
                'retention', f'must be a number of days up to {MOST_DAYS}, or 0 for ever, not {self.retention!r}'
            )
        if self.track not in ('base', 'all'):
            raise wrong('track', f"must be 'base' or 'all', not {self.track!r}")
        if self.worker_lost_after < 3 * self.heartbeat_interval:
            raise wrong(
                'worker_lost_after',
                f'must be at least three times heartbeat_interval ({self.heartbeat_interval}), '
                f'not {self.worker_lost_after!r}: a single late heartbeat would end the runs of a living worker'
            )
        for name in ('broker_url', 'result_backend'):
            value = getattr(self, name)
            if value and ':' not in value:
                raise wrong(name, f"must be a URL such as 'redis://host:6379/0', not {value!r}")


def _check_type(name, value, expected):
    accepted: tuple[type, ...] = {
        float: (int, float), int: (int,), int | None: (type(None), int), str: (str,), dict: (dict,),
    }[expected]
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise wrong(name, f'must be of type {accepted[-1].__name__}, not {type(value).__name__} ({value!r})')


def _options_by_name(setting, value):
    """Return a dict of dicts for what may be a list of names, too."""
    pairs = value.items() if isinstance(value, dict) else [(name, None) for name in value]
    for name, options in pairs:
        if not isinstance(name, str) or not isinstance(options, dict | None):
            raise wrong(setting, f'must hold options by name, as in {{"name": {{}}}}, not {name!r}: {options!r}')
    return {name: options or {} for name, options in pairs}


def _check_celery(settings):
    from celery.app.defaults import NAMESPACES, flatten

    known = {key for key, __ in flatten(NAMESPACES)}
    for name, value in settings.items():
        if name in ('broker_url', 'result_backend'):
            raise wrong(f'celery["{name}"]', f'belongs one level up: PLUGINS_CONFIG["{PLUGIN}"]["{name}"]')
        if name not in known:
            hint = (
                f' (Celery settings are lower-case here: {name.lower()!r})' if str(name).lower() in known
                else suggestion(name, known)
            )
            raise wrong(f'celery["{name}"]', f'is not a setting of Celery{hint}')
        if name.endswith('transport_options') and not isinstance(value, dict):
            raise wrong(f'celery["{name}"]', f'must be a dict, not {value!r}')
        if name in JSON_ONLY and value not in JSON_ONLY[name]:
            raise wrong(f'celery["{name}"]', f'must be {JSON_ONLY[name][0]!r}: only JSON is accepted from the broker')


def suggestion(name, known):
    """Return a sentence with the known name that comes closest to a wrong one, or nothing."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f'. Did you mean {close[0]!r}?' if close else ''


def wrong(name, what):
    """Return the error for a setting, with what is wrong about it."""
    return ImproperlyConfigured(f'PLUGINS_CONFIG["{PLUGIN}"]: {name} {what}')


@lru_cache(maxsize=1)
def get_config():
    """Return the settings of this NetBox, a `Config`."""
    from django.conf import settings

    return Config.from_dict(settings.PLUGINS_CONFIG.get(PLUGIN, {}))
