"""Checks values against the annotation of a parameter, as far as JSON distinguishes types.

The catalogue stores annotations as text, as the code of a task may, too. They are parsed, and never evaluated.
"""
import ast
from functools import lru_cache
from typing import Any, NamedTuple

__all__ = (
    'Alternative',
    'alternatives',
    'is_allowed',
)

#: Types that JSON distinguishes.
TYPES: dict[str, Any] = {
    'int': int, 'float': (int, float), 'str': str, 'bool': bool, 'list': list, 'dict': dict, 'None': type(None),
}


class Alternative(NamedTuple):
    """One of the types that an annotation allows: its last name, without parameters; for a `Literal`, the values."""
    name: str
    values: tuple = ()


@lru_cache(1000)
def alternatives(annotation: str) -> tuple[Alternative, ...]:
    """Return the types that an annotation allows; empty if there is no annotation, or one that is not understood.

    Args:
        annotation: Its text, such as `'int | None'` or `"typing.Literal['a', 'b']"`.
    """
    try:
        return tuple(_alternatives(ast.parse(annotation.strip(), mode='eval').body))
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        return ()  # invalid, or nested too deeply for Python's parser


def _alternatives(node: ast.expr) -> list[Alternative]:
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _alternatives(left) + _alternatives(right)
        case ast.Constant(value=None):
            return [Alternative('None')]
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return [Alternative(name)]
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=parameter):
            parameters = parameter.elts if isinstance(parameter, ast.Tuple) else [parameter]
            if name == 'Literal':
                return [Alternative(name, tuple(map(ast.literal_eval, parameters)))]
            if name in ('Optional', 'Union'):
                found = [alternative for node in parameters for alternative in _alternatives(node)]
                return found + [Alternative('None')] * (name == 'Optional')
            return [Alternative(name)]
    raise ValueError(ast.unparse(node))


def is_allowed(annotation: str, value: Any) -> bool:
    """Whether an annotation allows a JSON value. The items of lists and objects are not checked."""
    found = alternatives(annotation)
    if not found or any(name not in TYPES and not values for name, values in found):
        return True
    return any(_fits(alternative, value) for alternative in found)


def _fits(alternative: Alternative, value: Any) -> bool:
    if alternative.values:
        # JSON distinguishes 1 and true, Python's comparison does not
        return any(value == item and isinstance(value, bool) == isinstance(item, bool) for item in alternative.values)
    return isinstance(value, TYPES[alternative.name]) and (alternative.name == 'bool' or not isinstance(value, bool))
