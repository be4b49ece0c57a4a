"""Whether a call may run: the slots of its concurrency key, the waiting line of the key, and ignore windows.

A slot is a number in the row of a run. A unique index of PostgreSQL ensures that no two unfinished runs under a key
have the same slot. So there is no lock that could outlive its owner, and each statement that finishes a run (for the
run itself, its worker's parent, a sweep or a cancel) also frees its slot. A run without a slot waits in line (slot 0),
unsent. The process that finishes a run gives its slot to the next in line; if it cannot, the sweep does.

A window is a row of its own, written by the statement that finishes a run with success.
"""
import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.contrib.auth import get_user_model
from django.db import DatabaseError, IntegrityError, transaction

from ...choices import ResultReasonChoices as Reason
from ...choices import ResultStatusChoices as Status
from ..app import get_app
from ..exceptions import TaskConflict
from ..store import lifecycle
from ..store.database import UNAVAILABLE, caller, execute
from ..store.lifecycle import TABLE
from ..store.times import time_after
from .publish import COLUMNS, send_row
from .replace import TAKE_OVER_COLUMNS, take_over_statement
from .rows import INSERT, insert_statement
from .used import REUSE, reuse_statement

__all__ = (
    'Admission',
    'admit',
    'advance',
    'advance_all',
    'advance_line',
    'evict',
    'is_processing',
    'is_under_way',
    'is_window_open',
    'open_window',
    'why_not_now',
)

logger = logging.getLogger(__name__)

#: Number of times that other calls may take a slot which was just freed, before a call gives up.
ATTEMPTS = 100

TAKEN = f'SELECT FROM {TABLE} WHERE concurrency_key = %(key)s::text AND concurrency_slot = slot AND completed IS NULL'
HOLDING = 'concurrency_key = %(key)s AND concurrency_slot > 0 AND completed IS NULL'
PLACE = {'concurrency_key': '%(key)s::text', 'concurrency_limit': '%(limit)s::int', 'stale_after': '%(stale_after)s'}


def _statements(*changed, **expressions):
    """Return the statements for a new row, for the row of a task that this call replaces, and for a reused row."""
    return insert_statement(**expressions), take_over_statement(*changed, **expressions), reuse_statement(**expressions)


# GUARANTEE: at most `limit` runs have a slot under a key, for any number of calls and processes. If no slot is free,
# this asks for the first one, which the unique index refuses, once the transaction of the run that has it is over.
TAKE = _statements(*TAKE_OVER_COLUMNS, **PLACE, concurrency_slot=f'''COALESCE((
    SELECT min(slot) FROM generate_series(1, %(limit)s::int) AS slot
    WHERE NOT EXISTS ({TAKEN} AND task_id <> %(task_id)s::uuid)
), 1)''')
LINE_UP = _statements(*TAKE_OVER_COLUMNS, **PLACE, concurrency_slot='0', reason=f"'{Reason.REASON_QUEUED}'")
CLOSED = _statements('status', 'message', reason='%(reason)s', error='%(error)s', completed='now()')

