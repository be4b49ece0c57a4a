"""JSON between Celery and PostgreSQL: arguments, results and data of runs.

Kombu writes dates, UUIDs, decimals and bytes into JSON with a type marker and reads them back, so that a task gets
what the caller passed. Rows hold that same JSON, which is what makes it possible to send a message again. PostgreSQL
refuses some JSON that Python writes (NUL, lone surrogates, NaN); such text is cleaned on its way.
"""
import json
import re
from datetime import time
from decimal import Decimal
from itertools import accumulate
from math import isfinite
from numbers import Number
from uuid import UUID

from billiard.exceptions import SoftTimeLimitExceeded
from celery.utils.saferepr import saferepr
from django.core.serializers.json import DjangoJSONEncoder
from kombu.utils.json import JSONEncoder, loads, object_hook

__all__ = (
    'DEEPEST',
    'UNTOLD',
    'MarkerDecoder',
    'PayloadDecoder',
    'PayloadEncoder',
    'RowDecoder',
    'StrictDecoder',
    'check_depth',
    'check_markers',
    'clean',
    'clean_line',
    'clean_text',
    'cut_json',
    'cut_text',
    'dumps',
    'dumps_any',
    'has_other_numbers',
    'is_cut',
    'is_deep',
    'is_exact',
    'is_jsonb',
    'is_named',
    'is_uuid',
    'limited_jsonb',
    'other_number',
    'plain',
    'read_value',
    'repr_of',
    'result_columns',
    'result_of',
    'sendable_jsonb',
    'shown_jsonb',
    'sorted_text',
    'text_of',
    'to_jsonb',
    'untold',
    'whole_number',
)

# What jsonb refuses, as `json.dumps` writes it. A match may be a false alarm (an escaped backslash); cleaning is exact.
_SUSPECT = re.compile(r'\\u0000|\\ud[89a-f]|NaN|Infinity')
_UNSTORABLE = re.compile('[\x00\ud800-\udfff]')
# Terminal control sequences: CSI (colours, cursor), OSC (titles, links), character sets, and the two-character ones.
_ANSI = re.compile(r'\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]+[0-~]|[0-?@-Z\\-~])')
_CONTROL = re.compile(r'[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]')

#: The highest number that a column of ours can hold.
HIGHEST = 2 ** 63 - 1

#: How deep lists and objects may be nested in arguments, options, results and data. A worker's parent cannot hand on to
#: its processes what is nested by some hundreds, and each page and each copy of a value descends into it.
DEEPEST = 100
#: How the note of `cut_text` ends.
CUT_END = 'characters left out]'

#: Levels of lists and objects in each other that pages show: Python's encoder of indented JSON ends at some hundreds.
SHOWN_DEPTH = 100
TOO_DEEP = f'[nested more than {SHOWN_DEPTH} levels deep]'
#: Characters that are shown of what is nested too deeply to be read at all.
CUT_DEEP = 1000
#: Digits of the longest number that Python makes of a text, and a text of (`sys.set_int_max_str_digits`).
MOST_DIGITS = 4000
LARGEST = 10 ** MOST_DIGITS
#: What stands in `exact_result` if the row holds nothing of a result but a text for people.
NOT_KEPT = ''
#: How `exact_result` begins if code that asks Celery is not told of the end (`ignore_result`); people are.
UNTOLD = '~'

#: What is no bracket in JSON text: strings, and everything between brackets and strings.
_NO_BRACKETS = re.compile(r'(?:[^][{}"]++|"(?:[^"\\]++|\\.)*+")++')
_STEPS = {'[': 1, '{': 1, ']': -1, '}': -1}
# What jsonb keeps as another number, as `json.dumps` writes it: floats from 1e16 become integers, -0.0 loses its sign.
_OTHER_NUMBER = re.compile(r'\de\+|-0\.0(?!\d)')


class PayloadEncoder(JSONEncoder):
    """Kombu's JSON encoder: as messages are written, so are rows."""


