"""Recovers stalled chords: all of their parts have finished, but the body was not sent.

Celery counts the finished parts of a chord in Redis, and the process that finishes the last part sends the body. If
Redis loses the count with its data, or is unavailable when a part finishes, or the process is killed at that moment,
Celery waits forever. The rows hold how the parts ended, and the row of the part that was sent last holds how many parts
there are. So if a chord does not continue within a minute, all of its parts are reported to Celery again. Celery does
not count a part twice.
"""
import logging
from copy import deepcopy
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery import states
from celery.exceptions import ChordError, TaskRevokedError
from celery.result import GroupResult, result_from_tuple
from django.core.exceptions import ObjectDoesNotExist
from kombu.utils.functional import LRUCache

from ...choices import ResultStatusChoices as Status
from ..identity import identity
from ..internals import is_regenerated
from ..sending.used import repeating
from ..store import lifecycle
from ..store.conditions import IN_GROUP
from ..store.database import UNAVAILABLE, EngineConnection, Row
from ..store.payload import PayloadDecoder, is_uuid, options_of, result_of
from ..workflows.canvas import as_request, first_steps, leaves
from .closing import is_tracked_step

# `layers` combines this class with that of a backend
if TYPE_CHECKING:
    from celery.backends.redis import RedisBackend
else:
    RedisBackend = object

__all__ = (
    'ChordsMixin',
    'Watch',
)

logger = logging.getLogger(__name__)

#: Key of the advisory lock ("chord" on a phone's keys).
LOCK = 24673
#: How long after the end of its last part a chord may take to send its body, seconds.
GRACE = 60

CLOCK = f"""
    SELECT now() - make_interval(secs => {GRACE}), COALESCE(
        -- Until their last heartbeats, other workers have looked
        (SELECT max(heartbeat) FROM {lifecycle.WORKERS} WHERE key IS DISTINCT FROM %s), now() - interval '1 day'
    )
"""
# The last column is the start of a chord that is applied again: what finished before that belongs to the earlier chord
ENDED = f"""
    SELECT DISTINCT ON (group_id) group_id::text, root_id::text, options ->> 'chord',
        CASE WHEN {lifecycle.BEGUN} <> '0' THEN COALESCE(started, created) END
    FROM {lifecycle.TABLE}
    WHERE options ? 'chord' AND completed IS NOT NULL AND completed > %s AND completed <= %s AND group_id IS NOT NULL
"""
# If a task replaced itself by a chord, the body has the task's ID, so its row exists before the body is sent
KNOWN = f'''
    SELECT task_id::text, {lifecycle.AWAITS_REPLACEMENT}, completed FROM {lifecycle.TABLE}
    WHERE task_id = ANY(%s::uuid[])
'''
PARTS = f"FROM {lifecycle.TABLE} WHERE {IN_GROUP} AND options ? 'chord'"
UNFINISHED = f'SELECT 1 {PARTS} AND (completed IS NULL OR completed > %(until)s) LIMIT 1'
FINISHED = f"""
    SELECT task_id::text, user_id, celery_name, options::text, exact_call, status, result::text, exact_result, error
    {PARTS} ORDER BY completed
"""


class ChordsMixin(RedisBackend):
    """Lets a Redis backend write the state of a chord into a message, which outlives Redis."""

    @cached_property
    def _open(self):
        """The chords that are being sent, by the ID of the group of their parts."""
        return LRUCache(limit=1_000)

    def apply_chord(self, header_result_args, body, **kwargs):
        group_id, results = header_result_args
        if body is not None:
            # Celery stores the shape of nested groups. A generator is not inspected: its items are sent as they come
            nested = not is_regenerated(results) and any(isinstance(result, GroupResult) for result in results)
            self._open[group_id] = body, GroupResult(group_id, results).as_tuple() if nested else None
        return super().apply_chord(header_result_args, body, **kwargs)

    def set_chord_size(self, group_id, chord_size):
        # Celery calls this before it sends the last part, whose message contains the body
        if found := self._open.pop(group_id, None):
            body, shape = found
            body.update(chord_size=chord_size, **({'chord_header': shape} if shape else {}))
        return super().set_chord_size(group_id, chord_size)

    def restore_chord(self, group_id, chord_size, shape=None):
        """Restore what Redis held for a chord when its parts were sent."""
        self.set_chord_size(group_id, chord_size)
        if shape:
            result_from_tuple(shape, self.app).save(backend=self)


