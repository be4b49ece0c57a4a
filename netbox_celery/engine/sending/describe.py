"""Builds the `Call` from what the caller passes, in steps that each take values and return new ones.

The caller's objects are not modified: neither arguments and options, nor the headers and signatures in them.
"""
import logging
from collections.abc import Mapping
from uuid import uuid4

from ...config import get_config
from ..calls.call import Call
from ..calls.hooks import invocation_of
from ..calls.ids import SPELLING, canonical_ids
from ..calls.options import Own, is_internal, lift, split, with_fixed_times
from ..calls.policies import has_policy, split_settings
from ..calls.queues import check_call
from ..calls.run import get_run
from ..catalogue.strategies import has_own_strategy, refuse_branch, refuse_row
from ..internals import registered
from ..store.branches import HEADER as BRANCH
from ..store.branches import branch_of
from ..store.payload import is_uuid
from ..store.times import check_limits
from ..workflows.canvas import root_of, with_branch, with_portable_links
from .replace import takes_over

__all__ = (
    'complete',
    'describe',
    'find_task',
    'is_tracked',
    'wants_row',
)

logger = logging.getLogger(__name__)

#: Options with steps that wait for this call, by its ID: so the call cannot become another run.
DEPENDENTS = ('chain', 'chord', 'link', 'group_id')


def describe(app, name, args, kwargs, options):
    """Describe a call.

    Args:
        app: The Celery app.
        name: Name of the task.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        options: Execution options, Celery's and `netbox_*`.

    Returns:
        A `Call`.

    Raises:
        TypeError, ValueError: An option is not valid.
        celery.exceptions.CeleryError: The task cannot have a row, and the call asks for one.
        celery.exceptions.QueueNotFound, QueueRefused: The call cannot go to its queue.
        kombu.exceptions.EncodeError: A signature in the options cannot be sent.
    """
    options, asked = split(options)
    id_is_known = asked.pop('id_is_known', False)  # of a call on commit
    options, settings = split_settings(options)
    options = canonical_ids(options)
    check_limits(options)
    options = with_branch(with_portable_links(options))
    task = options.get('task_type') or find_task(app, name)
    if 'task_type' not in options:
        kwargs, asked = lift(task, kwargs, asked)
    queue = check_call(app, name, args, kwargs, options, task)
    parent = app.current_worker_task
    request = parent.request_stack.top if parent is not None else None
    run = get_run(request)
    if request is not None and _continues(options, task, settings, request, run):
        options, replaces, has_row = _next(options, request, run)
        return Call(
            app, name, args, kwargs, options, settings=settings, task=task, queue=queue, parent=parent,
            request=request, run=run, is_tracked=has_row, continues=True, replaces=replaces,
        )
    own, has_row = _decide_on_row(app, name, kwargs, options, task, asked)
    id_is_given = bool(options.get('task_id'))
    # Celery gives the ID of the parent, a body does not. For tasks of other classes it is not recorded that the body
    # has returned
    has_returned = run is not None and run.returned
    is_named = run is not None and options.get('parent_id') == run.task_id
    invocation = invocation_of(task, args, kwargs, options)
    if has_row:
        options = complete(options, request)
    elif invocation is not None:  # hooks get the ID before Celery would choose one
        options = _with_id(options)
    return Call(
        app, name, args, kwargs, options, own=own, settings=settings, task=task, queue=queue, parent=parent,
        request=request, run=run, is_tracked=has_row,
        id_is_given=id_is_given and not options.get('retries'),
        id_is_known=id_is_known or parent is not None and id_is_given or any(map(options.get, DEPENDENTS)),
        is_next_step=is_named or has_returned,
        predecessor=options['parent_id'] if is_named and has_returned else None,
        invocation=invocation,
    )


def find_task(app, name):
    """Return the task with a name, or `None` if it is not registered in this process."""
    return registered(app).get(name) if app.finalized else app.tasks.get(name)


# Whether a call gets a row

