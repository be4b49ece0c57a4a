"""What plugin authors import: the base class of tasks, and what a task can say about itself while it runs.

    from celery import shared_task, states
    from netbox_celery.tasks import CeleryBaseTask

    @shared_task(name="netbox_example_plugin:hello_world", base=CeleryBaseTask, bind=True)
    def hello_world(self, task_id, name="World"):
        self.log(f"Hello {name}!")

Every call of such a task (`delay`, `apply_async`, canvas, schedules) has a `CeleryResult` with its status, live log,
progress, arguments and result. Calls take these options beside Celery's own, in the decorator, in the call, or all in
one dict `netbox_kwargs`: `netbox_name`, `netbox_user`, `netbox_object`, `netbox_value_max`, `netbox_data`,
`netbox_tags`, and `netbox_track` (`False`: no row).
"""
from datetime import timedelta
from functools import partial
from uuid import uuid4

from celery import shared_task, states
from celery.exceptions import CeleryError, TimeoutError
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

__all__ = (
    'CeleryBaseTask',
    'TaskConflict',
    'TaskFailed',
    'default_unique_key_generator',
    'get_django_command_task',
    'netbox_celery_task',
)

logger = get_task_logger(__name__)

#: For how long an ignore window waits for a database that is away, seconds; as the end of a run does.
PATIENCE = 60

#: Options that may stand among the arguments of `delay()`, unless the function has a parameter of that name.
DELAY_OPTIONS = frozenset(('ignore_result', 'ignore_task_after_success'))


