"""Send the message of a run again, from its row."""
from .options import mark
from .payload import StrictDecoder
from .publish import publish
from .queues import check_call
from .times import nearest_sql

__all__ = (
    'COLUMNS',
    'send_row',
)

#: What `send_row` needs of a row. The message must ask for the attempt that is due, or no claim will take it.
COLUMNS = '''
    task_id, celery_name, args::text, kwargs::text, options::text, message,
    CASE WHEN status = 'retrying' THEN attempt ELSE GREATEST(attempt - 1, 0) END,
    {scheduled}
'''.format(scheduled=nearest_sql('scheduled'))


def send_row(app, task_id, name, args, kwargs, options, message, retries, scheduled):
    """Send the message of a row, given by its values of `COLUMNS`."""
    decode = StrictDecoder().decode
    args, kwargs, *instead = decode(message) if message else (decode(args), decode(kwargs))
    name, options = instead or (name, decode(options))
    check_call(app, name, args, kwargs, options, app.tasks.get(name))
    options |= {'retries': retries, 'eta': scheduled}
    mark(options)
    publish(app, name, args, kwargs, task_id=str(task_id), add_to_parent=False, **options)
