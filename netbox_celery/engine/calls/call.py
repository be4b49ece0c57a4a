"""A call: which task it runs, with which arguments and options, and who calls.

A call is described once, before anything is sent, and never changes. `netbox_celery.engine.sending.describe` builds it
from what the caller passes, and does not modify the caller's arguments and options. Its row, its slot under a
concurrency key and its message are not part of it: sending the call creates them. Celery needs a dict of options that
it may modify: `message_options` builds it when the message is sent.
"""
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ..store.headers import HEADER
from .hooks import Invocation
from .options import NOT_SENT, Own, with_header
from .run import Run

__all__ = (
    'Call',
)


class Call(NamedTuple):
    """A call of a task. It is a named tuple, because creating a frozen dataclass takes several times as long."""
    app: Any
    name: str
    args: Sequence[Any] | None
    kwargs: Mapping[str, Any] | None
    #: Celery's options, with IDs in canonical spelling and signatures that JSON can represent. If the call gets a row,
    #: they also have the IDs of the run's root and parent, and points in time instead of lengths of time.
    options: Mapping[str, Any]
    #: The `netbox_*` options of the call, merged over those of its task.
    own: Own = Own()
    #: The settings of policies that the call itself gives.
    settings: Mapping[str, Any] = MappingProxyType({})
    #: The task; `None` if this process does not know it.
    task: Any = None
    #: Name of the queue that its message goes to: empty if it is unknown, `None` if it has not been determined.
    queue: str | None = None

    #: The task that makes the call, its request, and its run if that is tracked; each may be `None`.
    parent: Any = None
    request: Any = None
    run: Run | None = None

    #: Whether the call gets a row, or has one because it is the next attempt of a run.
    is_tracked: bool = True
    #: Whether it is the next attempt or the replacement of the run that calls; and whether it is the replacement.
    continues: bool = False
    replaces: bool = False
    #: Whether the caller gave the ID, which may then have been used before.
    id_is_given: bool = False
    #: Whether other code knows the ID already and may wait for the end of the run, as with a step of a workflow.
    id_is_known: bool = False
    #: Whether Celery makes the call after the body of a task has returned: no other code would repeat the call.
    is_next_step: bool = False
    #: ID of the run that precedes it in a chain.
    predecessor: str | None = None
    #: Calls the task's hooks for calls; `None` if the task has none.
    invocation: Invocation | None = None

    @property
    def task_id(self) -> str:
        """The ID of its run. For a call without a row Celery may choose it when the message goes out."""
        return self.options['task_id']

    @property
    def header(self) -> Any:
        """The engine's header, if the caller's own headers contain it (see `with_header`), or `None`."""
        return (self.options.get('headers') or {}).get(HEADER)

    def message_options(self, header: Any = None, *, is_deferred: bool = False) -> dict[str, Any]:
        """Return the options for the message: a new dict, which Celery may modify.

        Args:
            header: The engine's header (see `with_header`); `None`: the caller's headers stay as they are.
            is_deferred: Whether the message is sent after the call was made, as on commit. Options that only matter
                while the call is made are then omitted.
        """
        options = dict(self.options) if header is None else with_header(self.options, header)
        return {name: options[name] for name in options if name not in NOT_SENT} if is_deferred else options
