"""Hides secret arguments in everything that shows a row.

Authors hide the arguments of a call with `argsrepr` and `kwargsrepr`. A row stores the later steps of its chain, the
body of its chord and its callbacks as signatures, with everything that is needed to send them. Each of these may hide
its own arguments in the same way, at any depth. So pages, REST, GraphQL and the change log never show a payload as it
is stored, but what `shown` returns. They do not show the headers either in which the engine keeps its own data.

An error may quote the name and the error of another run. Only users who may view that run see the quoted text.
"""
import json
import re
from typing import Any

from ..engine.store.branches import HEADER as BRANCH
from ..engine.store.headers import HEADER
from ..engine.store.payload import plain

__all__ = (
    'QUOTED_RUN',
    'hide',
    'shown',
)

#: Headers for machines only: the page of a run shows their information in words.
INTERNAL = frozenset((HEADER, BRANCH))
#: Parts of the JSON of every payload that hides something; the first one is the end of `argsrepr` and of `kwargsrepr`.
SIGNS = ('argsrepr"', *(f'"{header}"' for header in INTERNAL))

_UUID = '[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}'
#: How an error names the run that it quotes, in our words and in Celery's; a pattern for both Python and PostgreSQL.
QUOTED_RUN = re.compile(rf'\[({_UUID})\] (?:is|did not succeed)|Dependency ({_UUID}) raised')


def shown(value: Any) -> Any:
    """Return a payload as plain JSON data, with the arguments of its signatures hidden as their authors want."""
    return hide(plain(value))


def hide(data: Any) -> Any:
    """Hide the arguments of the signatures in JSON data, and those of a row that is given with its `options`."""
    text = json.dumps(data)
    # Most payloads hide nothing, and are returned unchanged
    return json.loads(text, object_hook=_hide) if any(sign in text for sign in SIGNS) else data


def _hide(mapping: dict[str, Any]) -> dict[str, Any]:
    # A signature or a row; the objects inside of it were processed before
    options = mapping.get('options')
    if isinstance(options, dict):
        for name in ('args', 'kwargs'):
            if name in mapping and options.get(f'{name}repr') is not None:
                mapping[name] = options[f'{name}repr']
        _drop_internal(options)
    return mapping


def _drop_internal(options: dict[str, Any]) -> None:
    headers = options.get('headers')
    if isinstance(headers, dict) and not INTERNAL.isdisjoint(headers):
        if kept := {name: value for name, value in headers.items() if name not in INTERNAL}:
            options['headers'] = kept
        else:
            del options['headers']
