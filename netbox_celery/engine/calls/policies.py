"""Concurrency and deduplication policies of a call.

Each of these options can be given in the decorator, on the class, or in the call:

    unique                      one run at a time with these arguments; a second call joins it. Needs `stale_time_limit`
    concurrency_key             at most `limit` runs at a time have this key; `on_conflict` defines what happens to a
                                call past the limit
    stale_time_limit            after this many seconds a run gives up its slot to a new one; it keeps running
    ignore_task_after_success   after a success, calls with the same arguments are ignored for `ignore_task_timedelta`

This module determines the `Policy` of a call; `netbox_celery.engine.sending.admission` applies it.
"""
import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from celery.exceptions import CeleryError
from kombu.utils.imports import symbol_by_name

from ..store.branches import current
from ..store.payload import clean_text, sorted_text
from ..store.times import check_length

__all__ = (
    'ON_CONFLICT',
    'SCHEDULE_KEYS',
    'SETTINGS',
    'EngineKey',
    'Policy',
    'default_unique_key_generator',
    'has_key',
    'has_policy',
    'policy_of',
    'seconds',
    'split_settings',
    'unique_key',
    'window_key',
)

#: What happens to a call past the limit: it joins the active run; it waits in line; it is ignored; it cancels the
#: other runs and waits for their end; it raises `TaskConflict`.
ON_CONFLICT = ('join', 'queue', 'skip', 'replace', 'fail')

UNIQUE = frozenset(('unique', 'stale_time_limit', 'concurrency_key', 'limit', 'on_conflict'))
WINDOW = frozenset(('ignore_task_after_success', 'ignore_task_timedelta'))
SETTINGS = UNIQUE | WINDOW

#: Highest limit of a key: a call examines each slot.
HIGHEST_LIMIT = 10_000
#: Longest key that its column can hold, characters.
LONGEST_KEY = 255
#: Prefixes of the keys that the engine makes itself, for unique tasks and for schedules. Any other key that starts with
#: one of them gets a mark before it, and so does one that starts with the mark.
UNIQUE_KEYS, SCHEDULE_KEYS, MARK = 'unique:', 'schedule:', '='


class EngineKey(str):
    """A concurrency key of the engine's own. A key that a caller, a task or a message gives is never one."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """Whether a call may run while other runs are active or have recently succeeded."""
    #: Name of the task, for messages.
    task: str
    #: Runs with this key share the limit; `None`: there is none.
    key: str | None = None
    limit: int = 1
    on_conflict: str = 'join'
    #: Whether the task itself says that its newest run replaces earlier ones, also those of other users.
    replaces_any: bool = False
    #: Seconds after which the run gives up its slot; `None`: never.
    stale_after: float | None = None
    #: Key of the ignore window that calls check, or `None`.
    window: str | None = None
    #: Seconds for which a success opens the window; `None`: it does not open the window.
    window_length: float | None = None


def split_settings(options: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return `(options, settings)`: the options of a call without the settings of policies, and these."""
    if SETTINGS.isdisjoint(options):
        return options, {}
    settings = {name: options[name] for name in SETTINGS & options.keys()}
    return {name: value for name, value in options.items() if name not in SETTINGS}, settings


def has_key(task: Any) -> bool:
    """Whether a task itself gives its runs a concurrency key."""
    return bool(getattr(task, 'unique', False) or getattr(task, 'concurrency_key', None))


def has_policy(task: Any, settings: Collection[str] = ()) -> bool:
    """Whether calls of a task may have a policy; those of most tasks have none."""
    return bool(settings) or has_key(task) or bool(
        getattr(task, 'ignore_task_after_success', False) or getattr(task, 'ignore_task_timedelta', None)
    )


def policy_of(
    task: Any, args: Any, kwargs: Any, settings: Mapping[str, Any] | None = None, branch: str | None = None
) -> Policy | None:
    """Return the policy of a call, or `None`.

    Args:
        task: The task, or `None` if this process does not know it.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        settings: Those that the call itself gives (see `split_settings`).
        branch: The branch of the call; by default that in which this code runs.

    Raises:
        celery.exceptions.CeleryError: The settings contradict each other, or one is missing.
    """
    settings = settings or {}
    if not has_policy(task, settings):
        return None
    branch = current() if branch is None else branch
    if task is None and (unknown := settings.keys() - {'concurrency_key', 'limit', 'on_conflict', 'stale_time_limit'}):
        raise CeleryError(f'{", ".join(sorted(unknown))}: for this the task must be registered where it is called')

    def setting(name: str, default: Any = None) -> Any:
        value = settings.get(name)
        return getattr(task, name, default) if value is None else value

    args, kwargs = tuple(args or ()), dict(kwargs or {})
    found: dict[str, Any] = {'task': getattr(task, 'name', 'the task')}
    if setting('unique') or setting('concurrency_key'):
        found |= _concurrency(task, args, kwargs, setting, branch)
    after_success, length = setting('ignore_task_after_success'), setting('ignore_task_timedelta')
    if (after_success or length) and settings.get('ignore_task_after_success') is not False:
        if after_success and length is None:
            raise CeleryError(f'{task.name}: ignore_task_after_success needs ignore_task_timedelta')
        found |= {
            'window': window_key(task, args, kwargs, branch),
            'window_length': seconds(length) if after_success else None,
        }
    return Policy(**found) if len(found) > 1 else None


