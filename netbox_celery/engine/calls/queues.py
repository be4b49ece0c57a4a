"""Where a call goes, and whether it may go there.

Code can send to any queue whose name is not reserved (`netbox_celery.queuenames`). People can only send to queues that
are in use or configured: those of the settings and of tasks' decorators, those from which online workers consume, and
those in the setting `allowed_queues`.
"""
import re
from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import Any

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
from .options import Options

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

#: The prefix in the routing key of a message that RabbitMQ delayed, and the prefix of the exchanges that delay it.
HELD_BACK = re.compile(rf'^(?:[01]\.){{{MAX_NUMBER_OF_BITS_TO_USE}}}')
HOLDING_BACK = 'celery_delayed_'


# Reserved names

@lru_cache(maxsize=1)
def reserved_keys() -> tuple[str, ...]:
    return taken_keys(get_config())


def is_reserved(name: str) -> bool:
    """Whether a name is reserved, so that no queue can have it."""
    return bool(why_reserved(name, reserved_keys()))


def refuse_reserved(name: str) -> None:
    """Refuse a reserved name.

    Raises:
        QueueRefused: The name is reserved.
    """
    if why := why_reserved(name, reserved_keys()):
        raise QueueRefused(f'A queue cannot be named {name!r}: {why}')


class Queues(amqp.Queues):
    """The queues that a process knows: those of the settings, and those that it sends to or consumes from."""

    def __setitem__(self, name: str, queue: Any) -> None:
        refuse_reserved(queue.name)
        exchange = getattr(queue.exchange, 'name', queue.exchange)
        # It may be the default one, or one of RabbitMQ's own
        if exchange and not exchange.startswith('amq.'):
            refuse_reserved(exchange)
        if queue.routing_key and has_control_characters(queue.routing_key):
            raise QueueRefused(f'The routing key of the queue {name!r} holds control characters')
        super().__setitem__(name, queue)


class AMQP(amqp.AMQP):
    """Celery's `app.amqp`, which refuses reserved names, also for `celery worker -Q` and `celery control add_consumer`.

    If a handler of `before_task_publish` changes the arguments of a message, a header of the message says that they
    differ from the row's.
    """

    Connection = BrokerConnection = Connection
    queues_cls = Queues

    def _create_task_sender(self) -> Callable[..., Any]:
        send, receivers = super()._create_task_sender(), signals.before_task_publish.receivers

        def send_task_message(producer: Any, name: str, message: Any, **options: Any) -> Any:
            return send(_Watching(producer, message) if receivers else producer, name, message, **options)
        return send_task_message


class _Watching:
    """A producer that checks whether handlers of `before_task_publish` have changed the message."""

    def __init__(self, producer: Any, message: Any) -> None:
        self._producer = producer
        self._call = _text_of(message[2])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def publish(self, body: Any, headers: Any = None, **options: Any) -> Any:
        if headers and (mark := headers.get(HEADER)) and (self._call is None or _text_of(body) != self._call):
            headers[HEADER] = {**(mark if isinstance(mark, dict) else {}), 'differs': True}
        return self._producer.publish(body, headers=headers, **options)


def _text_of(body: Any) -> str | None:
    return call_text(*body[:2]) if isinstance(body, tuple) else None


class RefuseReserved(bootsteps.Step):
    """Lets a worker refuse a reserved name in `celery control add_consumer`.

    Celery adds the queue later, in the worker's event loop, where an error would end the worker.
    """

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        add_consumer = Panel.data['add_consumer']
        Panel.data['add_consumer'] = wrapped_once(add_consumer, partial(_refusing, consumer.app))


