"""Converts arguments, results and data of runs to and from the JSON that Celery and PostgreSQL store.

Kombu writes dates, UUIDs, decimals and bytes into JSON with a type marker and reads them back, so a task gets what the
caller passed. Rows hold that same JSON, so that a message can be sent again. PostgreSQL refuses some JSON that Python
writes (NUL, lone surrogates, NaN): such text is cleaned before it is stored.
"""
import json
import re
from collections.abc import Iterable
from datetime import time
from decimal import Decimal
from itertools import accumulate
from math import isfinite
from numbers import Number
from typing import Any
from uuid import UUID

from billiard.exceptions import SoftTimeLimitExceeded
from celery.utils.saferepr import saferepr
from django.core.serializers.json import DjangoJSONEncoder
from kombu.utils.json import JSONEncoder, loads, object_hook

__all__ = (
    'DEEPEST',
    'UNREPORTED',
    'MarkerDecoder',
    'PayloadDecoder',
    'PayloadEncoder',
    'RowDecoder',
    'StrictDecoder',
    'call_of',
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
    'options_of',
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
    'unreported',
    'whole_number',
)

# What `jsonb` refuses, as `json.dumps` writes it. A match may be a false positive (an escaped backslash); cleaning is
# exact.
_SUSPECT = re.compile(r'\\u0000|\\ud[89a-f]|NaN|Infinity')
_UNSTORABLE = re.compile('[\x00\ud800-\udfff]')
# Terminal control sequences: CSI (colors, cursor), OSC (titles, links), character sets, and the two-character ones.
_ANSI = re.compile(r'\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]+[0-~]|[0-?@-Z\\-~])')
_CONTROL = re.compile(r'[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]')

#: The highest number that our integer columns can hold.
HIGHEST = 2 ** 63 - 1

#: How deep lists and objects may be nested in arguments, options, results and data. A worker's parent process cannot
#: pass values with some hundred levels to its pool, and each page and each copy of a value descends into all levels.
DEEPEST = 100
#: How the note of `cut_text` ends.
CUT_END = 'characters left out]'

#: Levels of nested lists and objects that pages show: Python's encoder of indented JSON fails at some hundreds.
SHOWN_DEPTH = 100
TOO_DEEP = f'[nested more than {SHOWN_DEPTH} levels deep]'
#: Characters that are shown of JSON that is nested too deeply to be decoded.
CUT_DEEP = 1000
#: Digits of the longest integer that Python converts from and to text (`sys.set_int_max_str_digits`).
MOST_DIGITS = 4000
LARGEST = 10 ** MOST_DIGITS
#: Value of `exact_result` if the row holds only a text for people, and not the result itself.
NOT_KEPT = ''
#: Prefix of `exact_result` if Celery does not report the end to code that asks for it (`ignore_result`); pages show it.
UNREPORTED = '~'

#: Everything in JSON text that is not a bracket: strings, and what is between brackets and strings.
_NO_BRACKETS = re.compile(r'(?:[^][{}"]++|"(?:[^"\\]++|\\.)*+")++')
_STEPS = {'[': 1, '{': 1, ']': -1, '}': -1}
# Numbers that `jsonb` changes, as `json.dumps` writes them: floats from 1e16 become integers, -0.0 loses its sign.
_OTHER_NUMBER = re.compile(r'\de\+|-0\.0(?!\d)')


class PayloadEncoder(JSONEncoder):
    """Kombu's JSON encoder: rows are encoded like messages."""


class MarkerDecoder(json.JSONDecoder):
    """Decodes what `PayloadEncoder` wrote, and what people enter in the same form.

    Raises:
        RecursionError, ValueError: The text is invalid, or exceeds Python's limits.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, object_hook=_object_hook, **kwargs)


class StrictDecoder(MarkerDecoder):
    """Decodes the same, and raises a single exception type for every text that cannot be decoded.

    Raises:
        json.JSONDecodeError: The text is invalid, or its numbers or its depth exceed Python's limits.
    """

    def decode(self, s: str, *args: Any) -> Any:
        try:
            return super().decode(s, *args)
        except json.JSONDecodeError:
            raise
        except RecursionError:
            raise json.JSONDecodeError('The value is nested too deeply', s[:100], 0) from None
        except ValueError as exc:
            raise json.JSONDecodeError(str(exc), s[:100], 0) from None


class RowDecoder(json.JSONDecoder):
    """Decodes JSON from a row, whatever it holds, so that no page fails because of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{'parse_int': _parse_int, **kwargs})

    def decode(self, s: str, *args: Any) -> Any:
        try:
            return super().decode(s, *args)
        except RecursionError:
            return cut_text(s, CUT_DEEP)


