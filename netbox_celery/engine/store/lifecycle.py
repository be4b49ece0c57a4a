"""The state machine of runs: the only writer of `status`.

PostgreSQL is the source of truth; the broker is only transport. Each transition is one guarded `UPDATE`: it names the
statuses that it may leave and, where a worker finishes a run, the claim that the worker holds. Messages may arrive
twice, late or never, and a worker's child, its parent and a sweep may all report the same event: the guard lets one of
them through, and the others change nothing. All transitions are in this one module, so that they can be read together.

      enqueue ──> pending/scheduled ──claim──> running ──finish──> completed, failed, errored, revoked, ignored
                        ^   │                   │  │ ^
                        │   └── cancel, expire, │  │ │ claim of the next attempt
                        └───────requeue─────────┘  └─┴─> retrying

A *claim* ensures that an attempt runs only once. It is taken before the body starts, increments `claims` and returns
that number: the fencing token that is needed to finish the run. A message gets no claim if the run is cancelled or
finished, if its attempt is already claimed, or if the run has moved on to a later attempt.

A finished row does not change, unless a new call with the same ID reuses it (`engine.sending.used`). The number of
claims continues across calls, so the token of an earlier call is never valid again, and only messages of the new call
can claim the row.
"""
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from .database import Connection, Row, execute
from .headers import HEADER
from .payload import StrictDecoder, clean_text, is_jsonb

__all__ = (
    'call_of',
    'cancel',
    'claim',
    'close_replaced',
    'count_lines',
    'explain',
    'finish',
    'is_cancelled',
    'publish_failed',
    'release',
    'remember',
    'replace',
    'requeue',
    'resend_replacement',
    'retry',
    'take_back',
)

TABLE = 'netbox_celery_celeryresult'
LOG = 'netbox_celery_celerylogentry'
WORKERS = 'netbox_celery_celeryworker'
WINDOWS = 'netbox_celery_ignorewindow'

#: Key among the versions in a worker's row that holds other facts about the worker; no package has this name.
WORKER_STATE = '@worker'
#: How long a worker may be silent, seconds: by its own settings, which also determine how often it sends heartbeats.
SILENCE = f"COALESCE((versions #>> '{{{WORKER_STATE},lost_after}}')::float, %(lost_after)s)"
# GUARANTEE: a worker is considered lost only after it was silent for as long as its own settings allow, and only by a
# worker whose own heartbeats reached the database without a gap for at least as long (`steady`, seconds).
ALIVE = f'stopped IS NULL AND (heartbeat > now() - make_interval(secs => {SILENCE}) OR {SILENCE} > %(steady)s)'

#: Claims that the history of a run keeps: the first ones, and the latest one as the last entry.
MOST_ATTEMPTS = 100
#: A run that lost its worker this many times is not requeued: the run itself may be what kills its workers.
MOST_LOSSES = 5

WAITING = "status IN ('pending', 'scheduled', 'retrying')"
#: The row of a task that replaced itself, as long as no message was sent under its ID: it waits for an earlier step of
#: its replacement. Every other row with `nesting` > 0 holds its own message.
AWAITS_REPLACEMENT = f'{WAITING} AND nesting > 0 AND message IS NULL'
#: The row holds all that is needed to send its message, and does not wait for a slot of its concurrency key.
SENDABLE = '(nesting = 0 OR message IS NOT NULL) AND concurrency_slot IS DISTINCT FROM 0'
#: How many later calls have reused the row, as text; and (`BEFORE`) how many claims it had before the latest one did.
BEGUN = f"COALESCE(options #>> '{{headers,{HEADER},begun}}', '0')"
_BEFORE = f"options #>> '{{headers,{HEADER},before}}'"
#: A header may hold anything, and one odd row must not fail a statement that concerns many.
BEFORE = f"CASE WHEN {_BEFORE} ~ '^[0-9]+$' AND length({_BEFORE}) < 10 THEN ({_BEFORE})::int ELSE 0 END"
#: No worker has claimed the run. Claims of earlier calls with its ID do not count.
UNCLAIMED = f'claims = {BEFORE}'
UNFINISHED = "status IN ('pending', 'scheduled', 'retrying', 'running')"

