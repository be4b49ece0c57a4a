"""JSON between Celery and PostgreSQL: arguments, results and data of runs.

Kombu writes dates, UUIDs, decimals and bytes into JSON with a type marker and reads them back, so that a task gets
what the caller passed. Rows hold that same JSON, which is what makes it possible to send a message again. PostgreSQL
refuses some JSON that Python writes (NUL, lone surrogates, NaN); such text is cleaned on its way.
"""
import json
import re
from datetime import time
from decimal import Decimal
from math import isfinite
from numbers import Number
from uuid import UUID

from django.core.serializers.json import DjangoJSONEncoder
from kombu.utils.json import JSONEncoder, loads, object_hook

__all__ = (
    'PayloadDecoder',
    'PayloadEncoder',
    'RowDecoder',
    'StrictDecoder',
    'check_markers',
    'clean',
    'clean_line',
    'clean_text',
    'cut_json',
    'cut_text',
    'dumps',
    'dumps_any',
    'is_cut',
    'is_jsonb',
    'is_uuid',
    'limited_jsonb',
    'plain',
    'sendable_jsonb',
    'text_of',
    'to_jsonb',
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


class PayloadEncoder(JSONEncoder):
    """Kombu's JSON encoder: as messages are written, so are rows."""


class StrictDecoder(json.JSONDecoder):
    """Reads what `PayloadEncoder` wrote, and what people enter like that.

    Raises:
        json.JSONDecodeError: It cannot be read; also for numbers and depths that are too much for Python.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, object_hook=_object_hook, **kwargs)

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


class PayloadDecoder(RowDecoder):
    """Reads what `PayloadEncoder` wrote into a row."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, object_hook=_object_hook, **kwargs)


def _whole(text):
    """Return a whole number; one that Python refuses to read for its length as a `Decimal`."""
    return int(text) if len(text) <= MOST_DIGITS else Decimal(text)


def _object_hook(value):
    try:
        return object_hook(value)
    except Exception:  # noqa: BLE001 - decoders of types may be anybody's
        # Not a marker of Kombu's but data of the task's own that looks like one.
        return value


def dumps(value):
    """Return `value` as JSON text, written as Kombu writes messages.

    Raises:
        TypeError: Something in it is of a type that JSON cannot hold.
        ValueError: It contains itself.
    """
    return json.dumps(value, cls=PayloadEncoder)


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


def to_jsonb(value):
    """Return `value` as JSON text that PostgreSQL's `jsonb` accepts, and whether it had to be changed for that."""
    if value is None:
        return 'null', False  # what most tasks return
    text = dumps(value)
    if not _SUSPECT.search(text):
        return text, False
    cleaned = json.dumps(clean(json.loads(text)))
    return cleaned, cleaned != text


def is_jsonb(text):
    """Whether PostgreSQL's `jsonb` takes some JSON text as it is. There are false alarms."""
    return not _SUSPECT.search(text)


def sendable_jsonb(value):
    """Do so for a part of a message.

    Raises:
        TypeError, ValueError: It cannot be written as JSON, or a worker could not read it.
    """
    text, changed = to_jsonb(value)
    check_markers(text)
    return text, changed


def limited_jsonb(value, limit):
    """Return `value` as JSON text for `jsonb`; past `limit` characters, as a JSON string that says how much was cut.

    Raises:
        TypeError, ValueError: It cannot be written as JSON.
    """
    return cut_json(to_jsonb(value)[0], limit)


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
    except Exception as exc:  # noqa: BLE001
        return f'<{type(value).__name__}, whose text could not be made: {type(exc).__name__}>'


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
    except (TypeError, ValueError, OverflowError):
        return None  # it is complex, not a number, or infinite
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


def is_uuid(value):
    """Whether a task's ID is a UUID, as IDs in rows are."""
    try:
        UUID(value)
    except (AttributeError, TypeError, ValueError):
        return False
    return True
