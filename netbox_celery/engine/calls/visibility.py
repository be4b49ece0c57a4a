"""Redis delivers again what was not acknowledged within its visibility timeout, an hour by default.

That is so for late-acknowledged tasks that run longer, and for whatever has an ETA further away, since a worker holds
it until then. The claim refuses the copies, so nothing runs twice; but they are useless work, and the authors of such
tasks should hear of it.
"""
import logging
from datetime import UTC, datetime, timedelta

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
#: Names of tasks whose calls have been warned of: once each in a process.
_warned = set()


def _visibility_timeout(app):
    """Return the visibility timeout of the broker in seconds, or infinity where there is none."""
    if not speaks_redis(str(app.conf.broker_write_url or app.conf.broker_url)):
        return float('inf')
    return (app.conf.broker_transport_options or {}).get('visibility_timeout', DEFAULT)


def warn_of_limits(app):
    """Warn of tasks of a worker that acknowledge late, and may take longer than the broker waits for that."""
    timeout = _visibility_timeout(app)
    for name, task in sorted(app.tasks.items()):
        limit = task.time_limit or app.conf.task_time_limit or task.soft_time_limit or app.conf.task_soft_time_limit
        if task.acks_late and limit and limit > timeout:
            logger.warning(
                'Task %s acknowledges late and may take %s s, longer than the visibility timeout of %s s. %s',
                name, limit, timeout, ADVICE
            )


def warn_of_eta(app, name, eta):
    """Warn of a call of a task that is to be held by a worker for longer than the broker waits for it.

    Args:
        app: The Celery app.
        name: Name of the task.
        eta: An aware `datetime`, or something else, which is not looked at.
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
