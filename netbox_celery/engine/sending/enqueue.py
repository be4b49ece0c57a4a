"""A call becomes a row, and then a message.

Everything that starts a task (`delay`, canvas, retries, beat, `send_task`) ends in `app.send_task`, which hands over
to `send()`. In a transaction the row is part of it and the message goes out on commit; outside of one, row and message
follow each other at once. A row without `sent` is one whose message may not have gone out: the sweep sends it (again),
and the claim makes sure that it runs once.
"""
import logging
import time
from collections.abc import Mapping
from functools import partial
from uuid import uuid4

from celery import states
from celery.exceptions import CeleryError, Ignore
from celery.result import EagerResult
from django.db import DatabaseError, InternalError

from ... import host
from ...config import get_config
from ..calls.arguments import call_text
from ..calls.hooks import invocation_of
from ..calls.ids import SPELLING, canonical_ids
from ..calls.options import NOT_SENT, Own, is_internal, lift, mark, split, tag
from ..calls.policies import has_policy, policy_of, take_settings
from ..calls.queues import check_call, delivered_to
from ..calls.run import get_run
from ..catalogue.strategies import has_own_strategy, refuse_branch, refuse_row
from ..exceptions import DatabaseReadOnly, TaskConflict
from ..internals import registered
from ..store import lifecycle
from ..store.branches import HEADER as BRANCH
from ..store.branches import branch_of
from ..store.database import (
    UNAVAILABLE,
    caller,
    execute,
    in_savepoint,
    is_read_only,
    now_or_on_commit,
    on_commit,
    refuse_read_only,
)
from ..store.headers import HEADER
from ..store.payload import is_uuid, text_of
from ..store.recorder import recorder
from ..store.times import aware, check_limits, time_after
from ..workflows.canvas import as_request, make_portable, root_of, stamp_branch
from ..workflows.family import are_orphans, insert_child, refuse, takes_over
from . import replace
from .admission import admit, advance, is_under_way
from .control import cancel_many
from .rows import INSERT, build_row, check_payload, copied, exact_call, options_columns, payload_columns
from .used import BEGIN_ANEW, conflict, forget, header_of, made
from .used import find as find_used

__all__ = (
    'complete',
    'find_task',
    'is_tracked',
    'note_refusal',
    'send',
    'wants_row',
)

logger = logging.getLogger(__name__)

#: Options that say who waits for the end of the call itself, whose ID they know: it cannot become another run.
DEPENDENTS = ('chain', 'chord', 'link', 'group_id')
#: For how long a worker waits for the database before it sends what a task calls without a row, seconds.
PATIENCE = 60


def is_tracked(task):
    """Whether runs of a task get a row if neither the call nor its message says anything else.

    Args:
        task: A task object, or `None` for a name that this process knows no task of: tracked, since whoever calls it
            wants to see what becomes of it.
    """
    if task is None:
        return True
    if is_internal(task.name) or has_own_strategy(task):
        return False
    return getattr(task, 'netbox_track', get_config().track == 'all')


def wants_row(task, own):
    """Whether a call gets a row.

    Args:
        task: As for `is_tracked`.
        own: The `Own` options of the call.
    """
    return is_tracked(task) if own.track is None or has_own_strategy(task) else own.track


def _check_untracked(task, own, options):
    """Check that nobody insists on a row for a call whose run nobody would claim, or has one for it already.

    Raises:
        celery.exceptions.CeleryError: Somebody does, or the call is made in a branch.
    """
    if Own.merge(None, own).track or getattr(task, 'netbox_track', False) and not _is_default(task):
        refuse_row(task)
    if takes_over(options):
        refuse_row(task, 'It cannot take the place of a task that has a row.')
    if branch := branch_of(options):
        refuse_branch(task, branch)


def _is_default(task):
    """Whether a task says nothing else of tracking than the base class of tasks does."""
    owners = (task, *type(task).__mro__)
    owner = next(owner for owner in owners if 'netbox_track' in vars(owner))
    return owner is not task and owner.__module__ == 'netbox_celery.tasks'


