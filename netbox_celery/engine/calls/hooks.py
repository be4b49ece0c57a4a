"""Hooks of tasks: methods that an author may override to be notified of calls and runs.

Hooks do not affect the run: an exception that a hook raises is logged. A task without hooks has no overhead.
"""
import logging
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from billiard.einfo import ExceptionInfo
from celery import signals

from .options import NOT_SENT, Options

__all__ = (
    'Invocation',
    'TaskHooks',
    'invocation_of',
    'report_failure',
    'tell',
)

logger = logging.getLogger(__name__)

#: Number of failed runs for which this process remembers that the hook was called: Celery reports some of them twice.
MOST_REPORTED = 1000


class TaskHooks:
    """The hooks, which do nothing here."""

    #: Whether the task overrides a hook for its calls.
    hears_of_calls = False
    if TYPE_CHECKING:
        request: Any  # of `celery.app.task.Task`, which this class is mixed into

    # In the process that makes the call. `invocation_id` is a UUID for each call, as a string.

    def on_invocation_apply(
        self, invocation_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any], result: Any
    ) -> None:
        """The task was called, whether it will run or not; `result` is what the caller gets."""

    def on_invocation_trigger(
        self, invocation_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], task_id: str, options: dict[str, Any],
        result: Any
    ) -> None:
        """The broker has accepted the message: in a transaction, after its commit."""

    def on_invocation_unique(
        self, invocation_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], task_id: str, options: dict[str, Any],
        result: Any
    ) -> None:
        """The call has joined an active run, or was ignored in favor of one; `task_id` is that run's."""

    def on_invocation_ignored(
        self, invocation_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], task_id: str, options: dict[str, Any],
        result: Any
    ) -> None:
        """The call was ignored, because the task succeeded recently."""

    def on_invocation_timeout(
        self, invocation_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], task_id: str, ex: Exception,
        options: dict[str, Any], result: Any
    ) -> None:
        """`apply_async_and_get_result` did not get a result in time; `ex` is the `TimeoutError`."""

    # In the worker that runs the task

    def on_task_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """An attempt starts: the run is claimed."""

    def on_task_retry(self, task_id: str, args: Any, kwargs: Any, exc: Exception | None, eta: datetime) -> None:
        """An attempt has failed with `exc`; the next one will start at `eta`, a `datetime`."""

    def on_task_failure(self, task_id: str, args: Any, kwargs: Any, exc: BaseException, einfo: Any) -> None:
        """The run has failed. Called once: by another worker if the run's own worker was killed and then found dead."""

    def on_task_success(self, task_id: str, args: Any, kwargs: Any, retval: Any) -> None:
        """The run has succeeded."""

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Find out which hooks the task overrides, and connect to Celery's signals for them."""
        super().on_bound(app)  # type: ignore[misc]  # as well
        cls.hears_of_calls = _overrides(cls, 'on_invocation_')
        if _overrides(cls, 'on_task_'):
            signals.task_retry.connect(_on_retry, dispatch_uid='netbox-celery-hooks')
            signals.task_failure.connect(_on_failure, dispatch_uid='netbox-celery-hooks')
            signals.task_success.connect(_on_success, dispatch_uid='netbox-celery-hooks')


def _overrides(cls: type, prefix: str) -> bool:
    return any(
        getattr(cls, name) is not hook for name, hook in vars(TaskHooks).items() if name.startswith(prefix)
    )


def tell(task: Any, name: str, *args: Any) -> None:
    """Call a hook of a task."""
    try:
        getattr(task, name)(*args)
    except Exception:
        logger.exception('%s of %s failed', name, task.name)


# Calls

class Invocation:
    """A call whose task has hooks for it."""

    def __init__(self, task: Any, args: Any, kwargs: Any, options: Options) -> None:
        self.id = str(uuid4())
        self.task = task
        self.args = tuple(args or ())
        self.kwargs = dict(kwargs or {})
        self.options = {key: value for key, value in options.items() if key not in NOT_SENT}

    def tell(self, what: str, result: Any, ex: BaseException | None = None) -> None:
        """Call a hook of the task.

        Args:
            what: The hook, without `on_invocation_`.
            result: What the caller gets.
            ex: The exception of a timeout.
        """
        arguments: list[Any] = [self.id, self.args, self.kwargs]
        if what != 'apply':
            arguments.append(result.id)
        if ex is not None:
            arguments.append(ex)
        result.netbox_invocation = self
        tell(self.task, f'on_invocation_{what}', *arguments, self.options, result)


def invocation_of(task: Any, args: Any, kwargs: Any, options: Options) -> Invocation | None:
    """Return the `Invocation` of a call, or `None` if the task has no hook for it."""
    return Invocation(task, args, kwargs, options) if getattr(task, 'hears_of_calls', False) else None


# Runs

_reported: OrderedDict[str, None] = OrderedDict()


def _on_retry(sender: Any = None, request: Any = None, reason: Any = None, **kwargs: Any) -> None:
    if not isinstance(sender, TaskHooks):
        return
    eta = reason.when
    if isinstance(eta, int | float):
        eta = datetime.now(UTC) + timedelta(seconds=eta)
    tell(sender, 'on_task_retry', request.id, request.args, request.kwargs, reason.exc, eta)


def _on_failure(
    sender: Any = None, task_id: Any = None, exception: Any = None, args: Any = None, kwargs: Any = None,
    einfo: Any = None, **others: Any
) -> None:
    if not isinstance(sender, TaskHooks) or task_id in _reported:
        return
    _reported[task_id] = None
    if len(_reported) > MOST_REPORTED:
        _reported.popitem(last=False)
    tell(sender, 'on_task_failure', task_id, args, kwargs, exception, einfo)


def report_failure(task: Any, task_id: str, args: Any, kwargs: Any, exc: BaseException) -> None:
    """Send Celery's signal of a failure that Celery does not report, for hooks and other receivers."""
    try:
        raise exc
    except type(exc):
        signals.task_failure.send(
            sender=task, task_id=task_id, exception=exc, args=args, kwargs=kwargs, traceback=exc.__traceback__,
            einfo=ExceptionInfo()
        )


def _on_success(sender: Any = None, result: Any = None, **kwargs: Any) -> None:
    if isinstance(sender, TaskHooks):
        request = sender.request
        tell(sender, 'on_task_success', request.id, request.args, request.kwargs, result)