class MarkerDecoder(json.JSONDecoder):
    """Reads what `PayloadEncoder` wrote, and what people enter like that.

    Raises:
        RecursionError, ValueError: It cannot be read, or is too much for Python.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, object_hook=_object_hook, **kwargs)


class StrictDecoder(MarkerDecoder):
    """Reads the same, and raises one exception for all that cannot be read.

    Raises:
        json.JSONDecodeError: It cannot be read; also for numbers and depths that are too much for Python.
    """

    def decode(self, s, *args):
        try:
            return super().decode(s, *args)
        except json.JSONDecodeError:
            raise
        except RecursionError:
            raise json.JSONDecodeError('It is nested too deeply', s[:100], 0) from None
        except ValueError as exc:
            raise json.JSONDecodeError(str(exc), s[:100], 0) from None


class RowDecoder(json.JSONDecoder):
    """Reads JSON from a row, whatever it holds: a page must not end for it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{'parse_int': _whole, **kwargs})

    def decode(self, s, *args):
        try:
            return super().decode(s, *args)
        except RecursionError:
            return cut_text(s, CUT_DEEP)


class PayloadDecoder(RowDecoder, MarkerDecoder):
    """Reads what `PayloadEncoder` wrote into a row."""


def _whole(text):
    """Return a whole number; one that Python refuses to read for its length as a `Decimal`."""
    return int(text) if len(text) <= MOST_DIGITS else Decimal(text)


def _object_hook(value):
    try:
        return object_hook(value)
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # noqa: BLE001 - decoders raise whatever they like, those of authors' types, too
        # Not a marker of Kombu's but data of the task's own that looks like one.
        return value


_read = StrictDecoder().decode


def read_value(text):
    """Return what JSON text holds: what looks like one of Kombu's markers and is none stays as it is.

    Raises:
        ValueError: It is more than Python can read.
    """
    return _read(text)


def dumps(value):
    """Return `value` as JSON text, written as Kombu writes messages.

    Raises:
        TypeError: Something in it is of a type that JSON cannot hold.
        ValueError: It contains itself, or cannot be written for another reason: types of authors' own raise anything.
    """
    try:
        return json.dumps(value, cls=PayloadEncoder)
    except SoftTimeLimitExceeded:
        raise
    except RecursionError:
        raise ValueError('it is nested too deeply') from None
    except TypeError as exc:
        raise TypeError(text_of(exc)) from exc
    except ValueError as exc:
        raise ValueError(text_of(exc)) from exc
    except Exception as exc:
        raise ValueError(f'{type(exc).__name__}: {text_of(exc)}') from exc


def is_deep(text, deepest=DEEPEST):
    """Whether lists and objects in JSON text are nested too deeply."""
    # Counting is done in C, and nearly always enough
    if text.count('[') + text.count('{') <= deepest:
        return False
    return max(accumulate(map(_STEPS.get, _NO_BRACKETS.sub('', text)))) > deepest


def check_depth(text, deepest=DEEPEST):
    """Check that lists and objects in JSON text are not nested too deeply.

    Raises:
        ValueError: They are.
    """
    if is_deep(text, deepest):
        raise ValueError(f'it is nested too deeply: more than {deepest} lists and objects in each other')


def dumps_any(value, **options):
    """Return any value as JSON text for people: with type markers, or where that fails as `plain` shows it.

    Args:
        value: The value.
        **options: Those of `json.dumps`.
    """
    try:
        return json.dumps(value, cls=PayloadEncoder, **options)
    except Exception:  # noqa: BLE001 - a type may be anybody's
        return json.dumps(plain(value), **options)


def check_markers(text):
    """Check that a worker can read what a message says in JSON.

    What looks like one of Kombu's type markers and is none ends the decoding of the whole message.

    Raises:
        ValueError: It cannot.
    """
    if '"__type__"' not in text:
        return
    try:
        loads(text)
    except Exception as exc:
        raise ValueError(f'"__type__" and "__value__" mark a type of Kombu\'s, and this is none: {exc}') from exc


def to_jsonb(value, deepest=DEEPEST):
    """Return `value` as JSON text that PostgreSQL's `jsonb` accepts, and whether it had to be changed for that.

    Raises:
        TypeError, ValueError: It cannot be written as JSON, or is nested too deeply.
    """
    if value is None:
        return 'null', False  # what most tasks return
    text = dumps(value)
    check_depth(text, deepest)
    return _for_jsonb(text)


def _for_jsonb(text):
    if not _SUSPECT.search(text):
        return text, False
    cleaned = json.dumps(clean(json.loads(text)))
    return cleaned, cleaned != text


def is_jsonb(text):
    """Whether PostgreSQL's `jsonb` takes some JSON text as it is. There are false alarms."""
    return not _SUSPECT.search(text)


