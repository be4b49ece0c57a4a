"""What the annotation of a parameter says of values, as far as JSON can tell them apart.

The catalogue has annotations as text, as the code of a task may: they are read, and never evaluated.
"""
import ast
from functools import lru_cache
from typing import NamedTuple

__all__ = (
    'Alternative',
    'alternatives',
    'is_allowed',
)

#: Types whose values JSON can tell apart.
TYPES = {'int': int, 'float': (int, float), 'str': str, 'bool': bool, 'list': list, 'dict': dict, 'None': type(None)}


class Alternative(NamedTuple):
    """One of the types that an annotation allows: its last name, without what it holds; of a `Literal`, the values."""
    name: str
    values: tuple = ()


@lru_cache(1000)
def alternatives(annotation):
    """Return what an annotation allows, a tuple of `Alternative`; empty if it says nothing, or nothing that is known.

    Args:
        annotation: Its text, such as `'int | None'` or `"typing.Literal['a', 'b']"`.
    """
    try:
        return tuple(_alternatives(ast.parse(annotation.strip(), mode='eval').body))
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        return ()  # Python's parser has no more than so much room for what is nested


def _alternatives(node):
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _alternatives(left) + _alternatives(right)
        case ast.Constant(value=None):
            return [Alternative('None')]
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return [Alternative(name)]
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=held):
            held = held.elts if isinstance(held, ast.Tuple) else [held]
            if name == 'Literal':
                return [Alternative(name, tuple(map(ast.literal_eval, held)))]
            if name in ('Optional', 'Union'):
                found = [alternative for node in held for alternative in _alternatives(node)]
                return found + [Alternative('None')] * (name == 'Optional')
            return [Alternative(name)]
    raise ValueError(ast.unparse(node))


def is_allowed(annotation, value):
    """Whether a value of JSON may be what an annotation says. What lists and objects hold is not looked at."""
    found = alternatives(annotation)
    if not found or any(name not in TYPES and not values for name, values in found):
        return True
    return any(_fits(alternative, value) for alternative in found)


def _fits(alternative, value):
    if alternative.values:
        # JSON tells 1 from true, Python's comparison does not
        return any(value == item and isinstance(value, bool) == isinstance(item, bool) for item in alternative.values)
    return isinstance(value, TYPES[alternative.name]) and (alternative.name == 'bool' or not isinstance(value, bool))
