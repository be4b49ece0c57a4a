"""Reads and writes the signatures inside of messages: what runs after a call, and what the call is a part of.

A message holds the rest of its chain (`chain`, last step first), the body of its chord (`chord`) and its callbacks
(`link`, `link_error`) as signatures. These may have `netbox_*` options of their own, which are written in a portable
form before the message is sent. The signatures also show to which workflow a call belongs, before any other message of
the workflow is sent.
"""
from collections.abc import Iterator, Mapping
from functools import wraps
from typing import Any

from celery.app.task import Context
from celery.utils.functional import maybe_list
from django.db.models import Model
from kombu.exceptions import EncodeError

from ..calls.ids import IDS, canonical_ids
from ..calls.options import OWN_DICT, OWN_PREFIX, is_own
from ..calls.queues import refuse_reserved
from ..internals import chain_type
from ..store.branches import HEADER as BRANCH
from ..store.branches import current, is_branch
from ..store.payload import DEEPEST, check_depth, dumps

__all__ = (
    'DEEPEST_LINKS',
    'LINKS',
    'as_request',
    'called_tasks',
    'check_links',
    'first_steps',
    'forget_ids',
    'leaves',
    'portable',
    'root_of',
    'unsent',
    'with_branch',
    'with_portable_links',
)

#: Options that hold signatures.
LINKS = ('chain', 'chord', 'link', 'link_error')
#: How deep options with signatures may be nested in total. Each chord within the body of another one adds five levels,
#: as in a chain of groups and single tasks. The arguments in the signatures have the same limit as all others.
DEEPEST_LINKS = 3 * DEEPEST
#: Signatures that consist of others, with the keyword arguments that hold those.
PARTS = {
    'celery.chain': ('tasks',),
    'celery.group': ('tasks',),
    'celery.chord': ('header', 'body'),
    'celery.map': ('task',),
    'celery.starmap': ('task',),
    'celery.chunks': ('task',),
}
#: Those of them that call one task for each of several items; the items are data.
MAPPERS = ('celery.map', 'celery.starmap', 'celery.chunks')
#: Celery's own tasks that only call the tasks in their arguments.
CALLERS = frozenset((*PARTS, 'celery.chord_unlock'))
#: Subtask types of signatures that only call other signatures, whatever their names are.
CANVASES = ('chain', 'group', 'chord')


def called_tasks(name: str, args: Any, kwargs: Any) -> Iterator[str]:
    """Yield the names of the tasks that a call starts, so that the caller's permission for each can be checked.

    That is the task itself. For Celery's own tasks that call others (`celery.map`, `celery.chord`, ...) it is those
    others, with their callbacks. A task of Celery's own within another one is included as well, because the tasks that
    it calls may come as arguments.

    Args:
        name: Name of the task.
        args: Its positional arguments, or what a row holds of them.
        kwargs: Its keyword arguments, or what a row holds of them.
    """
    inner: list[str] = []
    if name in MAPPERS:
        # Celery accepts the name of a task instead of its signature. The items are data
        mapped = kwargs.get('task') if isinstance(kwargs, Mapping) else None
        if mapped is None and isinstance(args, list | tuple) and args:
            mapped = args[0]
        inner = [mapped] if isinstance(mapped, str) else list(_signed(mapped))
    elif name in CALLERS:
        inner = [*_signed(args), *_signed(kwargs)]
    yield from inner or [name]