HOLDER = f'SELECT task_id::text FROM {TABLE} WHERE {HOLDING} ORDER BY id LIMIT 1'
UNDER_KEY = '''concurrency_key = %(key)s AND completed IS NULL AND concurrency_slot >= 0 AND cancelled IS NULL'''
# GUARANTEE: of two runs that replace each other, one continues: a run that is being replaced does not replace others.
EARLIER = f'''
    SELECT id, schedule_id FROM {TABLE} WHERE {UNDER_KEY} AND id < %(id)s
        AND EXISTS (SELECT FROM {TABLE} WHERE id = %(id)s AND completed IS NULL AND cancelled IS NULL)
    ORDER BY id DESC OFFSET %(limit)s - 1
'''
# The row of a call with a used ID may be older than these.
OTHERS = f'''
    SELECT id, schedule_id FROM {TABLE} WHERE {UNDER_KEY} AND task_id <> %(task_id)s::uuid
    ORDER BY id DESC OFFSET %(limit)s - 1
'''
# From the previous step of a chain, whose body has returned and whose end is not written yet.
HAND_OVER = f'UPDATE {TABLE} SET concurrency_slot = NULL WHERE task_id = %(predecessor)s AND {HOLDING}'
UNDER_WAY = f'SELECT 1 FROM {TABLE} WHERE task_id = %(task_id)s AND {HOLDING}'
EXISTS = f'SELECT 1 FROM {TABLE} WHERE task_id = %(task_id)s'
# GUARANTEE: a run that gave up its slot does not get it back, and finishes without affecting its successor's slot.
EVICT = f'''
    UPDATE {TABLE} SET concurrency_slot = NULL, last_updated = now() WHERE {HOLDING} AND stale_after < now()
    RETURNING task_id::text
'''
# GUARANTEE: first in line, first served. Another process that assigns slots waits for the lock of the first row, and
# then finds that this run no longer waits.
GIVE = f'''
    UPDATE {TABLE} AS run SET
        concurrency_slot = (
            SELECT min(slot) FROM generate_series(1, concurrency_limit) AS slot WHERE NOT EXISTS ({TAKEN})
        ),
        reason = '', last_updated = now()
    WHERE id = (
        SELECT id FROM {TABLE} WHERE concurrency_key = %(key)s AND concurrency_slot = 0 AND completed IS NULL
        ORDER BY id LIMIT 1
    ) AND concurrency_slot = 0 AND completed IS NULL AND EXISTS (
        SELECT FROM generate_series(1, concurrency_limit) AS slot WHERE NOT EXISTS ({TAKEN})
    )
    RETURNING id, {COLUMNS}
'''
LINES = f'SELECT DISTINCT concurrency_key FROM {TABLE} WHERE completed IS NULL AND concurrency_slot = 0'
# If another process sends the message meanwhile, it is sent twice at worst, and claimed once.
MARK_SENT = f'UPDATE {TABLE} SET sent = now() WHERE id = %(id)s AND sent IS NULL'

IS_OPEN = f'''
    SELECT 1 FROM {lifecycle.WINDOWS}
    WHERE key = %(key)s AND until > now() AND task_id IS DISTINCT FROM %(task_id)s::uuid
'''


@dataclass(frozen=True, slots=True)
class Admission:
    """The decision about a call."""
    #: The value that `insert` returned, if the row was inserted: its `id` is the primary key.
    written: Any = None
    #: ID of the active run that it joins.
    joined: str | None = None
    #: Whether it waits in line; its message is sent when it is its turn.
    waits: bool = False
    #: Why it was ignored, and whether the reason is an ignore window.
    ignored: str = ''
    in_window: bool = False

    @property
    def id(self):
        """Primary key of its row; `None` if the ID was used already, or if it joins another run."""
        return None if self.written is None else self.written.id

    @property
    def is_refused(self):
        """Whether there was a row with its ID before."""
        return self.id is None and not self.joined and not self.ignored


