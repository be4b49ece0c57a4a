"""What annotations say about values, as far as JSON can tell them apart."""
import pytest

from netbox_celery.engine.catalogue.annotations import Alternative, alternatives, is_allowed


@pytest.mark.parametrize('annotation, right, wrong', [
    ('', [None, 1, 'x', []], []),
    ('float', [1, 1.5], ['1', True]),
    ('str | None', ['x', None], [1]),
    ('int|str', [1, 'x'], [1.5, None]),
    ('list[int]', [[], ['not looked at']], [{}, None]),
    ('list[int] | None', [[], None], [{}]),
    ('dict[str, list[int]] | list[str | None]', [{}, []], [None, 'x']),
    ('Device', [1, None], []),
    ('Literal["a", "b"]', ['a'], ['c', None, ['a']]),
    ("typing.Literal['a', 1, False] | None", ['a', 1, None, False], [True, 0, '1']),
    ('Literal["a"] | int', ['a', 5], ['b', 1.5]),
    ('Optional[int]', [1, None], ['x']),
    ('typing.Union[int, typing.List[str]]', [1, 'not known'], []),
    ('Union[int, list[str]]', [1, ['x']], ['x', None]),
    ('Literal[Color.RED]', ['x', None], []),
    ('Literal', ['x'], []),
    ('int |', ['x'], []),
    ('"int"', ['x'], []),
    ('x' * 5000 + '[', ['x'], []),
], ids=str)
def test_annotations(annotation, right, wrong):
    """Values are checked against annotations that JSON can tell apart; others are left to the task."""
    assert [value for value in right if not is_allowed(annotation, value)] == []
    assert [value for value in wrong if is_allowed(annotation, value)] == []


@pytest.mark.parametrize('annotation, expected', [
    ('', ()), ('int', ('int',)), (' int | None ', ('int', 'None')), ('Optional[dict[str, int]]', ('dict', 'None')),
    ('typing.Union[int, models.Device]', ('int', 'Device')), ('int | Union[str, Optional[list]]', (
        'int', 'str', 'list', 'None'
    )), ('int | "Device"', ()), ('print()', ()), ('Literal[print()]', ()),
])
def test_alternatives(annotation, expected):
    """The last names of the types, without their parameters; nothing is evaluated."""
    assert tuple(name for name, __ in alternatives(annotation)) == expected


def test_values_of_a_literal():
    assert alternatives("Literal['a', -1, None] | str") == (
        Alternative('Literal', ('a', -1, None)), Alternative('str')
    )


def test_annotation_that_is_nested_too_deeply():
    """It restricts nothing, and raises nothing."""
    assert alternatives('list[' * 5000 + 'int' + ']' * 5000) == ()
    assert is_allowed('int | ' * 5000 + 'int', 'x')
