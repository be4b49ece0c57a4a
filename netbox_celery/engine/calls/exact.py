"""Reads a call exactly as it was made from its row: `jsonb` changes some numbers, and the order of keys."""
from typing import Any

from ..store.payload import read_value

__all__ = (
    'call_of',
    'options_of',
)


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
