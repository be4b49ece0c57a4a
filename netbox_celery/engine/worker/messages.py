"""A worker's main process outlives every message: what it cannot give to its pool ends that run, and not the worker.

Celery's main process decodes a message, makes a request of it and hands that to the pool. For what it expects to go
wrong on the way it has handlers; anything else ends the process, which gives the message back on its way out, so that
the next worker ends too. Here each such message is rejected, and its run ends as `errored`, `rejected`:

* `Messages` checks what a message says of its task (an ID that is a list, an attempt that is a text), and rejects what
  Celery's own handler fails at.
* `Worker` ends what cannot be handed to the pool (arguments nested too deeply to be pickled), at once, after an ETA or
  from behind a rate limit.
* The requests (`tolerant`) hear of a body that ran out of memory, or left by an exception that is no `Exception`,
  without passing that on to the main process.
"""
import logging
import traceback as traceback_module
from datetime import datetime
from functools import partial, wraps

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.pool import MaybeEncodingError
from celery import bootsteps
from celery.apps import worker
from celery.exceptions import InvalidTaskError, TaskRevokedError
from celery.worker.state import task_ready
from kombu.utils.imports import symbol_by_name

from ...choices import ResultStatusChoices as Status
from ..calls.hooks import tell_of_failure
from ..calls.ids import SPELLING, canonical
from ..catalogue import discovery
from ..catalogue.strategies import has_own_strategy, strategy_of, why_not_in_branch, why_untracked
from ..exceptions import BodyInterrupted, BranchNotReady, NotHandedOver, OutOfMemory
from ..internals import context_of
from ..runs.ending import ENDS, end_from_outside
from ..runs.reports import status_of
from ..store.branches import HEADER as BRANCH
from ..store.branches import is_branch
from ..store.headers import HEADER
from ..store.payload import DEEPEST, clean_text, is_uuid
from ..store.times import MAX_SECONDS
from ..workflows.canvas import DEEPEST_LINKS
from ..workflows.requests import load_requests

__all__ = (
    'Messages',
    'Worker',
    'arguments_of',
    'end_for',
    'task_id_of',
    'tolerant',
)

logger = logging.getLogger(__name__)

#: The highest number of an attempt: what a column holds, and one that is added to it.
MOST_RETRIES = 2 ** 31 - 2


# What a message says of its task

def _is_text(value):
    return isinstance(value, str) and value != ''


def _is_count(value):
    return value is None or isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_RETRIES


def _is_time(value):
    return value is None or isinstance(value, str | datetime)


def _is_limit(value):
    return value is None or isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_SECONDS


def _are_limits(value):
    return not value or isinstance(value, list | tuple) and len(value) == 2 and all(_is_limit(item) for item in value)


def _are_stamps(value):
    return not value or isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _is_list(value):
    return value is None or isinstance(value, list | tuple)


def _is_dict(value):
    return value is None or isinstance(value, dict)


def _are_signatures(value):
    return value is None or isinstance(value, list | tuple) and all(isinstance(item, dict) for item in value)


def _is_own_header(value):
    if not isinstance(value, dict):
        return value is None or isinstance(value, bool)
    opens = value.get('opens')
    if not isinstance(opens, dict | None):
        return False
    windows = [(value.get('window'), value.get('length')), *(opens or {}).items()]
    return _is_count(value.get('begun')) and all(_is_window_key(key) and _is_limit(length) for key, length in windows)


def _is_window_key(value):
    return value is None or isinstance(value, str) and value == clean_text(value)


#: What a worker's main process, and the claim of a run, go by.
FIELDS = {
    'id': _is_text, 'task': _is_text,
    'retries': _is_count, 'replaced_task_nesting': _is_count,
    'eta': _is_time, 'expires': _is_time,
    'timelimit': _are_limits,
    'stamped_headers': _are_stamps, 'stamps': _is_dict,
    HEADER: _is_own_header,
    BRANCH: is_branch,
}
#: What depends on a task; the body of a message has it beside the arguments.
EMBEDDED = {'callbacks': _are_signatures, 'errbacks': _are_signatures, 'chain': _are_signatures, 'chord': _is_dict}


def _check(values, checks):
    get = values.get
    for name, is_valid in checks.items():
        value = get(name)
        if not is_valid(value) if value is not None else is_valid is _is_text:
            raise InvalidTaskError(f'{name} is not valid: {value!r:.200}')