class Watch:
    """Looks for stalled chords. Each look covers the time since the previous one."""

    def __init__(self) -> None:
        self._since: Any = None

    def look(self, connection: EngineConnection, app: Any) -> int:
        """Let stalled chords continue, unless another worker does so at the moment.

        Args:
            connection: A connection of the engine's own, for an advisory lock.
            app: The Celery app.

        Returns:
            The number of chords that were stalled.
        """
        if not isinstance(app.backend, ChordsMixin):
            return 0
        with connection.advisory_lock(LOCK, GRACE) as locked:
            if not locked:
                return 0
            ((until, since),) = connection.execute(CLOCK, (identity.key,))
            since = self._since or since - timedelta(seconds=2 * GRACE)
            ended = connection.execute(ENDED, (since, until))
            count = 0
            for chord in _without_body(connection, app, ended):
                try:
                    count += _go_on(connection, app, *chord, until)
                except app.backend.connection_errors as exc:
                    logger.warning('Stalled chords wait for the result backend: %s', exc)
                    return 0
                except UNAVAILABLE:
                    raise
                except Exception:
                    logger.exception('The chord %s is stalled and cannot continue', chord[0])
            self._since = until
        return count


def _without_body(connection: EngineConnection, app: Any, ended: list[Row]) -> list[tuple[str, str, Any]]:
    """Return the chords whose body was not sent, as `(group_id, root_id, since)`."""
    decode, found = PayloadDecoder().decode, {}
    for group_id, root_id, body, since in ended:
        try:
            steps = leaves(decode(body))
            tracked = all(is_tracked_step(app, step) for step in steps)
        except (ObjectDoesNotExist, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            logger.exception('The state of the chord %s is unknown', group_id)
            continue
        if steps:
            ids = [id for step in steps if is_uuid(id := step['options'].get('task_id'))]
            found[group_id, root_id, since] = tracked, ids
    sought = [id for __, ids in found.values() for id in ids]
    rows = connection.execute(KNOWN, (sought,)) if sought else []
    known = {id: (awaits_replacement, completed) for id, awaits_replacement, completed in rows}
    # It is unknown whether a body that is not tracked was sent
    return [
        chord for chord, (tracked, ids) in found.items()
        if (tracked or any(id in known for id in ids)) and not any(
            _was_sent(*known[id], since=chord[-1]) for id in ids if id in known
        )
    ]


def _was_sent(awaits_replacement, completed, since):
    """Whether the row of a body shows that the body was sent, after the parts."""
    return not awaits_replacement and (since is None or completed is None or completed >= since)


def _go_on(connection, app, group_id, root_id, since, until):
    """Report the ends of all parts of a chord to Celery, and return whether they have all finished."""
    chord = {'root_id': root_id, 'group_id': group_id, 'until': until}
    if connection.execute(UNFINISHED, chord):
        return False  # the end of that part lets the chord continue
    parts, size, shape, body = [], 0, None, None
    rows = connection.execute(FINISHED, chord)
    for task_id, __, name, options, exact_call, *outcome in rows:
        options = options_of(exact_call, options)
        size = max(size, options['chord'].get('chord_size') or 0)
        shape = shape or options['chord'].get('chord_header')
        options['chord'] = body = body or _as_sent_by(rows[-1], root_id, options['chord'])
        parts.append((as_request(task_id, name, options), *_outcome(*outcome)))
    if not size or len(parts) < size:
        return False  # further parts will be sent, or have no rows
    logger.error('The body of chord %s was not sent, although all %s parts have finished: sending it', group_id, size)
    app.backend.restore_chord(group_id, len(parts), shape)
    with repeating(since):
        for request, state, result in parts:
            app.backend.on_chord_part_return(request, state, result)
    return True


def _as_sent_by(last, root_id, body):
    """Return the body of a chord with what it inherits from the part that sends it, which is the last to finish."""
    task_id, user_id, *__ = last
    body = deepcopy(body)
    for step in first_steps(body):
        step['options'] = {'netbox_user': user_id, **step['options'], 'parent_id': task_id, 'root_id': root_id}
    return body


def _outcome(status, result, exact_result, error):
    """Return the end of a part as Celery counts it: a state, and a result or an exception."""
    if status == Status.STATUS_COMPLETED:
        is_kept, value = result_of(result, exact_result)
        if not is_kept:
            return states.FAILURE, ChordError('Its result is lost: the row does not hold all of it')
        return states.SUCCESS, value
    if status == Status.STATUS_REVOKED:
        return states.REVOKED, TaskRevokedError(error or 'revoked')
    return states.FAILURE, Exception(error)
