"""Send the message of a run again, from its row."""
from .options import mark
from .payload import read_value
from .publish import publish
from .queues import check_call
from .rows import check_payload
from .times import check_limits, nearest_sql

__all__ = (
    'COLUMNS',
    'call_of',
    'options_of',
    'send_row',
)

#: What `send_row` needs of a row. The message must ask for the attempt that is due, or no claim will take it.
COLUMNS = '''
    task_id, celery_name, args::text, kwargs::text, options::text, message, exact_call,
    CASE WHEN status = 'retrying' THEN attempt ELSE GREATEST(attempt - 1, 0) END,
    {scheduled}
'''.format(scheduled=nearest_sql('scheduled'))


def call_of(exact_call, args, kwargs, options):
    """Return arguments, keyword arguments and options of a call as they were given.

    Args:
        exact_call: What the row keeps of it as text, or `None` (see `rows.exact_call`).
        args, kwargs, options: What its own columns hold.
    """
    exact = read_value(exact_call) if exact_call else ()
    return [part if part is not None else own for part, own in zip((*exact, None, None, None), (args, kwargs, options))]


def options_of(exact_call, text):
    """Return the options of a call as they were given, from what a row keeps of it as text and its own column."""
    return call_of(exact_call, None, None, read_value(text))[2]


def send_row(app, task_id, name, args, kwargs, options, message, exact_call, retries, scheduled):
    """Send the message of a row, given by its values of `COLUMNS`.

    Raises:
        kombu.exceptions.EncodeError: No worker could hand it on to its processes; an earlier version took the call.
    """
    args, kwargs, options = call_of(exact_call, *map(read_value, (args or 'null', kwargs or 'null', options)))
    if message:
        args, kwargs, *instead = read_value(message)
        name, options = instead or (name, options)
    check_limits(options)
    check_call(app, name, args, kwargs, options, app.tasks.get(name))
    check_payload(name, args, kwargs, options)
    options |= {'retries': retries, 'eta': scheduled}
    mark(options)
    publish(app, name, args, kwargs, task_id=str(task_id), add_to_parent=False, **options)
