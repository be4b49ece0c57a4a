"""The queues that people can choose: those of tasks, settings and workers, and those in `allowed_queues`."""
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from celery.app.routes import MapRoute
from django.utils.translation import gettext as _

from ...config import get_config
from ...queuenames import why_reserved
from ..calls.queues import destination, refuse_reserved, reserved_keys
from ..exceptions import QueueRefused

__all__ = (
    'check_choice',
    'check_repeated',
    'offered',
)

#: The most queues that an error lists.
MOST_NAMED = 20


def offered(app: Any) -> list[str]:
    """Return the names of the queues that people can send to, sorted."""
    from ...models import CeleryTask, CeleryWorker
    from .registry import registered_tasks

    conf = app.conf
    queues = conf.task_queues or ()
    names = {conf.task_default_queue, *(getattr(queue, 'name', queue) for queue in queues)}
    names.update(_routed_to(app))
    names.update(getattr(task, 'queue', None) for task in registered_tasks().values())
    # Queues of tasks that only workers know
    of_tasks = CeleryTask.objects.filter(present=True, defaults__has_key='queue').values_list(
        'defaults__queue', flat=True
    )
    names.update(name for name in of_tasks if isinstance(name, str))
    for worker in CeleryWorker.objects.filter(stopped=None):
        names.update(worker.queues if worker.is_alive else ())
    names = {getattr(name, 'name', name) for name in names}
    return sorted(name for name in names if isinstance(name, str) and not why_reserved(name, reserved_keys()))


def _routed_to(app):
    """Yield the names of the queues in the setting `task_routes`, unless it is a function."""
    for route in app.amqp.router.routes:
        if isinstance(route, MapRoute):
            for target in (*route.map.values(), *route.patterns.values()):
                yield target.get('queue') if isinstance(target, Mapping) else _target(target)


def _target(target):
    try:
        return dict(target).get('queue')
    except (TypeError, ValueError):
        return target


def check_choice(app: Any, name: str) -> None:
    """Check a queue that a person has chosen.

    Raises:
        QueueRefused: Its name is reserved, or there is no such queue. The message lists the existing ones.
    """
    refuse_reserved(name)
    if any(fnmatchcase(name, pattern) for pattern in get_config().allowed_queues):
        return
    names = offered(app)
    if name not in names:
        shown = ', '.join(names[:MOST_NAMED]) + (', …' if len(names) > MOST_NAMED else '')
        raise QueueRefused(_('There is no queue "{queue}". Queues are: {queues}.').format(queue=name, queues=shown))


def check_repeated(app: Any, name: str, options: Mapping[str, Any]) -> None:
    """Check the destination of a run that a person runs again, but that code may have sent first.

    Args:
        app: The Celery app.
        name: Name of the task.
        options: The options of the earlier run.

    Raises:
        QueueRefused: People cannot send there.
    """
    given = {key: options[key] for key in ('queue', 'exchange', 'routing_key') if options.get(key)}
    if not given:
        return
    if not all(isinstance(value, str) for value in given.values()):
        raise QueueRefused(_('The run cannot be sent again: the name of its queue is not stored.'))
    task = app.tasks.get(name)
    if found := destination(app, name, (), {}, given, task):
        check_choice(app, found)
        return
    exchange = given.get('exchange')
    known = {queue.exchange.name for queue in app.amqp.queues.values()}
    if exchange not in known and exchange != getattr(task, 'exchange', None):
        raise QueueRefused(_('The run cannot be sent again: the queue of its exchange is unknown.'))
