"""Where a call goes, and whether it may go there.

Code sends to any queue whose name is not reserved (`netbox_celery.queuenames`). People send to queues that somebody
reads, or has configured: those of the settings and of tasks' decorators, those that living workers consume from, and
those that the setting `allowed_queues` names.
"""
import re
from functools import lru_cache, partial, wraps

from celery import bootsteps, signals
from celery.app import amqp
from celery.worker.control import Panel
from kombu.transport.native_delayed_delivery import MAX_NUMBER_OF_BITS_TO_USE
from kombu.utils.functional import maybe_list

from ...broker import taken_keys
from ...config import get_config
from ...queuenames import has_control_characters, why_reserved
from ...transport import Connection
from ..exceptions import QueueRefused
from ..store.headers import HEADER
from .arguments import call_text
from .ids import wrapped_once

__all__ = (
    'AMQP',
    'RefuseReserved',
    'check_call',
    'delivered_to',
    'destination',
    'is_reserved',
    'refuse_reserved',
    'reserved_keys',
    'without_delay',
)

#: What a message that RabbitMQ held back has before its routing key, and the exchanges that do so.
HELD_BACK = re.compile(rf'^(?:[01]\.){{{MAX_NUMBER_OF_BITS_TO_USE}}}')
HOLDING_BACK = 'celery_delayed_'


# Reserved names

@lru_cache(maxsize=1)
def reserved_keys():
    return taken_keys(get_config())


def is_reserved(name):
    """Whether a name is one that no queue can have."""
    return bool(why_reserved(name, reserved_keys()))


def refuse_reserved(name):
    """Refuse a name that no queue can have.

    Raises:
        QueueRefused: It is such a one.
    """
    if why := why_reserved(name, reserved_keys()):
        raise QueueRefused(f'There can be no queue {name!r}: {why}')


class Queues(amqp.Queues):
    """The queues that a process knows: those of the settings, those that it sends to or consumes from."""

    def __setitem__(self, name, queue):
        refuse_reserved(queue.name)
        exchange = getattr(queue.exchange, 'name', queue.exchange)
        # It may be the default one, or one of RabbitMQ's own
        if exchange and not exchange.startswith('amq.'):
            refuse_reserved(exchange)
        if queue.routing_key and has_control_characters(queue.routing_key):
            raise QueueRefused(f'The routing key of the queue {name!r} holds control characters')
        super().__setitem__(name, queue)


class AMQP(amqp.AMQP):
    """Celery's `app.amqp`, without reserved names: also for `celery worker -Q` and `celery control add_consumer`.

    And a message says if a handler of `before_task_publish` has given it other arguments than its row has.
    """

    Connection = BrokerConnection = Connection
    queues_cls = Queues

    def _create_task_sender(self):
        send, receivers = super()._create_task_sender(), signals.before_task_publish.receivers

        def send_task_message(producer, name, message, **options):
            return send(_Watching(producer, message) if receivers else producer, name, message, **options)
        return send_task_message


class _Watching:
    """A producer of a message, which handlers of `before_task_publish` may change."""

    def __init__(self, producer, message):
        self._producer = producer
        self._call = _text_of(message[2])

    def __getattr__(self, name):
        return getattr(self._producer, name)

    def publish(self, body, headers=None, **options):
        if headers and (mark := headers.get(HEADER)) and (self._call is None or _text_of(body) != self._call):
            headers[HEADER] = {**(mark if isinstance(mark, dict) else {}), 'differs': True}
        return self._producer.publish(body, headers=headers, **options)


def _text_of(body):
    return call_text(*body[:2]) if isinstance(body, tuple) else None


class RefuseReserved(bootsteps.Step):
    """Lets a worker refuse a reserved name that `celery control add_consumer` gives it.

    Celery adds the queue later on, in the worker's event loop, which an error ends.
    """

    def __init__(self, consumer, **kwargs):
        super().__init__(consumer, **kwargs)
        add_consumer = Panel.data['add_consumer']
        Panel.data['add_consumer'] = wrapped_once(add_consumer, partial(_refusing, consumer.app))


def _refusing(app, add_consumer):
    @wraps(add_consumer)
    def add_consumer_if_free(state, queue, exchange=None, exchange_type=None, routing_key=None, **options):
        try:
            app.amqp.Queues({}).add(
                queue, exchange=exchange or queue, exchange_type=exchange_type or 'direct', routing_key=routing_key
            )
        except QueueRefused as exc:
            return {'error': str(exc)}
        return add_consumer(state, queue, exchange, exchange_type, routing_key, **options)
    return add_consumer_if_free


