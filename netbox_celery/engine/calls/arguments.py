"""The arguments of a task whose function takes the ID of the run first: nobody passes it, and Celery does not know."""
import inspect
import json
from functools import partial

from billiard.exceptions import SoftTimeLimitExceeded

from ..store.payload import dumps

__all__ = (
    'call_text',
    'dump_after_task_id',
    'header',
    'merge_arguments',
)

#: Arguments that are longer are not compared with those of a row, characters of JSON.
MOST_COMPARED = 262_144


def call_text(args, kwargs):
    """Return the arguments of a message as JSON text to compare with its row's; `None` if that is not to be done."""
    if not args and not kwargs:
        return '[[], {}]'
    call = [args or [], kwargs or {}]
    try:
        try:
            text = json.dumps(call)  # a third of the time, and the same text of what needs no type markers
        except TypeError:
            text = dumps(call)
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # noqa: BLE001 - authors' encoders may raise anything
        return None
    return text if len(text) <= MOST_COMPARED else None


def header(run, name):
    """Return what checks the arguments of a call: a stub with the function's signature, less `task_id`.

    It is compiled, as Celery's own headers are, since that is by far the fastest check; but other than theirs, it knows
    what is positional only. For a bound task it is a `partial`, by which Celery tells how to call an errback.

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
    namespace = {}
    exec(f'def head{inspect.Signature(map(_bare, parameters))}: pass', namespace)
    head = namespace['head']
    head.__qualname__ = name
    return partial(head, object()) if bound else head


def _bare(parameter):
    """Return a parameter as source code can say it: that it has a default, but not which, and no annotation."""
    default = parameter.empty if parameter.default is parameter.empty else None
    return parameter.replace(default=default, annotation=parameter.empty)


def dump_after_task_id(dump):
    """Return what dumps the Pydantic models among a call's arguments, for a function that takes the ID before them.

    Args:
        dump: What Celery has made for that.
    """
    def dump_call(args, kwargs):
        if not isinstance(args, list | tuple | None):
            return args, kwargs  # Celery says what is wrong
        dumped, kwargs = dump((None, *(args or ())), kwargs)
        return dumped[1:], kwargs
    return dump_call


def merge_arguments(task, args, kwargs):
    """Return the arguments of a retry that names only some: those of the task's current request stay for the others.

    Celery binds the request's arguments to the signature of `run`, where ours has the ID in the first place.

    Args:
        task: The task.
        args: Positional arguments of the retry, or `None`.
        kwargs: Keyword arguments of the retry, or `None`.
    """
    request = task.request
    # What is positional only has no name that a call could use
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


def _parameters(function):
    return list(inspect.signature(function).parameters.values())
