"""IDs of tasks: one identity, one spelling.

For Celery an ID is text. In a row it is a UUID, and `uuid4().hex`, upper case, braces and `urn:uuid:` spell the same
UUID. A worker that knew a run by another spelling could not terminate it, and code that has the ID from the row would
find neither its result nor its message. So the IDs in each call and each lookup are converted to the spelling of
`str(UUID)`; those in messages of other programs are converted when a worker receives them. Such a program waits for
the result under its own spelling, and gets it (see `SPELLING`).
"""
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any
from uuid import UUID

from celery import bootsteps
from celery.result import AsyncResult
from celery.worker.control import Panel

__all__ = (
    'IDS',
    'SPELLING',
    'OneSpelling',
    'canonical',
    'canonical_ids',
    'other_spelling',
    'respell',
    'respelled',
    'spell_results',
    'wrapped_once',
)

#: The message header with the spelling that the sender of the message used for its ID.
SPELLING = 'netbox_celery_spelling'

#: Headers, and options of calls, that are IDs of runs. The ID of a group is not changed: Celery counts by its text.
IDS = ('task_id', 'id', 'root_id', 'parent_id')

#: Options, or headers, by name.
type Values = Mapping[str, Any]

_is_canonical = re.compile(r'[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}').fullmatch


def canonical(value: Any) -> Any:
    """Return a UUID, or text that spells one, in canonical spelling; any other value unchanged."""
    if isinstance(value, UUID):
        return str(value)
    if not isinstance(value, str) or _is_canonical(value):
        return value
    try:
        return str(UUID(value))
    except ValueError:
        return value


def canonical_ids(values: Values) -> Values:
    """Return the options of a call, or the headers of a message, with the IDs of runs in their canonical spelling.

    Returns:
        A new dict, or `values` itself if there is nothing to change.
    """
    changes = {
        name: new for name in IDS if (value := values.get(name)) is not None and (new := canonical(value)) is not value
    }
    return {**values, **changes} if changes else values


def respell(headers: Any) -> None:
    """Convert the IDs in the headers of a received message to canonical spelling, and keep the original spelling.

    Args:
        headers: The headers of Celery's message, which are changed in place.
    """
    if not isinstance(headers, dict):
        return
    before = headers.get('id')
    headers.update(canonical_ids(headers))
    if headers.get('id') != before:
        headers[SPELLING] = before


def wrapped_once(function: Callable[..., Any], wrap: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return a function of Celery's in our wrapper, or unchanged if it is already wrapped."""
    inner: Any = function
    while inner is not None:
        if getattr(inner, 'is_netbox_celery', False):
            return function
        inner = getattr(inner, '__wrapped__', None)
    wrapper = wrap(function)
    setattr(wrapper, 'is_netbox_celery', True)
    return wrapper


def other_spelling(request: Any, task_id: str) -> str | None:
    """Return how the sender of a message spells the ID of its run, or `None` if that is the canonical spelling."""
    spelling = getattr(request, SPELLING, None)
    return spelling if spelling != task_id and canonical(spelling) == task_id else None


def spell_results(app_class: type) -> None:
    """Give each `AsyncResult` of our app the canonical ID of its run.

    Programs also create results with `celery.result.AsyncResult(id)`, which no setting of the app affects.

    Args:
        app_class: The class of our apps; results of other apps are not changed.
    """
    def spell(init: Callable[..., None]) -> Callable[..., None]:
        @wraps(init)
        def init_with_canonical_id(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            if isinstance(self.app, app_class):
                self.id = canonical(self.id)
        return init_with_canonical_id
    AsyncResult.__init__ = wrapped_once(AsyncResult.__init__, spell)


class OneSpelling(bootsteps.Step):
    """Makes a worker use one spelling for a run's ID, however a message or a command spells it."""

    #: The required step comes first, so that this one wraps its handlers.
    requires = ('netbox_celery.engine.worker.messages:Messages',)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        create = consumer.create_task_handler

        def create_task_handler(*args: Any, **kwargs: Any) -> Callable[[Any], Any]:
            handle = create(*args, **kwargs)

            def on_task_received(message: Any) -> Any:
                respell(message.headers)
                return handle(message)
            return on_task_received
        consumer.create_task_handler = create_task_handler
        for command in ('revoke', 'terminate', 'query_task'):
            Panel.data[command] = wrapped_once(Panel.data[command], _spelled)


def _spelled(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command of Celery's remote control whose only or first argument is an ID, or several of them."""
    @wraps(command)
    def command_with_canonical_ids(state: Any, *args: Any, **kwargs: Any) -> Any:
        ids = {name: respelled(value) for name, value in kwargs.items() if name in ('task_id', 'ids')}
        return command(state, *map(respelled, args), **kwargs | ids)
    return command_with_canonical_ids


def respelled(ids: Any) -> Any:
    """Return an ID, or several of them, in canonical spelling."""
    return [canonical(id) for id in ids] if isinstance(ids, list | tuple | set | frozenset) else canonical(ids)
