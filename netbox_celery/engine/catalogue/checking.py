"""Checks the arguments with which people call a task against its signature in the catalogue."""
from collections.abc import Mapping, Sequence
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ..calls.options import is_own
from ..exceptions import InvalidArguments
from ..store.payload import DEEPEST, check_markers, dumps, to_jsonb
from .annotations import is_allowed

__all__ = (
    'InvalidArguments',
    'check_arguments',
    'check_number',
)

#: The most arguments, and characters of their JSON, of a call by people: each is checked while they wait.
MAX_ARGUMENTS = 1000
MAX_LENGTH = 1_000_000


def check_arguments(task: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Check arguments against the signature of a task in the catalogue.

    Args:
        task: The `CeleryTask`.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Raises:
        InvalidArguments: They do not fit; `errors` has the reasons by parameter.
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
    """Return an error for each parameter whose value cannot be sent as JSON, or is nested too deeply."""
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


def check_number(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check that there are not too many arguments to check them one by one.

    Raises:
        InvalidArguments: There are too many.
    """
    given = len(args) + len(kwargs)
    if given > MAX_ARGUMENTS:
        raise InvalidArguments({'__all__': _(
            '{given:,} arguments are too many: a call has {most:,} at the most'
        ).format(given=given, most=MAX_ARGUMENTS)})


def _bind(task, args, kwargs):
    """Return `(parameter, argument)` pairs, and errors for the arguments that have no parameter."""
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
        return None  # the default is always allowed, as in `items: list = None`
    if is_allowed(parameter['annotation'], value):
        return None
    return _('must be {annotation}, not {value}').format(annotation=parameter['annotation'], value=repr(value)[:100])