def _check_message(message):
    """Check what a message says of its task.

    Raises:
        celery.exceptions.InvalidTaskError: A worker cannot use it.
    """
    headers = message.headers
    if not isinstance(headers, dict):
        return  # Celery knows what to do with it
    if 'task' in headers:
        _check(headers, FIELDS)
        if (spelling := headers.get(SPELLING)) is not None and canonical(spelling) != canonical(headers['id']):
            raise InvalidTaskError(f'{SPELLING} is not valid: it is another ID: {spelling!r:.200}')
        body = message.payload
        if isinstance(body, dict):
            _check_arguments(message, headers['task'], body.get('args'), body.get('kwargs'))
            return
        if not isinstance(body, list | tuple) or len(body) != 3:
            raise InvalidTaskError('The body is not a list of arguments, keyword arguments and options')
        args, kwargs, embedded = body
        _check_arguments(message, headers['task'], args, kwargs)
        if not isinstance(embedded, dict | None):
            raise InvalidTaskError('The options in the body are not a dict')
        if embedded:
            _check(embedded, EMBEDDED)
            if not embedded.keys() <= EMBEDDED.keys() and (named := FIELDS.keys() & embedded.keys()):
                raise InvalidTaskError(f'The body must not say what the headers say: {", ".join(sorted(named))}')
    elif isinstance(body := message.payload, dict) and 'task' in body:
        # The protocol of Celery 3
        _check(body, FIELDS | EMBEDDED)
        _check_arguments(message, body['task'], body.get('args'), body.get('kwargs'))


def _check_arguments(message, name, args, kwargs):
    if not _is_list(args):
        raise InvalidTaskError('The arguments are not a list')
    if not _is_dict(kwargs):
        raise InvalidTaskError('The keyword arguments are not a dict')
    # Counting is done in C, and nearly always enough
    text = message.body
    opened = text.count('[') + text.count('{') if isinstance(text, str) else text.count(b'[') + text.count(b'{')
    # Arguments of Celery's own tasks are calls, with arguments of their own
    deepest = DEEPEST_LINKS if name.startswith('celery.') else DEEPEST
    if opened > deepest and (_is_deeper(args, deepest) or _is_deeper(kwargs, deepest)):
        raise InvalidTaskError(f'The arguments are nested too deeply: more than {deepest} levels')


def _is_deeper(value, deepest):
    """Whether lists and dicts are nested more than so deep, without descending into them."""
    level = [value]
    for __ in range(deepest):
        level = [
            item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer or ())
            if isinstance(item, list | dict)
        ]
        if not level:
            return False
    return True


def _fields_of(message):
    """Return what a message says of its task, as far as that can be read."""
    headers = message.headers
    if isinstance(headers, dict) and 'id' in headers:
        return headers
    try:
        body = message.payload
    except Exception:  # noqa: BLE001 - whatever a decoder raises
        return {}
    return body if isinstance(body, dict) else {}


def task_id_of(message):
    """Return the task ID of a message that could not be made a request of, or `None`."""
    return canonical(_fields_of(message).get('id'))


def arguments_of(message):
    """Return the name of the task of such a message, its arguments and keyword arguments, as far as there are any."""
    name = _fields_of(message).get('task')
    try:
        body = message.payload
        args, kwargs = (body.get('args'), body.get('kwargs')) if isinstance(body, dict) else body[:2]
    except Exception:  # noqa: BLE001
        args = kwargs = None
    return (
        name if isinstance(name, str) else None,
        args if isinstance(args, list | tuple) else (),
        kwargs if isinstance(kwargs, dict) else {},
    )


class Messages(bootsteps.Step):
    """Lets a worker reject a message that its handler fails at, instead of ending, and take requests that are tolerant.
    """

    def __init__(self, consumer, **kwargs):
        super().__init__(consumer, **kwargs)
        make_handler, make_strategies = consumer.create_task_handler, consumer.update_strategies
        unclaimed: set = set()

        def create_task_handler(*args, **kwargs):
            return _rejecting(consumer, make_handler(*args, **kwargs), unclaimed)

        def update_strategies():
            for task in consumer.app.tasks.values():
                task.Request = tolerant(symbol_by_name(task.Request))
                if has_own_strategy(task):
                    unclaimed.add(task.name)
            make_strategies()

        consumer.create_task_handler = create_task_handler
        consumer.update_strategies = update_strategies


