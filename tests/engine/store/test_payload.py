"""JSON between Celery and PostgreSQL."""
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from uuid import UUID

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from django.db import connection

from netbox_celery.engine.store.payload import (
    PayloadDecoder,
    call_of,
    clean_line,
    clean_text,
    cut_text,
    dumps,
    is_deep,
    is_exact,
    is_uuid,
    limited_jsonb,
    options_of,
    plain,
    result_columns,
    result_of,
    shown_jsonb,
    sorted_text,
    to_jsonb,
    whole_number,
)


@pytest.mark.parametrize('value', [
    None, True, 1, 1.5, 'text', [1, [2]], {'a': {'b': None}}, UUID(int=1), datetime(2030, 1, 2, tzinfo=UTC),
    date(2030, 1, 2), Decimal('1.10'), b'bytes', {'__type__': 'mine', '__value__': 1}, {'__type__': 'uuid'},
], ids=repr)
def test_round_trip(value):
    """A value is read as it was written, also data that looks like one of Kombu's type markers."""
    read = json.loads(dumps(value), cls=PayloadDecoder)
    assert read == value or str(read) == str(value)


@pytest.mark.parametrize('value', [object(), {1, 2}, lambda: None])
def test_not_json(value):
    with pytest.raises(TypeError):
        dumps([value])


def test_contains_itself():
    value = []
    value.append(value)
    with pytest.raises(ValueError):
        dumps(value)


@pytest.mark.django_db
@pytest.mark.parametrize('value, changed', [
    ('plain', False),
    ('nul \x00', True),
    ('lone \ud800 \udc00', True),
    ('a pair \U0001f418', False),
    ({'key \x00': ['deep \ud83d']}, True),
    (float('nan'), True),
    ([float('inf'), float('-inf')], True),
    ('the word NaN, and \\u0000 as text', False),
])
def test_storable_in_postgresql(value, changed):
    """What `to_jsonb` returns can be stored, and is changed only where needed."""
    text, was_changed = to_jsonb(value)
    with connection.cursor() as cursor:
        cursor.execute('SELECT %s::jsonb::text', (text,))
        stored = json.loads(cursor.fetchone()[0])

    assert was_changed == changed
    if not changed:
        assert stored == value


