"""The state machine of runs: the only writer of `status`.

PostgreSQL is the truth and the broker is only transport. Every transition is one guarded `UPDATE`: it names the
states that it may leave and, where a worker ends a run, the claim that it holds. Messages may arrive twice, late or
never, and reports of the same event may come from a worker's child, its parent and a sweep: the guard lets one of
them through and the others change nothing.

      enqueue ──> pending/scheduled ──claim──> running ──finish──> completed, failed, errored, revoked, ignored
                        ^   │                   │  │ ^
                        │   └── cancel, expire, │  │ │ claim of the next attempt
                        └───────requeue─────────┘  └─┴─> retrying

A *claim* is what makes a run run once. It is taken before the body, counts up `claims` and returns the number: the
fencing token with which alone the run can be ended. A message is refused if the row was cancelled or has ended, if
a living worker holds the run, or if the message belongs to an earlier attempt than the row has seen.

A row that has ended stays so, unless a new call with its ID begins it anew (`engine.used`). Claims count on then, so
that the token of an earlier call is none, and only messages of the new call can claim it.
"""
import json

from .database import execute
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

#: Where a worker's row, among its versions, says what else is to be known of it: a name that no package has.
WORKER_STATE = '@worker'
#: How long a worker may be silent, seconds: what its own settings say, since these say how often it is heard as well.
SILENCE = f"COALESCE((versions #>> '{{{WORKER_STATE},lost_after}}')::float, %(lost_after)s)"
# GUARANTEE: a worker is not taken for dead before it was silent for as long as its own settings allow, nor by a worker
# that was not heard itself for so long without a break (`steady`, seconds).
ALIVE = f'stopped IS NULL AND (heartbeat > now() - make_interval(secs => {SILENCE}) OR {SILENCE} > %(steady)s)'

#: Claims that a run's history keeps: the first ones, and the latest in the place of the last.
MOST_ATTEMPTS = 100
#: A run that was given back so often is not tried again: it may be what kills its workers.
MOST_LOSSES = 5

WAITING = "status IN ('pending', 'scheduled', 'retrying')"
#: The row of a task that replaced itself, while nothing was sent under its ID: it waits for an earlier step of what
#: replaces it. Every other row with a nesting holds its own message.
AWAITS_REPLACEMENT = f'{WAITING} AND nesting > 0 AND message IS NULL'
#: The row holds what it takes to send it, and does not wait in line for a place under its concurrency key.
SENDABLE = '(nesting = 0 OR message IS NOT NULL) AND concurrency_slot IS DISTINCT FROM 0'
#: How often a row has begun anew with a new call, as text, and how many claims it had before the latest beginning.
BEGUN = f"COALESCE(options #>> '{{headers,{HEADER},begun}}', '0')"
_BEFORE = f"options #>> '{{headers,{HEADER},before}}'"
#: A header may hold anything: one row must not spoil a statement for many.
BEFORE = f"CASE WHEN {_BEFORE} ~ '^[0-9]+$' AND length({_BEFORE}) < 10 THEN ({_BEFORE})::int ELSE 0 END"
#: No worker has claimed the run: an earlier call with its ID does not count.
UNCLAIMED = f'claims = {BEFORE}'
UNFINISHED = "status IN ('pending', 'scheduled', 'retrying', 'running')"

# GUARANTEE: of all messages and copies of messages of an attempt, one gets to run, and none after a cancel or an end.
# `nesting` orders what replaced itself, `attempt` the retries: a row never goes back. An attempt that is running may
# be taken over by a later one: its message is sent before the end of the earlier one is written. A copy of its own
# message gets nothing, also if its worker is dead. Whether that is so, and whether the task may be repeated, is for the
# sweep to say, which gives the run back: nothing that was acknowledged early is run again.
# And a message that is another call than the row's gets nothing: by its task, and by its arguments as far as those can
# be compared. `message` holds the call if the row does not (see `rows.payload_columns` and `enqueue`): arguments, and
# the name where that is another one. The row of a task that replaced itself learns of the call that takes its place
# when that is sent.
# A row that has begun anew with a new call (see `used`) is not for the messages of those before.
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


