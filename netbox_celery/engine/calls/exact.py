"""A call as it was given, from its row: `jsonb` changes some numbers, and the order of keys."""
from typing import Any

from ..store.payload import read_value

__all__ = (
    'call_of',
    'options_of',
)


def call_of(exact_call: str | None, args: Any, kwargs: Any, options: Any) -> list[Any]:
    """Return arguments, keyword arguments and options of a call as they were given.

    Args:
        exact_call: What the row keeps of it as text, or `None` (see `rows.exact_call`).
        args, kwargs, options: What its own columns hold.
    """
    exact = read_value(exact_call) if exact_call else ()
    return [part if part is not None else own for part, own in zip((*exact, None, None, None), (args, kwargs, options))]


def options_of(exact_call: str | None, text: str) -> Any:
    """Return the options of a call as they were given, from what a row keeps of it as text and its own column."""
    return call_of(exact_call, None, None, read_value(text))[2]
