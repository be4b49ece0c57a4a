"""No message stops a worker: a message that its main process cannot hand to the pool ends its run, not the worker.

Celery's main process decodes a message, makes a request of it and hands the request to the pool. It handles the errors
that it expects on the way. Any other error ends the process, which returns the message to the queue, so that the next
worker ends too. Here each such message is rejected, and its run finishes as `errored`, `rejected`:

* `Messages` checks the fields of a message (an ID that is a list, an attempt that is a text), and rejects a message at
  which Celery's own handler fails.
* `Worker` ends a run that cannot be handed to the pool (arguments nested too deeply to be pickled), whether it is
  handed over immediately, after its ETA or after waiting for a rate limit.
* The requests (`tolerant`) handle a body that ran out of memory, or raised what is not an `Exception`, without passing
  that on to the main process.
"""
import logging
import traceback as traceback_module
from datetime import datetime
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.pool import MaybeEncodingError
from celery import bootsteps
from celery.apps import worker
from celery.exceptions import InvalidTaskError, TaskRevokedError
from celery.worker.state import task_ready
from kombu.utils.imports import symbol_by_name

from ...choices import ResultStatusChoices as Status
from ..calls.hooks import report_failure
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

#: Highest number of an attempt: the column holds it after one is added.
MOST_RETRIES = 2 ** 31 - 2


# Fields of a message

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


#: Fields that a worker's main process and the claim of a run read.
FIELDS = {
    'id': _is_text, 'task': _is_text,
    'retries': _is_count, 'replaced_task_nesting': _is_count,
    'eta': _is_time, 'expires': _is_time,
    'timelimit': _are_limits,
    'stamped_headers': _are_stamps, 'stamps': _is_dict,
    HEADER: _is_own_header,
    BRANCH: is_branch,
}
#: Tasks that depend on this one; they are in the body of a message, next to the arguments.
EMBEDDED = {'callbacks': _are_signatures, 'errbacks': _are_signatures, 'chain': _are_signatures, 'chord': _is_dict}


def _check(values, checks):
    get = values.get
    for name, is_valid in checks.items():
        value = get(name)
        if not is_valid(value) if value is not None else is_valid is _is_text:
            raise InvalidTaskError(f'{name} is not valid: {value!r:.200}')


def _check_message(message):
    """Check the fields of a message.

    Raises:
        celery.exceptions.InvalidTaskError: A worker cannot process it.
    """
    headers = message.headers
    if not isinstance(headers, dict):
        return  # Celery handles it
    if 'task' in headers:
        _check(headers, FIELDS)
        if (spelling := headers.get(SPELLING)) is not None and canonical(spelling) != canonical(headers['id']):
            raise InvalidTaskError(f'{SPELLING} is not valid, it is a different ID: {spelling!r:.200}')
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
                raise InvalidTaskError(f'The body repeats fields of the headers: {", ".join(sorted(named))}')
    elif isinstance(body := message.payload, dict) and 'task' in body:
        # Celery's first protocol: all fields are in the body
        _check(body, FIELDS | EMBEDDED)
        _check_arguments(message, body['task'], body.get('args'), body.get('kwargs'))


def _check_arguments(message, name, args, kwargs):
    if not _is_list(args):
        raise InvalidTaskError('The arguments are not a list')
    if not _is_dict(kwargs):
        raise InvalidTaskError('The keyword arguments are not a dict')
    # Counting runs in C, and is nearly always enough
    text = message.body
    opened = text.count('[') + text.count('{') if isinstance(text, str) else text.count(b'[') + text.count(b'{')
    # The arguments of Celery's own tasks are calls, with arguments of their own
    deepest = DEEPEST_LINKS if name.startswith('celery.') else DEEPEST
    if opened > deepest and (_is_deeper(args, deepest) or _is_deeper(kwargs, deepest)):
        raise InvalidTaskError(f'The arguments are nested too deeply: more than {deepest} levels')


