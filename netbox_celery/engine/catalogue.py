"""The catalogue of tasks: rows for what Celery has registered, and what their signatures allow."""
import inspect
import logging
import time
from datetime import UTC, datetime, timedelta
from functools import cache, partial

from django.db import DataError, transaction
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from .. import host
from . import discovery
from .annotations import is_allowed
from .exceptions import InvalidArguments
from .options import is_internal, is_own
from .payload import DEEPEST, check_markers, dumps, to_jsonb
from .strategies import strategy_of

__all__ = (
    'InvalidArguments',
    'check_arguments',
    'check_number',
    'get_task',
    'registered_tasks',
    'sync',
)

logger = logging.getLogger(__name__)

#: A task that nobody had registered for so long is marked absent. Workers say every minute what they have.
ABSENT_AFTER = timedelta(minutes=10)
#: How often a process looks, seconds.
SYNC_INTERVAL = 60

#: Arguments, and characters of their JSON, that people can call a task with: each is checked while they wait.
MAX_ARGUMENTS = 1000
MAX_LENGTH = 1_000_000

#: Execution options of a task that the catalogue shows, if the code sets them.
DEFAULTS = (
    'queue', 'priority', 'max_retries', 'default_retry_delay', 'retry_backoff', 'rate_limit', 'time_limit',
    'soft_time_limit', 'expires', 'acks_late', 'ignore_result', 'serializer', 'compression', 'typing',
)

#: What is raised by a description that a row cannot hold.
UNWRITABLE = (DataError, OverflowError, RecursionError, TypeError, ValueError)

_last_sync = float('-inf')


def get_task(name):
    """Return the task that this process has registered under a name, or `None`."""
    return registered_tasks().get(name)


def registered_tasks():
    """Return the tasks of this process by name, with those of all plugins, without Celery's own."""
    from ..celery import app

    _import_task_modules(app)
    return {name: task for name, task in app.tasks.items() if not is_internal(name)}


@cache
def _import_task_modules(app):
    """Import what a worker imports at its start: the `tasks` modules of all plugins, and what settings name.

    Celery's own way to do that sets Django up again, and resets the logging of a worker by it.
    """
    app.autodiscover_tasks(host.plugin_packages, force=True)
    for module in app.loader.default_modules:
        app.loader.import_task_module(module)
    app.finalize(auto=True)
    discovery.log_failures()


def sync(force=False):
    """Bring the catalogue up to date with the tasks that this process has registered.

    Does nothing if the process did it less than a minute ago, unless `force` is set.
    """
    global _last_sync
    from ..celery import app
    from ..models import CeleryTask
    from . import sources

    if not force and time.monotonic() - _last_sync < SYNC_INTERVAL:
        return
    _last_sync = time.monotonic()
    now = datetime.now(UTC)
    tasks = registered_tasks()
    rows = {row.name: row for row in CeleryTask.objects.all()}
    described = {name: values for name, task in tasks.items() if (values := _described(task)) is not None}
    missing = [
        CeleryTask(name=name, last_seen=now, **values) for name, values in described.items() if name not in rows
    ]
    touched = [row.name for row in _create(missing)]
    for name, values in described.items():
        if name in rows:
            changed = {field: value for field, value in values.items() if getattr(rows[name], field) != value}
            if changed and _write(name, CeleryTask.objects.filter(pk=rows[name].pk).update, **changed):
                touched.append(name)
    CeleryTask.objects.filter(name__in=tasks).update(last_seen=now, present=True)
    # Nobody knows what this process would have of a plugin whose tasks it could not import
    CeleryTask.objects.filter(present=True, last_seen__lt=now - ABSENT_AFTER).exclude(name__in=tasks).exclude(
        plugin__in=discovery.failed_plugins()
    ).update(present=False)
    sources.sync(app, app.conf.beat_schedule)
    if touched:
        host.index_for_search(CeleryTask.objects.filter(name__in=touched))


def _described(task):
    """Return what `describe_task` does, or `None`: one task's code does not keep the others out of the catalogue."""
    try:
        return describe_task(task)
    except Exception:
        logger.exception('The task %s cannot be described', task.name)
        return None


def _create(rows):
    """Write new rows, one by one if they cannot be written together; returns those that could be."""
    from ..models import CeleryTask

    create = partial(CeleryTask.objects.bulk_create, ignore_conflicts=True)
    try:
        with transaction.atomic():
            create(rows)
    except UNWRITABLE:
        return [row for row in rows if _write(row.name, create, [row])]
    return rows


def _write(name, function, *args, **kwargs):
    """Write what a task's code says of it; returns whether that could be."""
    try:
        with transaction.atomic():
            function(*args, **kwargs)
    except UNWRITABLE:
        logger.exception('What is known of the task %s cannot be written', name)
        return False
    return True