def admit(policy, row, insert, cancel, *, id_is_known=False, predecessor=None):
    """Insert the row of a call that has a policy, as the policy permits.

    Args:
        policy: The `Policy`.
        row: The column values of the row.
        insert: Called with an `INSERT` statement and column values: inserts the row, and returns an object whose `id`
            is its primary key, or `None` if there was one already.
        cancel: Cancels the runs that the call supersedes (`control.cancel_many`).
        id_is_known: Whether other code knows its ID, and may wait for its end: then it cannot become another run.
        predecessor: ID of the run that precedes it; it takes that run's slot if the key is the same.

    Returns:
        An `Admission`.

    Raises:
        TaskConflict: The policy refuses the call.
    """
    start = max(filter(None, (row['created'], row['scheduled'])))
    row = {**row, 'key': policy.key, 'limit': policy.limit, 'stale_after': None if policy.stale_after is None else (
        time_after(policy.stale_after, start)
    )}
    put = partial(_put, insert, row)
    if policy.window and is_window_open(_execute, policy.window):
        return _ignore(row, insert, Reason.REASON_IGNORE_WINDOW, 'Not run: the task succeeded within the ignore window')
    if policy.key is None:
        return Admission(_with_id(insert(REUSE if 'seen' in row else INSERT, row)))
    if predecessor:
        _execute(HAND_OVER, {'predecessor': predecessor, 'key': policy.key})
    if policy.on_conflict in ('queue', 'replace'):
        replaces = policy.on_conflict == 'replace'
        if replaces and 'seen' in row:
            _supersede(policy, row, _execute(OTHERS, row), cancel)  # first, so that they do not replace this one
        written, __ = put(LINE_UP)
        if replaces and written is not None:
            _supersede(policy, row, _execute(EARLIER, {**row, 'id': written.id}), cancel)
        return Admission(written, waits=written is not None)
    for __ in range(ATTEMPTS):
        written, is_settled = put(TAKE)
        if is_settled:
            return Admission(written)
        if not evict(_execute, policy.key) and (holders := _execute(HOLDER, row)):
            return _settle(policy, row, insert, holders[0][0], id_is_known)
    raise TaskConflict(f'{policy.task}: no slot under the key {policy.key} could be taken')


def _put(insert, row, statements):
    """Write the row of a call. Returns `(written, is_settled)`: the result of `insert`, and `False` if no slot is free.
    """
    if not row['nesting'] and 'seen' not in row:
        written = _with_id(insert(statements[0], row))
        return written, written is not None or bool(_execute(EXISTS, row))
    try:
        with transaction.atomic(using=caller().alias):
            # `None` if the row was not in the state that the statement requires
            return _with_id(insert(statements[1 if row['nesting'] else 2], row)), True
    except IntegrityError:
        return None, False


def _with_id(written):
    return None if written.id is None else written


def _execute(sql, params):
    return execute(caller(), sql, params)


def _settle(policy, row, insert, holder, id_is_known):
    """Decide what happens to a call whose key has no slot left."""
    if policy.on_conflict == 'fail':
        raise TaskConflict(f'{policy.task} is already active, as {holder} (key {policy.key})', holder)
    if policy.on_conflict == 'skip':
        return _ignore(row, insert, Reason.REASON_SKIPPED, f'Not run: [{holder}] with the same key was active')
    if id_is_known:
        # The steps that wait for it cannot be attached to a run that was sent already
        return _ignore(row, insert, Reason.REASON_JOINED, f'Not run: [{holder}] with the same arguments was active')
    return Admission(joined=holder)


def _ignore(row, insert, reason, error):
    # Without `seen`: a finished run keeps its row if the call does not run
    row = {column: value for column, value in row.items() if column != 'seen'} | {
        'status': Status.STATUS_IGNORED, 'reason': reason, 'error': error, 'message': None
    }
    return Admission(_put(insert, row, CLOSED)[0], ignored=error, in_window=reason == Reason.REASON_IGNORE_WINDOW)


def _supersede(policy, row, earlier, cancel):
    """Cancel earlier runs under a key whose slots are needed.

    Args:
        policy: The `Policy`.
        row: The column values of the run that replaces them.
        earlier: Primary key and schedule of each of them.
        cancel: Cancels runs, given by their primary keys.

    GUARANTEE: a schedule cannot be used to cancel runs without the permission. Unless the task itself says that each of
    its runs replaces earlier ones, the run of a schedule only cancels runs of that schedule, and runs that its user is
    allowed to cancel. It waits for the others.
    """
    ids = [id for id, __ in earlier]
    if row['schedule_id'] is not None and not policy.replaces_any:
        others = [id for id, schedule_id in earlier if schedule_id != row['schedule_id']]
        kept = {*others} - (_cancellable(others, row['user_id']) if others else set())
        ids = [id for id in ids if id not in kept]
    if ids:
        cancel(ids, error=f'Superseded by [{row["task_id"]}]')