def claim(connection, *, task_id, attempt, nesting, worker, holder, name=None, call=None, begun=0):
    """Claim a run for this delivery of its message.

    Args:
        connection: An `EngineConnection`; a database that is away is waited for.
        task_id: ID of the run.
        attempt: Number of the attempt that the message asks for, from 1.
        nesting: How often the task had replaced itself when the message was sent.
        worker: Node name of the worker.
        holder: Key of the worker process group (`CeleryWorker.key`).
        name: Name of the task that the message asks for, or `None` if that is not to be compared with the row's.
        call: Its arguments as JSON text, `[args, kwargs]`, or `None` if they are not to be compared with the row's.

        begun: How often the row had begun anew with a new call when the message was sent.

    Returns:
        `(id, claims, attempt, user_id, request_id)`, or `None` if the claim is refused.
    """
    rows = connection.execute(CLAIM, {
        'task_id': task_id, 'attempt': attempt, 'nesting': nesting, 'worker': worker, 'holder': holder,
        'begun': str(begun), 'name': name and clean_text(name)[:255], 'renamed': f'}}, {json.dumps(name)}, {{',
        # What `jsonb` does not take is in `message`: a row without one is another call, or has to be looked at
        'call': call and (call if is_jsonb(call) else 'null'), 'beginning': call and call[:-1],
    }, patience=float('inf'))
    return rows[0] if rows else None


CALL = f'SELECT celery_name, args::text, kwargs::text, message, nesting, exact_call FROM {TABLE} WHERE task_id = %s'


def call_of(connection, task_id):
    """Return the call that a run is: name, arguments and keyword arguments of the task.

    `None` if there is no such row, or that cannot be told.
    """
    rows = connection.execute(CALL, (task_id,))
    try:
        return _call_of(*rows[0]) if rows else None
    except (RecursionError, TypeError, ValueError):
        return None  # what it holds is no call


def _call_of(name, args, kwargs, message, nesting, exact):
    decode = StrictDecoder().decode
    if message is None:
        if nesting or args is None or kwargs is None:
            return None
        exact = decode(exact)[:2] if exact else (None, None)
        return name, *(decode(own) if part is None else part for part, own in zip(exact, (args, kwargs)))
    args, kwargs, *instead = decode(message)
    return instead[0] if instead else name, args, kwargs


def count_lines(connection, id):
    """Return how many lines the log of a run, given by its primary key, has so far."""
    return connection.execute(f'SELECT count(*) FROM {LOG} WHERE result_id = %s', (id,))[0][0]


def explain(connection, task_id):
    """Return `(status, reason, worker, claims)` of a run, to say why a claim or an end was refused.

    `None` if there is no such row.
    """
    rows = connection.execute(f'SELECT status, reason, worker, claims FROM {TABLE} WHERE task_id = %s', (task_id,))
    return rows[0] if rows else None