@pytest.mark.parametrize('text, expected', [
    ('\x1b[31mred\x1b[0m', 'red'),
    ('\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\', 'link'),
    ('\x1b[?25l\x1b[2K\x1b(Bx', 'x'),
    ('a\tb\nc\r\nd', 'a\tb\nc\r\nd'),
    ('bell\x07 back\x08', 'bell back'),
    ('\x00', '\ufffd'),
    ('\x1b', ''),
])
def test_clean_line(text, expected):
    assert clean_line(text) == expected
    assert '\x00' not in clean_text(text)


@pytest.mark.parametrize('text, expected', [
    ('12345', '12345'),
    ('123456', '12345… [cut: 1 of 6 characters left out]'),
    ('x' * 12_345, 'xxxxx… [cut: 12,340 of 12,345 characters left out]'),
])
def test_cut_text(text, expected):
    assert cut_text(text, 5) == expected


def test_limited():
    """Beyond the limit there is a text that says so, which is valid JSON."""
    assert limited_jsonb([1, 2], 100) == '[1, 2]'
    assert 'cut:' in json.loads(limited_jsonb(['x' * 1000], 100))


def test_plain():
    """For people, values are shown without type markers."""
    value = {'id': UUID(int=1), 'when': datetime(2030, 1, 2, tzinfo=UTC), 'raw': b'a\xff', 'odd': {1: object}}
    assert plain(value)['id'] == str(UUID(int=1))
    assert plain(value)['when'].startswith('2030-01-02')
    assert plain(value)['raw'] == 'a\ufffd'


@pytest.mark.parametrize('value, expected', [
    (str(UUID(int=1)), True), ('x', False), (None, False), (7, False), ('', False),
])
def test_is_uuid(value, expected):
    assert is_uuid(value) == expected


@pytest.mark.parametrize('value, expected', [
    (0, 0), (-5, -5), (7.9, 7), (Decimal('2.5'), 2), (Fraction(7, 2), 3), (2 ** 63 - 1, 2 ** 63 - 1),
    (2 ** 63, None), (10 ** 30, None), (-10 ** 30, None), (float('nan'), None), (float('inf'), None),
    (Decimal('NaN'), None), (Decimal('Infinity'), None), (1j, None), ('5', None), (None, None), ([], None),
    (True, None),
], ids=repr)
def test_whole_number(value, expected):
    """A value that no column can hold as a number is `None`."""
    assert whole_number(value) == expected


# Depth

def nested(depth, by=list):
    """Return a value that is nested `depth` deep."""
    value = by()
    for __ in range(depth - 1):
        value = [value] if by is list else {'"[{': value}
    return value


@pytest.mark.parametrize('by', [list, dict])
@pytest.mark.parametrize('depth, fits', [(1, True), (100, True), (101, False), (750, False), (100_000, False)])
def test_depth(by, depth, fits):
    """Brackets in texts do not count."""
    if fits:
        assert to_jsonb(nested(depth, by))[0] == dumps(nested(depth, by))
        return
    with pytest.raises(ValueError, match='nested too deeply'):
        to_jsonb(nested(depth, by))


def test_many_shallow_values():
    value = [{'a': ['[[[[{', {'b': [i]}]} for i in range(500)]
    assert to_jsonb(value)[0] == dumps(value)


class Encoding:
    """An object with the JSON of its author."""

    def __init__(self, write):
        self.write = write

    def __json__(self):
        return self.write()


def raising(exc):
    def write():
        raise exc
    return Encoding(write)


class Textless(Exception):
    def __str__(self):
        raise KeyError('no text')


class TextlessType(TypeError):
    __str__ = Textless.__str__


class Endless:
    def __json__(self):
        return [self]


@pytest.mark.parametrize('value, error', [
    (raising(KeyError('k')), ValueError), (raising(RuntimeError()), ValueError), (raising(Textless()), ValueError),
    (raising(TypeError('t')), TypeError), (raising(TextlessType()), TypeError), (raising(StopIteration()), ValueError),
    (raising(RecursionError()), ValueError), (raising(AssertionError()), ValueError), (Endless(), ValueError),
    (10 ** 5000, ValueError), ({(1, 2): 3}, TypeError), ({b'x': 1}, TypeError), (Encoding(object), TypeError),
], ids=lambda value: type(value).__name__)
def test_encoders_of_authors(value, error):
    """Whatever they raise becomes one of two errors."""
    with pytest.raises(error) as caught:
        dumps([value])
    assert type(caught.value) is error
    assert str(caught.value)
    assert isinstance(json.loads(shown_jsonb([value], 1000)), str)


def test_soft_time_limit_while_encoding():
    with pytest.raises(SoftTimeLimitExceeded):
        dumps(raising(SoftTimeLimitExceeded()))


# Exactly

@pytest.mark.django_db
@pytest.mark.parametrize('value, exact', [
    (None, True), (5, True), (True, True), ('text', True), (1.5, True), (1e15, True), (1e-7, True), (10 ** 30, True),
    (-5, True), (0.1 + 0.2, True), (5e-324, True), ([1, [2.5, {'a': 'x'}]], True), ({'a': 1, 'b': 2}, True),
    ({'b': 1, 'aa': 2}, True), ([{'a': 1}, {'a': 1}], True), ({'a': {'b': {'c': 1}}}, True),
    ({'z': 1, '\xe4': 2}, True), (-0.05, True), (['e+', -0.001], True),
    (1e16, False), (1e23, False), (-1e300, False), (-0.0, False), ({'x': [1e22]}, False), ({'b': 1, 'a': 2}, False),
    ({'aa': 1, 'b': 2}, False), ([{'x': {'b': 1, 'a': 2}}], False), ({'\xe4': 1, 'zz': 2, 'a': 3}, False),
    (float('nan'), False), ([float('-inf')], False), ('nul \x00', False), ({1: 'a', '1': 'b'}, False),
], ids=repr)
def test_is_exact(value, exact):
    """`is_exact` predicts whether PostgreSQL keeps a value exactly."""
    text = dumps(value)
    with connection.cursor() as cursor:
        cursor.execute('SELECT %s::jsonb::text', (to_jsonb(value)[0],))
        stored = json.loads(cursor.fetchone()[0])

    assert is_exact(text) is exact
    assert (repr(stored) == repr(value)) is exact
    columns, kept = result_columns(value, 1000)
    assert repr(result_of(dumps(stored), columns.get('exact_result'))) == repr((True, json.loads(text)))
    assert kept == text


@pytest.mark.parametrize('value', [
    nested(200), 'x' * 2000, object(), {1, 2}, 10 ** 5000, raising(KeyError()),
], ids=type)
def test_result_that_is_not_kept(value):
    """Its row shows a text, and does not return it as the result."""
    columns, text = result_columns(value, 1000)
    assert isinstance(json.loads(columns['result']), str)
    assert text is None
    assert result_of(columns['result'], columns['exact_result']) == (False, None)


def test_result_that_looks_cut():
    """A text that ends like a cut one is the result if it is in both columns."""
    columns, __ = result_columns('the characters left out]', 1000)
    assert result_of(columns['result'], columns['exact_result']) == (True, 'the characters left out]')
    assert result_of(columns['result'], None)[0] is False


def test_sorted_text():
    """Keys of several types are sorted, the same for equal dicts; other dicts give the same text as ever."""
    assert sorted_text({1: 'a', 'b': 2}) == sorted_text({'b': 2, 1: 'a'}) != sorted_text({1: 'a', 'b': 3})
    assert sorted_text({1: 'a', '1': 'b'}) == sorted_text({'1': 'b', 1: 'a'}) != sorted_text({1: 'b', '1': 'a'})
    assert sorted_text([{None: 1, 'x': {2: 1, True: 3, 'y': 1}}])
    assert sorted_text({'b': 1, 'a': 2}) == '{"a": 2, "b": 1}'
    assert sorted_text({10: 1, 9: 2}) == '{"9": 2, "10": 1}'
    with pytest.raises(TypeError):
        sorted_text({(1, 2): 1, 'b': 2})


def test_depth_of_invalid_json():
    """People can enter anything: the depth of text that is not JSON is known as well."""
    assert is_deep('[' * 150 + '"')
    assert not is_deep('[]' * 150 + '"')


# Calls exactly as they were made

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
def test_exact_call(exact_call, expected):
    """Each part comes from the text if that has it, else from its column."""
    assert repr(call_of(exact_call, *OWN)) == repr(expected)


@pytest.mark.parametrize('exact_call, expected', [
    (None, {'a': 1, 'b': 2}), ('[[1], {}, null]', {'a': 1, 'b': 2}), ('[[1], {}]', {'a': 1, 'b': 2}),
    ('[null, null, {"b": 2.0, "a": 1}]', {'b': 2.0, 'a': 1}),
])
def test_exact_options(exact_call, expected):
    assert repr(options_of(exact_call, '{"a": 1, "b": 2}')) == repr(expected)