def _refusing(app: Any, add_consumer: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(add_consumer)
    def add_consumer_if_free(
        state: Any, queue: str, exchange: str | None = None, exchange_type: str | None = None,
        routing_key: str | None = None, **options: Any
    ) -> Any:
        try:
            app.amqp.Queues({}).add(
                queue, exchange=exchange or queue, exchange_type=exchange_type or 'direct', routing_key=routing_key
            )
        except QueueRefused as exc:
            return {'error': str(exc)}
        return add_consumer(state, queue, exchange, exchange_type, routing_key, **options)
    return add_consumer_if_free


# Where a call goes

def destination(app: Any, name: str, args: Any, kwargs: Any, options: Options, task: Any) -> str:
    """Return the name of the queue that a message goes to, or an empty string if it is unknown.

    Args:
        app: The Celery app.
        name: Name of the task.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        options: Execution options of the call.
        task: The task, or `None` if this process does not know it.

    Raises:
        celery.exceptions.QueueNotFound: There is no such queue, and Celery is not to create it.
    """
    queue, exchange, routing_key = options.get('queue'), options.get('exchange'), options.get('routing_key')
    if exchange is None and routing_key is None:
        if queue:
            return _name_of(queue)
        if not app.amqp.routes:
            return app.conf.task_default_queue
    # The router removes the queue from the dict
    routed = app.amqp.router.route(dict(options), name, args, kwargs, task)
    queue, exchange, routing_key = routed.get('queue'), routed.get('exchange'), routed.get('routing_key')
    # As in `send_task_message` of Celery's AMQP
    if queue is None and exchange is None:
        queue = app.amqp.default_queue
    kind = routed.get('exchange_type') or getattr(getattr(queue, 'exchange', None), 'type', None) or 'direct'
    if kind == 'direct' and not (exchange and routing_key) or exchange is None:
        if queue is None:
            raise QueueRefused(f'{name}: a call that names an exchange needs a routing key, or a queue')
        return _name_of(queue)
    return _bound(app, exchange, routing_key)


def _name_of(named: Any) -> str:
    """Return the name of a queue or exchange that is given as a Kombu object or by name."""
    return getattr(named, 'name', named)


def _bound(app: Any, exchange: Any, routing_key: str | None) -> str:
    """Return the name of the only queue to which an exchange routes a routing key, or an empty string."""
    exchange, routing_key = getattr(exchange, 'name', exchange) or '', routing_key or ''
    if not exchange:
        return routing_key  # the default exchange routes to each queue by its name
    if exchange.startswith(HOLDING_BACK):
        routing_key = without_delay(routing_key)
        bound = {queue.name for queue in app.amqp.queues.values() if queue.routing_key == routing_key}
    else:
        bound = {queue.name for queue in app.amqp.queues.values() if _takes(queue, exchange, routing_key)}
    return bound.pop() if len(bound) == 1 else ''


def _takes(queue: Any, exchange: str, routing_key: str) -> bool:
    """Whether a queue gets the messages with a routing key from an exchange."""
    bindings = [(queue.exchange, queue.routing_key)]
    bindings += [(binding.exchange, binding.routing_key) for binding in queue.bindings or ()]
    return any(
        bound_to is not None and bound_to.name == exchange
        and (bound_to.type == 'fanout' or _matches(bound_to.type, key or '', routing_key))
        for bound_to, key in bindings
    )


def _matches(kind: str, key: str, routing_key: str) -> bool:
    if kind != 'topic':
        return key == routing_key
    # A star matches one word, a hash any number of words
    pattern = '\\.'.join({'*': r'[^.]+', '#': r'.*'}.get(word, re.escape(word)) for word in key.split('.'))
    return re.fullmatch(pattern.replace('\\..*', '(?:\\..*)?'), routing_key) is not None


def without_delay(routing_key: str | None) -> str:
    """Return the routing key of a message without the prefix by which RabbitMQ delays it."""
    return HELD_BACK.sub('', routing_key or '')


def delivered_to(app: Any, delivery_info: Any) -> str:
    """Return the name of the queue that a message was delivered from, or an empty string if it is unknown."""
    info = delivery_info or {}
    return _bound(app, info.get('exchange'), info.get('routing_key'))


def check_call(app: Any, name: str, args: Any, kwargs: Any, options: Options, task: Any) -> str:
    """Refuse a call that would go to a reserved name, and return where it goes (see `destination`).

    Raises:
        QueueRefused: The name is reserved, or the call leads to no queue.
        celery.exceptions.QueueNotFound: There is no such queue, and Celery is not to create it.
    """
    if queue := options.get('queue'):
        refuse_reserved(_name_of(queue))
    for declared in maybe_list(options.get('declare')) or ():
        refuse_reserved(_name_of(declared))
    found = destination(app, name, args, kwargs, options, task)
    if found:
        refuse_reserved(found)
    elif not _name_of(options.get('exchange')) and not app.conf.task_routes:
        raise QueueRefused(f'{name}: the call leads to no queue')
    return found