def _rejecting(consumer, handle, unclaimed=frozenset()):
    """Wrap the handler of messages: what it fails at is rejected.

    Args:
        consumer: Celery's.
        handle: The handler.
        unclaimed: Names of the tasks that have strategies of their own.
    """
    # To Kombu a key that is missing is an error of the connection: Celery would connect again, and get it again.
    errors = tuple(
        cls for cls in (*consumer.connection_errors, *consumer.channel_errors) if not issubclass(KeyError, cls)
    )

    def on_message(message):
        try:
            try:
                _check_message(message)
            except InvalidTaskError as exc:
                return consumer.on_invalid_task(None, message, exc)
            except Exception:  # noqa: BLE001 - what cannot be decoded Celery's own handler meets as well
                logger.debug('A message cannot be decoded', exc_info=True)
            if unclaimed:
                if why := _why_not_here(consumer.app, message, unclaimed):
                    return consumer.on_invalid_task(None, message, BranchNotReady(why))
                if not _let_go(consumer.app, message, unclaimed):
                    return message.ack_log_error(logger, consumer.connection_errors)
            return handle(message)
        except errors:
            raise
        except Exception as exc:
            logger.exception('A message is rejected that cannot be handled')
            if not message.acknowledged:
                consumer.on_invalid_task(None, message, exc)
                # It may be on its way to be acknowledged, which must not be done twice
                message.ack = message.reject = message.requeue = lambda *args, **kwargs: None
    return on_message


def _why_not_here(app, message, unclaimed):
    """Return in words why a message cannot be given to the strategy of its task, or an empty string.

    Its caller did not know the task, or knew another one of that name.
    """
    headers = message.headers
    if not isinstance(headers, dict) or headers.get('task') not in unclaimed or not headers.get(BRANCH):
        return ''
    return why_not_in_branch(app.tasks[headers['task']], headers[BRANCH])


def _let_go(app, message, unclaimed):
    """End the row of a run that nobody will claim: its caller did not know the task, and that it cannot be tracked.

    Returns:
        Whether the message may go on to the strategy of its task: its run was not cancelled.
    """
    headers = message.headers
    if not isinstance(headers, dict) or not headers.get(HEADER) or headers.get('task') not in unclaimed:
        return True
    name, task_id = headers['task'], canonical(headers['id'])
    # Or a strategy that goes on to Celery's own would find the run ended
    headers[HEADER] = False
    if not is_uuid(task_id):
        return True
    task = app.tasks[name]
    # Its result, if there is one, the task itself gives to the result backend
    why = f'Not followed: {why_untracked(name, strategy_of(task))}'
    ended = end_from_outside(task_id, ENDS['not_followed'], error=why, in_backend=True)
    if ended is None and status_of(task_id) == Status.STATUS_REVOKED:
        logger.info('Task %s[%s] is not run: it is revoked', name, task_id)
        return False
    return True


# From a request to the pool

class Worker(worker.Worker):
    """Celery's own, which ends a run that cannot be handed to the pool, and says at its start what it lacks."""

    def extra_info(self):
        lacking = ''.join(f'  . {failure}\n' for failure in discovery.failures())
        info = super().extra_info() or ''
        return f'{info}\n[not loaded]\n{lacking}' if lacking else info

    def _process_task(self, request):
        try:
            result = request.execute_using_pool(self.pool)
        except TaskRevokedError:
            self._release()
        except Exception as exc:
            end_for(request, exc)
            self._release()
        else:
            # Nobody looks at what becomes of a thread's work
            if future := getattr(result, 'f', None):
                future.add_done_callback(partial(_look_at_thread, request))

    def _release(self):
        """Give back the place in the pool that was kept for a request."""
        release = getattr(self, '_quick_release', None)
        if release is None:
            return
        if self.hub is not None:
            self.hub.call_soon(release)  # and not from here: the next in line may not be better
        else:
            release()


def _look_at_thread(request, future):
    if not future.cancelled() and isinstance(exc := future.exception(), Exception):
        end_for(request, exc)


