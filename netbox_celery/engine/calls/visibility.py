"""Warnings about calls and tasks that outlast the visibility timeout of Redis, an hour by default.

Redis redelivers messages that were not acknowledged within that time: those of late-acknowledged tasks that run longer,
and those with a later ETA, since a worker holds them until then. The claim refuses the copies, so nothing runs twice;
but they are wasted work, and the authors of such tasks should know.
"""
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from ...broker import speaks_redis

__all__ = (
    'warn_of_eta',
    'warn_of_limits',
)

logger = logging.getLogger(__name__)

#: Kombu's, seconds.
DEFAULT = 3_600
ADVICE = (
    "Redis will deliver its message again and again, and the copies will be refused: raise broker_transport_options"
    "['visibility_timeout']"
)
#: Names of tasks about whose calls this process has warned already: it warns once for each.
_warned: set[str] = set()


def _visibility_timeout(app: Any) -> float:
    """Return the visibility timeout of the broker in seconds, or infinity if there is none."""
    if not speaks_redis(str(app.conf.broker_write_url or app.conf.broker_url)):
        return float('inf')
    return (app.conf.broker_transport_options or {}).get('visibility_timeout', DEFAULT)


def warn_of_limits(app: Any) -> None:
    """Warn about tasks that acknowledge late, and may take longer than the broker waits for the acknowledgement."""
    timeout = _visibility_timeout(app)
    for name, task in sorted(app.tasks.items()):
        limit = task.time_limit or app.conf.task_time_limit or task.soft_time_limit or app.conf.task_soft_time_limit
        if task.acks_late and limit and limit > timeout:
            logger.warning(
                'Task %s acknowledges late and may take %s s, longer than the visibility timeout of %s s. %s',
                name, limit, timeout, ADVICE
            )


def warn_of_eta(app: Any, name: str, eta: Any) -> None:
    """Warn about a call that a worker will hold for longer than the broker waits for its acknowledgement.

    Args:
        app: The Celery app.
        name: Name of the task.
        eta: An aware `datetime`; anything else is ignored.
    """
    if name in _warned or not isinstance(eta, datetime) or not eta.tzinfo:
        return
    timeout = _visibility_timeout(app)
    if timeout != float('inf') and eta - datetime.now(UTC) > timedelta(seconds=timeout):
        _warned.add(name)
        logger.warning(
            'Task %s is called for %s, which is longer from now than the visibility timeout of %s s. %s',
            name, eta.isoformat(timespec='seconds'), timeout, ADVICE
        )
