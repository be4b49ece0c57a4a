"""What plugin authors import: the base class of tasks, its decorator, and the errors that a task raises.

    from celery import shared_task
    from netbox_celery.tasks import CeleryBaseTask

    @shared_task(name="netbox_example_plugin:hello_world", base=CeleryBaseTask, bind=True)
    def hello_world(self, task_id, name="World"):
        self.log(f"Hello {name}!")

Every call of such a task (`delay`, `apply_async`, canvas, schedules) has a `CeleryResult` with its status, live log,
progress, arguments and result. In addition to Celery's own options, decorators and calls take `netbox_name`,
`netbox_user`, `netbox_object`, `netbox_value_max`, `netbox_data`, `netbox_tags` and `netbox_track` (`False`: no row),
or one dict `netbox_kwargs` of them.
"""
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Concatenate, Literal, Unpack, overload
from uuid import uuid4

from celery import shared_task, states
from celery.exceptions import CeleryError, Retry, TimeoutError
from celery.result import AsyncResult, EagerResult, assert_will_not_block
from celery.utils.log import get_task_logger
from django.db.models import Model

from .choices import LogLevelChoices
from .engine.calls.arguments import dump_after_task_id, header, merge_arguments
from .engine.calls.hooks import TaskHooks, invocation_of, tell
from .engine.calls.oncommit import OnCommitTask, call_on_commit
from .engine.calls.options import lift, parameter_names, split
from .engine.calls.policies import default_unique_key_generator, policy_of, seconds, split_settings, window_key
from .engine.calls.run import get_run, run_of
from .engine.catalogue.commands import command_task
from .engine.exceptions import TaskConflict, TaskFailed
from .engine.internals import is_protected, protect
from .engine.runs.context import change_context
from .engine.runs.interruption import is_order
from .engine.runs.tracked import TrackedResult, look_for_cancel, report_own_end
from .engine.sending.admission import is_processing, open_window, why_not_now
from .engine.store.database import caller, execute, get_connection
from .engine.store.recorder import recorder
from .optiontypes import CallOptions, OnConflict, Span, TaskOptions

__all__ = (
    'CeleryBaseTask',
    'TaskConflict',
    'TaskFailed',
    'default_unique_key_generator',
    'get_django_command_task',
    'netbox_celery_task',
)

logger = get_task_logger(__name__)

#: How long opening an ignore window waits for an unavailable database, seconds. The end of a run waits as long.
PATIENCE = 60

#: Options that `delay()` takes among the task's arguments, unless the function has a parameter of that name.
DELAY_OPTIONS = frozenset(('ignore_result', 'ignore_task_after_success'))

#: Positional and keyword arguments of a call.
type Args = list[Any] | tuple[Any, ...] | None
type Kwargs = Mapping[str, Any] | None