# GUARANTEE: of all messages of an attempt, and all their copies, one can run, and none after the run was cancelled or
# has finished.
# - `nesting` orders the replacements of a task, and `attempt` its retries: a row never goes back to an earlier one.
# - A later attempt may take over a running one: its message is sent before the end of the earlier attempt is written.
# - A copy of the message of the claimed attempt gets nothing, even if the worker is lost. The sweep decides whether the
#   worker is lost and whether the task may be repeated, and then requeues the run: so no task that was acknowledged
#   early runs again.
# - A message for another call than the row's gets nothing: the task is compared, and the arguments as far as they can
#   be. `message` holds the call if the row does not (see `rows.payload_columns` and `enqueue`): the arguments, and the
#   task's name if it differs. The row of a task that replaced itself learns which call replaces it when that is sent.
# - Messages of earlier calls cannot claim a row that a new call has reused (see `engine.sending.used`).
CLAIM = f"""
    UPDATE {TABLE} SET
        status = 'running', reason = '', worker = %(worker)s::text, holder = %(holder)s::uuid,
        attempt = %(attempt)s, nesting = %(nesting)s, claims = claims + 1,
        started = COALESCE(started, now()), sent = COALESCE(sent, now()), last_updated = now(),
        attempts = (attempts - {MOST_ATTEMPTS - 1}) || jsonb_build_array(jsonb_build_object(
            'number', %(attempt)s::int, 'started', now(), 'ended', NULL, 'worker', %(worker)s::text, 'error', ''
        ))
    WHERE task_id = %(task_id)s AND cancelled IS NULL AND (
        status IN ('pending', 'scheduled') AND (nesting, attempt) <= (%(nesting)s, %(attempt)s)
        OR status IN ('retrying', 'running') AND (nesting, attempt) < (%(nesting)s, %(attempt)s)
    ) AND {BEGUN} = %(begun)s AND CASE
        WHEN nesting < %(nesting)s OR %(name)s::text IS NULL THEN true
        WHEN message IS NULL THEN nesting > 0 OR celery_name = %(name)s AND (
            args IS NULL OR kwargs IS NULL OR COALESCE(jsonb_build_array(args, kwargs) = %(call)s::jsonb, true)
        )
        ELSE (celery_name = %(name)s OR strpos(message, %(renamed)s) > 0)
            AND COALESCE(starts_with(message, %(beginning)s), true)
    END
    RETURNING id, claims, attempt, user_id, request_id
"""


def claim(
    connection: Connection, *, task_id: str | UUID, attempt: int, nesting: int, worker: str, holder: UUID | None,
    name: str | None = None, call: str | None = None, begun: int = 0
) -> Row | None:
    """Claim a run for this delivery of its message.

    Args:
        connection: The engine's connection. While the database is unavailable, this waits for it, without limit.
        task_id: ID of the run.
        attempt: Number of the attempt that the message is for, from 1.
        nesting: How often the task had replaced itself when the message was sent.
        worker: Node name of the worker.
        holder: Key of the worker process group (`CeleryWorker.key`).
        name: Name of the task in the message, or `None` to skip its comparison with the row's.
        call: The message's arguments as JSON text, `[args, kwargs]`, or `None` to skip their comparison with the row's.
        begun: How many later calls had reused the row when the message was sent.

    Returns:
        `(id, claims, attempt, user_id, request_id)`, or `None` if the claim is refused.
    """
    rows = connection.execute(CLAIM, {
        'task_id': task_id, 'attempt': attempt, 'nesting': nesting, 'worker': worker, 'holder': holder,
        'begun': str(begun), 'name': name and clean_text(name)[:255], 'renamed': f'}}, {json.dumps(name)}, {{',
        # Arguments that `jsonb` refuses are in `message`: a row without one is another call, or the caller compares it
        'call': call and (call if is_jsonb(call) else 'null'), 'beginning': call and call[:-1],
    }, patience=float('inf'))
    return rows[0] if rows else None


CALL = f'SELECT celery_name, args::text, kwargs::text, message, nesting, exact_call FROM {TABLE} WHERE task_id = %s'


def call_of(connection: Connection, task_id: str | UUID) -> tuple[Any, ...] | None:
    """Return the call of a run: the task's name, its arguments and keyword arguments.

    Returns:
        `(name, args, kwargs)`, or `None` if there is no such row, or if its call is unknown or not stored.
    """
    rows = connection.execute(CALL, (task_id,))
    try:
        return _call_of(*rows[0]) if rows else None
    except (RecursionError, TypeError, ValueError):
        return None  # the row does not hold a valid call