def end_for(request, exc):
    """End a run for what Celery's main process does not expect.

    Args:
        request: Its request.
        exc: What was raised while it was handed to the pool, or, in a pool without processes, by Celery around the
            body.
    """
    try:
        raise exc
    except Exception:  # noqa: BLE001
        info = ExceptionInfo()
    if request.time_start is None:
        logger.error('Task %s[%s] cannot be handed to the pool: %r', request.name, request.id, exc, exc_info=exc)
        task_ready(request)
        _fail(request, NotHandedOver(f'{type(exc).__name__}: {exc}'), traceback_module.format_exception(exc))
        request.reject(requeue=False)
    else:
        try:
            request.on_failure(info)
        except Exception:
            logger.exception('The end of task %s[%s] could not be told to all', request.name, request.id)


def _fail(request, exc, traceback):
    """Tell the result backend, which ends the row and what depends on it, and who listens, that a run has failed."""
    try:
        # What depends on it the row says better than a message that may be anything
        context = (load_requests([request.id]) if is_uuid(request.id) else {}).get(request.id, context_of(request))
        request.task.backend.mark_as_failure(
            request.id, exc, traceback=''.join(traceback), request=context, store_result=request.store_errors
        )
    except Exception:
        logger.exception('The end of task %s[%s] could not be told to all', request.name, request.id)
    if status_of(request.id) != Status.STATUS_REVOKED:
        tell_of_failure(request.task, request.id, request.args, request.kwargs, exc)


# What a request hears from the pool

def tolerant(cls):
    """Return a class of Celery's requests as one that passes nothing on to the worker's main process."""
    return cls if issubclass(cls, Tolerant) else type(cls.__name__, (Tolerant, cls), {'__module__': cls.__module__})


class Tolerant:
    """What Celery's requests do not expect to hear from a pool."""
    __slots__ = ()

    def __init_subclass__(cls, **kwargs):
        # Celery makes a subclass of its own for each task, with an `on_success` that knows nothing of its base
        super().__init_subclass__(**kwargs)
        if on_success := vars(cls).get('on_success'):
            cls.on_success = _unless_interrupted(on_success)

    def on_accepted(self, pid, time_accepted):
        try:
            super().on_accepted(pid, time_accepted)
        except Exception:
            # billiard would look for a list of exceptions that it does not have
            logger.exception('Task %s[%s] has begun, which could not be told to all', self.name, self.id)

    def on_timeout(self, soft, timeout):
        try:
            super().on_timeout(soft, timeout)
        except MemoryError:
            logger.exception('Task %s[%s] is out of time, which could not be told to all', self.name, self.id)

    def on_failure(self, exc_info, send_failed_event=True, return_ok=False):
        exc = exc_info.exception
        if isinstance(exc, ExceptionWithTraceback):
            exc = exc.exc
        if isinstance(exc, MemoryError):
            # Celery takes it for its own
            exc_info.exception = OutOfMemory(exc)
        elif isinstance(exc, MaybeEncodingError):
            # What a body has left by cannot be pickled. Unless the process has ended with it, it has told of it.
            return_ok = return_ok or status_of(self.id) != Status.STATUS_RUNNING
        elif not isinstance(exc, Exception | SystemExit | KeyboardInterrupt):
            # The process or thread has told of it (`netbox_celery.engine.runs.interruption`)
            exc_info.exception, return_ok = BodyInterrupted(exc), True
        if not return_ok and isinstance(exc, MemoryError | SystemExit | KeyboardInterrupt):
            context_of(self).netbox_traceback = exc_info.traceback
        try:
            super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
        except MemoryError:
            logger.exception('Task %s[%s] has failed, which could not be told to all', self.name, self.id)


def _unless_interrupted(on_success):
    """Wrap `on_success`, which a pool without processes also calls of a body that left by no `Exception`."""
    @wraps(on_success)
    def on_end(self, outcome, **kwargs):
        if not isinstance(outcome, ExceptionInfo):
            return on_success(self, outcome, **kwargs)
        # A thread has told of it, as a process does of all but an exit
        outcome.exception = BodyInterrupted(_cause_of(outcome))
        return self.on_failure(outcome, return_ok=True)
    return on_end


def _cause_of(info):
    exc = info.exception.exc if isinstance(info.exception, ExceptionWithTraceback) else info.exception
    return exc.__context__ or exc