class CeleryBaseTask(TaskHooks, OnCommitTask):
    """Base class of tasks whose runs NetBox shows.

    The function takes the ID of the run as its first argument: `f(self, task_id, ...)` with `bind=True`, else
    `f(task_id, ...)`. Callers do not pass it: it is added when the task runs, and is never part of a message.
    """

    abstract = True
    #: Whether runs of this task get a row.
    netbox_track: bool = True
    #: Whether the function's first argument is the ID of the run.
    takes_task_id: bool = True
    #: Seconds before each retry, in order: with `(1, 2, 3)` there are at most four attempts, unless `max_retries` is
    #: set; then further retries use the last delay. `retry_backoff`, `countdown` and `eta` take precedence.
    default_retry_delays: Sequence[float] | None = None
    #: When beat runs the task: a `celery.schedules.crontab`, a number of seconds, or a `timedelta`.
    schedule: Any = None
    #: Whether a `Strategy` of the task's own passes each message on to Celery's, so that runs are claimed and tracked.
    strategy_claims: bool = False
    #: Only one run at a time with the same arguments: a second call joins the active run.
    unique: bool = False
    #: After this time (a `timedelta` or seconds) a run gives up its concurrency slot. It keeps running.
    stale_time_limit: Span | None = None
    #: Makes the key of a call: `f(task, prefix, task_args, task_kwargs)`, or the dotted name of such a function.
    unique_key_generator: str | Callable[..., str] = default_unique_key_generator
    #: At most `limit` runs at a time have this key: a text in which `{name}` stands for an argument of the call, or a
    #: function `f(task, task_args, task_kwargs)`.
    concurrency_key: str | Callable[..., Any] | None = None
    limit: int = 1
    #: What happens to a call past the limit: `join`, `queue`, `skip`, `replace` or `fail`.
    on_conflict: OnConflict = 'join'
    #: After a success, calls with the same arguments are ignored for this time (a `timedelta` or seconds).
    ignore_task_after_success: bool = False
    ignore_task_timedelta: Span | None = None
    #: Expected errors: a worker logs them without a traceback. `TaskFailed` is always added.
    throws: type[Exception] | tuple[type[Exception], ...] = (TaskFailed,)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if 'throws' in vars(cls):
            throws = cls.throws if isinstance(cls.throws, tuple) else (cls.throws,)
            cls.throws = (*throws, TaskFailed)
        if '__header__' in vars(cls) and '__wrapped__' in vars(cls):
            # Made by a decorator: Celery checks the arguments of a call against `__header__`
            cls.__header__ = staticmethod(header(vars(cls)['__wrapped__'], cls.name))
        if dump := cls.__dict__.get('_dump_pydantic_arguments'):
            cls._dump_pydantic_arguments = staticmethod(dump_after_task_id(dump.__func__))

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the body: with the ID of the run when a worker's tracer calls it, with a new ID in a direct call."""
        request = self.request_stack.top
        if request is None or request.called_directly or is_protected(request):
            return super().__call__(str(uuid4()), *args, **kwargs)
        protect(request)
        tell(self, 'on_task_start', request.id, request.args, request.kwargs)
        run = get_run(request)
        try:
            with change_context(run):
                value = self.run(request.id, *args, **kwargs)
            if run is not None:
                run.returned = True
        except BaseException as exc:
            if run is None or run.own_end is None or is_order(exc):
                raise
            logger.warning(
                '%s[%s] raised this after it had set its final status', self.name, request.id, exc_info=True
            )
        return value if run is None or run.own_end is None else report_own_end(self, request, *run.own_end)

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Called before the body. The run is claimed before this is called, also if it is overridden."""

    # Calls

    def delay(self, /, *args: Any, **kwargs: Any) -> AsyncResult:
        """Send the task with the given arguments (see `apply_async`).

        The keyword arguments may include `netbox_*` options, `ignore_result` and `ignore_task_after_success`.
        """
        kwargs, options = self._options_of_delay(kwargs)
        return self.apply_async(args, kwargs, **options)

    def _options_of_delay(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return `(kwargs, options)`: the keyword arguments of `delay`, separated."""
        kwargs, own = lift(self, kwargs, {})
        options = {f'netbox_{name}': value for name, value in own.items()}
        for name in DELAY_OPTIONS & kwargs.keys():
            if name not in parameter_names(self):
                options[name] = kwargs.pop(name)
        return kwargs, options

    def apply_async(self, args: Args = None, kwargs: Kwargs = None, **options: Unpack[CallOptions]) -> AsyncResult:
        """Send the task (see `celery.app.task.Task.apply_async`). In a transaction, the message is sent on commit.

        Args:
            args: Positional arguments of the task, without `task_id`.
            kwargs: Keyword arguments of the task.
            **options: Celery's options and `netbox_*` options.

        Returns:
            An `AsyncResult`; if the call joined an active run, that of the run.

        Raises:
            TypeError: The arguments do not match the task's signature.
            ValueError: The soft time limit is longer than the hard one.
            celery.exceptions.CeleryError: The task's policies refuse the call (`TaskConflict`) or contradict each
                other.
            kombu.exceptions.EncodeError: An argument cannot be encoded as JSON.
            kombu.exceptions.OperationalError: The broker refused the message (outside a transaction).
        """
        kwargs, own = lift(self, kwargs, {})
        return super().apply_async(args, kwargs, **{f'netbox_{name}': value for name, value in own.items()} | options)

    def delay_on_commit(self, /, *args: Any, **kwargs: Any) -> AsyncResult:
        """Call `delay` when the transaction is committed (see `apply_async_on_commit`)."""
        kwargs, options = self._options_of_delay(kwargs)
        return self.apply_async_on_commit(args, kwargs, **options)

    def apply_async_on_commit(  # type: ignore[override]  # it names the options
        self, args: Args = None, kwargs: Kwargs = None, using: str | None = None, **options: Unpack[CallOptions]
    ) -> AsyncResult:
        """Send the task when the transaction is committed, and not at all if it, or its savepoint, is rolled back.

        The ID is known immediately; the row is created on commit. If the call of a unique task then finds an active
        run, it does not join that run: its own run is ignored, and its error names the active one.

        Args:
            args: Positional arguments of the task.
            kwargs: Keyword arguments of the task.
            using: Alias of the database whose transaction is meant; by default that in which the call is made.
            **options: As for `apply_async`.

        Returns:
            An `AsyncResult`; outside of a transaction, what `apply_async` returned.
        """
        return call_on_commit(self, partial(self.apply_async, args, kwargs), options, using)

    def apply_async_and_get_result(
        self, args: Args = None, kwargs: Kwargs = None, timeout: float | None = None, propagate: bool = True,
        **options: Unpack[CallOptions]
    ) -> Any:
        """Send the task and wait for its result. Waiting does not query the database.

        Args:
            args: Positional arguments of the task.
            kwargs: Keyword arguments of the task.
            timeout: How long to wait, seconds.
            propagate: Whether an error of the task is raised here; otherwise it is returned.
            **options: As for `apply_async`.

        Returns:
            What the task returned; `None` if the run was ignored.

        Raises:
            Exception: What the task raised, and what `apply_async` raises.
            celery.exceptions.TimeoutError: The task did not finish in time. It continues.
            RuntimeError: Called inside a task, or inside a transaction: the message is sent only after its commit.
        """
        assert_will_not_block()
        if caller().in_atomic_block:
            raise RuntimeError('The message is sent on commit: waiting inside the transaction would never end.')
        result = self.apply_async(args, kwargs, **options)
        try:
            if timeout is not None and timeout <= 0 and not result.ready():
                raise TimeoutError('The operation timed out.')
            return result.get(timeout=timeout, propagate=propagate)
        except TimeoutError as exc:
            if invocation := getattr(result, 'netbox_invocation', None):
                invocation.tell('timeout', result, exc)
            raise

    def apply(self, args: Args = None, kwargs: Kwargs = None, **options: Any) -> EagerResult:
        """Run the task in this process, untracked (see `celery.app.task.Task.apply`).

        The call is ignored while a run with the same key is active, or an ignore window is open.

        Returns:
            An `EagerResult`.
        """
        kwargs, __ = lift(self, kwargs, {})
        others, __ = split(options)
        if others.get('retries'):
            # The next attempt, which Celery makes inside the call of the first: that call was admitted and reported
            return super().apply(args, kwargs, **others)
        celery_options, settings = split_settings(others)
        policy = policy_of(self, args, kwargs, settings)
        invocation = invocation_of(self, args, kwargs, celery_options)
        why_not = policy and why_not_now(policy)
        if why_not:
            result = EagerResult(celery_options.get('task_id') or str(uuid4()), None, states.IGNORED, name=self.name)
        else:
            result = super().apply(args, kwargs, **celery_options)
            if policy and policy.window_length and result.successful():
                open_window(partial(execute, caller()), policy.window, policy.window_length, result.id)
        if invocation:
            for what in ('apply', why_not or 'trigger'):
                invocation.tell(what, result)
        return result

    def is_processing(self, args: Args = None, kwargs: Kwargs = None) -> bool:
        """Return whether a run with these arguments is active: it waits, runs, or will be retried.

        Args:
            args: Positional arguments of the task.
            kwargs: Keyword arguments of the task.

        Raises:
            celery.exceptions.CeleryError: The task is not unique and has no concurrency key.
        """
        policy = policy_of(self, args, kwargs)
        if policy is None or policy.key is None:
            raise CeleryError(f'{self.name} is not unique and has no concurrency_key')
        return is_processing(policy)

    def retry(
        self, args: Args = None, kwargs: Kwargs = None, exc: BaseException | None = None, throw: bool = True,
        eta: datetime | None = None, countdown: float | None = None, max_retries: int | None = None,
        default_retry_delays: Sequence[float] | None = None, **options: Any
    ) -> Retry:
        """Retry the task (see `celery.app.task.Task.retry`; `default_retry_delays` as the attribute).

        A `max_retries` given here applies to this run alone. Celery's own keeps it on the task object
        (`override_max_retries`), where it leaks into other runs of the process.

        Raises:
            celery.exceptions.Retry: Always, unless `throw` is false: it ends the attempt.
            Exception: `exc`, or `MaxRetriesExceededError`: this was the last attempt.
        """
        if (args is None) != (kwargs is None):
            args, kwargs = merge_arguments(self, args, kwargs)
        delays = default_retry_delays or self.default_retry_delays
        if delays and not eta and countdown is None:
            countdown = delays[min(self.request.retries, len(delays) - 1)]
            if max_retries is None and (default_retry_delays or 'max_retries' not in _set_by_author(self)):
                max_retries = len(delays)
        return super().retry(
            args=args, kwargs=kwargs, exc=exc, throw=throw, eta=eta, countdown=countdown, max_retries=max_retries,
            **options
        )

    @property
    def override_max_retries(self) -> int | None:
        """The `max_retries` that the current run gave to `retry()`; `autoretry_for` applies it as well."""
        try:
            return vars(self.request)['netbox_max_retries']
        except KeyError:
            raise AttributeError('override_max_retries') from None

    @override_max_retries.setter
    def override_max_retries(self, value: int | None) -> None:
        self.request.netbox_max_retries = value

    @override_max_retries.deleter
    def override_max_retries(self) -> None:
        del self.request.netbox_max_retries

    # In the body

    @property
    def celery_result(self) -> TrackedResult | None:
        """The row of the current run, a `TrackedResult`, or `None` if the run is not tracked."""
        run = run_of(self)
        if run is None:
            return None
        if run.row is None:
            run.row = TrackedResult(run)
        return run.row

    def log(
        self, message: object, level: int = LogLevelChoices.LEVEL_INFO, grouping: str = 'main', obj: Model | None = None
    ) -> None:
        """Add a line to the log of the current run. Others see it within half a second.

        If the run is not tracked, the line goes to the task's Python logger.

        Args:
            message: The text. Line breaks are kept, terminal colors are removed.
            level: 10 debug, 20 info, 25 success, 30 warning, 40 failure, 50 critical.
            grouping: Heading under which the line is shown.
            obj: The NetBox object that the line is about; the log links to it.
        """
        run = run_of(self)
        if run is None:
            logger.log(level, '%s', message)
        else:
            recorder.log(run, message, level, grouping, obj)

    def log_debug(self, message: object, grouping: str = 'main', obj: Model | None = None) -> None:
        """Add a line of level debug (see `log`)."""
        self.log(message, LogLevelChoices.LEVEL_DEBUG, grouping, obj)

    def log_info(self, message: object, grouping: str = 'main', obj: Model | None = None) -> None:
        """Add a line of level info (see `log`)."""
        self.log(message, LogLevelChoices.LEVEL_INFO, grouping, obj)

    def log_success(self, message: object, grouping: str = 'main', obj: Model | None = None) -> None:
        """Add a line of level success (see `log`)."""
        self.log(message, LogLevelChoices.LEVEL_SUCCESS, grouping, obj)

    def log_warning(self, message: object, grouping: str = 'main', obj: Model | None = None) -> None:
        """Add a line of level warning (see `log`)."""
        self.log(message, LogLevelChoices.LEVEL_WARNING, grouping, obj)

    def log_failure(self, message: object, grouping: str = 'main', obj: Model | None = None) -> None:
        """Add a line of level failure (see `log`). The run continues; `raise TaskFailed(...)` ends it."""
        self.log(message, LogLevelChoices.LEVEL_FAILURE, grouping, obj)

    def progress(self, value: float, value_max: float | None = None, step: str | None = None) -> None:
        """Report the progress of the current run.

        Args:
            value: Current value; its fraction is dropped. A value that is not a number, or too large, is left out, and
                the worker logs that once per run.
            value_max: Value at which the run is done, likewise; unchanged if not given.
            step: What the run is doing, in a few words.
        """
        run = run_of(self)
        if run is not None:
            recorder.progress(run, value=value, value_max=value_max, step=step)

    def set_ignore_task(self, ignore_task_timedelta: Span | None = None) -> None:
        """Open the ignore window for the arguments of the current run, however the run ends.

        Args:
            ignore_task_timedelta: How long, a `timedelta` or seconds; by default that of the task.

        Raises:
            celery.exceptions.CeleryError: The task does not check ignore windows, or the time is missing.
            django.db.Error: The database refuses it, or is unavailable for more than a minute. Without the window the
                task would be run again.
        """
        request = self.request
        run = get_run(self.request_stack.top)
        if not self.ignore_task_after_success and self.ignore_task_timedelta is None:
            raise CeleryError(f'{self.name}: without ignore_task_timedelta on the task, no call checks the window')
        length = self.ignore_task_timedelta if ignore_task_timedelta is None else ignore_task_timedelta
        if length is None:
            raise CeleryError(f'{self.name}: ignore_task_timedelta is missing')
        run_sql = partial(execute, caller()) if run is None else partial(get_connection().execute, patience=PATIENCE)
        key = run.window if run is not None and run.window else window_key(self, request.args, request.kwargs)
        open_window(run_sql, key, seconds(length), request.id)

    def is_cancelled(self) -> bool:
        """Return whether cancellation of the current run was requested. A long task checks regularly, and returns.

        The database is queried at most twice a second. While it is unavailable, the last answer is returned.
        """
        run = run_of(self)
        return run is not None and look_for_cancel(run)


