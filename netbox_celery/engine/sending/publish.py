"""Publishes messages by Celery's own `send_task`, with corrections for messages that RabbitMQ delays.

With quorum queues, Celery sends messages with an ETA to exchanges that delay them for whole seconds ("native delayed
delivery"). For less than one second it raises a `ValueError`. And a retry, which names the exchange and the routing key
of the message that it repeats, but no queue, would go to the default queue.
"""
import logging
from datetime import UTC, datetime, timedelta

from amqp.exceptions import AMQPError, ChannelError
from celery import Celery
from celery.utils.quorum_queues import detect_quorum_queues
from django.db import DatabaseError
from kombu.exceptions import EncodeError, OperationalError
from redis.exceptions import RedisError

from ..calls.options import with_header
from ..calls.queues import check_call, without_delay
from ..calls.visibility import warn_of_eta
from ..store import lifecycle
from ..store.database import caller
from ..store.payload import call_of, read_value, text_of
from ..store.times import check_limits, nearest_sql, time_after
from .rows import check_payload

__all__ = (
    'COLUMNS',
    'is_away',
    'is_delayed',
    'note_refusal',
    'publish',
    'send_row',
)

logger = logging.getLogger(__name__)

#: Errors that a later attempt would also have: invalid arguments or options, an unknown queue, a queue that the broker
#: refuses. Kombu considers some of them errors of the connection.
REFUSALS = (EncodeError, LookupError, TypeError, ValueError, ChannelError)
#: The error of Redis for a key that is not a list; all its other errors concern every message.
WRONG_TYPE = 'WRONGTYPE'
AWAY = (OperationalError, DatabaseError, OSError, AMQPError, RedisError)
#: The shortest delay that works, plus time for the call itself.
SHORTEST = timedelta(seconds=1.1)
#: The columns that `send_row` needs. The message must have the number of the attempt that is due, or no claim accepts
#: it.
COLUMNS = '''
    task_id, celery_name, args::text, kwargs::text, options::text, message, exact_call,
    CASE WHEN status = 'retrying' THEN attempt ELSE GREATEST(attempt - 1, 0) END,
    {scheduled}
'''.format(scheduled=nearest_sql('scheduled'))


def publish(app, name, args=None, kwargs=None, **options):
    """Send a message (see `Celery.send_task`), to be delivered not before its time, and at most a second later."""
    if is_delayed(app, options):
        now = datetime.now(UTC)
        countdown = options.pop('countdown', None)
        eta = time_after(countdown, now) if countdown else options['eta']
        if isinstance(eta, datetime) and eta.tzinfo and now < eta < now + SHORTEST:
            eta = now + SHORTEST
        options['eta'] = eta
        if not options.get('queue') and (queue := _queue(app, options.get('routing_key'))):
            options['queue'] = queue
            del options['routing_key']
            options.pop('exchange', None)
    elif options.get('eta'):
        warn_of_eta(app, name, options['eta'])
    return Celery.send_task(app, name, args, kwargs, **options)


def is_away(exc):
    """Whether a message was not sent because the broker, or the database, is unavailable: no message can be sent then.

    If an available broker refuses one message (the queue exists with other arguments, its name is reserved, its key is
    not a list), or the message is invalid, other messages can be sent.
    """
    for error in (exc, exc.__cause__):
        if isinstance(error, REFUSALS) and not isinstance(error, OSError) or WRONG_TYPE in str(error):
            return False
    return isinstance(exc, AWAY)


def is_delayed(app, options):
    """Whether the broker, and not a worker, keeps a message with these options until its time."""
    if not options.get('eta') and not options.get('countdown'):
        return False
    driver = app.producer_pool.connections.connection.transport.driver_type
    return detect_quorum_queues(app, driver)[0]


def _queue(app, routing_key):
    """Return the name of the queue that a routing key leads to, or `None`."""
    key = without_delay(routing_key)
    return next((queue.name for queue in app.amqp.queues.values() if key and queue.routing_key == key), None)


def send_row(app, task_id, name, args, kwargs, options, message, exact_call, retries, scheduled):
    """Send the message of a row, given by its values of `COLUMNS`.

    Raises:
        kombu.exceptions.EncodeError: No worker could pass it to its processes; an earlier version accepted the call.
    """
    args, kwargs, options = call_of(exact_call, *map(read_value, (args or 'null', kwargs or 'null', options)))
    if message:
        args, kwargs, *instead = read_value(message)
        name, options = instead or (name, options)
    check_limits(options)
    check_call(app, name, args, kwargs, options, app.tasks.get(name))
    check_payload(name, args, kwargs, options)
    options = with_header({**options, 'retries': retries, 'eta': scheduled})
    publish(app, name, args, kwargs, task_id=str(task_id), add_to_parent=False, **options)


def note_refusal(ids, exc):
    """Record that the broker refused messages; the caller gets the broker's exception in any case."""
    try:
        lifecycle.publish_failed(caller(), ids, f'The broker did not accept the message: {text_of(exc)}')
    except DatabaseError:
        logger.exception('Runs %s were not sent, and this could not be recorded', ids)
