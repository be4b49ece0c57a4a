"""The arguments of a task whose function takes the ID of its run as first parameter. Callers do not pass this ID."""
import inspect
import json
from collections.abc import Callable
from functools import partial
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded

from ..store.payload import dumps

__all__ = (
    'call_text',
    'dump_after_task_id',
    'header',
    'merge_arguments',
)

#: Longer arguments are not compared with those of a row, characters of JSON.
MOST_COMPARED = 262_144


def call_text(args: Any, kwargs: Any) -> str | None:
    """Return a message's arguments as JSON text, for comparison with its row's; `None`: they are not compared."""
    if not args and not kwargs:
        return '[[], {}]'
    call = [args or [], kwargs or {}]
    try:
        try:
            text = json.dumps(call)  # takes a third of the time; the text is the same if no type markers are needed
        except TypeError:
            text = dumps(call)
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # noqa: BLE001 - authors' encoders may raise anything
        return None
    return text if len(text) <= MOST_COMPARED else None


def header(run: Any, name: str) -> Callable[..., None]:
    """Return a function that checks the arguments of a call: a stub with the function's signature without `task_id`.

    The stub is compiled, as Celery's own headers are, since that is by far the fastest check; unlike those, it respects
    positional-only parameters. For a bound task it is a `partial`: Celery decides by that how to call an errback.

    Args:
        run: The function of a task as its class has it: a `staticmethod` unless the task is bound.
        name: Name of the task, which the `TypeError` of a wrong call gives.
    """
    bound = not isinstance(run, staticmethod)
    function = run if bound else run.__func__
    parameters = _parameters(function)
    first = 1 if bound else 0
    if len(parameters) > first and parameters[first].kind <= inspect.Parameter.POSITIONAL_OR_KEYWORD:
        del parameters[first]
    namespace: dict[str, Any] = {}
    exec(f'def head{inspect.Signature([_bare(parameter) for parameter in parameters])}: pass', namespace)
    head = namespace['head']
    head.__qualname__ = name
    return partial(head, object()) if bound else head


def _bare(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter that source code can express: without annotation, and with a placeholder for its default."""
    default = parameter.empty if parameter.default is parameter.empty else None
    return parameter.replace(default=default, annotation=parameter.empty)


def dump_after_task_id(dump: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """Return a function that dumps the Pydantic models among a call's arguments, which do not include the run's ID.

    Args:
        dump: Celery's own function for that.
    """
    def dump_call(args: Any, kwargs: Any) -> Any:
        if not isinstance(args, list | tuple | None):
            return args, kwargs  # Celery reports what is wrong
        dumped, kwargs = dump((None, *(args or ())), kwargs)
        return dumped[1:], kwargs
    return dump_call


def merge_arguments(task: Any, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """Return the arguments of a retry that gives only some of them; the others are those of the current request.

    Celery binds the request's arguments to the signature of `run`, whose first parameter here is the ID.

    Args:
        task: The task.
        args: Positional arguments of the retry, or `None`.
        kwargs: Keyword arguments of the retry, or `None`.
    """
    request = task.request
    # A call cannot pass a positional-only parameter by its name
    names = [parameter.name if parameter.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD else None
             for parameter in _parameters(task.run)[1:]
             if parameter.kind <= inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if args is not None:
        return args, {key: value for key, value in request.kwargs.items() if key not in names[:len(args)]}
    positional = list(request.args)
    for index, name in enumerate(names[:len(positional)]):
        if name in kwargs:
            positional[index] = kwargs[name]
    return positional, request.kwargs | {
        key: value for key, value in kwargs.items() if key not in names[:len(positional)]
    }


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())
