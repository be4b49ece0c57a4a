"""Lists the tasks that this process has registered, and describes them from their code."""
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from celery.app.registry import TaskRegistry

from ... import host
from ..app import get_app
from ..calls.options import is_internal
from . import discovery
from .strategies import strategy_of

__all__ = (
    'Registry',
    'describe_task',
    'get_task',
    'parameters',
    'registered_tasks',
)


#: Execution options of a task that the catalogue shows if the code sets them.
DEFAULTS = (
    'queue', 'priority', 'max_retries', 'default_retry_delay', 'retry_backoff', 'rate_limit', 'time_limit',
    'soft_time_limit', 'expires', 'acks_late', 'ignore_result', 'serializer', 'compression', 'typing',
)


class Registry(TaskRegistry):
    """The registry of an app, which reports each new task: a worker must prepare it."""

    #: Called with each task that is registered from now on.
    on_register: Callable[[Any], object] | None = None

    def __setitem__(self, name, task):
        super().__setitem__(name, task)
        if self.on_register is not None:
            self.on_register(task)


def get_task(name: str) -> Any:
    """Return the task that this process has registered under a name, or `None`."""
    return registered_tasks().get(name)


def registered_tasks() -> dict[str, Any]:
    """Return the tasks of this process by name: those of all plugins, but not Celery's own."""
    app = get_app()
    _import_task_modules(app)
    return {name: task for name, task in app.tasks.items() if not is_internal(name)}


@cache
def _import_task_modules(app):
    """Import what a worker imports at its start: the `tasks` modules of all plugins, and the modules in the settings.

    Celery's own function for that sets Django up again, which resets a worker's logging.
    """
    app.autodiscover_tasks(host.plugin_packages, force=True)
    for module in app.loader.default_modules:
        app.loader.import_task_module(module)
    app.finalize(auto=True)
    discovery.log_failures()


def describe_task(task: Any) -> dict[str, Any]:
    """Return the fields of a task's row that its code determines."""
    documentation = inspect.cleandoc(task.__doc__ or '') if _has_own_docstring(task) else ''
    return {
        'plugin': (getattr(task, '__module__', '') or '').split('.')[0][:100],
        'description': documentation.strip().split('\n', 1)[0][:200],
        'documentation': documentation,
        'defaults': {
            name: value for name in DEFAULTS
            if isinstance(value := _set_by_code(task, name), bool | int | float | str)
        } | ({'strategy': strategy} if (strategy := strategy_of(task)) else {}),
        'parameters': parameters(task),
    }


def _has_own_docstring(task):
    from celery import Task

    return bool(task.__doc__) and not any(task.__doc__ == base.__doc__ for base in type(task).__mro__[1:-1]) \
        and task.__doc__ != Task.__doc__


def _set_by_code(task, name):
    """Return an option that the decorator or class of a task sets, but not one that comes from Celery's settings."""
    for cls in type(task).__mro__:
        if cls.__module__.startswith(('celery.', 'netbox_celery.')):
            continue
        if name in vars(cls) and (name not in _CONFIGURED or vars(cls)[name] != _configured(task, name)):
            return vars(cls)[name]
    return None


def _configured(task, name):
    return task.app.strict_typing if name == 'typing' else task.app.conf[_CONFIGURED[name]]


_CONFIGURED = {
    'serializer': 'task_serializer', 'rate_limit': 'task_default_rate_limit', 'priority': 'task_default_priority',
    'time_limit': 'task_time_limit', 'soft_time_limit': 'task_soft_time_limit', 'acks_late': 'task_acks_late',
    'ignore_result': 'task_ignore_result', 'typing': 'strict_typing',
}


def parameters(task: Any) -> list[dict[str, Any]]:
    """Return the parameters of a task as its callers see them: without `self` and `task_id`.

    Each is a dict of `name`, `kind` (as `inspect.Parameter.kind`, lower-case), `annotation` (text), `required` and,
    if the default is JSON, `default`. A task whose function takes any arguments can describe them by `call_signature`.
    """
    if signature := getattr(task, 'call_signature', None):
        return [_describe_parameter(parameter) for parameter in signature.parameters.values()]
    try:
        found = list(inspect.signature(task.run).parameters.values())
    except (TypeError, ValueError):
        return []
    if getattr(task, 'takes_task_id', False):
        found = found[1:] if found and found[0].kind <= inspect.Parameter.POSITIONAL_OR_KEYWORD else found
    return [_describe_parameter(parameter) for parameter in found]


def _describe_parameter(parameter):
    variadic = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    described = {
        'name': parameter.name,
        'kind': parameter.kind.name.lower(),
        'annotation': _annotation(parameter.annotation),
        'required': parameter.default is parameter.empty and not variadic,
    }
    if isinstance(parameter.default, bool | int | float | str | list | dict | None):
        described['default'] = parameter.default
    return described


def _annotation(annotation):
    if annotation is inspect.Parameter.empty:
        return ''
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
