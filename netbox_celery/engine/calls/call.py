"""A call: what is to run, with what, and who calls. It is described once, before anything is sent, and never changed.

`netbox_celery.engine.sending.describe` makes it of what the caller gave, whose arguments and options stay untouched.
What becomes of it (its row, its place under a concurrency key, its message) is the result of sending it, and no part of
it. Celery wants a dict of options that it may change: `message_options` makes that, when the message goes out.
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
    """A call of a task. A named tuple, since a frozen dataclass takes several times as long to be made."""
    app: Any
    name: str
    args: Sequence[Any] | None
    kwargs: Mapping[str, Any] | None
    #: Celery's options, with IDs in one spelling and signatures that JSON can hold. If the call gets a row, they have
    #: the parents of its run as well, and points in time.
    options: Mapping[str, Any]
    #: The `netbox_*` options of the call over those of its task.
    own: Own = Own()
    #: What the call itself says of policies.
    settings: Mapping[str, Any] = MappingProxyType({})
    #: The task; `None` if this process does not know it.
    task: Any = None
    #: Name of the queue that it goes to: empty if that cannot be told, `None` if nobody has looked.
    queue: str | None = None

    #: The task that calls, its request, and its run if that is tracked; each may be `None`.
    parent: Any = None
    request: Any = None
    run: Run | None = None

    #: Whether it gets a row, or has one as the next attempt of a run.
    is_tracked: bool = True
    #: Whether it is the next attempt of the run that calls, or what replaces that; and whether it is the latter.
    continues: bool = False
    replaces: bool = False
    #: Whether the caller gave the ID, which may then have been used before.
    id_is_given: bool = False
    #: Whether somebody knows the ID already and may wait for the end of the run, as for that of a step of a workflow.
    id_is_known: bool = False
    #: Whether Celery calls after the body of a task has returned: nobody would call again.
    is_next_step: bool = False
    #: ID of the run that it follows in a chain.
    predecessor: str | None = None
    #: What tells the task of the call, if the task has a hook for that.
    invocation: Invocation | None = None

    @property
    def task_id(self) -> str:
        """The ID of its run. For a call without a row Celery may choose it when the message goes out."""
        return self.options['task_id']

    @property
    def header(self) -> Any:
        """What the caller's own headers say of the run (see `with_header`), or `None`."""
        return (self.options.get('headers') or {}).get(HEADER)

    def message_options(self, header: Any = None, *, is_deferred: bool = False) -> dict[str, Any]:
        """Return the options for the message: a new dict, which Celery may change.

        Args:
            header: What the message says of the run (see `with_header`); `None`: nothing but what the caller says.
            is_deferred: Whether the message goes out after the call was made, as on commit. What means something only
                while the call is made is left out then.
        """
        options = dict(self.options) if header is None else with_header(self.options, header)
        return {name: options[name] for name in options if name not in NOT_SENT} if is_deferred else options
