"""JSON between Celery and PostgreSQL."""
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from uuid import UUID

import pytest
from django.db import connection

from netbox_celery.engine.payload import (
    PayloadDecoder,
    clean_line,
    clean_text,
    cut_text,
    dumps,
    is_uuid,
    limited_jsonb,
    plain,
    to_jsonb,
    whole_number,
)


@pytest.mark.parametrize('value', [
    None, True, 1, 1.5, 'text', [1, [2]], {'a': {'b': None}}, UUID(int=1), datetime(2030, 1, 2, tzinfo=UTC),
    date(2030, 1, 2), Decimal('1.10'), b'bytes', {'__type__': 'mine', '__value__': 1}, {'__type__': 'uuid'},
], ids=repr)
def test_round_trip(value):
    """What is written is read as it was, also data that looks like a marker of Kombu's."""
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
def test_postgresql_takes_it(value, changed):
    """What `to_jsonb` returns can be stored; what did not have to be changed is not."""
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
    """Past the limit there is a text that says so, which is JSON itself."""
    assert limited_jsonb([1, 2], 100) == '[1, 2]'
    assert 'cut:' in json.loads(limited_jsonb(['x' * 1000], 100))


def test_plain():
    """People read no markers."""
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
    """What no column can hold as a number is none."""
    assert whole_number(value) == expected