class PayloadDecoder(RowDecoder, MarkerDecoder):
    """Decodes what `PayloadEncoder` wrote into a row."""


def _parse_int(text: str) -> int | Decimal:
    """Return a whole number; as a `Decimal` if it has too many digits for Python's integers."""
    return int(text) if len(text) <= MOST_DIGITS else Decimal(text)


def _object_hook(value: dict[str, Any]) -> Any:
    try:
        return object_hook(value)
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # noqa: BLE001 - decoders, also those of authors' types, may raise anything
        # Not a marker of Kombu's, but data of the task that looks like one
        return value


_read = StrictDecoder().decode


def read_value(text: str) -> Any:
    """Return the value of JSON text. Data that only looks like one of Kombu's type markers is returned as it is.

    Raises:
        ValueError: The text is invalid, or exceeds Python's limits.
    """
    return _read(text)


def call_of(exact_call: str | None, args: Any, kwargs: Any, options: Any) -> list[Any]:
    """Return arguments, keyword arguments and options of a call as they were given.

    Args:
        exact_call: The parts that the row stores as text, or `None` (see `rows.exact_call`).
        args, kwargs, options: The values of their own columns.
    """
    exact = read_value(exact_call) if exact_call else ()
    return [part if part is not None else own for part, own in zip((*exact, None, None, None), (args, kwargs, options))]


def options_of(exact_call: str | None, text: str) -> Any:
    """Return the options of a call as they were given, from the row's text of the call and the column for options."""
    return call_of(exact_call, None, None, read_value(text))[2]


def dumps(value: Any) -> str:
    """Return `value` as JSON text, encoded as Kombu encodes messages.

    Raises:
        TypeError: It contains a type that JSON cannot hold.
        ValueError: It contains itself, or cannot be encoded for another reason: authors' types may raise anything.
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


def is_deep(text: str, deepest: int = DEEPEST) -> bool:
    """Whether lists and objects in JSON text are nested too deeply."""
    # Counting runs in C, and is nearly always enough
    if text.count('[') + text.count('{') <= deepest:
        return False
    # Of invalid JSON, as people may enter it, a quote may be left over
    return max(accumulate(_STEPS.get(step, 0) for step in _NO_BRACKETS.sub('', text))) > deepest


def check_depth(text: str, deepest: int = DEEPEST) -> None:
    """Check that lists and objects in JSON text are not nested too deeply.

    Raises:
        ValueError: They are.
    """
    if is_deep(text, deepest):
        raise ValueError(f'it is nested too deeply: more than {deepest} levels of lists and objects')


def dumps_any(value: Any, **options: Any) -> str:
    """Return any value as JSON text for people: with type markers or, if that fails, as `plain` shows it.

    Args:
        value: The value.
        **options: Those of `json.dumps`.
    """
    try:
        return json.dumps(value, cls=PayloadEncoder, **options)
    except Exception:  # noqa: BLE001 - authors' types may raise anything
        return json.dumps(plain(value), **options)


def check_markers(text: str) -> None:
    """Check that a worker can decode the JSON of a message.

    Data that only looks like one of Kombu's type markers makes the decoding of the whole message fail.

    Raises:
        ValueError: The text contains such data.
    """
    if '"__type__"' not in text:
        return
    try:
        loads(text)
    except Exception as exc:
        raise ValueError(f'"__type__" and "__value__" mark a type of Kombu\'s, and this is not one: {exc}') from exc


def to_jsonb(value: Any, deepest: int = DEEPEST) -> tuple[str, bool]:
    """Return `value` as JSON text that PostgreSQL's `jsonb` accepts, and whether it had to be changed for that.

    Raises:
        TypeError, ValueError: It cannot be encoded as JSON, or is nested too deeply.
    """
    if value is None:
        return 'null', False  # what most tasks return
    text = dumps(value)
    check_depth(text, deepest)
    return _for_jsonb(text)


def _for_jsonb(text: str) -> tuple[str, bool]:
    if not _SUSPECT.search(text):
        return text, False
    cleaned = json.dumps(clean(json.loads(text)))
    return cleaned, cleaned != text


def is_jsonb(text: str) -> bool:
    """Whether PostgreSQL's `jsonb` accepts JSON text unchanged. The answer may be a false no."""
    return not _SUSPECT.search(text)