def _call_of(
    name: str, args: str | None, kwargs: str | None, message: str | None, nesting: int, exact: str | None
) -> tuple[Any, ...] | None:
    decode = StrictDecoder().decode
    if message is None:
        if nesting or args is None or kwargs is None:
            return None
        parts = decode(exact)[:2] if exact else (None, None)
        return name, *(decode(own) if part is None else part for part, own in zip(parts, (args, kwargs)))
    args, kwargs, *replaced_by = decode(message)
    return replaced_by[0] if replaced_by else name, args, kwargs


def count_lines(connection: Connection, id: int) -> int:
    """Return how many lines the log of a run (given by its primary key) has so far."""
    return connection.execute(f'SELECT count(*) FROM {LOG} WHERE result_id = %s', (id,))[0][0]


def explain(connection: Connection, task_id: str | UUID) -> Row | None:
    """Return `(status, reason, worker, claims)` of a run, to explain why a transition was refused.

    Returns `None` if there is no such row.
    """
    rows = connection.execute(f'SELECT status, reason, worker, claims FROM {TABLE} WHERE task_id = %s', (task_id,))
    return rows[0] if rows else None


# GUARANTEE: a run finishes once. A worker's child finishes it with the token of its claim; the worker's parent process,
# which has no token, as the holder of that attempt; any other process only while the run is waiting. A cancel overrides
# every other final status, also success.
FINISH = f"""
    UPDATE {TABLE} SET
        status = CASE WHEN cancelled IS NOT NULL AND %(status)s <> 'revoked' THEN 'revoked' ELSE %(status)s END,
        reason = CASE WHEN cancelled IS NOT NULL AND %(status)s <> 'revoked' THEN 'cancelled' ELSE %(reason)s END,
        result = %(result)s::jsonb, exact_result = %(exact_result)s,
        error = CASE WHEN cancelled IS NOT NULL AND %(error)s = '' THEN error ELSE %(error)s END,
        traceback = %(traceback)s,
        completed = now(), last_updated = now(), message = NULL, in_backend = %(in_backend)s,
        attempts = {{attempts}}
    WHERE task_id = %(task_id)s AND {{guard}}
    RETURNING id, status, reason, CASE WHEN concurrency_slot IS NOT NULL THEN concurrency_key END AS key
"""
# The history has one entry per claim, in order: claim number n has index n - 1.
END_ATTEMPT = """jsonb_set(jsonb_set(attempts, ARRAY[{index}, 'ended'], to_jsonb(now())),
        ARRAY[{index}, 'error'], to_jsonb(%(error)s::text))"""
LAST_ATTEMPT = END_ATTEMPT.format(index="'-1'")
OWN_ATTEMPT = END_ATTEMPT.format(index=f'(LEAST(%(claims)s::int, {MOST_ATTEMPTS}) - 1)::text')

FINISH_BY = {
    'claim': FINISH.format(attempts=OWN_ATTEMPT, guard="status = 'running' AND claims = %(claims)s"),
    'holder': FINISH.format(
        attempts=LAST_ATTEMPT,
        guard="status = 'running' AND holder = %(holder)s AND attempt = %(attempt)s"
    ),
    'waiting': FINISH.format(attempts='attempts', guard=WAITING),
}
# GUARANTEE: an ignore window takes effect no later than the success that opens it becomes visible.
OPEN_WINDOW = f"""
    INSERT INTO {WINDOWS} (key, until, task_id) VALUES (%(key)s, %(until)s, %(task_id)s)
    ON CONFLICT (key) DO UPDATE SET until = EXCLUDED.until, task_id = EXCLUDED.task_id
"""
FINISH_AND_OPEN_BY = {
    by: f"""
    WITH ended AS ({statement}), opened AS (
        INSERT INTO {WINDOWS} (key, until, task_id)
        SELECT key, now() + make_interval(secs => length), %(task_id)s::uuid
        FROM unnest(%(windows)s::text[], %(lengths)s::float8[]) AS wanted (key, length)
        WHERE EXISTS (SELECT FROM ended WHERE status = 'completed')
        ON CONFLICT (key) DO UPDATE SET until = EXCLUDED.until, task_id = EXCLUDED.task_id
    )
    SELECT * FROM ended
    """
    for by, statement in FINISH_BY.items()
}


