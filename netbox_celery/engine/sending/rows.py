"""The rows of new runs: a call as column values, and the statement that inserts them."""
from collections.abc import Mapping
from copy import deepcopy
from datetime import UTC, datetime
from uuid import UUID

from kombu.exceptions import EncodeError

from ... import host
from ...config import get_config
from ..calls.call import Call
from ..calls.options import Own, sent_options
from ..calls.queues import delivered_to, destination
from ..exceptions import NotJSON
from ..store.branches import HEADER as BRANCH
from ..store.branches import branch_of
from ..store.lifecycle import TABLE
from ..store.payload import (
    clean_line,
    clean_text,
    cut_json,
    dumps,
    has_other_numbers,
    is_deep,
    is_exact,
    limited_jsonb,
    sendable_jsonb,
    shown_jsonb,
    text_of,
    whole_number,
)
from ..store.times import aware, nearest
from ..workflows.canvas import DEEPEST_LINKS, LINKS, check_links

__all__ = (
    'COLUMNS',
    'CONSTANTS',
    'INSERT',
    'REFERENCES',
    'USERS',
    'build_row',
    'check_payload',
    'copied',
    'data_jsonb',
    'exact_call',
    'foreign_row',
    'insert_statement',
    'options_columns',
    'payload_columns',
    'refused_row',
)

USERS = 'users_user'
SCHEDULES = 'netbox_celery_celeryschedule'

#: Columns without a default in the database.
CONSTANTS = {
    'custom_field_data': "'{}'", 'reason': "''", 'step': "''", 'worker': "''", 'attempt': '0', 'attempts': "'[]'",
    'error': "''", 'traceback': "''", 'claims': '0', 'in_backend': 'false',
}
#: The user who starts a run, or its schedule, may have been deleted by now: the row then has none. Otherwise the
#: foreign key would refuse the row at the commit, and with it everything else in the transaction.
REFERENCES = {
    'user_id': f'(SELECT id FROM {USERS} WHERE id = %(user_id)s::bigint FOR KEY SHARE)',
    'schedule_id': f'(SELECT id FROM {SCHEDULES} WHERE id = %(schedule_id)s::bigint FOR KEY SHARE)',
}
COLUMNS = (
    'created', 'last_updated', 'task_id', 'celery_name', 'name', 'args', 'kwargs', 'options', 'queue', 'user_id',
    'object_type_id', 'object_id', 'status', 'scheduled', 'expires', 'value_max', 'data', 'request_id', 'parent_id',
    'root_id', 'group_id', 'message', 'exact_call', 'nesting', 'schedule_id', 'branch',
)


def insert_statement(conflict='DO NOTHING', **expressions):
    """Return the statement that inserts a row with the values of `build_row`, and returns its primary key.

    Args:
        conflict: What happens if there is a row with that ID.
        **expressions: SQL for the values of further columns, or of those that are the same for every new row.
    """
    values = CONSTANTS | {column: f'%({column})s' for column in COLUMNS} | REFERENCES | expressions
    target = '' if conflict == 'DO NOTHING' else '(task_id) '
    return f'''
        INSERT INTO {TABLE} AS run ({", ".join(values)}) VALUES ({", ".join(values.values())})
        ON CONFLICT {target}{conflict}
        RETURNING id
    '''


INSERT = insert_statement()


def build_row(call, run=None):
    """Return the column values of a new run.

    Args:
        call: The `Call`, with an ID.
        run: The run that starts it; by default the one that makes the call.

    Raises:
        kombu.exceptions.EncodeError: An argument cannot be written as JSON, or the message has another serializer.
    """
    name, options, own, queue = call.name, call.options, call.own, call.queue
    if options.get('serializer') not in (None, 'json'):  # as the setting `accept_content` has it
        raise EncodeError(f'{name}: serializer {options["serializer"]!r} is not accepted by any worker; "json" is')
    args, kwargs = list(call.args or ()), dict(call.kwargs or {})
    payload = payload_columns(name, args, kwargs, options) | options_columns(name, options, call.task)
    payload['exact_call'] = exact_call(payload['exact_call'], payload.pop('exact_options'))
    now = datetime.now(UTC)
    eta = options.get('eta')
    scheduled = eta if eta and eta > now else None
    task_id = options['task_id']
    parent_id = options.get('parent_id')
    return payload | {
        'created': now,
        'last_updated': now,
        'task_id': task_id,
        'celery_name': clean_text(name)[:255],
        'name': clean_line(text_of(own.name or options.get('shadow') or _default_name(name, kwargs)))[:255],
        'queue': clean_text(
            destination(call.app, name, args, kwargs, options, call.task) if queue is None else queue
        )[:255],
        'user_id': own.user_id if own.user_id is not None else _starter(run or call.run),
        'object_type_id': own.object_type_id,
        'object_id': own.object_id,
        'status': 'scheduled' if scheduled else 'pending',
        'scheduled': scheduled,
        'expires': aware(options.get('expires')),
        'value_max': whole_number(own.value_max),
        'data': data_jsonb(own.data, f'{name}: netbox_data'),
        'request_id': task_id,
        'parent_id': _uuid(parent_id) if parent_id != task_id else None,
        'root_id': _uuid(options.get('root_id')) or task_id,
        'group_id': _uuid(options.get('group_id')),
        'nesting': options.get('replaced_task_nesting') or 0,
        'schedule_id': own.schedule_id,
        'branch': branch_of(options),
    }