def is_exact(text: str) -> bool:
    """Whether `jsonb` preserves the numbers in JSON text and the order of its keys.

    `jsonb` sorts keys by length and then by bytes, keeps the last of equal keys, and has no floats.
    """
    if _OTHER_NUMBER.search(text) or _SUSPECT.search(text):
        return False
    # A count is enough to recognize most texts whose objects have at most one key
    if text.count('": ') <= text.count('{'):
        return True
    try:
        _check_order(text)
    except _Unordered:
        return False
    return True


def has_other_numbers(text: str) -> bool:
    """Whether `jsonb` changes a number in JSON text; digits in strings cause false positives."""
    return bool(_OTHER_NUMBER.search(text))


def other_number(value: Any) -> float | None:
    """Return the first number in plain JSON data that `jsonb` would change, or `None`."""
    if isinstance(value, float):
        return value if has_other_numbers(repr(value)) else None
    items: Iterable[Any] = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    )
    return next((number for item in items if (number := other_number(item)) is not None), None)


class _Unordered(Exception):
    """The keys of an object are not in the order of `jsonb`."""


def _check_keys(pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) > 1:
        before = -1, b''
        for name, __ in pairs:
            key = name.encode()
            if (here := (len(key), key)) <= before:
                raise _Unordered
            before = here


_check_order = json.JSONDecoder(object_pairs_hook=_check_keys).decode


def sendable_jsonb(value: Any, deepest: int = DEEPEST) -> tuple[str, bool]:
    """Return the same as `to_jsonb`, for a part of a message.

    Raises:
        TypeError, ValueError: It cannot be encoded as JSON, or a worker could not decode it.
    """
    text, changed = to_jsonb(value, deepest)
    check_markers(text)
    return text, changed


def limited_jsonb(value: Any, limit: int) -> str:
    """Return `value` as JSON text for `jsonb`; longer than `limit` characters, it is cut to a JSON string that says so.

    Raises:
        TypeError, ValueError: It cannot be encoded as JSON, or is nested too deeply.
    """
    return cut_json(to_jsonb(value)[0], limit)


def shown_jsonb(value: Any, limit: int) -> str:
    """Return the same as `limited_jsonb`, or a text as a JSON string instead of raising an exception."""
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


def result_columns(value: Any, limit: int) -> tuple[dict[str, str], str | None]:
    """Return the columns of a result as a dict, and the result's JSON text if the row holds it exactly, else `None`.

    Raises nothing: of a result that cannot be encoded, or is too long, the row holds a text for people (see
    `result_of`).
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
    # A result that looks as if it was cut is stored in both columns, to distinguish it from one that was
    exact = is_exact(text) and not text.endswith(f'{CUT_END}"')
    return {'result': stored} if exact else {'result': stored, 'exact_result': text}, text


def unreported(exact_result: str | None) -> str:
    """Return the `exact_result` of a run whose end Celery does not report to code (`ignore_result`)."""
    return NOT_KEPT if exact_result == NOT_KEPT else f'{UNREPORTED}{exact_result or ""}'


def result_of(result: str | None, exact_result: str | None) -> tuple[bool, Any]:
    """Return whether a row holds exactly what a task returned, and that value.

    Args:
        result: Value of this column, as JSON text or `None`.
        exact_result: Value of this column. Without one, the `result` of a row of an earlier version may be cut.
    """
    if exact_result == NOT_KEPT:
        return False, None
    if exact_result and exact_result.startswith(UNREPORTED):
        exact_result = exact_result.removeprefix(UNREPORTED) or None
    value = read_value(exact_result or result or 'null')
    return bool(exact_result) or not is_cut(value), value


def sorted_text(value: Any) -> str:
    """Return `value` as JSON text with sorted keys, which is the same for equal values."""
    try:
        return json.dumps(value, cls=PayloadEncoder, sort_keys=True)
    except TypeError:
        # Keys of different types cannot be sorted before they are converted to text
        return dumps(_in_pairs(value))


def _in_pairs(value: Any) -> Any:
    if isinstance(value, dict):
        return {'\0pairs': sorted(
            dumps([isinstance(key, str), {key: None}, _in_pairs(item)]) for key, item in value.items()
        )}
    return [_in_pairs(item) for item in value] if isinstance(value, list | tuple) else value


def cut_json(text: str, limit: int) -> str:
    """Return JSON text; longer than `limit` characters, it is cut to a JSON string that says how much is missing."""
    return text if len(text) <= limit else dumps(cut_text(text, limit))


def clean(value: Any) -> Any:
    """Replace what `jsonb` refuses, at any depth of plain JSON data: NUL, lone surrogates, NaN and infinities."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, float) and (value != value or value in (float('inf'), float('-inf'))):
        return str(value)
    if isinstance(value, dict):
        return {clean_text(key): clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item) for item in value]
    return value