def finish(
    connection: Connection, task_id: str | UUID, status: str, *, claims: int | None = None, holder: UUID | None = None,
    attempt: int | None = None, reason: str = '', result: str = 'null', exact_result: str | None = None,
    error: str = '', traceback: str = '', in_backend: bool = False, windows: Mapping[str, float] | None = None,
    patience: float = 60
) -> Row | None:
    """Finish a run. With `claims` or `holder` it must be running, without both it must be waiting.

    Args:
        connection: The engine's connection.
        task_id: ID of the run.
        status: The final status.
        claims: Token of the claim, if the process that claimed the run finishes it.
        holder: Key of the worker process group, if the parent finishes a run that one of its processes held.
        attempt: With `holder`: the attempt that was held.
        reason: One of `ResultReasonChoices`, or empty.
        result: The value that the task returned, as JSON text that `jsonb` accepts.
        exact_result: The same as text, if `jsonb` would change it; or the exception that ended the run, as the result
            backend reports it.
        error: What went wrong, in one line.
        traceback: Where it went wrong.
        in_backend: Whether Celery's result backend will hold more of the result than the row.
        windows: The ignore windows that a success opens: seconds by key.
        patience: How long to try to reach the database, seconds.

    Returns:
        `(id, status, reason, key)` as written, or `None` if the guard refused the transition. `key` is the concurrency
        key that has a free slot now.
    """
    by = 'claim' if claims is not None else 'holder' if holder is not None else 'waiting'
    statement = (FINISH_AND_OPEN_BY if windows else FINISH_BY)[by]
    rows = connection.execute(statement, {
        'task_id': task_id, 'status': status, 'claims': claims, 'holder': holder, 'attempt': attempt,
        'reason': reason, 'result': result, 'exact_result': exact_result, 'error': clean_text(error),
        'traceback': clean_text(traceback), 'in_backend': in_backend,
        'windows': list(windows or ()), 'lengths': [float(length) for length in (windows or {}).values()],
    }, patience=patience)
    return rows[0] if rows else None


# GUARANTEE: only the attempt that holds the run can make it wait for its next attempt. If that one has already started
# (Celery sends its message before this is written), only the history is completed. A cancelled run is revoked here.
RETRY = f"""
    UPDATE {TABLE} SET
        status = CASE WHEN claims <> %(claims)s THEN status
            WHEN cancelled IS NOT NULL THEN 'revoked' ELSE 'retrying' END,
        reason = CASE WHEN claims = %(claims)s AND cancelled IS NOT NULL THEN 'cancelled' ELSE reason END,
        completed = CASE WHEN claims = %(claims)s AND cancelled IS NOT NULL THEN now() ELSE completed END,
        scheduled = CASE WHEN claims = %(claims)s THEN %(eta)s ELSE scheduled END,
        error = CASE WHEN claims = %(claims)s THEN %(error)s ELSE error END,
        exact_result = CASE WHEN claims = %(claims)s THEN %(exception)s::text ELSE exact_result END,
        traceback = CASE WHEN claims = %(claims)s THEN %(traceback)s ELSE traceback END,
        last_updated = now(), attempts = {OWN_ATTEMPT}
    WHERE task_id = %(task_id)s AND (status = 'running' AND claims = %(claims)s OR claims > %(claims)s)
    RETURNING id, status
"""


def retry(
    connection: Connection, task_id: str | UUID, *, claims: int, eta: datetime | None = None, error: str = '',
    traceback: str = '', exception: str | None = None, patience: float = 60
) -> Row | None:
    """Record that an attempt failed and that the message of the next one was sent.

    Args:
        connection: The engine's connection.
        task_id: ID of the run.
        claims: Token of the claim of the attempt that failed.
        eta: When the next attempt may start, an aware `datetime`.
        error: Why the attempt failed, in one line.
        traceback: Where it failed.
        exception: The exception as Celery's result backend reports it, as JSON text.
        patience: How long to try to reach the database, seconds.

    Returns:
        `(id, status)`, or `None` if the run has finished or another claim holds it.
    """
    rows = connection.execute(RETRY, {
        'task_id': task_id, 'claims': claims, 'eta': eta, 'error': clean_text(error),
        'traceback': clean_text(traceback), 'exception': exception,
    }, patience=patience)
    return rows[0] if rows else None