# What type checkers see. A `base` of one's own may have attributes of its own, so then any option is accepted.

@overload
def netbox_celery_task(function: Callable[Concatenate[CeleryBaseTask, str, ...], Any], /) -> CeleryBaseTask: ...


@overload
def netbox_celery_task[T: CeleryBaseTask](
    *, base: type[T], bind: Literal[True] = True, **options: Any
) -> Callable[[Callable[Concatenate[T, str, ...], Any]], T]: ...


@overload
def netbox_celery_task[T: CeleryBaseTask](
    *, base: type[T], bind: Literal[False], **options: Any
) -> Callable[[Callable[Concatenate[str, ...], Any]], T]: ...


@overload
def netbox_celery_task(
    *, bind: Literal[True] = True, **options: Unpack[TaskOptions]
) -> Callable[[Callable[Concatenate[CeleryBaseTask, str, ...], Any]], CeleryBaseTask]: ...


@overload
def netbox_celery_task(
    *, bind: Literal[False], **options: Unpack[TaskOptions]
) -> Callable[[Callable[Concatenate[str, ...], Any]], CeleryBaseTask]: ...


def netbox_celery_task(*args: Any, **options: Any) -> Any:
    """Make a task on `CeleryBaseTask`, with `self`: `shared_task` with `base` and `bind` set.

        @netbox_celery_task(name="netbox_example_plugin:hello_world")
        def hello_world(self, task_id):
            self.log("Hello World!")

    Args:
        *args: The function, if the decorator is used without parentheses.
        **options: As for `celery.shared_task`, and `netbox_*` options.
    """
    options = {'base': CeleryBaseTask, 'bind': True} | options
    return shared_task(*args, **options) if not args else shared_task(**options)(*args)


def get_django_command_task(command: str) -> CeleryBaseTask:
    """Return the task of a management command in the setting `command_tasks`.

    Args:
        command: Name of the command, such as `clearsessions`.

    Raises:
        django.core.exceptions.ImproperlyConfigured: There is no such command, or it is not in the setting.
    """
    return command_task(command)


def _set_by_author(task: CeleryBaseTask) -> set[str]:
    """Return the names of the attributes that a task's decorator or class sets, except those of our base classes."""
    return {
        name for cls in type(task).__mro__ if not cls.__module__.startswith(('celery.', 'netbox_celery.'))
        for name in vars(cls)
    }