# GUARANTEE: a run ends once. A child ends it with the token of its claim; its parent, which has none, as the holder
# of that attempt; anybody else only while no worker has claimed it. Somebody's cancel wins over success.
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
# One entry of the history a claim, in order: a claim's own entry is the one before its number.
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
# GUARANTEE: an ignore window is in force no later than the success that opens it can be seen.
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
    connection, task_id, status, *, claims=None, holder=None, attempt=None, reason='', result='null', exact_result=None,
    error='', traceback='', in_backend=False, windows=None, patience=60
):
    """End a run.

    Args:
        connection: An `EngineConnection`.
        task_id: ID of the run.
        status: The end status.
        claims: Token of the claim, if a claimed run is ended by who claimed it.
        holder: Key of the worker process group, if it ends what one of its processes held.
        attempt: With `holder`: the attempt that it held.
        reason: Why, a `ResultReasonChoices`.
        result: What the task returned, as JSON text that `jsonb` accepts.
        exact_result: The same as text, if `jsonb` does not keep it as it is; or the exception with which it ended, as
            the result backend tells it.
        error: What went wrong, in a line.
        traceback: Where it went wrong.
        in_backend: Whether Celery's result backend will hold more of the result than the row.
        windows: The ignore windows that a success opens: seconds by key.
        patience: For how long to try to reach the database, seconds.

    Returns:
        `(id, status, reason, key)` as written, or `None` if the run was not in a state from which this end may be
        reached. `key` is the concurrency key under which a place is free now.
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


# GUARANTEE: only the attempt that holds the run can send it to its next attempt, and not if that one has begun
# (Celery sends its message before this is written). Then only the history is completed. A cancel ends the run here.
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


def retry(connection, task_id, *, claims, eta=None, error='', traceback='', exception=None, patience=60):
    """Record that an attempt failed and the next one has been sent.

    Args:
        eta: When the next attempt may start, an aware `datetime`.
        error: Why it failed, in a line.
        traceback: Where it failed.
        exception: The same as Celery's result backend tells it, as JSON text.

    Returns:
        `(id, status)`, or `None` if the run has ended.
    """
    rows = connection.execute(RETRY, {
        'task_id': task_id, 'claims': claims, 'eta': eta, 'error': clean_text(error),
        'traceback': clean_text(traceback), 'exception': exception,
    }, patience=patience)
    return rows[0] if rows else None


# GUARANTEE: a run goes back to the queue only from the claim that held it; the redelivery may then claim it anew. What
# loses its worker again and again is not given back by others for ever; a body may reject its message as it likes.
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
    connection, task_id, *, by, claims=None, holder=None, attempt=None, reason='', error='', resend=False, patience=5
):
    """Put a run that has not been finished back into the queue.

    Args:
        by: Who does: the `body` itself, `claim` (somebody who knows the `claims` of a lost worker), or the `holder`,
            a worker's parent that knows the `attempt`.
        resend: Its message is gone: the sweep is to send it again. Otherwise the broker delivers it again.

    Returns:
        `(id, status)`, or `None` if the run is not held as given, or was given back too often.
    """
    rows = connection.execute(REQUEUE_BY[by], {
        'task_id': task_id, 'claims': claims, 'holder': holder, 'attempt': attempt, 'reason': reason,
        'error': clean_text(error), 'resend': resend,
    }, patience=patience)
    return rows[0] if rows else None


# GUARANTEE: after a cancel no claim succeeds. What waits is revoked at once; what runs keeps the mark, and ends as
# revoked however it ends.
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


def cancel(connection, ids, error=''):
    """Cancel runs, in the caller's transaction.

    Args:
        connection: A connection of Django's.
        ids: Primary keys.
        error: By whom, in a line.

    Returns:
        A list of `(id, task_id, status, holder, key)` of those that could still be cancelled. `key` is the concurrency
        key under which a place may be free now.
    """
    return execute(connection, CANCEL, (clean_text(error), list(ids)))


def is_cancelled(connection, id, patience=5):
    """Whether somebody asked to cancel a run (by its primary key), or its row is gone."""
    rows = connection.execute(f'SELECT cancelled IS NOT NULL FROM {TABLE} WHERE id = %s', (id,), patience=patience)
    return rows[0][0] if rows else True


# GUARANTEE: a run that a worker got hold of, by whatever way, did not fail for want of a message.
PUBLISH_FAILED = f"""
    UPDATE {TABLE} SET
        status = 'errored', reason = 'publish_failed', error = %s, completed = now(), last_updated = now(),
        message = NULL
    WHERE id = ANY(%s) AND {WAITING} AND ({UNCLAIMED} OR nesting > 0 AND attempt = 0)
"""


def publish_failed(connection, ids, error):
    """End runs whose message the broker refused, by their primary keys, on a connection of Django's."""
    execute(connection, PUBLISH_FAILED, (clean_text(error), list(ids)))


# GUARANTEE: a task that replaces itself keeps its row, which then waits for the other task; never after an end. Until
# that was sent, the worker holds the row: should it die, its sweep finds the row. What the row knew of the first task's
# message, it forgets: that is not sent again.
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
        -- As it was before
        SELECT jsonb_build_array(message, sent, scheduled, expires, nesting, options)::text FROM {TABLE}
        WHERE task_id = %(task_id)s
    )
