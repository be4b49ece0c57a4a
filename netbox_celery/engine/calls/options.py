"""The options of a call: which are ours (`netbox_*`), which are stored in the row, and which stay in this process.

A `netbox_*` option can be given in the call or in the decorator, by itself or in the dict `netbox_kwargs`. The call
takes precedence over the decorator; in each of them, an option by itself takes precedence over the dict. No function
here modifies a dict that it is given.
"""
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import cache
from inspect import Parameter, signature
from typing import Any, NamedTuple, Self

from django.contrib.auth import get_user_model
from django.contrib.contenttypes.models import ContentType
from django.db import DEFAULT_DB_ALIAS
from django.db.models import Model, Q

from ..store.branches import current
from ..store.headers import HEADER, without_tracing
from ..store.times import aware, time_after

__all__ = (
    'NOT_SENT',
    'Options',
    'Own',
    'begun_of',
    'detached',
    'is_internal',
    'is_own',
    'lift',
    'parameter_names',
    'sent_options',
    'split',
    'start_time',
    'tag',
    'with_fixed_times',
    'with_header',
)

#: Execution options of a call, by name: Celery's, and in some places `netbox_*` ones.
type Options = Mapping[str, Any]

OWN_PREFIX = 'netbox_'
OWN_DICT = 'netbox_kwargs'
OWN_NAMES = ('name', 'user', 'object', 'value_max', 'data', 'tags', 'track', 'schedule')
#: Attributes of tasks that are options.
OWN_ATTRIBUTES = frozenset((*(OWN_PREFIX + name for name in OWN_NAMES), OWN_DICT))

#: Options that only matter in the process that makes the call, or that `send()` determines itself.
NOT_SENT = frozenset((
    'producer', 'publisher', 'connection', 'router', 'result_cls', 'task_type', 'add_to_parent', 'route_name',
))

#: Options that `apply_async` fills in from the task.
FROM_TASK = frozenset(('serializer', 'ignore_result'))


class Own(NamedTuple):
    """The `netbox_*` options of a call, merged with those of the decorator."""
    name: str | None = None
    user_id: int | None = None
    object_type_id: int | None = None
    object_id: int | None = None
    value_max: int | None = None
    data: object = None
    tags: tuple[Any, ...] = ()
    track: bool | None = None
    schedule_id: int | None = None

    @classmethod
    def merge(cls, task: Any, call: Mapping[str, Any]) -> Self:
        """Merge the options of a call (as `split` returns them) over those of the task's decorator."""
        fields: dict[str, Any] = {}
        for name, value in {**_flat(_declared(task)), **_flat(call)}.items():
            if value is not None:
                fields |= _FIELDS[name](value) if name in _FIELDS else {name: value}
        return cls(**fields)


def _declared(task: Any) -> dict[str, Any]:
    """Return the options of a task's decorator, without their prefix; an instance may have more than its class."""
    if task is None:
        return {}
    names = _declared_by(task.__class__)
    if not OWN_ATTRIBUTES.isdisjoint(vars(task)):
        names |= OWN_ATTRIBUTES & vars(task).keys()
    return {
        name.removeprefix(OWN_PREFIX): value for name in names if (value := getattr(task, name)) is not None
    }


@cache
def _declared_by(cls: type) -> frozenset[str]:
    """Return the names of the options that a class of tasks has. Most have one, and looking for the others is slow."""
    return frozenset(name for name in OWN_ATTRIBUTES if hasattr(cls, name))


