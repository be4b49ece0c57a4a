"""Hooks of tasks: methods that an author may override to hear of a call, and of what becomes of its run.

They hear and change nothing: what one raises is logged. A task that overrides none costs nothing.
"""
import logging
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from billiard.einfo import ExceptionInfo
from celery import signals

from .options import NOT_SENT

__all__ = (
    'Invocation',
    'TaskHooks',
    'invocation_of',
    'tell',
    'tell_of_failure',
)

logger = logging.getLogger(__name__)

#: Failed runs that the parent of a worker has told of: Celery reports some of them twice.
MOST_TOLD = 1000


class TaskHooks:
    """The hooks, which do nothing here."""

    #: Whether the task overrides a hook of its calls.
    hears_of_calls = False

    # Where the call is made. `invocation_id` is one UUID a call, a string.

    def on_invocation_apply(
        self, invocation_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any], result: Any
    ) -> None:
        """The task was called, whatever becomes of that; `result` is what the caller gets."""

    def on_invocation_trigger(
        self, invocation_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], task_id: str, options: dict[str, Any],
        result: Any
    ) -> None:
        """The broker has accepted the message: in a transaction, after its commit."""

    def on_invocation_unique(
        self, invocation_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], task_id: str, options: dict[str, Any],
        result: Any
    ) -> None:
        """The call has become, or made way for, a run that is under way; `task_id` is that run's."""

    def on_invocation_ignored(
        self, invocation_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], task_id: str, options: dict[str, Any],
        result: Any
    ) -> None:
        """The call was ignored, since the task has succeeded a short time ago."""

    def on_invocation_timeout(
        self, invocation_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], task_id: str, ex: Exception,
        options: dict[str, Any], result: Any
    ) -> None:
        """`apply_async_and_get_result` did not get a result in time; `ex` is the `TimeoutError`."""

    # Where the task runs

    def on_task_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """An attempt begins: the run is claimed."""

    def on_task_retry(self, task_id: str, args: Any, kwargs: Any, exc: Exception | None, eta: datetime) -> None:
        """An attempt has failed with `exc`, and there will be another one at `eta`, a `datetime`."""

    def on_task_failure(self, task_id: str, args: Any, kwargs: Any, exc: BaseException, einfo: Any) -> None:
        """The run has failed, told once: by another worker where its own was killed, and then found dead."""

    def on_task_success(self, task_id: str, args: Any, kwargs: Any, retval: Any) -> None:
        """The run has succeeded."""

    @classmethod
    def on_bound(cls, app):
        """Find out what the task wants to hear, and connect to Celery's signals for it."""
        super().on_bound(app)
        cls.hears_of_calls = _overrides(cls, 'on_invocation_')
        if _overrides(cls, 'on_task_'):
            signals.task_retry.connect(_on_retry, dispatch_uid='netbox-celery-hooks')
            signals.task_failure.connect(_on_failure, dispatch_uid='netbox-celery-hooks')
            signals.task_success.connect(_on_success, dispatch_uid='netbox-celery-hooks')


def _overrides(cls, prefix):
    return any(
        getattr(cls, name) is not hook for name, hook in vars(TaskHooks).items() if name.startswith(prefix)
    )


def tell(task, name, *args):
    """Call a hook of a task."""
    try:
        getattr(task, name)(*args)
    except Exception:
        logger.exception('%s of %s failed', name, task.name)


# Calls

def invocation_of(task, args, kwargs, options):
    """Return the `Invocation` of a call, or `None` if the task has no hook for it."""
    return Invocation(task, args, kwargs, options) if getattr(task, 'hears_of_calls', False) else None


class Invocation:
    """A call whose task wants to hear what becomes of it."""

    def __init__(self, task, args, kwargs, options):
        self.id = str(uuid4())
        self.task = task
        self.args = tuple(args or ())
        self.kwargs = dict(kwargs or {})
        self.options = {key: value for key, value in options.items() if key not in NOT_SENT}

    def tell(self, what, result, ex=None):
        """Tell the task.

        Args:
            what: The hook, without `on_invocation_`.
            result: What the caller gets.
            ex: The exception of a timeout.
        """
        arguments = [self.id, self.args, self.kwargs]
        if what != 'apply':
            arguments.append(result.id)
        if ex is not None:
            arguments.append(ex)
        result.netbox_invocation = self
        tell(self.task, f'on_invocation_{what}', *arguments, self.options, result)


# Runs

_told = OrderedDict()


def _on_retry(sender=None, request=None, reason=None, **kwargs):
    if not isinstance(sender, TaskHooks):
        return
    eta = reason.when
    if isinstance(eta, int | float):
        eta = datetime.now(UTC) + timedelta(seconds=eta)
    tell(sender, 'on_task_retry', request.id, request.args, request.kwargs, reason.exc, eta)


def _on_failure(sender=None, task_id=None, exception=None, args=None, kwargs=None, einfo=None, **others):
    if not isinstance(sender, TaskHooks) or task_id in _told:
        return
    _told[task_id] = None
    if len(_told) > MOST_TOLD:
        _told.popitem(last=False)
    tell(sender, 'on_task_failure', task_id, args, kwargs, exception, einfo)


def tell_of_failure(task, task_id, args, kwargs, exc):
    """Send Celery's signal of a failure that Celery does not tell of, for hooks and whoever else listens."""
    try:
        raise exc
    except type(exc):
        signals.task_failure.send(
            sender=task, task_id=task_id, exception=exc, args=args, kwargs=kwargs, traceback=exc.__traceback__,
            einfo=ExceptionInfo()
        )


def _on_success(sender=None, result=None, **kwargs):
    if isinstance(sender, TaskHooks):
        request = sender.request
        tell(sender, 'on_task_success', request.id, request.args, request.kwargs, result)
