"""In which branch of NetBox's data a call is made, and its body runs.

NetBox by itself has no branches; a plugin may give it some, and then says so here (`install`). A branch is known by a
short text, which goes with each message in a header of its own, so that every task of a call runs where that was made:
its retries, the steps and callbacks after it, and what its body calls. The row of a run has it as well, for people and
to run it again.

The rows themselves, and all that the engine does, belong to no branch: they are main's.
"""
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

#: The message header that names the branch of a call; without it, main is meant.
HEADER = 'netbox_branch'
#: What the column of a row holds of a branch, characters.
LONGEST = 100


class Branches:
    """What knows of branches. This one knows of none."""

    def current(self):
        """Return the branch in which this code runs, a text; empty in main."""
        return ''

    def alias(self):
        """Return the alias of the database connection of the branch in which this code runs, or `None` in main."""

    def aliases(self):
        """Return the aliases of the connections of branches that this thread has made: Django knows nothing of them."""
        return ()

    def owner_id(self):
        """Return the primary key of the user who owns the branch in which this code runs, or `None`."""

    def enter(self, branch):
        """Make a branch the one in which this code runs; returns what `leave` needs.

        Raises:
            BranchNotReady: That cannot be.
        """
        raise BranchNotReady(self.check(branch))

    def enter_main(self):
        """Let no branch be the one in which this code runs; returns what `leave` needs."""

    def leave(self, entered):
        """Go back to where `enter` was called."""

    def check(self, branch):
        """Return in words why nothing can run in a branch, or an empty string."""
        return f'The branch {branch} is not known here: NetBox Branching is not installed'

    def is_gone(self, branch):
        """Whether nothing will ever run in a branch again."""
        return False

    def read_alias(self, branch, model):
        """Return the alias of the connection from which objects of a model are read for a row; `None`: as ever.

        Args:
            branch: The branch of the row, a text.
            model: The model. Not each has other objects in branches.
        """

    def shown(self, branches):
        """Return what people are shown of branches, those that there still are.

        Returns:
            A dict by the texts that rows have, of dicts: `id`, `name`, `url`, and `status` with `label` and `color`.
        """
        return {}

    def named(self, names):
        """Return the branches that have some names, a list of texts as rows have them."""
        return []

    def mark_request(self, request):
        """Note in the request under which a body makes changes, in which branch it does."""

    def warm_up(self):
        """Do in a worker, before its processes are made, what each of them would otherwise do by itself."""


_branches = Branches()


def install(branches):
    """Let somebody answer who knows of branches: a `Branches`."""
    global _branches
    _branches = branches


def current():
    """Return the branch in which this code runs, a text; empty in main."""
    return _branches.current()


def alias():
    """Return the alias of the database connection of the branch in which this code runs, or `None` in main."""
    return _branches.alias()


def opened():
    """Return the connections that this thread has made through Django, a list: also those of branches."""
    return [*connections.all(initialized_only=True), *(connections[alias] for alias in _branches.aliases())]


def owner_id():
    """Return the primary key of the user who owns the branch in which this code runs, or `None`."""
    return _branches.owner_id()


def enter(branch):
    """Make a branch the one in which this code runs (see `Branches.enter`)."""
    return _branches.enter(branch)


def leave(entered):
    """Go back to where `enter` was called."""
    _branches.leave(entered)


def check(branch):
    """Return in words why nothing can run in a branch, or an empty string; also for main (`''`)."""
    return _branches.check(branch) if branch else ''


def is_gone(branch):
    """Whether nothing will ever run in a branch again."""
    return _branches.is_gone(branch)


def read_alias(branch, model):
    """Return the alias of the connection from which objects of a model are read (see `Branches.read_alias`)."""
    return _branches.read_alias(branch, model)


def shown(branches):
    """Return what people are shown of branches, by the text that rows have (see `Branches.shown`)."""
    wanted = {branch for branch in branches if branch}
    return _branches.shown(wanted) if wanted else {}


def named(names):
    """Return the branches that are meant by some names, or by the texts that rows have, a list of these texts."""
    return [*names, *_branches.named(names)]


def mark_request(request):
    """Note in the request under which a body makes changes, in which branch it does."""
    _branches.mark_request(request)


def warm_up():
    """Do in a worker, before its processes are made, what each of them would otherwise do by itself."""
    _branches.warm_up()


def keep(function):
    """Return a function that is called later, as one that is called in the branch in which this code runs now."""
    branch = current()
    if not branch:
        return function

    def call_in_branch():
        if current() == branch:
            return function()
        entered = enter(branch)
        try:
            return function()
        finally:
            leave(entered)
    return call_in_branch


# Calls

def is_branch(value):
    """Whether a value can name a branch, or main."""
    return value is None or isinstance(value, str) and len(value) <= LONGEST and value == clean_text(value)


def branch_of(options):
    """Return the branch that the options of a call name, a text; empty for main."""
    headers = options.get('headers')
    return (headers.get(HEADER) or '') if headers else ''


# Runs

def enter_run(task):
    """Let the body of a run, and what Celery does after it, run in the branch that its message names, or else in main.

    GUARANTEE: it does so wherever the run before has left this thread: that may have been interrupted, as by a soft
    time limit, while it entered its branch or left it.

    Raises:
        BranchNotReady: It is not to be had any more: the body does not run.
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


def leave_run(request):
    """Go back to main at the end of a run."""
    if (entered := request.__dict__.pop('netbox_branch_entered', None)) is not None:
        _branches.leave(entered)