def _flat(own: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return options together with those in `netbox_kwargs` among them, over which the others take precedence."""
    if 'kwargs' in own:
        spread = {key.removeprefix(OWN_PREFIX): value for key, value in (own['kwargs'] or {}).items()}
        own = spread | {name: value for name, value in own.items() if name != 'kwargs'}
    for name in own:
        if name not in OWN_NAMES:
            known = ', '.join(OWN_PREFIX + name for name in (*OWN_NAMES, 'kwargs'))
            raise TypeError(f'{OWN_PREFIX}{name} is not an option of netbox-celery; the options are {known}')
    return own


def is_internal(name: str) -> bool:
    """Whether a task is one of Celery's own building blocks (`celery.map`, `celery.chord_unlock`, ...)."""
    return name.startswith('celery.')


def is_own(name: Any) -> bool:
    """Whether an option is one of ours."""
    return isinstance(name, str) and name.startswith(OWN_PREFIX)


def split(options: Options) -> tuple[Options, dict[str, Any]]:
    """Return `(options, own)`: Celery's options, and ours without their prefix.

    Returns:
        New dicts; `options` itself if none of them is ours.
    """
    own = {key[len(OWN_PREFIX):]: value for key, value in options.items() if key.startswith(OWN_PREFIX)}
    if not own:
        return options, own
    return {key: value for key, value in options.items() if not key.startswith(OWN_PREFIX)}, own


def lift(task: Any, kwargs: Any, own: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Separate `netbox_*` options from a task's keyword arguments, as `delay(netbox_name=...)` passes them.

    An argument for a parameter of the task with such a name is not separated.

    Returns:
        `(kwargs, own)`; `kwargs` itself if there are none.
    """
    if not kwargs or not any(map(is_own, kwargs)):
        return kwargs, own
    parameters = parameter_names(task)
    rest: dict[str, Any] = {}
    lifted: dict[str, Any] = {}
    for key, value in kwargs.items():
        if is_own(key) and key not in parameters:
            lifted[key[len(OWN_PREFIX):]] = value
        else:
            rest[key] = value
    return rest, lifted | own


def parameter_names(task: Any) -> list[str]:
    """Return the names of the parameters that a task's function takes by name; none for an unknown task."""
    if task is None:
        return []
    return [
        name for name, parameter in signature(task.run).parameters.items()
        if parameter.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
    ]


def _user_id(user: Any) -> Any:
    """Return the primary key of a user, given as such, as a user, or by name; `None` for an anonymous user."""
    if isinstance(user, str):
        return get_user_model().objects.values_list('pk', flat=True).get(username=user)
    return getattr(user, 'pk', user)


def _reference(obj: Any) -> tuple[int, int]:
    """Return `(object_type_id, object_id)` for a NetBox object, or for a pair `('app.model', pk)`."""
    if isinstance(obj, Model):
        if obj.pk is None:
            raise ValueError(f'netbox_object: {obj!r} has not been saved')
        return ContentType.objects.get_for_model(obj, for_concrete_model=False).pk, obj.pk
    label, pk = obj
    return ContentType.objects.get_by_natural_key(*label.lower().split('.')).pk, int(pk)


def with_header(options: Options, header: Any = True) -> dict[str, Any]:
    """Return the options of a call with the engine's header, which says whether the run of the message has a row.

    Args:
        options: The options; they are not changed.
        header: Whether the run has a row; a dict if it has one and a worker needs to know more about the run.
    """
    headers = options.get('headers') or {}
    if header is True and isinstance(headers.get(HEADER), dict):
        header = headers[HEADER]  # it says more than that: this is a retry, or a row that is sent again
    return {**options, 'headers': {**headers, HEADER: header}}


def start_time(options: Options) -> datetime | None:
    """Return the time before which a run must not start, as an aware `datetime`, or `None`.

    Raises:
        ValueError: It is too close to an end of the calendar.
    """
    if countdown := options.get('countdown'):
        return time_after(countdown)
    return aware(options.get('eta'))


def with_fixed_times(options: Options) -> Options:
    """Return the options of a call with points in time where the caller gave lengths of time."""
    changes: dict[str, Any] = {}
    if eta := start_time(options):
        changes['eta'] = eta
    if isinstance(expires := options.get('expires'), int | float):
        changes['expires'] = time_after(expires)
    if not changes:
        return options
    return {name: value for name, value in options.items() if name != 'countdown' or not eta} | changes


def detached(options: Options) -> dict[str, Any]:
    """Return the options of a call with dicts and lists of their own, which later changes by the caller do not affect.

    Signatures become dicts, as messages hold them.
    """
    return {name: _detached(value) for name, value in options.items()}


def _detached(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _detached(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_detached(item) for item in value]
    return value


def begun_of(header: Any) -> int:
    """Return how often a row had been reused when a message with this header was sent (see `sending.used`)."""
    return header.get('begun', 0) if isinstance(header, dict) else 0


def sent_options(options: Options, task: Any) -> dict[str, Any]:
    """Return the options that a row keeps: those that are needed to send the message again.

    Empty options, and those that Celery takes from the task's own attributes, are omitted.
    """
    kept = {}
    for key, value in options.items():
        if value is None or value == [] or key in NOT_SENT or key == 'task_id':
            continue
        if key in FROM_TASK and value == getattr(task, key, None):
            continue
        if key == 'headers' and isinstance(value, dict) and not (value := without_tracing(value)):
            continue
        # Celery's settings declare the queue or exchange: its name is enough to find it again
        kept[key] = getattr(value, 'name', value) if key in ('queue', 'exchange') else value
    return kept


def _tags(tags: Iterable[Any]) -> tuple[Any, ...]:
    """Return tags that are given as such, or by name or slug.

    Raises:
        ValueError: There is no such tag, or it exists only in a branch.
    """
    in_branch = current()
    return tuple(_tag(tag) if isinstance(tag, str) else _tag(tag.name) if in_branch else tag for tag in tags)


def _tag(name: str) -> Any:
    from extras.models import Tag

    # Runs and their tags belong to main, also if the current branch is another one
    found = Tag.objects.using(DEFAULT_DB_ALIAS).filter(Q(name=name) | Q(slug=name)).first()
    if found is None:
        raise ValueError(f'netbox_tags: there is no tag {name!r}')
    return found


#: The fields of `Own` that follow from an option; the other options are fields themselves.
_FIELDS: dict[str, Callable[[Any], dict[str, Any]]] = {
    'user': lambda user: {'user_id': _user_id(user)},
    'object': lambda obj: dict(zip(('object_type_id', 'object_id'), _reference(obj))),
    'tags': lambda tags: {'tags': _tags(tags or ())},
    'schedule': lambda schedule: {'schedule_id': getattr(schedule, 'pk', schedule)},
}


def tag(ids: Iterable[int], tags: Iterable[Any]) -> None:
    """Give runs their tags (`netbox_tags`).

    Args:
        ids: Primary keys of the runs.
        tags: The tags.
    """
    from extras.models import TaggedItem

    from ...models import CeleryResult

    content_type = ContentType.objects.get_for_model(CeleryResult)
    TaggedItem.objects.using(DEFAULT_DB_ALIAS).bulk_create(
        TaggedItem(tag=tag, content_type=content_type, object_id=id) for id in ids for tag in tags
    )