def payload_columns(name, args, kwargs, options):
    """Return the columns for arguments: as shown to people and, where that is not exact, as needed to send them again.

    `message` has the original of redacted, cut or cleaned arguments until the run finishes. `exact_call` has the
    original of values that `jsonb` changes, for as long as the row exists (see `exact_call`).
    """
    columns, message, exact = {}, False, []
    for column, value in (('args', args), ('kwargs', kwargs)):
        text, changed, exact_text = _argument_json(name, column, value)
        if options.get(f'{column}repr') is not None:
            text, changed, exact_text = None, True, None
        elif (shown := cut_json(text, get_config().payload_length)) != text:
            text, changed, exact_text = shown, True, None
        columns[column] = text
        message = message or changed
        exact.append(exact_text or 'null')
    columns['message'] = dumps([args, kwargs]) if message else None
    columns['exact_call'] = None if exact == ['null', 'null'] else f'[{", ".join(exact)}]'
    return columns


def _argument_json(name, column, value):
    """Return arguments as JSON text for `jsonb`, whether they were changed for it, and the exact text if it differs."""
    try:
        text, changed = sendable_jsonb(value)
    except TypeError as exc:
        raise EncodeError(
            f'{name}: {column} cannot be sent as JSON ({exc}). Pass primary keys instead of model instances.'
        ) from exc
    except ValueError as exc:
        raise EncodeError(f'{name}: {column} cannot be sent as JSON ({exc})') from exc
    return text, changed, dumps(value) if changed else None if is_exact(text) else text


def options_columns(name, options, task):
    """Return the column for options and, if `jsonb` changes their numbers, their text as `exact_options`.

    The order of their keys does not matter.
    """
    options = sent_options(options, task)
    try:
        text, changed = sendable_jsonb(options, deepest=DEEPEST_LINKS)
        if is_deep(text):
            check_links(options)
    except (TypeError, ValueError) as exc:
        raise EncodeError(f'{name}: an option cannot be sent as JSON ({exc})') from exc
    return {'options': text, 'exact_options': dumps(options) if changed or has_other_numbers(text) else None}


def exact_call(payload, options):
    """Return the parts of a call that a row stores as text: an array of arguments, keyword arguments and options.

    A part is `null` or missing if its own column has it exactly, or must not have it.

    Args:
        payload: The first two parts, from `payload_columns`, or `None`.
        options: The third part as JSON text, or `None`.
    """
    return payload if options is None else f'{(payload or "[null, null]")[:-1]}, {options}]'


def check_payload(name, args, kwargs, options):
    """Check a call that gets no row.

    Raises:
        kombu.exceptions.EncodeError: An argument or an option cannot be sent as JSON.
    """
    for column, value in (('args', args), ('kwargs', kwargs)):
        _argument_json(name, column, value or ())
    sent = {key: options[key] for key in ('headers', *LINKS) if options.get(key)}
    if sent:
        options_columns(name, sent, None)


def copied(name, calls):
    """Return a copy of arguments, which later changes by the caller do not affect.

    Raises:
        kombu.exceptions.EncodeError: An author's type cannot be copied.
    """
    try:
        return deepcopy(calls)
    except Exception as exc:
        raise EncodeError(f'{name}: an argument cannot be copied ({text_of(exc)})') from exc


def data_jsonb(data, subject='The data'):
    """Return the data of a run as JSON text for its column, or `None`.

    Args:
        data: The data.
        subject: What an error message names.

    Raises:
        NotJSON: The data cannot be written as JSON, or are nested too deeply.
    """
    try:
        return None if data is None else limited_jsonb(data, get_config().payload_length)
    except (TypeError, ValueError) as exc:
        raise NotJSON(f'{subject} cannot be written as JSON ({exc})') from exc


def _default_name(name, kwargs):
    if name in ('celery.map', 'celery.starmap') and isinstance(kwargs.get('task'), Mapping):
        return f'{kwargs["task"].get("task")} ({name.removeprefix("celery.")} {len(kwargs.get("it") or ())})'
    return name


def _starter(run):
    """Return the user of a run whose call names none: the user of the calling run, or of the request to NetBox."""
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
    """Return the column values for a run whose message came without a row.

    Raises:
        kombu.exceptions.EncodeError: No call could have its arguments.
    """
    return _foreign_row(task, request, request.args, request.kwargs)


def refused_row(task, request):
    """Return the column values for a run that is refused because of its arguments, which the row has as text."""
    limit = get_config().payload_length
    return _foreign_row(task, request, (), {}) | {
        'args': shown_jsonb(request.args, limit), 'kwargs': shown_jsonb(request.kwargs, limit)
    }


def _foreign_row(task, request, args, kwargs):
    options = {
        'task_id': request.id, 'shadow': request.shadow, 'eta': nearest(request.eta),
        'expires': nearest(request.expires), 'root_id': request.root_id, 'parent_id': request.parent_id,
        'group_id': request.group, 'replaced_task_nesting': request.replaced_task_nesting,
        'headers': {BRANCH: branch} if (branch := getattr(request, BRANCH, None)) else None,
    }
    if info := request.delivery_info:
        queue = delivered_to(task.app, info)
        options |= {'queue': queue} if queue else {name: info.get(name) for name in ('exchange', 'routing_key')}
    else:
        queue = None
    name = getattr(request, 'task', None) or task.name
    return build_row(Call(task.app, name, args, kwargs, options, Own.merge(task, {}), task=task, queue=queue))
