"""Sends many calls of one task with one bulk insert and one producer.

Each call of `apply_async` costs a row, a round trip to the broker, and Celery's work to build a message. Here, one
statement inserts the rows, and has the columns that they share only once; Kombu sends the messages in batches if the
transport supports that.
"""
import logging
from functools import partial
from uuid import uuid4

from celery.utils.saferepr import saferepr

from ... import host
from ..calls.options import detached, tag
from ..calls.visibility import warn_of_eta
from ..catalogue.strategies import has_own_strategy, refuse_row
from ..exceptions import DatabaseReadOnly
from ..internals import call_options
from ..store import lifecycle
from ..store.database import caller, execute, in_savepoint, on_commit, refuse_read_only
from ..store.recorder import recorder
from ..store.times import aware
from ..workflows.canvas import LINKS
from ..workflows.family import are_orphans, refuse
from .describe import describe, find_task
from .publish import is_delayed, note_refusal, publish
from .rows import COLUMNS, CONSTANTS, REFERENCES, build_row, copied, exact_call, payload_columns

__all__ = (
    'checked',
    'send_many',
)

logger = logging.getLogger(__name__)

#: Columns that differ from call to call, with their types; `request_id` and `root_id` follow the task's ID.
VARIABLE = {'task_id': 'uuid', 'args': 'jsonb', 'kwargs': 'jsonb', 'message': 'text', 'exact_call': 'text'}
SAME = [column for column in COLUMNS if column not in {*VARIABLE, 'request_id', 'root_id'}]
#: Types of the parameters of `SELECT` that are not text.
TYPES = {
    'created': 'timestamptz', 'last_updated': 'timestamptz', 'options': 'jsonb', 'user_id': 'bigint',
    'object_type_id': 'int', 'object_id': 'bigint', 'scheduled': 'timestamptz', 'expires': 'timestamptz',
    'value_max': 'bigint', 'data': 'jsonb', 'parent_id': 'uuid', 'group_id': 'uuid', 'nesting': 'int',
    'schedule_id': 'bigint',
}
INSERT = f"""
    INSERT INTO {lifecycle.TABLE} ({", ".join((*CONSTANTS, *SAME, 'request_id', 'root_id', *VARIABLE))})
    SELECT {", ".join(f"{value}::jsonb" if value in ("'{}'", "'[]'") else value for value in CONSTANTS.values())},
        {", ".join(REFERENCES.get(column) or f"%({column})s::{TYPES.get(column, 'text')}" for column in SAME)},
        call.task_id, COALESCE(%(root_id)s::uuid, call.task_id), {", ".join(f"call.{column}" for column in VARIABLE)}
    FROM unnest({", ".join(f"%({column})s::{type}[]" for column, type in VARIABLE.items())})
        WITH ORDINALITY AS call ({", ".join(VARIABLE)}, number)
    ORDER BY call.number
    ON CONFLICT DO NOTHING
    RETURNING id
"""
MADE = f'SELECT id FROM {lifecycle.TABLE} WHERE task_id = ANY(%(task_id)s::uuid[]) ORDER BY id'
#: Rows in one statement, and messages in one round trip.
BATCH = 1000


def send_many(app, task_or_name, calls, options):
    """Send a task many times.

    Args:
        app: The Celery app.
        task_or_name: A Celery task, or the name of one.
        calls: See `CeleryResult.enqueue_many`.
        options: Execution options, Celery's and `netbox_*`, for all calls.

    Returns:
        The primary keys of the rows, in the order of the calls.
    """
    name = task_or_name if isinstance(task_or_name, str) else task_or_name.name
    task = find_task(app, name)
    if has_own_strategy(task):
        refuse_row(task)
    calls = checked(task, calls)
    if dump := getattr(task, '_dump_pydantic_arguments', None):
        calls = [dump(*call) for call in calls]
    # Everything but the arguments and the ID is the same for all calls
    common = {option: value for option, value in _with_defaults(task, options).items() if option != 'task_id'}
    call = describe(app, name, (), {}, common)
    # Before the first batch is sent: the last one may have an argument that cannot be sent
    payloads, ids = [payload_columns(name, list(args), kwargs, call.options) for args, kwargs in calls], []
    for start in range(0, len(calls), BATCH):
        batch = slice(start, start + BATCH)
        ids += _send_batch(call, calls[batch], payloads[batch])
    return ids


def checked(task, calls):
    """Return calls as pairs of arguments and keyword arguments.

    Raises:
        TypeError: The arguments of a call do not fit the task's signature. Nothing has been sent then.
    """
    calls = [_normalized(call) for call in calls]
    if task is not None and task.typing and (check := getattr(task, '__header__', None)):
        for args, kwargs in calls:
            check(*args, **kwargs)
    return calls


def _normalized(call):
    if isinstance(call, dict):
        return (), call
    call = tuple(call)
    if len(call) == 2 and isinstance(call[0], list | tuple) and isinstance(call[1], dict):
        return tuple(call[0]), call[1]
    return call, {}


def _with_defaults(task, options):
    """Merge the options of the task under those of the call, as `apply_async` does."""
    if task is None:
        return options
    defaults = {key: value for key, value in call_options(task).items() if value is not None}
    return defaults | {'ignore_result': task.ignore_result} | options


