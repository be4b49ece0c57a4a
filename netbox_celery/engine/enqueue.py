"""A call becomes a row, and then a message.

Everything that starts a task (`delay`, canvas, retries, beat, `send_task`) ends in `app.send_task`, which hands over
to `send()`. In a transaction the row is part of it and the message goes out on commit; outside of one, row and message
follow each other at once. A row without `sent` is one whose message may not have gone out: the sweep sends it (again),
and the claim makes sure that it runs once.
"""
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

from dateutil.parser import isoparse
from django.db import DatabaseError, connection, transaction
from kombu.exceptions import EncodeError

from .. import host
from ..config import get_config
from . import lifecycle
from .canvas import make_portable, root_of
from .database import execute, get_connection
from .options import NOT_SENT, Own, is_internal, lift, sent_options, split, tag
from .payload import clean_line, cut_json, dumps, limited_jsonb, to_jsonb
from .recorder import recorder
from .run import get_run
from .upstream import close_dependents
from .workflow import are_orphans, insert_child, refuse, takes_over

__all__ = (
    'HEADER',
    'build_row',
    'complete',
    'find_task',
    'foreign_row',
    'is_tracked',
    'mark',
    'note_refusal',
    'payload_columns',
    'send',
)

logger = logging.getLogger(__name__)

#: The message header that says that a run has a row (or, if `False`, shall have none).
HEADER = 'netbox_celery'

#: Columns without a default in the database.
CONSTANTS = {
    'custom_field_data': "'{}'", 'reason': "''", 'step': "''", 'worker': "''", 'attempt': '0', 'attempts': "'[]'",
    'error': "''", 'traceback': "''", 'claims': '0', 'in_backend': 'false',
}
COLUMNS = (
    'created', 'last_updated', 'task_id', 'celery_name', 'name', 'args', 'kwargs', 'options', 'queue', 'user_id',
    'object_type_id', 'object_id', 'status', 'scheduled', 'expires', 'value_max', 'data', 'request_id', 'parent_id',
    'root_id', 'group_id', 'message', 'nesting', 'schedule_id',
)
INSERT = f"""
    INSERT INTO {lifecycle.TABLE} ({", ".join((*CONSTANTS, *COLUMNS))})
    VALUES ({", ".join((*CONSTANTS.values(), *(f"%({column})s" for column in COLUMNS)))})
    ON CONFLICT (task_id) DO NOTHING RETURNING id
"""


def is_tracked(task):
    """Whether runs of a task get a row if neither the call nor its message says anything else.

    Args:
        task: A task object, or `None` for a name that this process knows no task of: tracked, since whoever calls it
            wants to see what becomes of it.
    """
    if task is None:
        return True
    if is_internal(task.name):
        return False
    return getattr(task, 'netbox_track', get_config().track == 'all')


def mark(options, tracked=True):
    """Say in the headers of a message whether its run has a row, in the caller's own dict of options."""
    options['headers'] = {**(options.get('headers') or {}), HEADER: tracked}


def send(app, publish, name, args, kwargs, options):
    """Send a task: what `NetBoxCelery.send_task` does.

    Args:
        app: The Celery app.
        publish: Celery's own `send_task`.
        name: Name of the task.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        options: Execution options, Celery's and `netbox_*`; left as they are.

    Returns:
        An `AsyncResult`.
    """
    options, own = split(options)
    make_portable(options)
    task = options.get('task_type') or find_task(app, name)
    if 'task_type' not in options:
        kwargs, own = lift(task, kwargs, own)
    parent = app.current_worker_task
    request = parent.request_stack.top if parent is not None else None
    run = get_run(request)

    if request is not None and options.get('task_id') and options['task_id'] == request.id:
        return _continue(publish, name, args, kwargs, options, parent, run)
    inner = _inner_task(app, name, kwargs)
    own = Own.merge(inner or task, own)
    tracked = is_tracked(inner or task) or takes_over(name, options) if own.track is None else own.track
    if not tracked or not _usable_id(options):
        if own.track is False:
            mark(options, False)
        return publish(name, args, kwargs, **options)
    return _send_tracked(app, publish, name, args, kwargs, complete(app, options, parent), own, task, run)


def find_task(app, name):
    return app._tasks.get(name) if app.finalized else app.tasks.get(name)


def _usable_id(options):
    """Whether the ID can be a row's. Celery takes any string; a row's is a UUID."""
    try:
        return not options.get('task_id') or bool(UUID(str(options['task_id'])))
    except ValueError:
        logger.warning('Task ID %r is not a UUID: the run is not tracked', options['task_id'])
        return False