def send(app, publish, name, args, kwargs, options):
    """Send a task: what `NetBoxCelery.send_task` does.

    Args:
        app: The Celery app.
        publish: Celery's own `send_task`.
        name: Name of the task.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        options: Execution options, Celery's and `netbox_*`; left as they are.

    Returns:
        An `AsyncResult`.
    """
    options, own = split(options)
    id_is_known = own.pop('id_is_known', False)  # of a call on commit
    settings = take_settings(options)
    canonical_ids(options)
    check_limits(options)
    make_portable(options)
    stamp_branch(options)
    task = options.get('task_type') or find_task(app, name)
    if 'task_type' not in options:
        kwargs, own = lift(task, kwargs, own)
    queue = check_call(app, name, args, kwargs, options, task)
    parent = app.current_worker_task
    request = parent.request_stack.top if parent is not None else None
    run = get_run(request)

    if request is not None and options.get('task_id') and options['task_id'] == request.id:
        # What replaces a task has to be let in as any call; a retry is in.
        if run is None or not run.replaced or not has_policy(task, settings):
            return _continue(app, publish, name, args, kwargs, options, task, run, queue)
    if run is not None and run.replaced:
        run.continued = True  # something is sent in its place
    inner = _inner_task(app, name, kwargs)
    asked, own = own, Own.merge(inner or task, own)
    if has_own_strategy(task):
        _check_untracked(task, asked, options)
        tracked = False
    else:
        tracked = wants_row(inner or task, own) or takes_over(options)
    call = Call(app, publish, name, args, kwargs, options, task, run, queue)
    call.id_is_given = bool(options.get('task_id')) and not options.get('retries')
    call.id_is_known = id_is_known or parent is not None and bool(options.get('task_id')) or any(
        map(options.get, DEPENDENTS)
    )
    if run is not None:
        # Of a task of another class nobody notes that its body has returned; Celery names the parent, a body does not
        call.is_next_step = run.returned or options.get('parent_id') == run.task_id
        if run.returned and options.get('parent_id') == run.task_id:
            call.predecessor = run.task_id
    if not tracked or not _usable_id(options):
        if options.get('serializer') in (None, 'json'):
            check_payload(name, args, kwargs, options)
        if policy_of(task, args, kwargs, settings):
            raise CeleryError(f'{name}: unique, concurrency keys and ignore windows need a row, which it has not')
        if own.track is False:
            mark(options, False)
        return call.send_now()
    complete(app, options, parent)
    result = call.send_tracked(own, settings)
    # Without a row of its own the call is a run that was there before
    result.netbox_joined = call.id is None
    return result


def find_task(app, name):
    return registered(app).get(name) if app.finalized else app.tasks.get(name)


def _usable_id(options):
    """Whether the ID can be a row's. Celery takes any string; a row's is a UUID."""
    if not options.get('task_id') or is_uuid(str(options['task_id'])):
        return True
    logger.warning('Task ID %r is not a UUID: the run is not tracked', options['task_id'])
    return False


def _inner_task(app, name, kwargs):
    """Return the task that a `map` or `starmap` calls for each item, or `None`."""
    if name in ('celery.map', 'celery.starmap') and kwargs and isinstance(kwargs.get('task'), Mapping):
        return find_task(app, kwargs['task'].get('task'))
    return None


def _continue(app, publish, name, args, kwargs, options, task, run, queue):
    """Send the next attempt of the current run, or what the task replaced itself with: its row exists."""
    parent = app.current_worker_task
    request = parent.request_stack.top
    replaces = (options.get('replaced_task_nesting') or 0) > (request.replaced_task_nesting or 0)
    tracked = run is not None and (run.replaced or not replaces)
    if options.get('serializer') in (None, 'json'):
        check_payload(name, args, kwargs, options)
    mark(options, (request.get(HEADER) or True) if tracked else False)
    # An attempt runs in the branch of the one before, whatever the body has made of it
    if branch := request.get(BRANCH):
        options['headers'][BRANCH] = branch
    else:
        options['headers'].pop(BRANCH, None)
    if spelling := request.get(SPELLING):
        options['headers'][SPELLING] = spelling
    if tracked:
        # The next attempt may start at once, in another process: this one's lines come first.
        recorder.flush(run)
        run.next_eta = _when(options)
        if replaces:
            _fix_times(options)
        if replaces or run.remembered or queue != delivered_to(app, request.delivery_info) or not _is_same(
            run, parent, name, args, kwargs
        ):
            replace.remember(app, run, name, args, kwargs, options, task, queue)
            run.remembered = True
        run.continued = True
    result = publish(name, args, kwargs, **options)
    if tracked and replaces:
        recorder.sent(run.id)
    return result


