"""Chords whose parts have all ended, and whose body did not follow: they are counted anew, from the rows.

Celery counts the parts of a chord in Redis, and whoever ends the last of them sends the body. Redis may lose that count
with its data, it may be away when a part ends, or the process may be killed in that moment: then Celery waits for ever.
The rows know how the parts ended, and the one that was sent last how many they are. So what did not go on within a
minute is told to Celery again, part by part: what it knows already, it does not count twice.
"""
import logging
from copy import deepcopy
from datetime import timedelta
from functools import cached_property

from celery import states
from celery.exceptions import ChordError, TaskRevokedError
from celery.result import GroupResult, result_from_tuple
from django.core.exceptions import ObjectDoesNotExist
from kombu.utils.functional import LRUCache

from ...choices import ResultStatusChoices as Status
from ..calls.exact import options_of
from ..identity import identity
from ..internals import is_regenerated
from ..sending.used import repeating
from ..store import lifecycle
from ..store.conditions import IN_GROUP
from ..store.database import UNAVAILABLE
from ..store.payload import PayloadDecoder, is_uuid, result_of
from ..workflows.canvas import as_request, first_steps, leaves
from .upstream import is_tracked_step

__all__ = (
    'ChordsMixin',
    'Watch',
)

logger = logging.getLogger(__name__)

#: Key of the advisory lock ("chord" on a phone's keys).
LOCK = 24673
#: So long after the end of a part what comes after it should be there, seconds.
GRACE = 60

CLOCK = f"""
    SELECT now() - make_interval(secs => {GRACE}), COALESCE(
        -- Before they fell silent others have looked
        (SELECT max(heartbeat) FROM {lifecycle.WORKERS} WHERE key IS DISTINCT FROM %s), now() - interval '1 day'
    )
"""
# Of a chord that is applied again: since when. What ended before belongs to the time before
ENDED = f"""
    SELECT DISTINCT ON (group_id) group_id::text, root_id::text, options ->> 'chord',
        CASE WHEN {lifecycle.BEGUN} <> '0' THEN COALESCE(started, created) END
    FROM {lifecycle.TABLE}
    WHERE options ? 'chord' AND completed IS NOT NULL AND completed > %s AND completed <= %s AND group_id IS NOT NULL
"""
# The row of a task that replaced itself by a chord is there before the body is sent, which has its ID
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


class ChordsMixin:
    """The part of a Redis backend that writes what it knows of a chord where that outlives Redis: into a message."""

    @cached_property
    def _open(self):
        """The chords that are being sent, by the ID of the group of their parts."""
        return LRUCache(limit=1_000)

    def apply_chord(self, header_result_args, body, **kwargs):
        group_id, results = header_result_args
        if body is not None:
            # Lists within the list of results, of which Celery keeps the shape. A generator is not looked into: what it
            # yields is sent as it comes
            nested = not is_regenerated(results) and any(isinstance(result, GroupResult) for result in results)
            self._open[group_id] = body, GroupResult(group_id, results).as_tuple() if nested else None
        return super().apply_chord(header_result_args, body, **kwargs)

    def set_chord_size(self, group_id, chord_size):
        # Celery calls this before it sends the last part, whose message brings the body along
        if found := self._open.pop(group_id, None):
            body, shape = found
            body.update(chord_size=chord_size, **({'chord_header': shape} if shape else {}))
        return super().set_chord_size(group_id, chord_size)

    def restore_chord(self, group_id, chord_size, shape=None):
        """Let Redis know of a chord what it did when its parts were sent."""
        self.set_chord_size(group_id, chord_size)
        if shape:
            result_from_tuple(shape, self.app).save(backend=self)


class Watch:
    """Looks for chords that stand still. Each look begins where the last one ended."""

    def __init__(self):
        self._since = None

    def look(self, connection, app):
        """Let the chords go on that should have, unless another worker is at it.

        Args:
            connection: An `EngineConnection`.
            app: The Celery app.

        Returns:
            How many there were.
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
                    logger.warning('Chords that stand still wait for the result backend: %s', exc)
                    return 0
                except UNAVAILABLE:
                    raise
                except Exception:
                    logger.exception('The chord %s stands still, and cannot go on', chord[0])
            self._since = until
        return count


def _without_body(connection, app, ended):
    """Return those of some chords of whose body nothing has a row, as `(group_id, root_id, since)`."""
    decode, found = PayloadDecoder().decode, {}
    for group_id, root_id, body, since in ended:
        try:
            steps = leaves(decode(body))
            tracked = all(is_tracked_step(app, step) for step in steps)
        except (ObjectDoesNotExist, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            logger.exception('Whether the chord %s stands still cannot be told', group_id)
            continue
        if steps:
            ids = [id for step in steps if is_uuid(id := step['options'].get('task_id'))]
            found[group_id, root_id, since] = tracked, ids
    sought = [id for __, ids in found.values() for id in ids]
    known = {id: rest for id, *rest in connection.execute(KNOWN, (sought,))} if sought else {}
    # Of a body without a row nobody can tell whether it was sent
    return [
        chord for chord, (tracked, ids) in found.items()
        if (tracked or any(id in known for id in ids)) and not any(
            _was_sent(*known[id], since=chord[-1]) for id in ids if id in known
        )
    ]


def _was_sent(awaits_replacement, completed, since):
    """Whether the row of a body says that the body was sent, after the parts were."""
    return not awaits_replacement and (since is None or completed is None or completed >= since)


def _go_on(connection, app, group_id, root_id, since, until):
    """Tell Celery how all parts of a chord have ended. Returns whether they have."""
    chord = {'root_id': root_id, 'group_id': group_id, 'until': until}
    if connection.execute(UNFINISHED, chord):
        return False  # its own end lets the chord go on
    parts, size, shape, body = [], 0, None, None
    rows = connection.execute(FINISHED, chord)
    for task_id, __, name, options, exact_call, *outcome in rows:
        options = options_of(exact_call, options)
        size = max(size, options['chord'].get('chord_size') or 0)
        shape = shape or options['chord'].get('chord_header')
        options['chord'] = body = body or _as_sent_by(rows[-1], root_id, options['chord'])
        parts.append((as_request(task_id, name, options), *_outcome(*outcome)))
    if not size or len(parts) < size:
        return False  # parts are to come, or have no rows
    logger.error('The body of the chord %s was not sent though all %s parts have ended: it is now', group_id, size)
    app.backend.restore_chord(group_id, len(parts), shape)
    with repeating(since):
        for request, state, result in parts:
            app.backend.on_chord_part_return(request, state, result)
    return True


def _as_sent_by(last, root_id, body):
    """Return the body of a chord with what it would inherit from the part that ended last, which would send it."""
    task_id, user_id, *__ = last
    body = deepcopy(body)
    for step in first_steps(body):
        step['options'] = {'netbox_user': user_id, **step['options'], 'parent_id': task_id, 'root_id': root_id}
    return body


def _outcome(status, result, exact_result, error):
    """Return how a part ended, as Celery counts it: a state, and a result or an exception."""
    if status == Status.STATUS_COMPLETED:
        is_kept, value = result_of(result, exact_result)
        if not is_kept:
            return states.FAILURE, ChordError('Its result was lost: its row holds no more than the beginning')
        return states.SUCCESS, value
    if status == Status.STATUS_REVOKED:
        return states.REVOKED, TaskRevokedError(error or 'revoked')
    return states.FAILURE, Exception(error)