def _send_batch(call, calls, payloads):
    """Send a batch.

    Args:
        call: The `Call` that they have in common.
        calls: Arguments and keyword arguments of each.
        payloads: The columns for these.

    Returns:
        The primary keys of the rows.
    """
    task_ids = [str(uuid4()) for __ in calls]
    row = build_row(call) | {'root_id': call.options.get('root_id')}
    if row['exact_call']:
        # A signature in the options, which are the same for all
        options_text = row['exact_call'].removeprefix('[null, null, ')[:-1]
        payloads = [{**payload, 'exact_call': exact_call(payload['exact_call'], options_text)} for payload in payloads]
    not_sent = f'{len(calls)} runs of {call.name} were not sent'
    if host.is_in_maintenance():
        raise DatabaseReadOnly(not_sent)
    with refuse_read_only(not_sent), in_savepoint():
        ids = _insert(row, task_ids, payloads)
    if call.own.tags:
        tag(ids, call.own.tags)
    messages = list(zip(task_ids, calls, ids))
    if caller().in_atomic_block:
        # The messages must agree with the rows, even if the caller modifies its lists and dicts until then
        call = call._replace(options=detached(call.options))
        on_commit(partial(_publish_on_commit, call, copied(call.name, messages)))
    else:
        accepted: set[int] = set()
        try:
            _publish(call, messages, accepted)
        except Exception as exc:
            _note_refusal(call, [message for message in messages if message[-1] not in accepted], exc)
            raise
    return ids


def _insert(row, task_ids, payloads):
    rows = execute(caller(), INSERT, row | {'task_id': task_ids} | {
        column: [payload[column] for payload in payloads] for column in ('args', 'kwargs', 'message', 'exact_call')
    })
    # The IDs are new: rows that have them were inserted a moment ago, by a statement whose response was lost
    return [id for (id,) in rows or execute(caller(), MADE, {'task_id': task_ids})]


def _note_refusal(call, messages, exc):
    """Record that the broker refused messages, and close the steps that depend on these runs."""
    note_refusal([id for *__, id in messages], exc)
    for task_id, *__ in messages if call.options.get('chain') else ():
        call.app.backend.close_dependents(call.name, {**call.options, 'task_id': task_id}, exc)


def _publish_on_commit(call, messages):
    try:
        _publish(call, messages, set())
    except Exception as exc:  # noqa: BLE001 - the caller's transaction is committed, and its code has continued
        logger.error(
            'Not all %s runs of %s could be sent, they will be sent again: %s', len(messages), call.name, exc
        )


def _publish(call, messages, accepted):
    """Publish the messages of a batch. The work that Celery's `send_task` does for each call is done once.

    Args:
        call: The `Call` that they have in common.
        messages: The ID, the arguments and the primary key of each run.
        accepted: A set that gets the primary keys of runs whose messages the broker has accepted, also if one fails.
    """
    app, name = call.app, call.name

    def note(id):
        accepted.add(id)
        recorder.sent(id)

    parent_id = call.options.get('parent_id')
    if parent_id and are_orphans([id for *__, id in messages], parent_id):
        for task_id, *__ in messages:
            refuse(app, name, {**call.options, 'task_id': task_id})
        return
    options = call.message_options(True, is_deferred=True)
    del options['task_id']
    if is_delayed(app, options) or any(options.get(name) for name in LINKS):
        # Celery knows how to send through RabbitMQ, and how to attach later steps. A delayed message that was sent
        # directly to the queue would occupy a worker
        for task_id, (args, kwargs), id in messages:
            publish(app, name, args, kwargs, **{**options, 'task_id': task_id})
            note(id)
        return
    warn_of_eta(app, name, options.get('eta'))
    own_root = options.pop('root_id', None)
    in_message = {
        key: options.pop(key) for key in IN_MESSAGE if key in options
    }
    options = app.amqp.router.route(options, name, (), {}, call.task)
    if (expires := aware(in_message.get('expires'))) is not None:
        options['expiration'] = max(0, (expires - app.now()).total_seconds())
    with app.producer_or_acquire() as producer, producer.batch(max_size=BATCH):
        is_batch = producer.supports_batch_publish
        if is_batch:
            options['retry'] = False  # a batch is sent as a whole, when it is full
        for task_id, (args, kwargs), id in messages:
            message = app.amqp.create_task_message(
                task_id, name, args, kwargs, root_id=own_root or task_id, reply_to=app.thread_oid, **{
                    'argsrepr': saferepr(args) if args else '()', 'kwargsrepr': saferepr(kwargs) if kwargs else '{}',
                } | in_message
            )
            app.amqp.send_task_message(producer, name, message, **options)
            options['declare'] = ()  # the queue was declared with the first message
            if not is_batch:
                note(id)
    # If a batch fails, it is unknown what got through: a worker that has started a run keeps it
    for __, __, id in messages if is_batch else ():
        note(id)


#: Options that go into the message; the others control how it is published.
IN_MESSAGE = (
    'eta', 'expires', 'group_id', 'time_limit', 'soft_time_limit', 'parent_id', 'shadow', 'ignore_result', 'argsrepr',
    'kwargsrepr',
)