def is_tracked(task):
    """Whether runs of a task get a row, unless the call or its message says otherwise.

    Args:
        task: A task object, or `None` if the name is not registered in this process: such a call is tracked, so that
            the caller can see how it ends.
    """
    if task is None:
        return True
    if is_internal(task.name) or has_own_strategy(task):
        return False
    return getattr(task, 'netbox_track', get_config().track == 'all')


def wants_row(task, own):
    """Whether a call gets a row.

    Args:
        task: As for `is_tracked`.
        own: The `Own` options of the call.
    """
    return is_tracked(task) if own.track is None or has_own_strategy(task) else own.track


def _decide_on_row(app, name, kwargs, options, task, asked):
    """Return the `Own` options of a call, and whether it gets a row."""
    inner = _inner_task(app, name, kwargs)
    own = Own.merge(inner or task, asked)
    if has_own_strategy(task):
        _check_untracked(task, asked, options)
        return own, False
    return own, (wants_row(inner or task, own) or takes_over(options)) and _usable_id(options)


def _usable_id(options):
    """Whether a row can have the ID. Celery accepts any string; the ID of a row is a UUID."""
    if not options.get('task_id') or is_uuid(str(options['task_id'])):
        return True
    logger.warning('Task ID %r is not a UUID: the run is not tracked', options['task_id'])
    return False


def _check_untracked(task, own, options):
    """Check that a call of a task whose runs no worker claims does not ask for a row, and does not have one already.

    Raises:
        celery.exceptions.CeleryError: It asks for one or has one, or it is made in a branch.
    """
    if Own.merge(None, own).track or getattr(task, 'netbox_track', False) and not _is_default(task):
        refuse_row(task)
    if takes_over(options):
        refuse_row(task, 'The task cannot replace a task that has a row.')
    if branch := branch_of(options):
        refuse_branch(task, branch)


def _is_default(task):
    """Whether the option `netbox_track` of a task is the default of the base class of tasks."""
    owners = (task, *type(task).__mro__)
    owner = next(owner for owner in owners if 'netbox_track' in vars(owner))
    return owner is not task and owner.__module__ == 'netbox_celery.tasks'


def _inner_task(app, name, kwargs):
    """Return the task that a `map` or `starmap` calls for each item, or `None`."""
    if name in ('celery.map', 'celery.starmap') and kwargs and isinstance(kwargs.get('task'), Mapping):
        return find_task(app, kwargs['task'].get('task'))
    return None


# The next attempt of a run, and its replacement

def _continues(options, task, settings, request, run):
    """Whether a call is the next attempt or the replacement of the run that makes it, so that it has a row already."""
    if not options.get('task_id') or options['task_id'] != request.id:
        return False
    # A replacement has to be admitted like any call; a retry was admitted with its first attempt
    return run is None or not run.replaced or not has_policy(task, settings)


def _next(options, request, run):
    """Return the options of such a call, whether it replaces the task, and whether it has a row."""
    replaces = (options.get('replaced_task_nesting') or 0) > (request.replaced_task_nesting or 0)
    has_row = run is not None and (run.replaced or not replaces)
    options = _options_of_next(options, request)
    return with_fixed_times(options) if has_row and replaces else options, replaces, has_row


def _options_of_next(options, request):
    """Return the options of the next attempt: in the branch of this one, even if the body has changed the header."""
    headers = {name: value for name, value in (options.get('headers') or {}).items() if name != BRANCH}
    headers |= {name: value for name in (BRANCH, SPELLING) if (value := request.get(name))}
    return {**options, 'headers': headers}


# What Celery would determine only when the message is sent, which may be later

def complete(options, request=None):
    """Return the options of a call with its ID, its parents and its times.

    Args:
        options: The options.
        request: The request of the task that calls, or `None`.
    """
    changes = {'task_id': str(options.get('task_id') or uuid4()), 'root_id': options.get('root_id')}
    if request is not None:
        changes['root_id'] = changes['root_id'] or request.root_id or request.id
        changes['parent_id'] = options.get('parent_id') or request.id
    changes['root_id'] = changes['root_id'] or root_of(options)
    return with_fixed_times({**options, **changes})


def _with_id(options):
    return options if options.get('task_id') else {**options, 'task_id': str(uuid4())}