class CeleryBaseTask(TaskHooks, OnCommitTask):
    """Base class of tasks whose runs NetBox shows.

    The function takes Celery's ID of the run as its first argument: `f(self, task_id, ...)` with `bind=True`, else
    `f(task_id, ...)`. Callers do not pass it; it is put in when the task runs, and is never part of a message.
    """

    abstract = True
    #: Whether runs of this task get a row.
    netbox_track = True
    #: The function's first argument is the ID of the run.
    takes_task_id = True
    #: Seconds before each retry, one after the other: `(1, 2, 3)` makes four attempts at the most, unless `max_retries`
    #: says otherwise; the last holds for further ones. `retry_backoff` and a `countdown` or `eta` win over it.
    default_retry_delays = None
    #: When beat runs the task by itself: a `celery.schedules.crontab`, a number of seconds, or a `timedelta`.
    schedule = None
    #: Whether a `Strategy` of the task's own hands each message to Celery's, so that runs are claimed and tracked.
    strategy_claims = False
    #: Only one run at a time with the same arguments: a second call joins the run that is under way.
    unique = False
    #: After so long (a `timedelta` or seconds) a run does not keep others from running any more; it is not ended.
    stale_time_limit = None
    #: Makes the key of a call: `f(task, prefix, task_args, task_kwargs)`, or the dotted name of such a function.
    unique_key_generator = default_unique_key_generator
    #: At most `limit` runs at a time with this key: a text, in which `{name}` stands for an argument of the call, or a
    #: function `f(task, task_args, task_kwargs)`.
    concurrency_key = None
    limit = 1
    #: What becomes of a call past the limit: `join`, `queue`, `skip`, `replace` or `fail`.
    on_conflict = 'join'
    #: After a success, calls with the same arguments are ignored for so long (a `timedelta` or seconds).
    ignore_task_after_success = False
    ignore_task_timedelta = None
    #: Errors that are no surprise: a worker logs them without a traceback. `TaskFailed` always is among them.
    throws: tuple[type[Exception], ...] = (TaskFailed,)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if 'throws' in vars(cls):
            throws = cls.throws if isinstance(cls.throws, tuple) else (cls.throws,)
            cls.throws = (*throws, TaskFailed)
        if '__header__' in vars(cls) and '__wrapped__' in vars(cls):
            # Made by a decorator: `__header__` is what Celery checks the arguments of a call against.
            cls.__header__ = staticmethod(header(vars(cls)['__wrapped__'], cls.name))
        if dump := cls.__dict__.get('_dump_pydantic_arguments'):
            cls._dump_pydantic_arguments = staticmethod(dump_after_task_id(dump.__func__))

    def __call__(self, /, *args, **kwargs):
        """Run the body: for the worker's tracer with the ID of the run, or called directly with an ID of its own."""
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
            logger.warning('%s[%s] had set its end before it raised this', self.name, request.id, exc_info=True)
        return value if run is None or run.own_end is None else report_own_end(self, request, *run.own_end)

    def before_start(self, task_id, args, kwargs):
        """Called before the body. The claim of the run comes before this, also before an override of it."""

    # Calls

    def delay(self, /, *args, **kwargs):
        """Send the task with the given arguments (see `apply_async`).

        `netbox_*` options, `ignore_result` and `ignore_task_after_success` may stand among them.
        """
        kwargs, options = self._options_of_delay(kwargs)
        return self.apply_async(args, kwargs, **options)

    def _options_of_delay(self, kwargs):
        """Return `(kwargs, options)`: what `delay` is called with by name, apart."""
        kwargs, own = lift(self, kwargs, {})
        options = {f'netbox_{name}': value for name, value in own.items()}
        for name in DELAY_OPTIONS & kwargs.keys():
            if name not in parameter_names(self):
                options[name] = kwargs.pop(name)
        return kwargs, options

    def apply_async(self, args=None, kwargs=None, **options):
        """Send the task (see `celery.app.task.Task.apply_async`). In a transaction, the message goes out on commit.

        Args:
            args: Positional arguments of the task, without `task_id`.
            kwargs: Keyword arguments of the task.
            **options: Celery's options, and `netbox_*` ones.

        Returns:
            An `AsyncResult`; of a unique task, it may be that of the run which is under way.

        Raises:
            TypeError: The arguments do not fit the task's signature.
            ValueError: The soft time limit is beyond the hard one.
            celery.exceptions.CeleryError: The task's policies keep it from being called (`TaskConflict`), or contradict
                each other.
            kombu.exceptions.EncodeError: An argument cannot be written as JSON.
            kombu.exceptions.OperationalError: The broker refused the message (outside a transaction).
        """
        kwargs, own = lift(self, kwargs, {})
        options = {f'netbox_{name}': value for name, value in own.items()} | options
        return super().apply_async(args, kwargs, **options)

    def delay_on_commit(self, /, *args, **kwargs) -> AsyncResult:
        """Call `delay` when the transaction is committed (see `apply_async_on_commit`)."""
        kwargs, options = self._options_of_delay(kwargs)
        return self.apply_async_on_commit(args, kwargs, **options)

    def apply_async_on_commit(self, args=None, kwargs=None, using=None, **options) -> AsyncResult:
        """Send the task when the transaction is committed, and not at all if it, or its savepoint, is rolled back.

        The ID is known at once; the row is made on commit. A unique task whose call finds a run under way then does not
        become that run: it ends as ignored, and says for which one.

        Args:
            args: Positional arguments of the task.
            kwargs: Keyword arguments of the task.
            using: Alias of the database whose transaction it is; by default that in which the call is made.
            **options: As for `apply_async`.

        Returns:
            An `AsyncResult`; outside of a transaction, what `apply_async` returned.
        """
        return call_on_commit(self, partial(self.apply_async, args, kwargs), options, using)

    def apply_async_and_get_result(
        self, args=None, kwargs=None, timeout: float | None = None, propagate: bool = True, **options
    ):
        """Send the task and wait for its result. The database is not asked while it waits.

        Args:
            args: Positional arguments of the task.
            kwargs: Keyword arguments of the task.
            timeout: How long to wait, seconds.
            propagate: Whether an error of the task is raised here; else it is returned.
            **options: As for `apply_async`.

        Returns:
            What the task returned; `None` if the run was ignored.

        Raises:
            Exception: What the task raised, and what `apply_async` raises.
            celery.exceptions.TimeoutError: The task did not end in time. It goes on.
            RuntimeError: Called inside a task, or inside a transaction, whose end the message would wait for.
        """
        assert_will_not_block()
        if caller().in_atomic_block:
            raise RuntimeError('The message goes out when the transaction is committed: waiting in it would not end.')
        result = self.apply_async(args, kwargs, **options)
        try:
            if timeout is not None and timeout <= 0 and not result.ready():
                raise TimeoutError('The operation timed out.')
            return result.get(timeout=timeout, propagate=propagate)
        except TimeoutError as exc:
            if invocation := getattr(result, 'netbox_invocation', None):
                invocation.tell('timeout', result, exc)
            raise

    def apply(self, args=None, kwargs=None, **options):
        """Run the task here and now, untracked (see `celery.app.task.Task.apply`).

        It is ignored while a run with the same key is under way, or an ignore window is open.

        Returns:
            An `EagerResult`.
        """
        kwargs, __ = lift(self, kwargs, {})
        options, __ = split(options)
        if options.get('retries'):
            # The next attempt, which Celery makes in the call of the first: that was let in, and told of
            return super().apply(args, kwargs, **options)
        options, settings = split_settings(options)
        policy = policy_of(self, args, kwargs, settings)
        invocation = invocation_of(self, args, kwargs, options)
        why_not = policy and why_not_now(policy)
        if why_not:
            result = EagerResult(options.get('task_id') or str(uuid4()), None, states.IGNORED, name=self.name)
        else:
            result = super().apply(args, kwargs, **options)
            if policy and policy.window_length and result.successful():
                open_window(partial(execute, caller()), policy.window, policy.window_length, result.id)
        for what in ('apply', why_not or 'trigger') if invocation else ():
            invocation.tell(what, result)
        return result

    def is_processing(self, args=None, kwargs=None) -> bool:
        """Return whether a run with these arguments is under way: it waits, runs, or will be tried again.

        Args:
            args: Positional arguments of the task.
            kwargs: Keyword arguments of the task.

        Raises:
            celery.exceptions.CeleryError: The task is neither unique nor has it a concurrency key.
        """
        policy = policy_of(self, args, kwargs)
        if policy is None or policy.key is None:
            raise CeleryError(f'{self.name} is neither unique nor has it a concurrency_key')
        return is_processing(policy)

    def retry(self, args=None, kwargs=None, exc=None, throw=True, eta=None, countdown=None, max_retries=None,
              default_retry_delays=None, **options):
        """Send the task again (see `celery.app.task.Task.retry`; `default_retry_delays` as the attribute).

        Unlike Celery's own, a `max_retries` given here holds for this run alone: Celery keeps it on the task object
        (`override_max_retries`), where it leaks into other runs of the process.

        Raises:
            celery.exceptions.Retry: Always, unless `throw` is false: it ends the attempt.
            Exception: `exc`, or `MaxRetriesExceededError`: there was the last attempt already.
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
        """The `max_retries` of the current run's own `retry()`, which `autoretry_for` goes by as well."""
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

    # What the body says

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
        """Add a line to the log of the current run. It is visible to others within half a second.

        Not tracked, it goes to the task's Python logger.

        Args:
            message: The text; line breaks stay, terminal colours go.
            level: 10 debug, 20 info, 25 success, 30 warning, 40 failure, 50 critical.
            grouping: Under which heading the line stands.
            obj: The NetBox object that the line is about; it is linked.
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
        """Add a line of level failure (see `log`). The run goes on; `raise TaskFailed(...)` ends it."""
        self.log(message, LogLevelChoices.LEVEL_FAILURE, grouping, obj)

    def progress(self, value: int, value_max: int | None = None, step: str | None = None) -> None:
        """Show how far the current run is.

        Args:
            value: How far it is, a whole number. What is none, or too large a one, is left out; the worker's log says
                so once a run.
            value_max: Where it ends, likewise; stays as it was if not given.
            step: What it is doing, in a few words.
        """
        run = run_of(self)
        if run is not None:
            recorder.progress(run, value=value, value_max=value_max, step=step)

    def set_ignore_task(self, ignore_task_timedelta: timedelta | float | None = None) -> None:
        """Let calls with the arguments of the current run be ignored from now on, whatever becomes of it.

        Args:
            ignore_task_timedelta: For how long, a `timedelta` or seconds; by default the task's own.

        Raises:
            celery.exceptions.CeleryError: The task does not look for ignore windows, or it is not said for how long.
            django.db.Error: The database does not take it, or is away for more than a minute. Without the window the
                task would be run again.
        """
        request = self.request
        run = get_run(self.request_stack.top)
        if not self.ignore_task_after_success and self.ignore_task_timedelta is None:
            raise CeleryError(f'{self.name}: without ignore_task_timedelta on the task, no call looks for the window')
        length = self.ignore_task_timedelta if ignore_task_timedelta is None else ignore_task_timedelta
        if length is None:
            raise CeleryError(f'{self.name}: ignore_task_timedelta is not given')
        run_sql = partial(execute, caller()) if run is None else partial(get_connection().execute, patience=PATIENCE)
        key = run.window if run is not None and run.window else window_key(self, request.args, request.kwargs)
        open_window(run_sql, key, seconds(length), request.id)

    def is_cancelled(self) -> bool:
        """Return whether somebody asked to cancel the current run. A long-running task asks now and then, and returns.

        The database is asked at most twice a second. While it is away the answer is what was known before.
        """
        run = run_of(self)
        return run is not None and look_for_cancel(run)


def netbox_celery_task(*args, **options):
    """Make a task on `CeleryBaseTask`, with `self`: `shared_task` with `base` and `bind` set.

        @netbox_celery_task(name="netbox_example_plugin:hello_world")
        def hello_world(self, task_id):
            self.log("Hello World!")

    Args:
        *args: The function, where the decorator is used without parentheses.
        **options: As for `celery.shared_task`, and `netbox_*`.
    """
    options = {'base': CeleryBaseTask, 'bind': True} | options
    return shared_task(*args, **options) if not args else shared_task(**options)(*args)


def get_django_command_task(command: str) -> CeleryBaseTask:
    """Return the task of a management command that the setting `command_tasks` names.

    Args:
        command: Name of the command, such as `clearsessions`.

    Raises:
        django.core.exceptions.ImproperlyConfigured: There is no such command, or the setting does not name it.
    """
    return command_task(command)


def _set_by_author(task):
    """Return the names of the attributes that a task's decorator or class sets, without those of our base classes."""
    return {
        name for cls in type(task).__mro__ if not cls.__module__.startswith(('celery.', 'netbox_celery.'))
        for name in vars(cls)
    }
