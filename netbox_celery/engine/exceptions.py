"""Exceptions of the engine."""
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


def _made_again(cls, args, values):
    exc = cls.__new__(cls, *args)
    exc.__dict__.update(values)
    return exc


class Picklable:
    """An exception that a process can hand to another one, whatever it takes to make one."""

    def __reduce__(self):
        return _made_again, (type(self), self.args, self.__dict__)


class TaskFailed(Exception):
    """Raised by a task to say that it failed, as `core.exceptions.JobFailed` is by NetBox's jobs.

    The run ends as `failed`, with the exception's text as its error; any other exception ends it as `errored`.
    """


class BranchNotReady(CeleryError):
    """The branch of NetBox's data in which something is to run is not ready: merged, archived, deleted, ..."""


class BodyInterrupted(Picklable, Exception):
    """A body has left by an exception that is no `Exception`: `SystemExit`, `asyncio.CancelledError` and the like.

    It stands for that one wherever the original would be taken for an order to whoever sees it: to a program that waits
    for the result, to a hook, to a worker's main process.
    """

    def __init__(self, original):
        super().__init__(original if isinstance(original, str) else _line(original))


def _line(exc):
    try:
        text = str(exc)
    except Exception:  # noqa: BLE001 - an author's __str__ may raise anything
        text = ''
    return f'{type(exc).__name__}: {text}' if text else type(exc).__name__


class DatabaseReadOnly(Picklable, CeleryError, InternalError):
    """Something was refused, and nothing was sent, because the database can be read and not written.

    So it is in NetBox's maintenance mode, on a standby, and in a read-only transaction. For NetBox it is the error that
    its maintenance mode knows.
    """
    sqlstate = '25006'

    def __init__(self, what):
        super().__init__(
            f'{what}: the database is read-only (SQLSTATE {self.sqlstate}), as in maintenance mode or on a standby'
        )


class NotHandedOver(Exception):
    """A worker could not give a run to its pool."""


class OutOfMemory(BodyInterrupted):
    """Stands for a `MemoryError` of a body, which Celery's main process takes for its own."""


class NotRerunnable(Exception):
    """The row of a run does not hold the arguments any more: they were redacted by the caller, or too large."""


class OutOfRange(ValueError):
    """A time, or a length of time, that a run or a schedule cannot have (see `netbox_celery.engine.store.times`)."""


class QueueRefused(CeleryError, ValueError):
    """A queue that nothing can be sent to: its name is reserved, or people have no such queue to choose."""


class NotJSON(EncodeError, TypeError):
    """Data of a run, or a result that a task has set itself, cannot be written as JSON, or is nested too deeply."""


class RetryNotSent(Picklable, Exception):
    """A task raised `celery.exceptions.Retry` by itself: nothing was sent that would run it again."""

    def __init__(self):
        super().__init__('The task asked to be tried again and sent no message for it: raise self.retry(...) instead')


class IgnoredByWindow(Ignore):
    """A run whose task has succeeded a short time ago (`ignore_task_after_success`)."""


class InvalidArguments(Picklable, ValueError):
    """Arguments do not fit a task. `errors` says what is wrong, by parameter (`__all__` for the call as a whole)."""

    def __init__(self, errors):
        super().__init__('; '.join(
            message if name == '__all__' else f'{name}: {message}' for name, message in errors.items()
        ))
        self.errors = errors


class TaskConflict(Picklable, CeleryError):
    """A call with `on_conflict="fail"` whose key has as many runs under way as it may. `task_id` is one of them.

    Or a call with the ID of a run that has not ended: `task_id`.
    """

    def __init__(self, message, task_id=None):
        super().__init__(message)
        self.task_id = task_id
