"""What a worker knows of the run that it executes: `self.request.netbox_run`.

Celery's requests belong to a thread. A body may start threads of its own, as programs do that talk to many devices at
a time: what these log, and the progress they report, belongs to its run, too.
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
        'told',
        'untold',
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
        #: How often the row was used again for a new call (see `sending.used`), and when this process claimed it.
        self.begun = 0
        self.claimed_at = time.time()
        self.user_id = user_id
        self.request_id = request_id
        #: The claim was refused: the body does not run, and nothing is written.
        self.refused = False
        #: Its end is written, or will be as soon as the database takes it.
        self.ended = False
        #: The end that the task set itself (`self.celery_result.success()` and the like), which is kept: its status,
        #: and the result or the error.
        self.own_end: tuple[str, Any] | None = None
        #: The body has returned: what is sent from now on comes after it, such as the next step of a chain.
        self.returned = False
        #: This process is done with it.
        self.left = False
        #: The task replaced itself with another one, which goes on under the same ID.
        self.replaced = False
        #: The message for the next attempt, or for what replaces the task, is on its way.
        self.continued = False
        #: The arguments of its message as JSON text, which its row has, too; `None`: unknown, or too long.
        self.call: str | None = None
        #: Its row holds what the next attempt, or what replaces the task, is called with.
        self.remembered = False
        #: The retry is recorded.
        self.retried = False
        #: The time for which `retry()` sent the next attempt.
        self.next_eta: datetime | None = None
        #: Key of its ignore window, and the windows that its success opens: seconds by key.
        self.window: str | None = None
        self.opens: dict[str, float] | None = None
        #: Whether anything of it went to the recorder.
        self.recorded = False
        #: Log lines taken, and those left out over the limit.
        self.lines = 0
        self.dropped = 0
        #: The newest progress that `update_value` has not written: the end of the run does.
        self.left_out: Any = None
        #: The result of the last check for a cancel, and when the next one is due (monotonic seconds).
        self.is_cancelled = False
        self.next_look = 0.0
        #: What the worker's log has said of it, and is not to repeat.
        self.told: tuple[str, ...] = ()
        #: Whether Celery does not report its end to code that asks (`ignore_result`).
        self.untold = False
        #: The handle that the author gets as `self.celery_result`.
        self.row: Any = None

    def tell_once(self, what: str) -> bool:
        """Return whether something is reported of the run for the first time: a loop may meet it at each turn."""
        if what in self.told:
            return False
        self.told += (what,)
        return True


#: What this process executes, by thread: names of tasks, and runs.
_executing: dict[int, tuple[str, Run]] = {}
#: The same for code that runs in a copy of the body's context, as with `asyncio.to_thread()`.
_inherited: ContextVar[tuple[str, Run] | None] = ContextVar('netbox_celery_run', default=None)


def get_run(request: Any) -> Run | None:
    """Return the run that belongs to a request of Celery's, or `None` if it is not tracked (or was refused)."""
    run = getattr(request, 'netbox_run', None)
    return run if run is not None and not run.refused else None


def current_run() -> Run | None:
    """Return the run that this thread executes, or whose body started it, or `None`."""
    task = task_stack.top
    return get_run(task.request_stack.top) if task is not None else _worked_for()


def run_of(task: Any) -> Run | None:
    """Return the run that a task's `self` refers to in this thread, or `None`."""
    request = task.request_stack.top
    return get_run(request) if request is not None else _worked_for(task.name)


def enter(task: Any, run: Run) -> None:
    """Note that this thread executes a run of a task, until `leave(run)`."""
    _executing[threading.get_ident()] = task.name, run
    _inherited.set((task.name, run))


def leave(run: Run) -> None:
    """Note that this thread has finished with a run."""
    run.left = True
    _executing.pop(threading.get_ident(), None)
    _inherited.set(None)


def _worked_for(name: str | None = None) -> Run | None:
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