# Where a call goes

def destination(app, name, args, kwargs, options, task):
    """Return the name of the queue that a message goes to, or an empty string if that cannot be told.

    Args:
        app: The Celery app.
        name: Name of the task.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        options: Execution options of the call.
        task: The task, or `None` if this process does not know it.

    Raises:
        celery.exceptions.QueueNotFound: There is no such queue, and none is to be made.
    """
    queue, exchange, routing_key = options.get('queue'), options.get('exchange'), options.get('routing_key')
    if exchange is None and routing_key is None:
        if queue:
            return getattr(queue, 'name', queue)
        if not app.conf.task_routes:
            return app.conf.task_default_queue
    # The router takes the queue out of what it is given
    routed = app.amqp.router.route(dict(options), name, args, kwargs, task)
    queue, exchange, routing_key = routed.get('queue'), routed.get('exchange'), routed.get('routing_key')
    # As `send_task_message` of Celery's AMQP has it
    if queue is None and exchange is None:
        queue = app.amqp.default_queue
    kind = routed.get('exchange_type') or getattr(getattr(queue, 'exchange', None), 'type', None) or 'direct'
    if kind == 'direct' and not (exchange and routing_key) or exchange is None:
        if queue is None:
            raise QueueRefused(f'{name}: a call that names an exchange needs a routing key, or a queue')
        return getattr(queue, 'name', queue)
    return _bound(app, exchange, routing_key)


def _bound(app, exchange, routing_key):
    """Return the name of the only queue that an exchange gives messages with a routing key to, or an empty string."""
    exchange, routing_key = getattr(exchange, 'name', exchange) or '', routing_key or ''
    if not exchange:
        return routing_key  # the default exchange knows each queue by its name
    if exchange.startswith(HOLDING_BACK):
        routing_key = without_delay(routing_key)
        bound = {queue.name for queue in app.amqp.queues.values() if queue.routing_key == routing_key}
    else:
        bound = {queue.name for queue in app.amqp.queues.values() if _takes(queue, exchange, routing_key)}
    return bound.pop() if len(bound) == 1 else ''


def _takes(queue, exchange, routing_key):
    """Whether a queue is bound to an exchange so that it gets what has a routing key."""
    bindings = [(queue.exchange, queue.routing_key)]
    bindings += [(binding.exchange, binding.routing_key) for binding in queue.bindings or ()]
    return any(
        bound_to is not None and bound_to.name == exchange
        and (bound_to.type == 'fanout' or _matches(bound_to.type, key or '', routing_key))
        for bound_to, key in bindings
    )


def _matches(kind, key, routing_key):
    if kind != 'topic':
        return key == routing_key
    # A star is a word, a hash any number of them
    pattern = '\\.'.join({'*': r'[^.]+', '#': r'.*'}.get(word, re.escape(word)) for word in key.split('.'))
    return re.fullmatch(pattern.replace('\\..*', '(?:\\..*)?'), routing_key) is not None


def without_delay(routing_key):
    """Return the routing key of a message without what RabbitMQ holds it back by."""
    return HELD_BACK.sub('', routing_key or '')


def delivered_to(app, delivery_info):
    """Return the name of the queue that a message was delivered from, or an empty string if that cannot be told."""
    info = delivery_info or {}
    return _bound(app, info.get('exchange'), info.get('routing_key'))


def check_call(app, name, args, kwargs, options, task):
    """Refuse a call that leads to a reserved name, and return where it goes (see `destination`).

    Raises:
        QueueRefused: It does.
        celery.exceptions.QueueNotFound: There is no such queue, and none is to be made.
    """
    if queue := options.get('queue'):
        refuse_reserved(getattr(queue, 'name', queue))
    for declared in maybe_list(options.get('declare')) or ():
        refuse_reserved(getattr(declared, 'name', declared))
    found = destination(app, name, args, kwargs, options, task)
    if found:
        refuse_reserved(found)
    elif not getattr(exchange := options.get('exchange'), 'name', exchange) and not app.conf.task_routes:
        raise QueueRefused(f'{name}: the call leads to no queue')
    return found
