"""Makes Celery's `revoke` and `terminate` permanent: they are written into rows.

Celery sends them to the workers that are online, which keep them in memory. Here they are marks in the rows as well,
like any cancel: a worker that starts later does not run a revoked task.
"""
import logging
from functools import partial

from celery.app import control
from django.db import DatabaseError
from kombu.utils.functional import maybe_list

from ..calls.ids import respelled
from ..store import lifecycle
from ..store.database import caller, execute, now_or_on_commit
from ..store.payload import is_uuid
from .control import cancel_many

__all__ = (
    'Control',
)

logger = logging.getLogger(__name__)

COMMANDS = ('revoke', 'terminate')

# `terminate` ends a run that is running; `revoke` keeps a waiting one from starting.
REVOKABLE = f"""
    SELECT id FROM {lifecycle.TABLE}
    WHERE task_id = ANY(%s::uuid[]) AND completed IS NULL AND cancelled IS NULL AND ({lifecycle.WAITING} OR %s)
"""


class Control(control.Control):
    """Celery's remote control (`app.control`, `AsyncResult.revoke()`, `celery control`)."""

    def broadcast(self, command, arguments=None, destination=None, **options):
        """Broadcast a command to workers; see `celery.app.control.Control.broadcast`.

        A `revoke` or `terminate` without a destination is written into the rows of the runs first: in a transaction, on
        commit, while the workers that are online get it immediately.
        """
        for name in ('task_id', 'ids'):
            if arguments and arguments.get(name):
                arguments = {**arguments, name: respelled(arguments[name])}
        if command in COMMANDS and not destination:
            # Other programs pass a number (Flower), or a text
            terminate = command == 'terminate' or bool(arguments.get('terminate'))
            now_or_on_commit(partial(_cancel, maybe_list(arguments['task_id']), terminate))
        return super().broadcast(command, arguments, destination, **options)


def _cancel(task_ids, terminate):
    try:
        found = execute(caller(), REVOKABLE, ([id for id in map(str, task_ids) if is_uuid(id)], terminate))
        cancel_many([id for (id,) in found], error='Revoked')
    except DatabaseError:
        logger.exception('The revocation of %s could not be written', ', '.join(map(str, task_ids)))