def is_exact(text):
    """Whether PostgreSQL's `jsonb` gives JSON text back as what it holds: its numbers, and the order of its keys.

    It sorts keys by length and then by bytes, keeps the last of those that are the same, and knows no floats.
    """
    if _OTHER_NUMBER.search(text) or _SUSPECT.search(text):
        return False
    # Most objects that have no more than one key are known by their count
    if text.count('": ') <= text.count('{'):
        return True
    try:
        _check_order(text)
    except _Unordered:
        return False
    return True


def has_other_numbers(text):
    """Whether `jsonb` keeps a number of JSON text as another one; there are false alarms from strings."""
    return bool(_OTHER_NUMBER.search(text))


def other_number(value):
    """Return the first number in plain JSON data that `jsonb` would keep as another one, or `None`."""
    if isinstance(value, float):
        return value if has_other_numbers(repr(value)) else None
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next((number for item in items if (number := other_number(item)) is not None), None)


class _Unordered(Exception):
    """The keys of an object stand in another order than `jsonb` gives them."""


def _in_order(pairs):
    if len(pairs) > 1:
        before = -1, b''
        for key, __ in pairs:
            key = key.encode()
            if (here := (len(key), key)) <= before:
                raise _Unordered
            before = here


_check_order = json.JSONDecoder(object_pairs_hook=_in_order).decode


def sendable_jsonb(value, deepest=DEEPEST):
    """Do what `to_jsonb` does, for a part of a message.

    Raises:
        TypeError, ValueError: It cannot be written as JSON, or a worker could not read it.
    """
    text, changed = to_jsonb(value, deepest)
    check_markers(text)
    return text, changed


def limited_jsonb(value, limit):
    """Return `value` as JSON text for `jsonb`; past `limit` characters, as a JSON string that says how much was cut.

    Raises:
        TypeError, ValueError: It cannot be written as JSON.
    """
    return cut_json(to_jsonb(value)[0], limit)


def shown_jsonb(value, limit):
    """Do so, with a text in the place of what cannot be written as JSON, or is nested too deeply. Nothing is raised."""
    try:
        return limited_jsonb(value, limit)
    except (TypeError, ValueError):
        pass
    try:
        text = saferepr(value, limit)
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # noqa: BLE001 - an author's type may raise anything, and numbers may have too many digits
        text = f'<{type(value).__name__}>'
    return json.dumps(cut_text(clean_text(text), limit))


def result_columns(value, limit):
    """Return the columns of a result as a dict, and its JSON text if the row has it exactly.

    Nothing is raised: what cannot be written, or is too long, is there for people only (see `result_of`).
    """
    if value is None:
        return {'result': 'null'}, 'null'  # what most tasks return
    try:
        text = dumps(value)
        check_depth(text)
    except (TypeError, ValueError):
        return {'result': shown_jsonb(value, limit), 'exact_result': NOT_KEPT}, None
    stored = cut_json(_for_jsonb(text)[0], limit)
    if len(text) > limit:
        return {'result': stored, 'exact_result': NOT_KEPT}, None
    # A text that looks like one that was cut is told from those by standing in both
    exact = is_exact(text) and not text.endswith(f'{CUT_END}"')
    return {'result': stored} if exact else {'result': stored, 'exact_result': text}, text


def untold(exact_result):
    """Return the `exact_result` of a run of whose end code is not told."""
    return exact_result if exact_result == NOT_KEPT else f'{UNTOLD}{exact_result or ""}'


def result_of(result, exact_result):
    """Return whether a row has exactly what a task returned, and that.

    Args:
        result: Its column, as JSON text or `None`.
        exact_result: Its column. Where that says nothing, rows of earlier versions may have been cut.
    """
    if exact_result == NOT_KEPT:
        return False, None
    if exact_result and exact_result.startswith(UNTOLD):
        exact_result = exact_result.removeprefix(UNTOLD) or None
    value = read_value(exact_result or result or 'null')
    return bool(exact_result) or not is_cut(value), value


def sorted_text(value):
    """Return `value` as JSON text with its keys in order, the same for values that are equal."""
    try:
        return json.dumps(value, cls=PayloadEncoder, sort_keys=True)
    except TypeError:
        # Keys of several types have no order before they are text
        return dumps(_in_pairs(value))