def _signed(value: Any) -> Iterator[str]:
    """Yield the names of the tasks that the signatures in a value call."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _signed(item)
    elif isinstance(value, Mapping):
        if isinstance(value.get('task'), str) and value.get('subtask_type') not in CANVASES:
            yield value['task']
            yield from _signed(value.get('options'))
        else:
            for item in value.values():
                yield from _signed(item)


def forget_ids():
    """Allow a chain to be started more than once.

    Celery stores the ID of its last step in the chain at the first start, and reuses it at the next one. Because of our
    claim, the last step would then run only the first time.
    """
    if not hasattr(chain_type.run, '__wrapped__'):
        chain_type.run = _without_trace(chain_type.run)


def _without_trace(run):
    @wraps(run)
    def run_without_trace(chain, /, *args, **kwargs):
        own = 'task_id' in chain.options
        try:
            return run(chain, *args, **kwargs)
        finally:
            if not own:
                chain.options.pop('task_id', None)
    return run_without_trace


# Options of ours in signatures

def with_portable_links(options):
    """Return the options of a call with signatures that a message can hold (see `portable`).

    Returns:
        A new dict, or `options` itself if there is nothing to change.

    Raises:
        kombu.exceptions.EncodeError: A signature is nested too deeply.
    """
    changes = {}
    for name in LINKS:
        if value := options.get(name):
            try:
                if (new := portable(value)) is not value:
                    changes[name] = new
            except RecursionError as exc:
                raise EncodeError(f'{name} cannot be sent as JSON (it is nested too deeply)') from exc
    return {**options, **changes} if changes else options


def portable(value):
    """Return signatures with the `netbox_*` options in them written so that JSON can hold them.

    Users become primary keys, other objects pairs `('app.model', pk)`, tags their names. What needs no change is
    returned as it is, and nothing that the caller holds is changed.
    """
    if isinstance(value, list | tuple):
        items = [portable(item) for item in value]
        return value if all(new is old for new, old in zip(items, value)) else items
    if not isinstance(value, Mapping) or 'task' not in value:
        return value
    changes = {}
    if options := _portable_options(value['task'], value.get('options') or {}):
        changes['options'] = {**value['options'], **options}
    kwargs = value.get('kwargs') or {}
    if isinstance(kwargs, Mapping):
        inner = {
            key: new for key in PARTS.get(value['task'], ())
            if (old := kwargs.get(key)) is not None and (new := portable(old)) is not old
        } | _portable_own(kwargs)
        if inner:
            changes['kwargs'] = {**kwargs, **inner}
    return {**value, **changes} if changes else value


def _portable_options(name, options):
    """Return the options of a signature that must be written differently.

    Raises:
        QueueRefused: The name of its queue is reserved.
    """
    links = {
        name: new for name in LINKS if (old := options.get(name)) and (new := portable(old)) is not old
    }
    ids = options if name == 'celery.group' else canonical_ids(options)  # Celery counts by the ID of a group
    if queue := ids.get('queue'):
        refuse_reserved(getattr(queue, 'name', queue))
    return links | _portable_own(options) | {name: ids[name] for name in IDS if ids.get(name) is not options.get(name)}


def _portable_own(values):
    """Return those `netbox_*` options that must be written differently."""
    changed = {}
    for key, value in values.items():
        if not is_own(key):
            continue
        if key == OWN_DICT and isinstance(value, Mapping):
            inner = {name: new for name, old in value.items() if (new := _write(name, old)) is not old}
            if inner:
                changed[key] = {**value, **inner}
        elif (new := _write(key, value)) is not value:
            changed[key] = new
    return changed


def _write(name, value):
    name = name.removeprefix(OWN_PREFIX)
    if name == 'user' and not isinstance(value, int | str | None):
        return value.pk
    if name == 'object' and isinstance(value, Model):
        return [value._meta.label_lower, value.pk]
    if name == 'tags' and any(isinstance(tag, Model) for tag in value or ()):
        return [tag.name if isinstance(tag, Model) else tag for tag in value]
    return value


def with_branch(options):
    """Return the options of a call with the branch in which it is made, in its headers and in its signatures.

    An explicit branch is kept. The signatures name it since they may be sent by a process that is in no branch, such as
    a worker's main process.

    Returns:
        A new dict, or `options` itself outside of branches.

    Raises:
        ValueError: The explicit branch is invalid.
    """
    headers = options.get('headers')
    if headers and BRANCH in headers:
        branch = headers[BRANCH]
        if not is_branch(branch):
            raise ValueError(f'headers: {BRANCH} is not the schema ID of a branch: {branch!r:.200}')
    elif branch := current():
        options = {**options, 'headers': {**(headers or {}), BRANCH: branch}}
    return {**options, **_stamped_links(options, branch)} if branch else options


def _stamped_links(options, branch):
    return {name: _stamped(value, branch) for name in LINKS if (value := options.get(name))}


def _stamped(value, branch):
    """Return signatures with the branch of their call."""
    if isinstance(value, list | tuple):
        return [_stamped(item, branch) for item in value]
    if not isinstance(value, Mapping) or 'task' not in value:
        return value
    options = dict(value.get('options') or {})
    options |= _stamped_links(options, branch)
    kwargs = value.get('kwargs')
    if value['task'] in MAPPERS or value['task'] not in PARTS:
        headers = options.get('headers') or {}
        options['headers'] = {BRANCH: branch, **headers}
    elif isinstance(kwargs, Mapping):
        parts = {key: kwargs[key] for key in PARTS[value['task']] if kwargs.get(key)}
        kwargs = {**kwargs, **{key: _stamped(part, branch) for key, part in parts.items()}}
    return {**value, 'options': options, 'kwargs': kwargs}


def check_links(options):
    """Check that options, and the arguments of all signatures in them, are not nested too deeply.

    Args:
        options: The options of a call, or of a signature; as a whole they are within `DEEPEST_LINKS`.

    Raises:
        TypeError, ValueError: They are, or they cannot be encoded as JSON.
    """
    check_depth(dumps({name: value for name, value in options.items() if name not in LINKS}))
    for name in LINKS:
        _check_signatures(options.get(name) or ())


def _check_signatures(value):
    if isinstance(value, list | tuple):
        for item in value:
            _check_signatures(item)
    elif not isinstance(value, Mapping) or 'task' not in value:
        check_depth(dumps(value))
    else:
        kwargs = value.get('kwargs') or {}
        parts = PARTS.get(value['task'], ()) if isinstance(kwargs, Mapping) else ()
        check_depth(dumps(value.get('args')))
        check_depth(dumps({key: kwargs[key] for key in kwargs if key not in parts} if parts else kwargs))
        for key in parts:
            _check_signatures(kwargs.get(key) or ())
        check_links(value.get('options') or {})


# Workflows

def root_of(options):
    """Return the common root of a workflow that starts with several runs: the ID of its outermost group.

    Celery gives each of these runs its own root, and the body of a chord the root of the part that finished last.

    Args:
        options: Options of the call of one of the first runs.

    Returns:
        The ID of a group, or `None` if the call is not part of one.
    """
    if not (options.get('group_id') or options.get('chain')):
        return None
    root = None
    for __ in range(100):
        if chain := options.get('chain'):
            options = _last_options(chain[0]) or options
        root = options.get('group_id') or root
        if not (chord := options.get('chord')):
            break
        options = _last_options(chord)
    return root


def _last_options(signature):
    """Return the options of the last task of a signature."""
    while (name := signature.get('task')) in ('celery.chain', 'celery.chord'):
        if rest := (signature.get('options') or {}).get('chain'):
            signature = rest[0]
            continue
        kwargs = signature['kwargs']
        following = kwargs['tasks'][-1] if name == 'celery.chain' and kwargs.get('tasks') else kwargs.get('body')
        if following is None:
            break
        signature = following
    return signature.get('options') or {}


def leaves(signature, group_id=None):
    """Return the single tasks of a signature as signatures, in the order in which they run.

    Args:
        signature: Any signature, also as a dict.
        group_id: The group that it is a member of.

    Returns:
        A list. The last task of each member of a group has the ID of that group, as it would have if it were sent.
    """
    return unsent(signature, lambda leaf: True, group_id)


def unsent(signature, is_unsent, group_id=None):
    """Return the single tasks of a signature that were not sent, up to the first stage that was: the rest follows that.

    The body of a chord still follows if all parts of the header were sent, at least their first steps.

    Args:
        signature: Any signature, also as a dict.
        is_unsent: Called with each single task; returns whether it was not sent.
        group_id: The group that the signature is a member of.
    """
    stages = _stages(signature, group_id)
    if stages is None:
        options = signature.get('options') or {}
        if group_id and not options.get('group_id'):
            signature = {**signature, 'options': {**options, 'group_id': group_id}}
        return [signature] if is_unsent(signature) else []
    found = []
    for stage in stages:
        parts = [leaf for part, group in stage for leaf in unsent(part, is_unsent, group)]
        if not parts and any(leaves(part) for part, __ in stage):
            break
        found += parts
    return found


def first_steps(signature):
    """Return the single tasks of a signature that are sent first: the objects in it, not copies."""
    stages = _stages(signature, None)
    if stages is None:
        return [signature]
    return [step for part, __ in next(iter(stages), ()) for step in first_steps(part)]


def _stages(signature, group_id):
    """Return the stages of a signature: lists of what is sent together, each as `(signature, ID of its group)`.

    Returns `None` for a single task.
    """
    name, kwargs, options = signature.get('task'), signature.get('kwargs') or {}, signature.get('options') or {}
    if name == 'celery.chord':
        header, body = kwargs.get('header') or (), kwargs.get('body')
        if not isinstance(header, Mapping):
            header = {'task': 'celery.group', 'kwargs': {'tasks': header}, 'options': options}
        return [[(header, None)], [(body, group_id)]] if body else [[(header, None)]]
    tasks = [*(kwargs.get('tasks') or ())]
    if name == 'celery.chain':
        return [[(task, None)] for task in tasks[:-1]] + [[(task, group_id)] for task in tasks[-1:]]
    if name == 'celery.group':
        return [[(task, group_id or options.get('task_id')) for task in tasks]]
    return None


def as_request(task_id, name, options):
    """Return a call as the request that a worker would create for it, with everything that depends on its end."""
    return Context({
        'id': str(task_id), 'task': name, 'chain': options.get('chain'), 'chord': options.get('chord'),
        'errbacks': maybe_list(options.get('link_error')) or [], 'group': options.get('group_id'),
        'group_index': options.get('group_index'), 'root_id': options.get('root_id'),
        'parent_id': options.get('parent_id'), 'delivery_info': {}, 'headers': {},
    })