def _is_same(run, parent, name, args, kwargs):
    """Whether the next attempt of a run is the call that its row holds. The body may have changed its arguments."""
    request = parent.request_stack.top
    if name != (request.task or parent.name):
        return False
    if run.call is not None:
        return run.call == call_text(args, kwargs)
    return (list(args or ()), kwargs or {}) == (list(request.args or ()), request.kwargs or {})


def complete(app, options, parent):
    """Fix now what Celery would work out when the message goes out, which may be later: ID, parents, times."""
    options['task_id'] = str(options.get('task_id') or uuid4())
    if parent is not None:
        request = parent.request_stack.top
        if request is not None:
            options['root_id'] = options.get('root_id') or request.root_id or request.id
            options['parent_id'] = options.get('parent_id') or request.id
    if not options.get('root_id'):
        options['root_id'] = root_of(options)
    _fix_times(options)
    return options


def _fix_times(options):
    if eta := _when(options):
        options['eta'] = eta
        options.pop('countdown', None)
    if isinstance(options.get('expires'), int | float):
        options['expires'] = time_after(options['expires'])


def _when(options):
    """Return the time before which the task must not start, as an aware `datetime`, or `None`.

    Raises:
        ValueError: It is too near to an end of the calendar.
    """
    if countdown := options.get('countdown'):
        return time_after(countdown)
    return aware(options.get('eta'))