def _in_pairs(value):
    if isinstance(value, dict):
        return {'\0pairs': sorted(
            dumps([isinstance(key, str), {key: None}, _in_pairs(item)]) for key, item in value.items()
        )}
    return [_in_pairs(item) for item in value] if isinstance(value, list | tuple) else value


def cut_json(text, limit):
    """Return JSON text, or past `limit` characters a JSON string with its beginning that says how much was cut."""
    return text if len(text) <= limit else dumps(cut_text(text, limit))


def clean(value):
    """Replace what `jsonb` refuses, in any depth of plain JSON data: NUL, lone surrogates, NaN and infinities."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, float) and (value != value or value in (float('inf'), float('-inf'))):
        return str(value)
    if isinstance(value, dict):
        return {clean_text(key): clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item) for item in value]
    return value


def text_of(value):
    """Return `str(value)`, or a text that says why there is none: what a task says of itself does not fail it."""
    try:
        return str(value)
    except SoftTimeLimitExceeded:
        raise
    except Exception as exc:  # noqa: BLE001
        return f'<{type(value).__name__}, whose text could not be made: {type(exc).__name__}>'


def repr_of(value):
    """Return `repr(value)`, or the name of its type if that raises."""
    try:
        return repr(value)
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # noqa: BLE001
        return f'<{type(value).__name__}>'


def clean_text(text):
    """Replace characters that PostgreSQL's `text` cannot hold (NUL, lone surrogates) by U+FFFD."""
    return _UNSTORABLE.sub('\ufffd', text)


def clean_line(text):
    """Like `clean_text`, without terminal colours and control characters; tabs and line breaks stay."""
    text = _UNSTORABLE.sub('\ufffd', text)
    if '\x1b' in text:
        text = _ANSI.sub('', text)
    return _CONTROL.sub('', text)


def cut_text(text, limit):
    """Return `text`, or its first `limit` characters with a note of how many are missing."""
    if len(text) <= limit:
        return text
    return f'{text[:limit]}… [cut: {len(text) - limit:,} of {len(text):,} {CUT_END}'


def whole_number(value):
    """Return a number without its fraction; `None` for what is no number, or more than a column can hold."""
    if not isinstance(value, Number) or isinstance(value, bool):
        return None
    try:
        number = int(value)
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # noqa: BLE001
        return None  # it is complex, not a number, or infinite; an author's type may raise anything
    return number if -HIGHEST <= number <= HIGHEST else None


def is_cut(value):
    """Whether a value from a row is what `limited_jsonb` left of one that was too large."""
    return isinstance(value, str) and value.endswith(CUT_END)


def plain(value):
    """Return `value` as JSON data without type markers: what a person, REST, GraphQL and the change log read.

    There is no value for which this fails: what no JSON can hold is shown as its text, and what is nested more deeply
    than pages and their libraries can show is cut there.
    """
    try:
        text = json.dumps(value, cls=_PlainEncoder, allow_nan=False)
        if text.count('[') + text.count('{') <= SHOWN_DEPTH:
            return json.loads(text)
    except Exception:  # noqa: BLE001 - whatever it was, it can be shown piece by piece
        pass
    return _shown(value, 0)


def _shown(value, depth):
    """Return a value as `plain` does, whatever is in it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, int):
        return value if -LARGEST < value < LARGEST else f'{"-" if value < 0 else ""}{value.bit_length()}-bit number'
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    if isinstance(value, dict | list | tuple) and depth >= SHOWN_DEPTH:
        return TOO_DEEP
    if isinstance(value, dict):
        return {clean_text(text_of(key)): _shown(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item, depth + 1) for item in value]
    try:
        return clean_text(_PlainEncoder().default(value))
    except Exception:  # noqa: BLE001 - a type may be anybody's
        return clean_text(text_of(value))


class _PlainEncoder(DjangoJSONEncoder):

    def default(self, o):
        if isinstance(o, time):
            return o.isoformat()  # Django refuses those with an offset
        try:
            return super().default(o)
        except TypeError:
            return o.decode('utf-8', 'replace') if isinstance(o, bytes) else text_of(o)


def is_named(name, column):
    """Whether a row has the name of a task, which may be too long for its column, or hold what that cannot."""
    return column in (name, clean_text(name)[:255])


def is_uuid(value):
    """Whether a task's ID is a UUID, as IDs in rows are."""
    try:
        UUID(value)
    except (AttributeError, TypeError, ValueError):
        return False
    return True