def _cancellable(ids, user_id):
    """Return which of some runs, by primary key, a user is allowed to cancel."""
    from ...models import CeleryResult

    user = get_user_model().objects.filter(pk=user_id, is_active=True).first() if user_id is not None else None
    if user is None:
        return set()
    return set(CeleryResult.objects.restrict(user, 'cancel').filter(pk__in=ids).values_list('pk', flat=True))


def is_processing(policy):
    """Whether a run with the key of a policy is active, and not stale."""
    evict(_execute, policy.key)
    return bool(_execute(HOLDER, {'key': policy.key}))


def is_under_way(policy, task_id):
    """Whether a run, given by its ID, is active with the key of a policy."""
    return policy.key is not None and bool(_execute(UNDER_WAY, {'key': policy.key, 'task_id': task_id}))


def why_not_now(policy):
    """Return why a call without a row must not run now, as the name of the hook; `None` if it may run."""
    if policy.window and is_window_open(_execute, policy.window):
        return 'ignored'
    return 'unique' if policy.key and is_processing(policy) else None


# The waiting line

def evict(run_sql, key):
    """Free the slots of stale runs under a key. Returns whether there were any."""
    evicted = run_sql(EVICT, {'key': key})
    for (task_id,) in evicted:
        logger.warning('Task %s is stale: it no longer keeps others with the key %s from running', task_id, key)
    return bool(evicted)


def advance(app, run_sql, key, except_id=None):
    """Give free slots under a key to the runs that are first in line, and send their messages.

    Args:
        app: The Celery app.
        run_sql: Executes a statement, outside of transactions.
        key: The concurrency key.
        except_id: Primary key of a run that the caller sends itself.

    Returns:
        Whether that run got a slot.
    """
    found = False
    while rows := _give(run_sql, key):
        id, *row = rows[0]
        if id == except_id:
            found = True
            continue
        try:
            send_row(app, *row)
        except Exception as exc:  # noqa: BLE001 - brokers fail each in their own way
            logger.error('Task %s could not be sent, it will be sent again: %s', row[0], exc)
        else:
            run_sql(MARK_SENT, {'id': id})
    return found


def advance_line(connection, key):
    """Send the runs that wait in line for the end of a run with a concurrency key.

    Args:
        connection: The engine's connection.
        key: The key of a run that has finished.
    """
    try:
        advance(get_app(), connection.execute, key)
    except DatabaseError as exc:
        logger.warning('The waiting line of the key %s cannot advance before the next sweep: %s', key, exc)


def _give(run_sql, key):
    for __ in range(ATTEMPTS):
        try:
            return run_sql(GIVE, {'key': key})
        except IntegrityError:
            continue  # a call has just taken the free slot
    return []


def advance_all(app, run_sql):
    """Advance every waiting line, in case the process responsible died."""
    for (key,) in run_sql(LINES, {}):
        try:
            evict(run_sql, key)
            advance(app, run_sql, key)
        except UNAVAILABLE:
            raise
        except Exception:
            logger.exception('The waiting line of the key %s cannot advance before the next sweep', key)


# Ignore windows

def is_window_open(run_sql, key, task_id=None):
    """Whether calls with a key are ignored now. A window that the run itself (`task_id`) has opened does not count."""
    return bool(run_sql(IS_OPEN, {'key': key, 'task_id': task_id}))


def open_window(run_sql, key, length, task_id):
    """Open an ignore window: calls with a key are ignored for a length in seconds."""
    run_sql(lifecycle.OPEN_WINDOW, {
        'key': key, 'until': time_after(length), 'task_id': task_id
    })