def _inner_task(app, name, kwargs):
    """Return the task that a `map` or `starmap` calls for each item, or `None`."""
    if name in ('celery.map', 'celery.starmap') and kwargs and isinstance(kwargs.get('task'), Mapping):
        return find_task(app, kwargs['task'].get('task'))
    return None


def _continue(publish, name, args, kwargs, options, parent, run):
    """Send the next attempt of the current run, or what the task replaced itself with: its row exists."""
    mark(options, run is not None)
    if run is not None:
        # The next attempt may start at once, in another process: this one's lines come first.
        recorder.flush(run)
        request = parent.request_stack.top
        if (name, list(args or ()), kwargs or {}) != (parent.name, list(request.args or ()), request.kwargs or {}):
            _remember(run.task_id, name, args, kwargs, options, claims=run.claims)
        run.next_eta = _when(options)
        run.continued = True
    return publish(name, args, kwargs, **options)


def _remember(task_id, name, args, kwargs, options, **which):
    """Keep what it takes to send a message again that is not the one that its row was made for."""
    try:
        message = dumps([list(args or ()), kwargs or {}, name, sent_options(options, None)])
        lifecycle.remember(get_connection(), task_id, message, **which)
    except (DatabaseError, TypeError, ValueError):
        logger.exception('Task %s[%s] could not be sent again, if that was necessary', name, task_id)


def complete(app, options, parent):
    """Fix now what Celery would work out when the message goes out, which may be later: ID, parents, times."""
    options['task_id'] = str(options.get('task_id') or uuid4())
    if parent is not None:
        request = parent.request_stack.top
        if request is not None:
            options['root_id'] = options.get('root_id') or request.root_id or request.id
            options['parent_id'] = options.get('parent_id') or request.id
    if not options.get('root_id'):
        options['root_id'] = root_of(options)
    if eta := _when(options):
        options['eta'] = eta
        options.pop('countdown', None)
    if isinstance(options.get('expires'), int | float):
        options['expires'] = datetime.now(UTC) + timedelta(seconds=options['expires'])
    return options


def _when(options):
    """Return the time before which the task must not start, as an aware `datetime`, or `None`."""
    if countdown := options.get('countdown'):
        return datetime.now(UTC) + timedelta(seconds=countdown)
    return _aware(options.get('eta'))


def _aware(value):
    if not value:
        return None
    if isinstance(value, str):
        value = isoparse(value)
    return value if value.tzinfo else value.astimezone()


def _send_tracked(app, publish, name, args, kwargs, options, own, task, run):
    row = build_row(app, name, args, kwargs, options, own, task, run)
    try:
        # A row that cannot be made does not spoil the caller's transaction.
        with transaction.atomic() if connection.in_atomic_block else nullcontext():
            id = _insert(row, own)
        if id is None and row['nesting']:
            _remember(options['task_id'], name, args, kwargs, options, nesting=row['nesting'])
    except DatabaseError:
        # The task is worth more than its row.
        logger.exception('Task %s[%s] is sent without being tracked', name, options['task_id'])
        id = None
        mark(options, False)
    else:
        mark(options)
    if not connection.in_atomic_block:
        return _send_now(app, publish, name, args, kwargs, options, row, id)
    later = {key: value for key, value in options.items() if key not in NOT_SENT}
    transaction.on_commit(partial(_send_on_commit, app, publish, name, args, kwargs, later, id))
    return _promise(app, options)


def _send_now(app, publish, name, args, kwargs, options, row, id):
    if row.get('refused'):
        refuse(app, name, options)
        return _promise(app, options)
    try:
        result = publish(name, args, kwargs, **options)
    except Exception as exc:
        if id is not None:
            note_refusal([id], exc)
            close_dependents(app, name, options, exc)
        raise
    if id is not None:
        recorder.sent(id)
    return result


def _insert(row, own):
    """Insert a row with the caller's connection; returns its primary key, or `None` if the ID was taken."""
    rows = execute(connection, INSERT, row) if row['parent_id'] is None else insert_child(INSERT, row)
    if not rows:
        return None
    if own.tags:
        tag(rows[0][:1], own.tags)
    return rows[0][0]


def note_refusal(ids, exc):
    """Write that the broker refused messages; whoever called gets to know it in any case."""
    try:
        lifecycle.publish_failed(connection, ids, f'The broker did not accept the message: {exc}')
    except DatabaseError:
        logger.exception('Runs %s were not sent, which could not be written', ids)


def _send_on_commit(app, publish, name, args, kwargs, options, id):
    try:
        if id is not None and options.get('parent_id') and are_orphans([id], options['parent_id']):
            return refuse(app, name, options)
        publish(name, args, kwargs, add_to_parent=False, **options)
    except Exception as exc:  # noqa: BLE001 - the caller's transaction is committed, there is nobody to tell
        logger.error('Task %s[%s] could not be sent, it will be sent again: %s', name, options['task_id'], exc)
    else:
        if id is not None:
            recorder.sent(id)


