"""Calls exactly as they were made, from the text that a row keeps of them and from its own columns."""
import pytest

from netbox_celery.engine.calls.exact import call_of, options_of

OWN = ([1], {'a': 1}, {'queue': 'q'})


@pytest.mark.parametrize('exact_call, expected', [
    (None, [*OWN]), ('', [*OWN]), ('[]', [*OWN]), ('[null, null, null]', [*OWN]),
    ('[[1.0], null, null]', [[1.0], {'a': 1}, {'queue': 'q'}]),
    ('[null, {"b": 1, "a": 1e16}]', [[1], {'b': 1, 'a': 1e16}, {'queue': 'q'}]),
    ('[[], {}, {}]', [[], {}, {}]),
    ('[[-0.0, NaN], {"b": Infinity}, {"priority": 1e0}]', [[-0.0, float('nan')], {'b': float('inf')}, {
        'priority': 1.0
    }]),
])
def test_call(exact_call, expected):
    """Each part comes from the text if that has it, else from its column."""
    assert repr(call_of(exact_call, *OWN)) == repr(expected)


@pytest.mark.parametrize('exact_call, expected', [
    (None, {'a': 1, 'b': 2}), ('[[1], {}, null]', {'a': 1, 'b': 2}), ('[[1], {}]', {'a': 1, 'b': 2}),
    ('[null, null, {"b": 2.0, "a": 1}]', {'b': 2.0, 'a': 1}),
])
def test_options(exact_call, expected):
    assert repr(options_of(exact_call, '{"a": 1, "b": 2}')) == repr(expected)