# GUARANTEE: only the claim that holds a run can put it back into the queue; the redelivered message may then claim it
# again. A run that keeps losing its workers is requeued by others at most `MOST_LOSSES` - 1 times. There is no limit to
# how often a body may reject its own message.
REQUEUE = f"""
    UPDATE {TABLE} SET
        status = CASE WHEN cancelled IS NOT NULL THEN 'revoked' ELSE 'pending' END,
        reason = CASE WHEN cancelled IS NOT NULL THEN 'cancelled' ELSE %(reason)s END,
        completed = CASE WHEN cancelled IS NOT NULL THEN now() END,
        holder = NULL, last_updated = now(), attempts = {LAST_ATTEMPT},
        sent = CASE WHEN %(resend)s THEN NULL ELSE sent END
    WHERE task_id = %(task_id)s AND status = 'running' AND {{guard}}
    RETURNING id, status
"""
NOT_TOO_OFTEN = f'claims - {BEFORE} - attempt - nesting < {MOST_LOSSES - 1}'
REQUEUE_BY = {
    'body': REQUEUE.format(guard='claims = %(claims)s'),
    'claim': REQUEUE.format(guard=f'claims = %(claims)s AND {NOT_TOO_OFTEN}'),
    'holder': REQUEUE.format(guard=f'holder = %(holder)s AND attempt = %(attempt)s AND {NOT_TOO_OFTEN}'),
}


def requeue(
    connection: Connection, task_id: str | UUID, *, by: Literal['body', 'claim', 'holder'], claims: int | None = None,
    holder: UUID | None = None, attempt: int | None = None, reason: str = '', error: str = '', resend: bool = False,
    patience: float = 5
) -> Row | None:
    """Put a running run back into the queue.

    Args:
        connection: The engine's connection.
        task_id: ID of the run.
        by: Who requeues it: `body`, the run itself; `claim`, another process that knows the `claims` of a lost worker;
            `holder`, a worker's parent that knows the `attempt`.
        claims: Token of the claim.
        holder: Key of the worker process group.
        attempt: With `holder`: the attempt that was held.
        reason: One of `ResultReasonChoices`, or empty.
        error: Why, in one line, for the history.
        resend: Whether the message is lost and the sweep must send it again. Otherwise the broker redelivers it.
        patience: How long to try to reach the database, seconds.

    Returns:
        `(id, status)`, or `None` if the run is not held like this, or was requeued too often.
    """
    rows = connection.execute(REQUEUE_BY[by], {
        'task_id': task_id, 'claims': claims, 'holder': holder, 'attempt': attempt, 'reason': reason,
        'error': clean_text(error), 'resend': resend,
    }, patience=patience)
    return rows[0] if rows else None


# GUARANTEE: after a cancel no claim succeeds. A waiting run is revoked immediately; a running one is marked, and is
# revoked whatever its body's result.
CANCEL = f"""
    UPDATE {TABLE} SET
        cancelled = now(), last_updated = now(), error = %s,
        status = CASE WHEN {WAITING} THEN 'revoked' ELSE status END,
        reason = CASE WHEN {WAITING} THEN 'cancelled' ELSE reason END,
        completed = CASE WHEN {WAITING} THEN now() END,
        message = CASE WHEN {WAITING} THEN NULL ELSE message END
    WHERE id = ANY(%s) AND {UNFINISHED} AND cancelled IS NULL
    RETURNING id, task_id, status, holder, CASE WHEN completed IS NOT NULL THEN concurrency_key END
"""


def cancel(connection: Any, ids: Iterable[int], error: str = '') -> list[Row]:
    """Cancel runs, in the caller's transaction.

    Args:
        connection: A connection of Django's.
        ids: Primary keys.
        error: Who cancelled them, in one line.

    Returns:
        A list of `(id, task_id, status, holder, key)` of the runs that could still be cancelled. `key` is the
        concurrency key that may have a free slot now.
    """
    return execute(connection, CANCEL, (clean_text(error), list(ids)))


def is_cancelled(connection: Connection, id: int | None, patience: float = 5) -> bool:
    """Whether a run (given by its primary key) was cancelled, or its row was deleted."""
    rows = connection.execute(f'SELECT cancelled IS NOT NULL FROM {TABLE} WHERE id = %s', (id,), patience=patience)
    return rows[0][0] if rows else True


