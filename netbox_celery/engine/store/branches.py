"""The branch of NetBox's data in which a call is made and its body runs.

NetBox itself has no branches; a plugin may add them, and then registers itself here (`install`). A branch is identified
by a short text, which each message carries in a header of its own. So all tasks of a call run in the branch in which
the call was made: its retries, the steps and callbacks after it, and what its body calls. The row of a run has the text
as well, to show it and to run the call again.

The rows themselves, and everything that the engine does, belong to no branch: they are in main.
"""
from collections.abc import Callable, Iterable
from typing import Any

from django.db import connections

from ..exceptions import BranchNotReady
from .payload import clean_text

__all__ = (
    'HEADER',
    'Branches',
    'alias',
    'branch_of',
    'check',
    'current',
    'enter',
    'enter_run',
    'install',
    'is_branch',
    'is_gone',
    'keep',
    'leave',
    'leave_run',
    'mark_request',
    'named',
    'opened',
    'owner_id',
    'read_alias',
    'shown',
    'warm_up',
)

#: The message header that names the branch of a call; without it, the call is in main.
HEADER = 'netbox_branch'
#: The longest identifier of a branch that the column of a row holds, characters.
LONGEST = 100


class Branches:
    """The interface to branches, for a NetBox without any: the plugin that has branches installs a subclass."""

    def current(self) -> str:
        """Return the branch in which this code runs, empty in main."""
        return ''

    def alias(self) -> str | None:
        """Return the alias of the database connection of the branch in which this code runs, or `None` in main."""
        return None

    def aliases(self) -> Iterable[str]:
        """Return the aliases of the branch connections that this thread has opened: Django does not list them."""
        return ()

    def owner_id(self) -> int | None:
        """Return the primary key of the user who owns the branch in which this code runs, or `None`."""
        return None

    def enter(self, branch: str) -> Any:
        """Let this code run in a branch from now on. Returns the argument for `leave`.

        Raises:
            BranchNotReady: The branch cannot be used.
        """
        raise BranchNotReady(self.check(branch))

    def enter_main(self) -> Any:
        """Let this code run in main from now on. Returns the argument for `leave`."""

    def leave(self, entered: Any) -> None:
        """Return to the branch, or to main, in which `enter` was called."""

    def check(self, branch: str) -> str:
        """Return the reason why nothing can run in a branch, or an empty string."""
        return f'The branch {branch} is not known here: NetBox Branching is not installed'

    def is_gone(self, branch: str) -> bool:
        """Whether a branch can never be used again."""
        return False

    def read_alias(self, branch: str, model: Any) -> str | None:
        """Return the alias of the connection from which objects of a model are read for a row; `None` for the default.

        Args:
            branch: The branch of the row.
            model: The model. Not every model has separate objects in branches.
        """
        return None

    def shown(self, branches: set[str]) -> dict[str, dict[str, Any]]:
        """Return what pages show about branches, for those that still exist.

        Returns:
            Dicts by the texts in the rows: `id`, `name`, `url`, and `status` with `label` and `color`.
        """
        return {}

    def named(self, names: Iterable[str]) -> list[str]:
        """Return the branches with the given names, as a list of the texts in the rows."""
        return []

    def mark_request(self, request: Any) -> None:
        """Record the branch in the request under which a body changes objects."""

    def warm_up(self) -> None:
        """Do once in a worker, before it forks, what each of its processes would otherwise do by itself."""


_branches = Branches()


def install(branches: Branches) -> None:
    """Install the implementation that knows the branches."""
    global _branches
    _branches = branches


def current() -> str:
    """Return the branch in which this code runs, empty in main."""
    return _branches.current()


def alias() -> str | None:
    """Return the alias of the database connection of the branch in which this code runs, or `None` in main."""
    return _branches.alias()


def opened() -> list[Any]:
    """Return the connections that this thread has opened through Django, also those of branches."""
    return [*connections.all(initialized_only=True), *(connections[alias] for alias in _branches.aliases())]


def owner_id() -> int | None:
    """Return the primary key of the user who owns the branch in which this code runs, or `None`."""
    return _branches.owner_id()


def enter(branch: str) -> Any:
    """Let this code run in a branch from now on (see `Branches.enter`)."""
    return _branches.enter(branch)


def leave(entered: Any) -> None:
    """Return to the branch, or to main, in which `enter` was called."""
    _branches.leave(entered)


def check(branch: str) -> str:
    """Return the reason why nothing can run in a branch, or an empty string; also for main (`''`)."""
    return _branches.check(branch) if branch else ''


def is_gone(branch: str) -> bool:
    """Whether a branch can never be used again."""
    return _branches.is_gone(branch)


def read_alias(branch: str, model: Any) -> str | None:
    """Return the alias of the connection from which objects of a model are read (see `Branches.read_alias`)."""
    return _branches.read_alias(branch, model)


def shown(branches: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return what pages show about branches, by the text in the rows (see `Branches.shown`)."""
    wanted = {branch for branch in branches if branch}
    return _branches.shown(wanted) if wanted else {}


def named(names: list[str]) -> list[str]:
    """Return the branches that are given by their names or by the texts in the rows, as a list of these texts."""
    return [*names, *_branches.named(names)]


def mark_request(request: Any) -> None:
    """Record the branch in the request under which a body changes objects."""
    _branches.mark_request(request)


def warm_up() -> None:
    """Do once in a worker, before it forks, what each of its processes would otherwise do by itself."""
    _branches.warm_up()


def keep[T](function: Callable[[], T]) -> Callable[[], T]:
    """Return a function that calls another one later, in the branch in which this code runs now."""
    branch = current()
    if not branch:
        return function

    def call_in_branch() -> T:
        if current() == branch:
            return function()
        entered = enter(branch)
        try:
            return function()
        finally:
            leave(entered)
    return call_in_branch


# Calls

def is_branch(value: object) -> bool:
    """Whether a value can identify a branch, or main."""
    return value is None or isinstance(value, str) and len(value) <= LONGEST and value == clean_text(value)


def branch_of(options: dict[str, Any]) -> str:
    """Return the branch in the options of a call, empty for main."""
    headers = options.get('headers')
    return (headers.get(HEADER) or '') if headers else ''


# Runs

def enter_run(task: Any) -> None:
    """Let the body of a run, and what Celery does after it, run in the branch that its message names, or else in main.

    GUARANTEE: this holds even if the previous run left this thread in another branch, because it was interrupted while
    it entered or left its own, for example by a soft time limit.

    Raises:
        BranchNotReady: The branch cannot be used any more: the body does not run.
    """
    request = task.request_stack.top
    if request is None or request.called_directly or request.is_eager:
        return
    if 'netbox_branch_entered' in request.__dict__:
        return
    if branch := request.get(HEADER):
        request.netbox_branch_entered = _branches.enter(branch)
    elif _branches.current():
        request.netbox_branch_entered = _branches.enter_main()


def leave_run(request: Any) -> None:
    """Return to main at the end of a run."""
    if (entered := request.__dict__.pop('netbox_branch_entered', None)) is not None:
        _branches.leave(entered)
