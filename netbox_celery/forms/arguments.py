"""The arguments of a task in a form, with a field for each parameter."""
from typing import TYPE_CHECKING, Any

from django import forms
from django.utils.translation import gettext as _

from ..engine.catalogue.checking import InvalidArguments, check_arguments
from .parameters import EMPTY, OMITTED, field_for, parameter_help, present

__all__ = (
    'ArgumentsMixin',
    'as_entered',
    'spread',
)

#: Prefix of the names of parameter fields. It keeps them apart from those of options: a parameter may be named `queue`.
PREFIX = 'parameter_'


if TYPE_CHECKING:
    from django.forms import Form as MixinBase

    from ..models import CeleryTask
else:
    MixinBase = object


class ArgumentsMixin(MixinBase):
    """A form with a field for each parameter of a task.

    Once `bind_arguments()` has found no error, `arguments` is the pair `(args, kwargs)`.
    """
    task: 'CeleryTask | None' = None
    arguments: tuple[list[Any], dict[str, Any]] = ([], {})

    def add_parameters(self, task: 'CeleryTask', values: dict[str, Any] | None = None) -> None:
        """Add the fields.

        Args:
            task: The `CeleryTask`.
            values: Values to show instead of the defaults, by parameter name.
        """
        self.task = task
        described = parameter_help(task.documentation)
        for parameter in task.parameters:
            name = parameter['name']
            field = self.fields[PREFIX + name] = field_for(parameter, described.get(name, ''))
            if values and name in values:
                present(field, values[name])

    @property
    def parameter_fields(self) -> list[str]:
        """The names of the fields."""
        return [PREFIX + parameter['name'] for parameter in self.task.parameters] if self.task else []

    def bind_arguments(self) -> None:
        """Build the arguments from the entered values and check them against the task's signature."""
        assert self.task is not None
        try:
            self.arguments = _bind(self.task, {
                parameter['name']: self.cleaned_data[PREFIX + parameter['name']] for parameter in self.task.parameters
            })
            check_arguments(self.task, *self.arguments)
        except InvalidArguments as exc:
            for name, message in exc.errors.items():
                field = PREFIX + name
                self.add_error(field if field in self.fields else None, f'{name} {message}'.removeprefix('__all__ '))


class ArgumentsForm(ArgumentsMixin, forms.Form):
    """A form with only the parameter fields of a task."""

    def __init__(self, task, data):
        super().__init__(data)
        self.add_parameters(task)


def as_entered(task: 'CeleryTask', data: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of an unfinished form. Invalid values are returned as the text that was entered.

    Args:
        task: The `CeleryTask`.
        data: The data of a form with `ArgumentsMixin`.

    Returns:
        Positional arguments, a list, and keyword arguments, a dict.
    """
    values = {}
    for bound in ArgumentsForm(task, data):
        name = bound.name.removeprefix(PREFIX)
        try:
            values[name] = bound.field.clean(bound.data)
        except forms.ValidationError:
            values[name] = OMITTED if bound.data in EMPTY else bound.data
    for parameter in task.parameters:
        name, value = parameter['name'], values[parameter['name']]
        if value is not OMITTED and parameter['kind'] == 'var_positional' and not isinstance(value, list):
            values[name] = [value]
        elif value is not OMITTED and parameter['kind'] == 'var_keyword' and not isinstance(value, dict):
            values[name] = {name: value}
    while True:
        try:
            return _bind(task, values)
        except InvalidArguments as exc:
            # A missing argument before others becomes `None`; one that repeats others is nested under its own name
            for name in exc.errors:
                values[name] = None if values[name] is OMITTED else {name: values[name]}


def _bind(task, values):
    """Return positional and keyword arguments. Pass them by name if possible: the run then shows the names.

    Args:
        task: The `CeleryTask`.
        values: The argument for each parameter, by name, or `OMITTED`.

    Raises:
        InvalidArguments: The values cannot be passed together.
    """
    further: list[Any] = []
    kwargs: dict[str, Any] = {}
    by_position: dict[str, Any] = {}
    for parameter in task.parameters:
        if parameter['kind'] == 'var_positional' and values[parameter['name']] is not OMITTED:
            further = values[parameter['name']]
    for parameter in task.parameters:
        name, kind, value = parameter['name'], parameter['kind'], values[parameter['name']]
        if kind == 'positional_only' or kind == 'positional_or_keyword' and further:
            by_position[name] = parameter.get('default', OMITTED) if value is OMITTED else value
        elif kind == 'var_keyword' and value is not OMITTED:
            # Always the last parameter
            if twice := sorted(kwargs.keys() & value.keys()):
                raise InvalidArguments({name: _('repeats {names}').format(names=', '.join(twice))})
            kwargs |= value
        elif kind in ('positional_or_keyword', 'keyword_only') and value is not OMITTED:
            kwargs[name] = value
    return [*_in_order(by_position, further), *further], kwargs


def _in_order(by_position, further):
    """Return positional arguments. Trailing ones can be omitted, but none before another."""
    names = list(by_position)
    while names and not further and by_position[names[-1]] is OMITTED:
        names.pop()
    if missing := [name for name in names if by_position[name] is OMITTED]:
        raise InvalidArguments({name: _('is required because a later argument is set') for name in missing})
    return [by_position[name] for name in names]


def spread(task: 'CeleryTask', args: Any, kwargs: Any) -> dict[str, Any] | None:
    """Return the arguments by parameter name, or `None` if they do not match the task's parameters."""
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        return None
    kinds = {p['name']: p['kind'] for p in task.parameters}
    by_position = [name for name, kind in kinds.items() if kind in ('positional_only', 'positional_or_keyword')]
    variadic = {kind: name for name, kind in kinds.items() if kind in ('var_positional', 'var_keyword')}
    values = dict(zip(by_position, args))
    if further := args[len(by_position):]:
        if 'var_positional' not in variadic:
            return None
        values[variadic['var_positional']] = further
    rest: dict[str, Any] = {}
    for name, value in kwargs.items():
        is_named = kinds.get(name) in ('positional_or_keyword', 'keyword_only')
        if name in values if is_named else 'var_keyword' not in variadic:
            return None
        (values if is_named else rest)[name] = value
    if rest:
        values[variadic['var_keyword']] = rest
    return values