# GUARANTEE: a run that a worker has claimed, however it got the message, never ends as `publish_failed`.
PUBLISH_FAILED = f"""
    UPDATE {TABLE} SET
        status = 'errored', reason = 'publish_failed', error = %s, completed = now(), last_updated = now(),
        message = NULL
    WHERE id = ANY(%s) AND {WAITING} AND ({UNCLAIMED} OR nesting > 0 AND attempt = 0)
"""


def publish_failed(connection: Any, ids: Iterable[int], error: str) -> None:
    """Finish runs (given by their primary keys) whose message the broker refused, on a connection of Django's."""
    execute(connection, PUBLISH_FAILED, (clean_text(error), list(ids)))


# GUARANTEE: a task that replaces itself keeps its row, which then waits for the replacement; a finished row is not
# changed. The worker holds the row until the replacement was sent: if the worker is lost before, the sweep finds the
# row. The row drops the message of the first task, so that it is never sent again.
REPLACE = f"""
    UPDATE {TABLE} SET
        status = CASE WHEN cancelled IS NOT NULL THEN 'revoked' ELSE 'pending' END,
        completed = CASE WHEN cancelled IS NOT NULL THEN now() END,
        reason = CASE WHEN cancelled IS NOT NULL THEN 'cancelled' ELSE 'replaced' END,
        nesting = %(nesting)s, attempt = 0, message = NULL, sent = NULL, scheduled = NULL, expires = NULL,
        options = CASE WHEN %(header)s::jsonb IS NULL THEN options ELSE jsonb_set(
            jsonb_set(options, '{{headers}}', COALESCE(options -> 'headers', '{{}}')),
            '{{headers,{HEADER}}}', %(header)s::jsonb
        ) END,
        last_updated = now(), attempts = {OWN_ATTEMPT}
    WHERE task_id = %(task_id)s AND status = 'running' AND claims = %(claims)s AND nesting < %(nesting)s
    RETURNING id, status, (
        -- The row as it was before this update
        SELECT jsonb_build_array(message, sent, scheduled, expires, nesting, options)::text FROM {TABLE}
        WHERE task_id = %(task_id)s
    )
"""


def replace(
    connection: Connection, task_id: str | UUID, *, claims: int, nesting: int, header: str | None = None
) -> Row | None:
    """Make the row of a task that is about to replace itself wait for its replacement.

    Args:
        connection: The engine's connection.
        task_id: ID of the run.
        claims: Token of the claim.
        nesting: How often the task has replaced itself, with this time.
        header: The engine's header of the run's messages, as JSON text: code that later sends a message under this ID
            may not know it.

    Returns:
        `(id, status, before)`, or `None` if the run has finished, or another claim holds it. `before` is for
        `take_back`.
    """
    rows = connection.execute(REPLACE, {
        'task_id': task_id, 'claims': claims, 'nesting': nesting, 'header': header, 'error': '',
    }, patience=60)
    return rows[0] if rows else None


HANDED_OVER = f"""
    task_id = %(task_id)s AND {WAITING} AND reason = 'replaced' AND claims = %(claims)s AND holder IS NOT NULL
"""
RELEASE = f'UPDATE {TABLE} SET holder = NULL, last_updated = now() WHERE {HANDED_OVER}'


def release(connection: Connection, task_id: str | UUID, *, claims: int, patience: float = 60) -> None:
    """Record that the replacement of a task was sent: this worker no longer holds the row."""
    connection.execute(RELEASE, {'task_id': task_id, 'claims': claims}, patience=patience)


# GUARANTEE: a task whose replacement could not be sent gets its claim back and can continue, unless a message that was
# sent has claimed the row.
TAKE_BACK = f"""
    UPDATE {TABLE} SET
        status = 'running', reason = '', attempt = %(attempt)s, last_updated = now(),
        message = before ->> 0, sent = (before ->> 1)::timestamptz, scheduled = (before ->> 2)::timestamptz,
        expires = (before ->> 3)::timestamptz, nesting = (before ->> 4)::int,
        options = before -> 5
    FROM (SELECT %(before)s::jsonb AS before) AS earlier
    WHERE {HANDED_OVER} AND attempt = 0
    RETURNING id
"""