"""


def replace(connection, task_id, *, claims, nesting, header=None):
    """Make the row of a task that is about to replace itself wait for its replacement.

    Args:
        header: What the messages of the run say of it, as JSON text: what is sent under its ID later may not know.

    Returns:
        `(id, status, before)`, or `None` if the run has ended, or is held by somebody else. `before` is for
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


def release(connection, task_id, *, claims, patience=60):
    """Write that the replacement of a task was sent: what becomes of the row is not this worker's affair any more."""
    connection.execute(RELEASE, {'task_id': task_id, 'claims': claims}, patience=patience)


# GUARANTEE: a task whose replacement could not be sent holds its row again, and may do something else; not if what was
# sent has got hold of the row.
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


def take_back(connection, task_id, *, claims, attempt, before):
    """Make a run that was about to be replaced run on. Returns whether it does."""
    return bool(connection.execute(TAKE_BACK, {
        'task_id': task_id, 'claims': claims, 'attempt': attempt, 'before': before,
    }, patience=60))


RESEND_REPLACEMENT = f"""
    UPDATE {TABLE} SET holder = NULL, sent = NULL, last_updated = now() WHERE {HANDED_OVER} AND message IS NOT NULL
    RETURNING id
"""


def resend_replacement(connection, task_id, *, claims):
    """Let the sweep send what replaces a task, whose worker was lost meanwhile. Returns whether the row knows that."""
    return bool(connection.execute(RESEND_REPLACEMENT, {'task_id': task_id, 'claims': claims}))


CLOSE_REPLACED = f"""
    UPDATE {TABLE} SET
        status = 'errored', reason = %(reason)s, error = %(error)s, completed = now(), last_updated = now(),
        exact_result = %(exact_result)s, in_backend = %(in_backend)s
    WHERE task_id = %(task_id)s AND {AWAITS_REPLACEMENT}
    RETURNING id, CASE WHEN concurrency_slot IS NOT NULL THEN concurrency_key END
"""


def close_replaced(
    connection, task_id, error, reason='upstream_failed', exact_result=None, in_backend=False
):
    """End a run that waits for what replaces it, of which an earlier step did not succeed, or was lost.

    Returns:
        `(id, key)`, or `None` if there is no such run. `key` is the concurrency key under which a place is free now.
    """
    rows = connection.execute(CLOSE_REPLACED, {
        'task_id': task_id, 'error': clean_text(error), 'reason': reason, 'exact_result': exact_result,
        'in_backend': in_backend,
    }, patience=5)
    return rows[0] if rows else None


REPLACED = "nesting > 0 AND attempt = 0 AND reason = 'replaced'"
# GUARANTEE: only for who holds the run; an end forgets it.
REMEMBER = f"""
    UPDATE {TABLE} SET
        message = %(message)s, queue = COALESCE(%(queue)s, queue),
        status = CASE WHEN {REPLACED} AND %(scheduled)s::timestamptz IS NOT NULL THEN 'scheduled' ELSE status END,
        scheduled = CASE WHEN {REPLACED} THEN %(scheduled)s::timestamptz ELSE scheduled END,
        expires = CASE WHEN {REPLACED} THEN %(expires)s::timestamptz ELSE expires END
    WHERE task_id = %(task_id)s AND {UNFINISHED} AND claims = %(claims)s
"""


def remember(connection, task_id, message, *, claims, queue=None, scheduled=None, expires=None):
    """Keep a message that differs from what the row was made for: a retry's with other arguments, a replacement's.

    Args:
        message: Arguments, keyword arguments, name and options, as JSON text.
        claims: Token of the claim under which it is sent.
        queue: Name of the queue that it goes to, empty if that cannot be told; `None`: as the row has it.
        scheduled: Of a replacement: the earliest time of its start.
        expires: Of a replacement: when it expires.
    """
    connection.execute(REMEMBER, {
        'task_id': task_id, 'message': message, 'claims': claims, 'queue': queue, 'scheduled': scheduled,
        'expires': expires,
    }, patience=5)
