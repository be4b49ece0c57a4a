"""For the tests of plugins: runs a task in this process, tracked, and returns the run.

    from netbox_celery.testing import run_task

    class BackupTestCase(TestCase):
        def test_backup(self):
            run = run_task(backup, self.device.pk)
            self.assertEqual(run.status, 'completed')
            self.assertIn('Saved', run.messages[0])

With pytest the same function is the fixture `run_task`. It needs no broker, no result backend and no worker, and in a
`TestCase` everything is rolled back with the test. It is not a simulation: the call makes a row and a message, and the
run is claimed, logged and finished by the same code as in a worker.
"""
from functools import cached_property
from typing import Any

from celery.app.task import Task
from celery.canvas import Signature
from celery.exceptions import TaskPredicate, TaskRevokedError
from celery.result import AsyncResult
from django.db import DEFAULT_DB_ALIAS, connection, connections
from kombu.message import Message

from .celery import app
from .engine.calls.options import lift
from .engine.store.database import caller
from .engine.store.payload import is_uuid
from .engine.worker.inprocess import commit, execute_message, in_process
from .models import CeleryLogEntry, CeleryResult

__all__ = (
    'TaskCall',
    'TaskError',
    'TaskRun',
    'run_task',
)

#: Maximum number of attempts of a task: otherwise a task that always retries would never end.
MOST_ATTEMPTS = 100


class TaskError(AssertionError):
    """A run was not successful, and no exception of the task says why. Or it has no row."""


def run_task(task: Task | Signature | str, /, *args: Any, **kwargs: Any) -> 'TaskRun':
    """Run a task in this process, and return the run.

    Retries follow immediately. Tasks that the task sends are not run, but kept in `TaskRun.calls`. Time limits,
    countdowns and ETAs do not apply. An exception of the task is kept in the run as well (`TaskRun.raise_for_error`).

    Args:
        task: The task, its name, or a signature, which may have options
            (`run_task(backup.s(1).set(queue='slow', netbox_user=user))`). Of a chain, the first step is run.
        *args: Positional arguments of the task, without `task_id`.
        **kwargs: Keyword arguments, which may include `netbox_*` options, as in `delay()`.

    Raises:
        TypeError: The arguments do not match the task's signature, or it is a group or a chord, which has no run.
        celery.exceptions.CeleryError: The task's policies refuse the call, as in `apply_async`.
        celery.exceptions.NotRegistered: There is no task of that name.
        kombu.exceptions.EncodeError: An argument cannot be encoded as JSON.
        RuntimeError: The task was retried a hundred times, and would be retried again; or it is called in a transaction
            of a branch (NetBox Branching), before whose commit its row is not visible to others.
    """
    if caller() is not connections[DEFAULT_DB_ALIAS]:
        raise RuntimeError('In a transaction of a branch, a run waits for the commit: run the task outside of it')
    since, earlier = len(connection.run_on_commit), _find_earlier(task)
    with in_process(app) as messages:
        result = _call(task, args, kwargs)
        commit(since)
        if messages:
            return _follow(messages, since)
    run = TaskRun(result.id)  # it joined another run, was ignored, or is in the waiting line
    if earlier is not None and run._row is not None and run._row.created == earlier.created:
        run._row = None  # the row of an earlier call with the same ID
    return run