def text_of(value: object) -> str:
    """Return `str(value)`, or a text that names the exception if that raises one: no task must fail because of it."""
    try:
        return str(value)
    except SoftTimeLimitExceeded:
        raise
    except Exception as exc:  # noqa: BLE001
        return f'<{type(value).__name__}: str() raised {type(exc).__name__}>'


def repr_of(value: object) -> str:
    """Return `repr(value)`, or the name of its type if that raises an exception."""
    try:
        return repr(value)
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # noqa: BLE001
        return f'<{type(value).__name__}>'


def clean_text(text: str) -> str:
    """Replace characters that PostgreSQL's `text` cannot hold (NUL, lone surrogates) by U+FFFD."""
    return _UNSTORABLE.sub('\ufffd', text)


def clean_line(text: str) -> str:
    """Return the same as `clean_text`, without terminal colors and control characters; tabs and line breaks stay."""
    text = _UNSTORABLE.sub('\ufffd', text)
    if '\x1b' in text:
        text = _ANSI.sub('', text)
    return _CONTROL.sub('', text)


def cut_text(text: str, limit: int) -> str:
    """Return `text`, or its first `limit` characters with a note of how many are missing."""
    if len(text) <= limit:
        return text
    return f'{text[:limit]}… [cut: {len(text) - limit:,} of {len(text):,} {CUT_END}'


def whole_number(value: object) -> int | None:
    """Return a number without its fraction; `None` if it is not a number, or too large for a column."""
    if not isinstance(value, Number) or isinstance(value, bool):
        return None
    try:
        number = int(value)  # type: ignore[call-overload]  # complex numbers raise, as may authors' types
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # noqa: BLE001
        return None  # complex, NaN or infinite; authors' types may raise anything
    return number if -HIGHEST <= number <= HIGHEST else None


def is_cut(value: object) -> bool:
    """Whether a value from a row is what `limited_jsonb` left of one that was too large."""
    return isinstance(value, str) and value.endswith(CUT_END)


def plain(value: Any) -> Any:
    """Return `value` as JSON data without type markers, for people, REST, GraphQL and the change log.

    This works for every value: what JSON cannot hold is shown as its text, and values that are nested more deeply than
    pages and their libraries can show are cut at that depth.
    """
    try:
        text = json.dumps(value, cls=_PlainEncoder, allow_nan=False)
        if text.count('[') + text.count('{') <= SHOWN_DEPTH:
            return json.loads(text)
    except Exception:  # noqa: BLE001 - whatever it was, the value can be shown piece by piece
        pass
    return _shown(value, 0)


def _shown(value: Any, depth: int) -> Any:
    """Return a value as `plain` does, piece by piece."""
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
    except Exception:  # noqa: BLE001 - authors' types may raise anything
        return clean_text(text_of(value))


class _PlainEncoder(DjangoJSONEncoder):

    def default(self, o: Any) -> Any:
        if isinstance(o, time):
            return o.isoformat()  # Django refuses times with an offset
        try:
            return super().default(o)
        except TypeError:
            return o.decode('utf-8', 'replace') if isinstance(o, bytes) else text_of(o)


def is_named(name: str, column: str) -> bool:
    """Whether a row's column holds the name of a task, which may have been cut or cleaned to fit the column."""
    return column in (name, clean_text(name)[:255])


def is_uuid(value: Any) -> bool:
    """Whether a task's ID is a UUID, as the IDs in rows are."""
    try:
        UUID(value)
    except (AttributeError, TypeError, ValueError):
        return False
    return True
