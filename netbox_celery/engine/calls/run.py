"""What a worker keeps in mind of the run that it executes: `self.request.netbox_run`.

Celery's requests belong to a thread. A body may start threads of its own, as programs do that speak to many devices at
once: what these say is said of its run, too.
"""
import threading
import time
from contextvars import ContextVar

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

#: What this process executes, by thread: names of tasks, and runs.
_executing = {}
#: The same for what goes on in a copy of the body's context, as `asyncio.to_thread()` does.
_inherited = ContextVar('netbox_celery_run', default=None)


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

    def __init__(self, task_id, id=None, claims=0, attempt=1, user_id=None, request_id=None):
        self.task_id = task_id
        #: Primary key of the row.
        self.id = id
        #: Fencing token: only the holder of the latest claim may end the run.
        self.claims = claims
        self.attempt = attempt
        #: How often the row has begun anew with a new call (see `engine.used`), and when this process got hold of it.
        self.begun = 0
        self.claimed_at = time.time()
        self.user_id = user_id
        self.request_id = request_id
        #: The claim was refused: the body does not run, and nothing is written.
        self.refused = False
        #: Its end is written, or is on its way to the database.
        self.ended = False
        #: The end that the task set itself (`self.celery_result.success()` and the like), which is kept: its status,
        #: and the result or the error.
        self.own_end = None
        #: The body has returned: what is sent now comes after it, such as the next step of a chain.
        self.returned = False
        #: This process is done with it.
        self.left = False
        #: The task replaced itself by another one, which goes on under the same ID.
        self.replaced = False
        #: The message for the next attempt, or for what replaces the task, is on its way.
        self.continued = False
        #: The arguments of its message as JSON text, which its row has, too; `None`: nobody knows, or they are long.
        self.call = None
        #: Its row holds what the next attempt, or what replaces the task, is called with.
        self.remembered = False
        #: The retry is recorded.
        self.retried = False
        #: The time for which `retry()` sent the next attempt.
        self.next_eta = None
        #: Key of its ignore window, and the windows that its success opens: seconds by key.
        self.window = None
        self.opens = None
        #: Whether anything of it went to the recorder.
        self.recorded = False
        #: Log lines taken, and those left out over the limit.
        self.lines = 0
        self.dropped = 0
        #: The newest progress that `update_value` has left out: the end of the run does not.
        self.left_out = None
        #: The answer of the last look for a cancel, and when the next one is due (monotonic seconds).
        self.is_cancelled = False
        self.next_look = 0.0
        #: What has been said of it in the worker's log, and is not to be said again.
        self.told = ()
        #: Whether code that asks Celery is not told of its end (`ignore_result`).
        self.untold = False
        #: The handle that the author gets as `self.celery_result`.
        self.row = None

    def tell_once(self, what):
        """Return whether something is told of the run for the first time: a loop may meet it at each turn."""
        if what in self.told:
            return False
        self.told += (what,)
        return True


def get_run(request):
    """Return the run that belongs to a request of Celery's, or `None` if it is not tracked (or was refused)."""
    run = getattr(request, 'netbox_run', None)
    return run if run is not None and not run.refused else None


def current_run():
    """Return the run that this thread executes, or works for, or `None`."""
    task = task_stack.top
    return get_run(task.request_stack.top) if task is not None else _worked_for()


def run_of(task):
    """Return the run that a task's `self` means in this thread, or `None`."""
    request = task.request_stack.top
    return get_run(request) if request is not None else _worked_for(task.name)


def enter(task, run):
    """Note that this thread executes a run of a task, until `leave(run)`."""
    _executing[threading.get_ident()] = task.name, run
    _inherited.set((task.name, run))


def leave(run):
    """Note that this thread is done with a run."""
    run.left = True
    _executing.pop(threading.get_ident(), None)
    _inherited.set(None)


def _worked_for(name=None):
    """Return the run whose body has started this thread: the one in whose context it is, or the only one there is.

    Args:
        name: Name of the task, if it is known.
    """
    its_name, run = _inherited.get() or (None, None)
    if run is not None and not run.left and name in (None, its_name):
        return run
    thread = threading.current_thread()
    if not _executing or thread is threading.main_thread() or thread.name.startswith(OWN_THREADS):
        return None
    runs = [run for its_name, run in list(_executing.values()) if name in (None, its_name)]
    return runs[0] if len(runs) == 1 else None