class Call:
    """A call on its way to a worker: first its row, then its message."""

    def __init__(self, app, publish, name, args, kwargs, options, task, run, queue):
        self.app = app
        self.publish = publish
        self.name = name
        self.args = args
        self.kwargs = kwargs
        self.options = options
        self.task = task
        #: Name of the queue that it goes to; empty if that cannot be told.
        self.queue = queue
        #: The run of the task that makes the call.
        self.run = run
        #: Who wants to hear of it.
        self.invocation = invocation_of(task, args, kwargs, options)
        self.row = None
        #: Whether it is a step of a workflow, for whose end somebody may wait, and the run that it follows in a chain.
        self.id_is_known = False
        #: Whether its ID may have been used before.
        self.id_is_given = False
        self.predecessor = None
        #: Whether it is Celery that calls, after the body of the task has returned: nobody would call again.
        self.is_next_step = False
        #: Whether its row is that of a task which replaced itself; `None`: not known yet.
        self.takes_over = None
        #: Primary key of its row.
        self.id = None

    def send_tracked(self, own, settings):
        """Make the row, and send the message, on commit if there is a transaction."""
        options = self.options
        if host.is_in_maintenance():
            raise DatabaseReadOnly(self._not_sent())
        self.row = build_row(self.app, self.name, self.args, self.kwargs, options, own, self.task, self.run, self.queue)
        if caller().in_atomic_block:
            # The message goes out later, and says what the row says, whatever the caller does with its dict until then
            self.args, self.kwargs = copied(self.name, (self.args, self.kwargs))
        policy = policy_of(self.task, self.args, self.kwargs, settings, self.row['branch'])
        if policy is not None:
            return self._send_if_admitted(policy, own)
        try:
            # A row that cannot be made does not spoil the caller's transaction.
            with in_savepoint():
                self.id = self._insert_patiently(own)
        except DatabaseError as exc:
            if is_read_only(exc):
                # Whoever runs the task could neither claim it nor write what becomes of it
                raise DatabaseReadOnly(self._not_sent()) from exc
            # The task is worth more than its row.
            logger.exception('Task %s[%s] is sent without being tracked', self.name, options['task_id'])
            if not self.row['nesting']:  # what takes the place of another task may have its row, which it is to end
                mark(options, False)
        else:
            mark(options)
        return self._send()

    def _insert(self, own, statement=None):
        """Insert the row with the caller's connection; returns its primary key, or `None` if it was not inserted."""
        row, statement = self.row, statement or INSERT
        if row['nesting']:
            self._look_for_replaced()
            statement = replace.INSERT_OR_TAKE_OVER if statement is INSERT else statement
        rows = self._execute(statement)
        if not rows and statement is INSERT:
            rows = made(row)
            if not rows and self._begins_anew():
                rows = self._execute(BEGIN_ANEW) or made(row)
                if not rows:
                    raise conflict(row)  # another call was faster
        if not rows:
            return None
        if 'seen' in row:
            now_or_on_commit(partial(forget, self.app.backend, self.options['task_id']))
        if own.tags and not self.takes_over:
            tag(rows[0][:1], own.tags)
        return rows[0][0]

    def _execute(self, statement):
        """Execute the statement for the row, with what has to be known of the run that makes the call."""
        row = self.row
        return execute(caller(), statement, row) if row['parent_id'] is None else insert_child(statement, row)

    def _begins_anew(self):
        """Whether the call is to get the row of an earlier one with its ID; its message then says so (see `used`).

        Raises:
            TaskConflict: That one has not ended.
        """
        if not self.id_is_given or self.row['nesting']:
            return False
        parent = self.app.current_worker_task
        found = find_used(self.row, self.run, parent.request_stack.top if parent is not None else None)
        if found is None:
            return False
        self._say(header_of(found, self.run, (self.options.get('headers') or {}).get(HEADER)))
        self.row['seen'] = found.completed
        return True

    def _say(self, header):
        """Say something of the run in its message, and in its row, from which that may be sent again."""
        mark(self.options, header)
        columns = options_columns(self.name, self.options, self.task)
        self.row['options'] = columns['options']
        if columns['exact_options']:
            payload = payload_columns(self.name, list(self.args or ()), dict(self.kwargs or {}), self.options)
            self.row['exact_call'] = exact_call(payload['exact_call'], columns['exact_options'])

    def _look_for_replaced(self):
        """Let the row of a task that replaced itself, if the call ends under its ID, tell what it knows of that run."""
        if self.takes_over is None:
            self.takes_over, header = replace.find(self.options['task_id'], self.row['nesting'])
            replace.inherit(self.options, header)
            mark(self.options)
            self.row['message'] = replace.message_of(self.name, self.args, self.kwargs, self.options)

    def _insert_patiently(self, own):
        """Insert the row though the caller's connection has broken; a worker waits for a database that is away.

        A task is sent without a row rather than not at all. But what a task in a worker starts, such as the next step
        of its chain, can wait as well as the end of that task, which is written next. Where nothing can be written
        that step waits for as long as it takes: it must neither run without a row nor be lost.
        """
        in_worker = self.app.current_worker_task is not None
        deadline = time.monotonic() + (PATIENCE if in_worker else 0)
        wait = 0
        while True:
            try:
                return self._insert(own)
            except (*UNAVAILABLE, InternalError) as exc:
                read_only = is_read_only(exc)
                if isinstance(exc, InternalError) and not (read_only and in_worker) or caller().in_atomic_block:
                    raise
                if wait and time.monotonic() >= deadline and not (read_only and self.is_next_step):
                    raise
                caller().close()
                if wait:
                    logger.warning('The database is unavailable, trying again in %.1f s: %s', wait, exc)
                time.sleep(wait)
                wait = min(wait * 2, 5) or 0.1

    def _send_if_admitted(self, policy, own):
        """Do what a policy says. Without a row there is no guarantee: so if that cannot be made, nothing is sent."""
        options = self.options
        if policy.window:
            self._say({'window': policy.window, 'length': policy.window_length})
        else:
            mark(options)
        if self.row['nesting']:
            self._look_for_replaced()
        admission = self._admit(policy, own)
        if admission.is_refused:
            try:
                if self._begins_anew():
                    admission = self._admit(policy, own)
                    if admission.is_refused:
                        raise conflict(self.row)  # another call was faster
            except TaskConflict:
                if policy.on_conflict != 'join' or not is_under_way(policy, options['task_id']):
                    raise
                return self._tell(self._promise(), 'unique')  # the run that it joins has the ID that it asks for
        self.id = admission.id
        if admission.joined:
            return self._tell(self._promise(admission.joined), 'unique')
        if admission.ignored:
            if self.id_is_known:
                request = as_request(options['task_id'], self.name, options)
                now_or_on_commit(partial(self.app.backend.end_ignored, request, Ignore(admission.ignored)))
            result = EagerResult(options['task_id'], None, states.IGNORED, name=self.name)
            return self._tell(result, 'ignored' if admission.in_window else 'unique')
        if not admission.waits:
            return self._send()
        result = self._tell(self._promise())
        now_or_on_commit(partial(self._line_up, policy.key))
        return result

    def _admit(self, policy, own):
        """Ask for admission; the next step of a workflow waits for it where nothing can be written."""
        while True:
            try:
                with refuse_read_only(self._not_sent()), in_savepoint():
                    admission = admit(
                        policy, self.row, partial(self._insert, own), cancel_many, id_is_known=self.id_is_known,
                        predecessor=self.predecessor,
                    )
                    if admission.is_refused and (rows := made(self.row)):
                        admission.id, admission.waits = rows[0]
                    return admission
            except DatabaseReadOnly as exc:
                if caller().in_atomic_block or not self.is_next_step:
                    raise
                caller().close()
                logger.warning('Trying again in 5 s: %s', exc)
                time.sleep(5)

    def _not_sent(self):
        return f'{self.name}[{self.options["task_id"]}] was not sent'

    def _send(self):
        if not caller().in_atomic_block:
            return self.send_now()
        result = self._tell(self._promise())
        self._forget_call()
        on_commit(self._send_on_commit)
        return result

    def send_now(self):
        """Send the message; if the broker refuses it, the row says so, and the caller gets the exception."""
        if self.row and self.row.get('refused'):
            refuse(self.app, self.name, self.options)
            return self._promise()
        if self.invocation:
            self.options['task_id'] = self.options.get('task_id') or str(uuid4())
            self._tell(self._result())
        try:
            result = self.publish(self.name, self.args, self.kwargs, **self.options)
        except Exception as exc:
            if self.id is not None:
                note_refusal([self.id], exc)
                # The run of the task that makes the call is still to end by itself, or to do something else
                self.app.backend.close_dependents(
                    self.name, self.options, exc, except_id=self.run and self.run.task_id
                )
            raise
        if self.id is not None:
            recorder.sent(self.id)
        if self.invocation:
            self.invocation.tell('trigger', result)
        return result

    def _forget_call(self):
        """Leave out of the options what means something only while the call is made."""
        self.options = {key: value for key, value in self.options.items() if key not in NOT_SENT}

    def _send_on_commit(self):
        options = self.options
        try:
            if self.id is not None and options.get('parent_id') and are_orphans([self.id], options['parent_id']):
                return refuse(self.app, self.name, options)
            result = self.publish(self.name, self.args, self.kwargs, add_to_parent=False, **options)
        except Exception as exc:  # noqa: BLE001 - the caller's transaction is committed, there is nobody to tell
            logger.error('Task %s[%s] could not be sent, it will be sent again: %s', self.name, options['task_id'], exc)
        else:
            if self.id is not None:
                recorder.sent(self.id)
            if self.invocation:
                self.invocation.tell('trigger', result)

    def _line_up(self, key):
        """Send the message if it is the turn of the run, and those of others whose turn it is."""
        if advance(self.app, partial(execute, caller()), key, but=self.id):
            self._forget_call()
            self._send_on_commit()

    def _result(self, task_id=None):
        """Return an `AsyncResult` of this run, or of another one."""
        options = self.options
        result = (options.get('result_cls') or self.app.AsyncResult)(task_id or options.get('task_id'))
        result.ignored = options.get('ignore_result')
        return result

    def _promise(self, task_id=None):
        """Return what `send_task` would have returned."""
        result, options = self._result(task_id), self.options
        parent = self.app.current_worker_task
        if parent is not None and options.get('add_to_parent', True):
            parent.add_trail(result)
        return result

    def _tell(self, result, *what):
        """Tell the task of the call, and of what has become of it."""
        if self.invocation:
            for name in ('apply', *what):
                self.invocation.tell(name, result)
        return result


def note_refusal(ids, exc):
    """Write that the broker refused messages; whoever called gets to know it in any case."""
    try:
        lifecycle.publish_failed(caller(), ids, f'The broker did not accept the message: {text_of(exc)}')
    except DatabaseError:
        logger.exception('Runs %s were not sent, which could not be written', ids)