def describe_task(task):
    """Return the fields of a task's row that its code decides."""
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
    """Return an option that the decorator or class of a task sets, leaving out what Celery's settings fill in."""
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


def parameters(task):
    """Return the parameters of a task as its callers see them: without `self` and `task_id`.

    Each is a dict of `name`, `kind` (as `inspect.Parameter.kind`, lower-case), `annotation` (text), `required` and,
    where the default is JSON, `default`. A task whose function takes anything can say more by its `call_signature`.
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


def check_arguments(task, args, kwargs):
    """Check arguments against the signature of a task of the catalogue.

    Args:
        task: The `CeleryTask`.
        args: Positional arguments, a list.
        kwargs: Keyword arguments, a dict.

    Raises:
        InvalidArguments: They do not fit; `errors` says what is wrong with which parameter.
    """
    check_number(args, kwargs)
    given, errors = _bind(task, args, kwargs)
    if unwritable := _unwritable(args, kwargs, given):
        raise InvalidArguments(unwritable)
    passed = {parameter['name'] for parameter, __ in given}
    for parameter in task.parameters:
        name = parameter['name']
        if parameter['required'] and name not in passed:
            errors[name] = _('must be given by position') if name in kwargs else _('is required')
    for parameter, value in given:
        if parameter['name'] not in errors and (wrong := _wrong_type(parameter, value)):
            errors[parameter['name']] = wrong
    try:
        text = dumps([args, kwargs])
        check_markers(text)
        if len(text) > MAX_LENGTH:
            errors['__all__'] = _(
                'Arguments of {given:,} characters of JSON are too long: {most:,} is the most'
            ).format(given=len(text), most=MAX_LENGTH)
    except (RecursionError, TypeError, ValueError) as exc:
        errors.setdefault('__all__', str(exc))
    if errors:
        raise InvalidArguments(errors)


def _unwritable(args, kwargs, given):
    """Return what cannot be sent as JSON, or is nested too deeply, by the name of its parameter."""
    try:
        to_jsonb(args)
        to_jsonb(kwargs)
        return {}
    except (TypeError, ValueError) as exc:
        errors = {'__all__': _('cannot be sent: {error}').format(error=exc)}
    for parameter, value in given:
        try:
            to_jsonb(value, DEEPEST - 1)
        except (TypeError, ValueError) as exc:
            errors.pop('__all__', None)
            errors[parameter['name']] = _('cannot be sent: {error}').format(error=exc)
    return errors


def check_number(args, kwargs):
    """Check that there are not too many arguments to be checked one by one.

    Raises:
        InvalidArguments: There are.
    """
    given = len(args) + len(kwargs)
    if given > MAX_ARGUMENTS:
        raise InvalidArguments({'__all__': _(
            '{given:,} arguments are too many: a call has {most:,} at the most'
        ).format(given=given, most=MAX_ARGUMENTS)})


def _bind(task, args, kwargs):
    """Return which parameter of a task gets which argument, a list of pairs, and what is wrong with the others."""
    errors = {}
    by_position = [p for p in task.parameters if p['kind'] in ('positional_only', 'positional_or_keyword')]
    by_name = {p['name']: p for p in task.parameters if p['kind'] in ('positional_or_keyword', 'keyword_only')}
    variadic = {p['kind']: p for p in task.parameters if p['kind'] in ('var_positional', 'var_keyword')}
    given = [*zip(by_position, args)]
    passed = {parameter['name'] for parameter, __ in given}
    if further := args[len(by_position):]:
        if 'var_positional' in variadic:
            given += ((variadic['var_positional'], value) for value in further)
        else:
            most = len(by_position)
            errors['__all__'] = ngettext(
                'takes {most} positional argument, not {given}', 'takes {most} positional arguments, not {given}', most
            ).format(most=most, given=len(args))
    for name, value in kwargs.items():
        if name in by_name and name in passed:
            errors[name] = _('is given twice, by position and by name')
        elif name in by_name:
            given.append((by_name[name], value))
        elif 'var_keyword' not in variadic:
            is_known = name in (p['name'] for p in by_position)
            errors[name] = _('must be given by position') if is_known else _('is not a parameter of this task')
        elif is_own(name):
            errors[name] = _('is an option of a call in code, not an argument')
        else:
            given.append((variadic['var_keyword'], value))
    return given, errors


def _wrong_type(parameter, value):
    default = parameter.get('default')
    if 'default' in parameter and type(value) is type(default) and value == default:
        return None  # whatever the annotation says, as in `items: list = None`
    if is_allowed(parameter['annotation'], value):
        return None
    return _('must be {annotation}, not {value}').format(annotation=parameter['annotation'], value=repr(value)[:100])