def _is_deeper(value, deepest):
    """Whether lists and dicts are nested deeper than a limit, found without recursion."""
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
    """Return the fields of a message, as far as they can be read."""
    headers = message.headers
    if isinstance(headers, dict) and 'id' in headers:
        return headers
    try:
        body = message.payload
    except Exception:  # noqa: BLE001 - whatever a decoder raises
        return {}
    return body if isinstance(body, dict) else {}


def task_id_of(message: Any) -> str | None:
    """Return the task ID of a message that could not become a request, or `None`."""
    return canonical(_fields_of(message).get('id'))


def arguments_of(message: Any) -> tuple[str | None, list[Any] | tuple[Any, ...], dict[str, Any]]:
    """Return the task's name, arguments and keyword arguments of such a message, as far as they can be read."""
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
    """Makes a worker reject a message at which its handler fails, instead of ending, and use `tolerant` requests."""

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
    """Wrap the handler of messages: messages at which it fails are rejected.

    Args:
        consumer: Celery's consumer.
        handle: The handler.
        unclaimed: Names of the tasks that have strategies of their own.
    """
    # Kombu takes a `KeyError` for a connection error: Celery would reconnect, and receive the message again
    errors = tuple(
        cls for cls in (*consumer.connection_errors, *consumer.channel_errors) if not issubclass(KeyError, cls)
    )

    def on_message(message):
        try:
            try:
                _check_message(message)
            except InvalidTaskError as exc:
                return consumer.on_invalid_task(None, message, exc)
            except Exception:  # noqa: BLE001 - Celery's own handler meets what cannot be decoded as well
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
            logger.exception('Rejecting a message that cannot be handled')
            if not message.acknowledged:
                consumer.on_invalid_task(None, message, exc)
                # An acknowledgement may already be in progress, and there must not be a second one
                message.ack = message.reject = message.requeue = lambda *args, **kwargs: None
    return on_message


def _why_not_here(app, message, unclaimed):
    """Return in words why a message cannot be passed to the strategy of its task, or an empty string.

    Its caller did not know the task, or knew a different one of that name.
    """
    headers = message.headers
    if not isinstance(headers, dict) or headers.get('task') not in unclaimed or not headers.get(BRANCH):
        return ''
    return why_not_in_branch(app.tasks[headers['task']], headers[BRANCH])


def _let_go(app, message, unclaimed):
    """Close the row of a run that will not be claimed: its caller did not know that the task cannot be tracked.

    Returns:
        Whether to pass the message to the strategy of its task: its run was not cancelled.
    """
    headers = message.headers
    if not isinstance(headers, dict) or not headers.get(HEADER) or headers.get('task') not in unclaimed:
        return True
    name, task_id = headers['task'], canonical(headers['id'])
    # Otherwise a strategy that passes the message on to Celery's would find the run finished
    headers[HEADER] = False
    if not is_uuid(task_id):
        return True
    task = app.tasks[name]
    # The task itself stores a result, if there is one, in the result backend
    why = f'Not tracked: {why_untracked(name, strategy_of(task))}'
    ended = end_from_outside(task_id, ENDS['not_followed'], error=why, in_backend=True)
    if ended is None and status_of(task_id) == Status.STATUS_REVOKED:
        logger.info('Task %s[%s] does not run: it was revoked', name, task_id)
        return False
    return True


# From a request to the pool

class Worker(worker.Worker):
    """Celery's worker, which ends a run that cannot be handed to the pool, and whose banner lists missing modules."""

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
            # Celery does not look at how the work of a thread ended
            if future := getattr(result, 'f', None):
                future.add_done_callback(partial(_look_at_thread, request))

    def _release(self):
        """Return the place in the pool that was reserved for a request."""
        release = getattr(self, '_quick_release', None)
        if release is None:
            return
        if self.hub is not None:
            self.hub.call_soon(release)  # not from here: the next request may fail as well, and so on
        else:
            release()


def _look_at_thread(request, future):
    if not future.cancelled() and isinstance(exc := future.exception(), Exception):
        end_for(request, exc)


