"""What a worker knows about the run that it executes: `self.request.netbox_run`.

Celery's requests belong to a thread. A body may start threads of its own, for example to talk to many devices
concurrently: the lines that these threads log and the progress that they report belong to its run, too.
"""
import threading
import time
from contextvars import ContextVar
from datetime import datetime
from typing import Any
from uuid import UUID

from ..identity import OWN_THREADS
from ..internals import task_stack

__all__ = (
    'Run',
    'current_run',
    'enter',
    'get_run',
    'leave',
    'run_of',
)


class Run:
    """A claimed run. It lives on the request of the task, never on the task: one task object serves every thread."""

    __slots__ = (
        'attempt',
        'begun',
        'call',
        'claimed_at',
        'claims',
        'continued',
        'dropped',
        'ended',
        'id',
        'is_cancelled',
        'left',
        'left_out',
        'lines',
        'next_eta',
        'next_look',
        'opens',
        'own_end',
        'recorded',
        'refused',
        'remembered',
        'replaced',
        'retried',
        'returned',
        'request_id',
        'row',
        'task_id',
        'warnings',
        'unreported',
        'user_id',
        'window',
    )

    def __init__(
        self, task_id: str, id: int | None = None, claims: int = 0, attempt: int = 1, user_id: int | None = None,
        request_id: UUID | str | None = None,
    ) -> None:
        self.task_id = task_id
        #: Primary key of the row.
        self.id = id
        #: Fencing token: only the holder of the latest claim may end the run.
        self.claims = claims
        self.attempt = attempt
        #: How often the row was reused for a new call (see `sending.used`), and when this process claimed it.
        self.begun = 0
        self.claimed_at = time.time()
        self.user_id = user_id
        self.request_id = request_id
        #: The claim was refused: the body does not run, and nothing is written.
        self.refused = False
        #: The end is written, or will be as soon as the database accepts it.
        self.ended = False
        #: The end that the task set itself (`self.celery_result.success()` and the like), which takes precedence: its
        #: status, and the result or the error.
        self.own_end: tuple[str, Any] | None = None
        #: The body has returned: a call from now on comes after it, such as the next step of a chain.
        self.returned = False
        #: This process has finished with the run.
        self.left = False
        #: The task replaced itself with another one, which continues under the same ID.
        self.replaced = False
        #: The message for the next attempt, or for the replacement, is being sent or was sent.
        self.continued = False
        #: The arguments of the message, and of the row, as JSON text; `None`: unknown, or too long.
        self.call: str | None = None
        #: The row stores the message of the next attempt or of the replacement.
        self.remembered = False
        #: The retry is recorded.
        self.retried = False
        #: The time for which `retry()` sent the next attempt.
        self.next_eta: datetime | None = None
        #: Key of the run's ignore window, and the windows that its success opens: seconds by key.
        self.window: str | None = None
        self.opens: dict[str, float] | None = None
        #: Whether anything was passed to the recorder.
        self.recorded = False
        #: Numbers of log lines stored, and of lines dropped above the limit.
        self.lines = 0
        self.dropped = 0
        #: The newest progress that `update_value` has not written; the end of the run writes it.
        self.left_out: Any = None
        #: The result of the last check for a cancel, and when the next one is due (monotonic seconds).
        self.is_cancelled = False
        self.next_look = 0.0
        #: Warnings about the run that were already logged, and are not repeated.
        self.warnings: tuple[str, ...] = ()
        #: Whether Celery does not report the end to code that asks (`ignore_result`).
        self.unreported = False
        #: The handle that the author gets as `self.celery_result`.
        self.row: Any = None

    def is_new_warning(self, what: str) -> bool:
        """Return whether a warning about the run is new: a loop may cause the same one in each iteration."""
        if what in self.warnings:
            return False
        self.warnings += (what,)
        return True


#: The tasks (by name) and runs that this process executes, by thread.
_executing: dict[int, tuple[str, Run]] = {}
#: The same for code that runs in a copy of the body's context, for example by `asyncio.to_thread()`.
_inherited: ContextVar[tuple[str, Run] | None] = ContextVar('netbox_celery_run', default=None)


def get_run(request: Any) -> Run | None:
    """Return the run that belongs to a request of Celery's, or `None` if it is not tracked (or was refused)."""
    run = getattr(request, 'netbox_run', None)
    return run if run is not None and not run.refused else None


def current_run() -> Run | None:
    """Return the run that this thread executes, or whose body started it, or `None`."""
    task = task_stack.top
    return get_run(task.request_stack.top) if task is not None else _run_of_body()


def run_of(task: Any) -> Run | None:
    """Return the run that a task's `self` refers to in this thread, or `None`."""
    request = task.request_stack.top
    return get_run(request) if request is not None else _run_of_body(task.name)


def enter(task: Any, run: Run) -> None:
    """Note that this thread executes a run of a task, until `leave(run)`."""
    _executing[threading.get_ident()] = task.name, run
    _inherited.set((task.name, run))


def leave(run: Run) -> None:
    """Note that this thread has finished with a run."""
    run.left = True
    _executing.pop(threading.get_ident(), None)
    _inherited.set(None)


def _run_of_body(name: str | None = None) -> Run | None:
    """Return the run whose body has started this thread: that of its context, or the only one in this process.

    Args:
        name: Name of the task, if it is known.
    """
    inherited = _inherited.get()
    if inherited is not None and not inherited[1].left and name in (None, inherited[0]):
        return inherited[1]
    thread = threading.current_thread()
    if not _executing or thread is threading.main_thread() or thread.name.startswith(OWN_THREADS):
        return None
    runs = [run for task_name, run in list(_executing.values()) if name in (None, task_name)]
    return runs[0] if len(runs) == 1 else None