def take_back(connection: Connection, task_id: str | UUID, *, claims: int, attempt: int, before: str) -> bool:
    """Let a run that was about to be replaced continue, and return whether it can.

    Args:
        connection: The engine's connection.
        task_id: ID of the run.
        claims: Token of the claim.
        attempt: Number of the attempt that is running.
        before: The last value that `replace` returned.
    """
    return bool(connection.execute(TAKE_BACK, {
        'task_id': task_id, 'claims': claims, 'attempt': attempt, 'before': before,
    }, patience=60))


RESEND_REPLACEMENT = f"""
    UPDATE {TABLE} SET holder = NULL, sent = NULL, last_updated = now() WHERE {HANDED_OVER} AND message IS NOT NULL
    RETURNING id
"""


def resend_replacement(connection: Connection, task_id: str | UUID, *, claims: int) -> bool:
    """Let the sweep send the replacement of a task whose worker was lost, and return whether the row holds it."""
    return bool(connection.execute(RESEND_REPLACEMENT, {'task_id': task_id, 'claims': claims}))


# GUARANTEE: only a row that still waits for its replacement is closed. As soon as the message of the replacement's last
# step is stored, that step decides how the run ends.
CLOSE_REPLACED = f"""
    UPDATE {TABLE} SET
        status = 'errored', reason = %(reason)s, error = %(error)s, completed = now(), last_updated = now(),
        exact_result = %(exact_result)s, in_backend = %(in_backend)s
    WHERE task_id = %(task_id)s AND {AWAITS_REPLACEMENT}
    RETURNING id, CASE WHEN concurrency_slot IS NOT NULL THEN concurrency_key END
"""


def close_replaced(
    connection: Connection, task_id: str | UUID, error: str, reason: str = 'upstream_failed',
    exact_result: str | None = None, in_backend: bool = False
) -> Row | None:
    """Finish a run that waits for its replacement, because an earlier step of that did not succeed or was lost.

    Args:
        connection: The engine's connection.
        task_id: ID of the run.
        error: Why, in one line.
        reason: One of `ResultReasonChoices`.
        exact_result: The exception as Celery's result backend reports it, as JSON text.
        in_backend: Whether the result backend will hold more of it than the row.

    Returns:
        `(id, key)`, or `None` if there is no such run. `key` is the concurrency key that has a free slot now.
    """
    rows = connection.execute(CLOSE_REPLACED, {
        'task_id': task_id, 'error': clean_text(error), 'reason': reason, 'exact_result': exact_result,
        'in_backend': in_backend,
    }, patience=5)
    return rows[0] if rows else None


REPLACED = "nesting > 0 AND attempt = 0 AND reason = 'replaced'"
# GUARANTEE: only the claim that holds the run can change its message; a finished run has none (`FINISH`, `CANCEL`).
REMEMBER = f"""
    UPDATE {TABLE} SET
        message = %(message)s, queue = COALESCE(%(queue)s, queue),
        status = CASE WHEN {REPLACED} AND %(scheduled)s::timestamptz IS NOT NULL THEN 'scheduled' ELSE status END,
        scheduled = CASE WHEN {REPLACED} THEN %(scheduled)s::timestamptz ELSE scheduled END,
        expires = CASE WHEN {REPLACED} THEN %(expires)s::timestamptz ELSE expires END
    WHERE task_id = %(task_id)s AND {UNFINISHED} AND claims = %(claims)s
"""


def remember(
    connection: Connection, task_id: str | UUID, message: str, *, claims: int, queue: str | None = None,
    scheduled: datetime | None = None, expires: datetime | None = None
) -> None:
    """Store a message that differs from the row's call: of a retry with other arguments, or of a replacement.

    Args:
        connection: The engine's connection.
        task_id: ID of the run.
        message: Arguments, keyword arguments, name and options, as JSON text.
        claims: Token of the claim under which it is sent.
        queue: Name of its queue, empty if unknown; `None` keeps the row's.
        scheduled: For a replacement: the earliest time of its start.
        expires: For a replacement: when it expires.
    """
    connection.execute(REMEMBER, {
        'task_id': task_id, 'message': message, 'claims': claims, 'queue': queue, 'scheduled': scheduled,
        'expires': expires,
    }, patience=5)