def end_for(request: Any, exc: Exception) -> None:
    """End a run because of an error that Celery's main process does not expect.

    Args:
        request: Its request.
        exc: What was raised while the request was handed to the pool, or, in a pool without processes, by Celery around
            the body.
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
            logger.exception('The end of task %s[%s] could not be fully reported', request.name, request.id)


def _fail(request, exc, traceback):
    """Report the failure of a run to the result backend, which closes its row and its dependents, and to hooks."""
    try:
        # The row is the better source of its dependents: the message may contain anything
        context = (load_requests([request.id]) if is_uuid(request.id) else {}).get(request.id, context_of(request))
        request.task.backend.mark_as_failure(
            request.id, exc, traceback=''.join(traceback), request=context, store_result=request.store_errors
        )
    except Exception:
        logger.exception('The end of task %s[%s] could not be fully reported', request.name, request.id)
    if status_of(request.id) != Status.STATUS_REVOKED:
        report_failure(request.task, request.id, request.args, request.kwargs, exc)


# What the pool reports to a request

def tolerant(cls: type[Any]) -> type[Any]:
    """Return a subclass of a Celery request that passes no error on to the worker's main process."""
    return cls if issubclass(cls, Tolerant) else type(cls.__name__, (Tolerant, cls), {'__module__': cls.__module__})


if TYPE_CHECKING:
    Base: Any  # Celery's class of requests
else:
    Base = object


class Tolerant(Base):
    """Handles what Celery's requests do not expect from a pool."""
    __slots__ = ()

    def __init_subclass__(cls, **kwargs):
        # Celery makes a subclass for each task, with an `on_success` that does not call the one of its base
        super().__init_subclass__(**kwargs)
        if on_success := vars(cls).get('on_success'):
            cls.on_success = _unless_interrupted(on_success)

    def on_accepted(self, pid, time_accepted):
        try:
            super().on_accepted(pid, time_accepted)
        except Exception:
            # billiard would look up a list of exceptions that it does not have
            logger.exception('The start of task %s[%s] could not be fully reported', self.name, self.id)

    def on_timeout(self, soft, timeout):
        try:
            super().on_timeout(soft, timeout)
        except MemoryError:
            logger.exception('The timeout of task %s[%s] could not be fully reported', self.name, self.id)

    def on_failure(self, exc_info, send_failed_event=True, return_ok=False):
        exc = exc_info.exception
        if isinstance(exc, ExceptionWithTraceback):
            exc = exc.exc
        if isinstance(exc, MemoryError):
            # Celery would take it for an error of the main process
            exc_info.exception = OutOfMemory(exc)
        elif isinstance(exc, MaybeEncodingError):
            # What the body raised cannot be pickled. The process has reported it, unless it ended with it
            return_ok = return_ok or status_of(self.id) != Status.STATUS_RUNNING
        elif not isinstance(exc, Exception | SystemExit | KeyboardInterrupt):
            # The process or thread has reported it (`netbox_celery.engine.runs.interruption`)
            exc_info.exception, return_ok = BodyInterrupted(exc), True
        if not return_ok and isinstance(exc, MemoryError | SystemExit | KeyboardInterrupt):
            context_of(self).netbox_traceback = exc_info.traceback
        try:
            super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
        except MemoryError:
            logger.exception('The failure of task %s[%s] could not be fully reported', self.name, self.id)


def _unless_interrupted(on_success):
    """Wrap `on_success`: a pool without processes also calls it if the body raised what is not an `Exception`."""
    @wraps(on_success)
    def on_end(self, returned, **kwargs):
        if not isinstance(returned, ExceptionInfo):
            return on_success(self, returned, **kwargs)
        # A thread has reported it, as a process reports anything but an exit
        returned.exception = BodyInterrupted(_cause_of(returned))
        return self.on_failure(returned, return_ok=True)
    return on_end


def _cause_of(info):
    exc = info.exception.exc if isinstance(info.exception, ExceptionWithTraceback) else info.exception
    return exc.__context__ or exc
