"""The exceptions of the engine."""
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celery.exceptions import CeleryError, Ignore
from django.db import InternalError
from kombu.exceptions import EncodeError

__all__ = (
    'BodyInterrupted',
    'BranchNotReady',
    'DatabaseReadOnly',
    'IgnoredByWindow',
    'InvalidArguments',
    'NotHandedOver',
    'NotJSON',
    'NotRerunnable',
    'OutOfMemory',
    'OutOfRange',
    'QueueRefused',
    'RetryNotSent',
    'TaskConflict',
    'TaskFailed',
)


def _restore(cls: type[BaseException], args: tuple[Any, ...], values: dict[str, Any]) -> BaseException:
    exc = cls.__new__(cls, *args)
    exc.__dict__.update(values)
    return exc


# Exceptions inherit from this class and from one of Python's or Celery's
if TYPE_CHECKING:
    _Exception = BaseException
else:
    _Exception = object


class Picklable(_Exception):
    """An exception that can be passed to another process, whatever arguments its class takes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


class TaskFailed(Exception):
    """Raised by a task to report its failure, like `core.exceptions.JobFailed` in NetBox's jobs.

    The run ends as `failed`, with the exception's text as its error. Any other exception ends it as `errored`.
    """


class BranchNotReady(CeleryError):
    """The branch of NetBox's data in which something would run is not ready: merged, archived, deleted, ..."""


class BodyInterrupted(Picklable, Exception):
    """A body was left by an exception that is not an `Exception`: `SystemExit`, `asyncio.CancelledError` and the like.

    It replaces the original wherever that would be taken for an order to the code that gets it: to a program that waits
    for the result, to a hook, to a worker's main process.
    """

    def __init__(self, original: BaseException | str) -> None:
        super().__init__(original if isinstance(original, str) else _line(original))


def _line(exc: BaseException) -> str:
    try:
        text = str(exc)
    except Exception:  # noqa: BLE001 - an author's __str__ may raise anything
        text = ''
    return f'{type(exc).__name__}: {text}' if text else type(exc).__name__


class DatabaseReadOnly(Picklable, CeleryError, InternalError):
    """Something was refused, and nothing was sent, because the database can be read but not written.

    That is so in NetBox's maintenance mode, on a standby, and in a read-only transaction. As an `InternalError`, it is
    the error that NetBox handles in its maintenance mode.
    """
    sqlstate = '25006'

    def __init__(self, what: str) -> None:
        super().__init__(
            f'{what}: the database is read-only (SQLSTATE {self.sqlstate}), as in maintenance mode or on a standby'
        )


class NotHandedOver(Exception):
    """A worker could not pass a run to its pool."""


class OutOfMemory(BodyInterrupted):
    """Replaces a `MemoryError` of a body, which Celery's main process would take for its own."""


class NotRerunnable(Exception):
    """The row of a run does not hold its arguments: the caller redacted them, or they are too large."""


class OutOfRange(ValueError):
    """A time or a duration that a run or a schedule cannot have (see `netbox_celery.engine.store.times`)."""


class QueueRefused(CeleryError, ValueError):
    """A queue to which nothing can be sent: its name is reserved, or people cannot choose it."""


class NotJSON(EncodeError, TypeError):
    """Data of a run, or a result that a task set itself, cannot be encoded as JSON, or is nested too deeply."""


class RetryNotSent(Picklable, Exception):
    """A task raised `celery.exceptions.Retry` directly: no message was sent that would run it again."""

    def __init__(self) -> None:
        super().__init__('The task requested a retry without sending a message for it: raise self.retry(...) instead')


class IgnoredByWindow(Ignore):
    """A run whose task succeeded a short time ago (`ignore_task_after_success`)."""


class InvalidArguments(Picklable, ValueError):
    """Arguments do not fit a task. `errors` has the reasons by parameter (`__all__` for the call as a whole)."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__('; '.join(
            message if name == '__all__' else f'{name}: {message}' for name, message in errors.items()
        ))
        self.errors = errors


class TaskConflict(Picklable, CeleryError):
    """A call with `on_conflict="fail"` whose concurrency key has no free slot. `task_id` is one of its active runs.

    Or a call with the ID of a run that has not finished: `task_id`.
    """

    def __init__(self, message: str, task_id: Any = None) -> None:
        super().__init__(message)
        self.task_id = task_id
