"""IDs of tasks: one identity, one spelling.

To Celery an ID is a text. In a row it is a UUID, and `uuid4().hex`, upper case, braces and `urn:uuid:` spell the same
one: a worker that knew it by another spelling would not find it when it is to be terminated, and neither its result nor
its message would be found by who knows it from the row. So all that a call or a lookup says is brought into the
spelling of `str(UUID)`; and so is what another program has sent, when a worker receives it. What that program waits for
has its own spelling, and it gets it (see `SPELLING`).
"""
import re
from functools import wraps
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

#: The message header that says how the ID was spelled by who sent the message.
SPELLING = 'netbox_celery_spelling'

#: Headers, and options of calls, that are IDs of runs. That of a group stays: Celery's counts go by its text.
IDS = ('task_id', 'id', 'root_id', 'parent_id')

_is_canonical = re.compile(r'[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}').fullmatch


def canonical(value):
    """Return a UUID, given as such or as text in any spelling, as text in its own; what is none as it is."""
    if isinstance(value, UUID):
        return str(value)
    if not isinstance(value, str) or _is_canonical(value):
        return value
    try:
        return str(UUID(value))
    except ValueError:
        return value


def canonical_ids(values):
    """Return the options of a call, or the headers of a message, with the IDs of runs in their canonical spelling.

    Returns:
        A new dict, or `values` itself if there is nothing to change.
    """
    changes = {
        name: new for name in IDS if (value := values.get(name)) is not None and (new := canonical(value)) is not value
    }
    return {**values, **changes} if changes else values


def respell(headers):
    """Bring the IDs in the headers of a received message into their canonical spelling; keep how its own was spelled.

    Args:
        headers: Those of Celery's message, which are changed.
    """
    if not isinstance(headers, dict):
        return
    before = headers.get('id')
    headers.update(canonical_ids(headers))
    if headers.get('id') != before:
        headers[SPELLING] = before


def wrapped_once(function, wrap):
    """Return a function of Celery's in our wrapper, or as it is if it has that already."""
    inner = function
    while inner is not None:
        if getattr(inner, 'is_netbox_celery', False):
            return function
        inner = getattr(inner, '__wrapped__', None)
    wrapper = wrap(function)
    wrapper.is_netbox_celery = True
    return wrapper


def other_spelling(request, task_id):
    """Return how the sender of a message spells the ID of its run, if that is another spelling of it, or `None`."""
    spelling = getattr(request, SPELLING, None)
    return spelling if spelling != task_id and canonical(spelling) == task_id else None


def spell_results(app_class):
    """Let each `AsyncResult` of our app know its run by the ID that results have.

    Programs make them by `celery.result.AsyncResult(id)` as well, which no setting of the app reaches.

    Args:
        app_class: The class of our apps; results of others stay as they are.
    """
    def spell(init):
        @wraps(init)
        def init_with_canonical_id(self, *args, **kwargs):
            init(self, *args, **kwargs)
            if isinstance(self.app, app_class):
                self.id = canonical(self.id)
        return init_with_canonical_id
    AsyncResult.__init__ = wrapped_once(AsyncResult.__init__, spell)


class OneSpelling(bootsteps.Step):
    """Lets a worker know a task by one ID, whatever the message, or a command, says."""

    #: That comes first, so that this one is around it.
    requires = ('netbox_celery.engine.worker.messages:Messages',)

    def __init__(self, consumer, **kwargs):
        super().__init__(consumer, **kwargs)
        create = consumer.create_task_handler

        def create_task_handler(*args, **kwargs):
            handle = create(*args, **kwargs)

            def on_task_received(message):
                respell(message.headers)
                return handle(message)
            return on_task_received
        consumer.create_task_handler = create_task_handler
        for command in ('revoke', 'terminate', 'query_task'):
            Panel.data[command] = wrapped_once(Panel.data[command], _spelled)


def _spelled(command):
    """Wrap a command of Celery's remote control whose only, or first argument is an ID, or several."""
    @wraps(command)
    def command_with_canonical_ids(state, *args, **kwargs):
        args = [respelled(arg) for arg in args]
        kwargs = {name: respelled(value) if name in ('task_id', 'ids') else value for name, value in kwargs.items()}
        return command(state, *args, **kwargs)
    return command_with_canonical_ids


def respelled(ids):
    """Return an ID, or several, in their spelling."""
    return [canonical(id) for id in ids] if isinstance(ids, list | tuple | set | frozenset) else canonical(ids)