def _promise(app, options):
    """Return what `send_task` would have returned."""
    result = (options.get('result_cls') or app.AsyncResult)(options['task_id'])
    result.ignored = options.get('ignore_result')
    parent = app.current_worker_task
    if parent is not None and options.get('add_to_parent', True):
        parent.add_trail(result)
    return result


# Rows

def build_row(app, name, args, kwargs, options, own, task, run=None):
    """Return the column values of a new run.

    Raises:
        kombu.exceptions.EncodeError: An argument cannot be written as JSON, or the message is to be something else.
    """
    if options.get('serializer') not in (None, *app.conf.accept_content):
        raise EncodeError(f'{name}: serializer {options["serializer"]!r} is not accepted by any worker; "json" is')
    args, kwargs = list(args or ()), dict(kwargs or {})
    payload = payload_columns(name, args, kwargs, options)
    now = datetime.now(UTC)
    eta = options.get('eta')
    scheduled = eta if eta and eta > now else None
    task_id = options['task_id']
    parent_id = options.get('parent_id')
    return payload | {
        'created': now,
        'last_updated': now,
        'task_id': task_id,
        'celery_name': name[:255],
        'name': clean_line(str(own.name or options.get('shadow') or _default_name(name, kwargs)))[:255],
        'options': _options_json(name, options, task),
        'queue': _queue_name(app, name, args, kwargs, options, task)[:255],
        'user_id': own.user_id if own.user_id is not None else _starter(run),
        'object_type_id': own.object_type_id,
        'object_id': own.object_id,
        'status': 'scheduled' if scheduled else 'pending',
        'scheduled': scheduled,
        'expires': _aware(options.get('expires')),
        'value_max': own.value_max,
        'data': None if own.data is None else limited_jsonb(own.data, get_config().payload_length),
        'request_id': task_id,
        'parent_id': _uuid(parent_id) if parent_id != task_id else None,
        'root_id': _uuid(options.get('root_id')) or task_id,
        'group_id': _uuid(options.get('group_id')),
        'nesting': options.get('replaced_task_nesting') or 0,
        'schedule_id': own.schedule_id,
    }


def payload_columns(name, args, kwargs, options):
    """Return the columns for arguments: for people, and where that is not all of it, for sending again."""
    columns, message = {}, False
    for column, value in (('args', args), ('kwargs', kwargs)):
        try:
            text, changed = to_jsonb(value)
        except (TypeError, ValueError) as exc:
            raise EncodeError(
                f'{name}: {column} cannot be sent as JSON ({exc}). Pass primary keys instead of model instances.'
            ) from exc
        if options.get(f'{column}repr') is not None:
            text, changed = None, True
        elif (shown := cut_json(text, get_config().payload_length)) != text:
            text, changed = shown, True
        columns[column] = text
        message = message or changed
    columns['message'] = dumps([args, kwargs]) if message else None
    return columns


def _options_json(name, options, task):
    try:
        return to_jsonb(sent_options(options, task))[0]
    except (TypeError, ValueError) as exc:
        raise EncodeError(f'{name}: an option cannot be sent as JSON ({exc})') from exc


def _default_name(name, kwargs):
    if name in ('celery.map', 'celery.starmap') and isinstance(kwargs.get('task'), Mapping):
        return f'{kwargs["task"].get("task")} ({name.removeprefix("celery.")} {len(kwargs.get("it") or ())})'
    return name


def _queue_name(app, name, args, kwargs, options, task):
    """Return the name of the queue that the message goes to."""
    queue = options.get('queue')
    if queue is None and not options.get('exchange') and app.conf.task_routes:
        queue = app.amqp.router.route(dict(options), name, args, kwargs, task).get('queue')
    return getattr(queue, 'name', queue) or app.conf.task_default_queue


def _starter(run):
    """Return who starts a run that names nobody: who started the run that calls it, else who asks NetBox for it."""
    if run is not None:
        return run.user_id
    user = host.current_user()
    return user.pk if user is not None else None


def _uuid(value):
    try:
        return value and str(UUID(str(value)))
    except ValueError:
        return None


def foreign_row(task, request):
    """Return the column values for a run whose message came without a row."""
    options = {
        'task_id': request.id, 'shadow': request.shadow, 'eta': _aware(request.eta),
        'expires': _aware(request.expires), 'root_id': request.root_id, 'parent_id': request.parent_id,
        'group_id': request.group, 'replaced_task_nesting': request.replaced_task_nesting,
        'queue': (request.delivery_info or {}).get('routing_key') or None,
    }
    return build_row(task.app, task.name, request.args, request.kwargs, options, Own.merge(task, {}), task)