def _call(task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncResult:
    if isinstance(task, Signature):
        if task.subtask_type in ('group', 'chord'):
            raise TypeError(f'A {task.subtask_type} has no run of its own: run one of its tasks')
        return task.clone(args, kwargs).apply_async()
    if isinstance(task, str):
        kwargs, own = lift(app.tasks.get(task), kwargs, {})
        return app.send_task(task, args, kwargs, **{f'netbox_{name}': value for name, value in own.items()})
    if hasattr(task, 'apply_async'):
        return task.delay(*args, **kwargs) if hasattr(task, 'netbox_track') else task.apply_async(args, kwargs)
    raise TypeError(f'{task!r} is not a task')


def _follow(messages: list[Message], since: int) -> 'TaskRun':
    """Execute the first of the messages, and further ones of the same ID: retries, and what replaces the task."""
    message = messages.pop(0)
    run = TaskRun(message.headers['id'])
    for __ in range(MOST_ATTEMPTS):
        run.exception, run._has_run = execute_message(app, message), True
        commit(since)
        following = [found for found in messages if found.headers['id'] == run.task_id]
        if not following:
            run.calls = [TaskCall(found) for found in messages]
            return run
        message = following[0]
        messages.remove(message)
    raise RuntimeError(f'{message.headers["task"]} was tried {MOST_ATTEMPTS} times, and is not retried again')


def _find_earlier(task: Any) -> CeleryResult | None:
    """Return the row of an earlier call of a signature that has an ID, or `None`."""
    return _find_row(task.options.get('task_id')) if isinstance(task, Signature) else None


def _find_row(task_id: Any) -> CeleryResult | None:
    return CeleryResult.objects.filter(task_id=task_id).first() if is_uuid(task_id) else None


class TaskRun:
    """A run, after it was executed.

    Attributes:
        task_id: Its ID.
        exception: The exception of the last attempt, or `None`.
        calls: The tasks that it has sent, a list of `TaskCall`.
    """

    # Not a class of tests, for pytest
    __test__ = False

    def __init__(self, task_id: str) -> None:
        self.task_id = str(task_id)
        self.exception: BaseException | None = None
        self.calls: list[TaskCall] = []
        self._has_run = False

    def __repr__(self) -> str:
        return f'<TaskRun: {self.status}{f" ({self.error})" if self.error else ""}>'

    @cached_property
    def _row(self) -> CeleryResult | None:
        return _find_row(self.task_id)

    @property
    def row(self) -> CeleryResult:
        """The `CeleryResult`.

        Raises:
            TaskError: There is none: the task is not tracked, or the call was ignored.
        """
        if self._row is None:
            raise TaskError(f'The run {self.task_id} has no row')
        return self._row

    @property
    def status(self) -> str:
        """The status of the row. Without a row: `ignored`, `errored` or `completed`, according to the body."""
        if self._row:
            return self._row.status
        if not self._has_run:
            return 'ignored'
        return 'errored' if self.exception else 'completed'

    @property
    def reason(self) -> str:
        """The reason of the status, empty if there is none."""
        return self._row.reason if self._row else ''

    @property
    def result(self) -> Any:
        """The value that the task returned, as the row has it: as JSON. `None` without a row."""
        return self._row.result if self._row else None

    @property
    def error(self) -> str:
        """The error, in one line; empty if there is none."""
        return self._row.error if self._row else ''

    @property
    def traceback(self) -> str:
        """The traceback of the error; empty if there is none."""
        return self._row.traceback if self._row else ''

    @cached_property
    def log(self) -> list[CeleryLogEntry]:
        """The lines of the log, each with a `level`, `message`, `grouping`, `object` and `attempt`."""
        return list(self._row.log_entries.order_by('pk')) if self._row else []

    @property
    def messages(self) -> list[str]:
        """The messages of the log."""
        return [entry.message for entry in self.log]

    def raise_for_error(self) -> 'TaskRun':
        """Return the run if it is completed.

        Raises:
            Exception: What the task raised.
            TaskError: The run is not completed, and no exception says why.
        """
        if self.status == 'completed':
            return self
        if isinstance(self.exception, Exception) and not isinstance(self.exception, TaskPredicate | TaskRevokedError):
            raise self.exception
        why = self.error or self.reason
        raise TaskError(f'The run is {self.status}' + (f': {why}' if why else ''))

    def run_calls(self) -> list['TaskRun']:
        """Run the tasks that the task has sent, those that they send, and so on until none is left.

        This continues a chain, calls callbacks, and runs the body of a chord after its header.

        Returns:
            The runs, in order.
        """
        runs = []
        calls = list(self.calls)
        while calls:
            runs.append(calls.pop(0).run())
            calls.extend(runs[-1].calls)
        return runs


class TaskCall:
    """A call that a task has made: another task, the next step of a chain, a callback. Its run is waiting.

    Attributes:
        name: Name of the task.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        task_id: ID of its run.
        headers: The headers of the message, such as `eta`, `expires`, `root_id`.
        queue: The queue to which it was sent.
    """

    __test__ = False

    args: list[Any]
    kwargs: dict[str, Any]

    def __init__(self, message: Message) -> None:
        self._message = message
        self.headers: dict[str, Any] = message.headers
        self.name: str = message.headers['task']
        self.task_id: str = message.headers['id']
        self.args, self.kwargs, __ = message.payload
        self.queue: str = message.delivery_info['routing_key']

    def __repr__(self) -> str:
        shown = [*map(repr, self.args), *(f'{name}={value!r}' for name, value in self.kwargs.items())]
        return f'<TaskCall: {self.name}({", ".join(shown)})>'

    @property
    def row(self) -> CeleryResult:
        """The `CeleryResult` as it is now.

        Raises:
            TaskError: There is none: the task is not tracked.
        """
        row = _find_row(self.task_id)
        if row is None:
            raise TaskError(f'The run {self.task_id} has no row')
        return row

    def run(self) -> TaskRun:
        """Run the task (see `run_task`)."""
        since = len(connection.run_on_commit)
        with in_process(app) as messages:
            messages.append(self._message)
            return _follow(messages, since)