def _concurrency(
    task: Any, args: tuple[Any, ...], kwargs: dict[str, Any], setting: Callable[..., Any], branch: str
) -> dict[str, Any]:
    key, stale_after = setting('concurrency_key'), setting('stale_time_limit')
    limit, on_conflict = setting('limit', 1), setting('on_conflict', 'join')
    if setting('unique') and key:
        raise CeleryError(f'{task.name}: unique has a key of its own; give either it or concurrency_key')
    if not key:
        if stale_after is None:
            raise CeleryError(
                f'{task.name}: a unique task needs stale_time_limit, the time after which a run no longer keeps others '
                f'from running'
            )
        key = _apart(_of_branch(unique_key(task, args, kwargs), branch), (MARK, SCHEDULE_KEYS))
    else:
        key = _key(task, key, args, kwargs)
        if on_conflict == 'join':
            key = _fitting(_of_branch(key, branch))
    if on_conflict not in ON_CONFLICT:
        raise CeleryError(f'{task.name}: on_conflict must be one of {", ".join(ON_CONFLICT)}, not {on_conflict!r}')
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= HIGHEST_LIMIT:
        raise CeleryError(f'{task.name}: limit must be a whole number from 1 to {HIGHEST_LIMIT}, not {limit!r}')
    return {
        'key': key, 'limit': limit, 'on_conflict': on_conflict,
        'replaces_any': getattr(task, 'on_conflict', None) == 'replace',
        'stale_after': None if stale_after is None else seconds(stale_after),
    }


def seconds(value: Any) -> float:
    """Return a length of time, a `timedelta` or a number of seconds, in seconds.

    Raises:
        celery.exceptions.CeleryError: It is negative, too long, or not a number.
    """
    try:
        return check_length(value.total_seconds() if isinstance(value, timedelta) else float(value))
    except (OverflowError, TypeError, ValueError) as exc:
        raise CeleryError(f'{value!r} is not a valid length of time for a policy: {exc}') from exc


# Keys

def default_unique_key_generator(task: Any, prefix: str, task_args: Any, task_kwargs: Any) -> str:
    """Return the key of a call: the same for the same task and arguments, however they are passed.

    Args:
        task: The task.
        prefix: What the key is for.
        task_args: Positional arguments of the call.
        task_kwargs: Keyword arguments of the call.
    """
    values = sorted_text([task.name, _bound(task, task_args, task_kwargs)])
    return f'{prefix}:{uuid5(NAMESPACE_OID, values)}'


def unique_key(task: Any, args: Any, kwargs: Any) -> str:
    """Return the concurrency key of a unique task for some arguments."""
    return _generated(task, 'unique', args, kwargs)


def window_key(task: Any, args: Any, kwargs: Any, branch: str | None = None) -> str:
    """Return the key of a task's ignore window for some arguments, in a branch (by default the current one)."""
    return _fitting(_of_branch(_generated(task, 'ignore', args, kwargs), current() if branch is None else branch))


def _of_branch(key: str, branch: str) -> str:
    """Return a key that belongs to one branch: a run elsewhere has changed nothing there."""
    return f'{key}@{branch}' if branch else key


def _generated(task: Any, prefix: str, args: Any, kwargs: Any) -> str:
    generator = getattr(task, 'unique_key_generator', None) or default_unique_key_generator
    if isinstance(generator, str):
        generator = symbol_by_name(generator)
    return str(_unbound(generator)(task, prefix, tuple(args or ()), dict(kwargs or {})))


def _key(task: Any, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return the concurrency key of a call as it is stored.

    GUARANTEE: no key that a task or a caller gives, or that is built from arguments, is one of the engine's own.
    """
    if isinstance(key, EngineKey):
        return str(key)
    return _apart(_made(task, key, args, kwargs), (MARK, UNIQUE_KEYS, SCHEDULE_KEYS))


def _apart(key: str, prefixes: tuple[str, ...]) -> str:
    """Return a key as it is stored: with a mark before it if it starts with one of the engine's prefixes."""
    fitting = _fitting(key)
    return _fitting(MARK + key) if fitting.startswith(prefixes) else fitting


def _made(task: Any, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return a concurrency key: the given text with the call's arguments in place of its braces, or from a function."""
    if callable(key):
        try:
            return str(_unbound(key)(task, args, kwargs))
        except (LookupError, AttributeError, TypeError, ValueError) as exc:
            name = getattr(task, 'name', 'the task')
            raise CeleryError(f'{name}: no concurrency_key can be made of the arguments: {exc!r}') from exc
    if not isinstance(key, str) or '{' not in key or task is None:
        return str(key)
    try:
        return key.format(*args, **{**kwargs, **_bound(task, args, kwargs)})
    except (LookupError, AttributeError) as exc:
        raise CeleryError(f'{task.name}: concurrency_key {key!r} names an argument that the call lacks: {exc}') from exc
    except (TypeError, ValueError) as exc:
        raise CeleryError(f'{task.name}: concurrency_key {key!r} cannot be made of the arguments: {exc}') from exc


def _unbound(function: Any) -> Any:
    """Return the function behind a bound method: as an attribute of a task, a function becomes a method."""
    return getattr(function, '__func__', function)


def _bound(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by the names of the task's parameters, with defaults for omitted ones."""
    signature = inspect.signature(task.run)
    parameters = list(signature.parameters.values())[1 if getattr(task, 'takes_task_id', False) else 0:]
    try:
        bound = signature.replace(parameters=parameters).bind(*args, **kwargs)
    except TypeError:
        return {'args': args, 'kwargs': kwargs}
    bound.apply_defaults()
    return dict(bound.arguments)


def _fitting(key: str) -> str:
    """Return a key that fits its column: with a digest if it is too long or contains characters that cannot be stored.
    """
    shown = clean_text(key)
    if shown == key and len(key) <= LONGEST_KEY:
        return key
    # A digest of the JSON, which writes each character as ASCII: keys that look alike after cleaning stay different
    return f'{shown[:200]}:{uuid5(NAMESPACE_OID, json.dumps(key))}'
