"""What rows show of secret arguments: nothing, wherever they stand.

An author hides the arguments of a call by `argsrepr` and `kwargsrepr`. A row keeps later steps of its chain, the body
of its chord and its callbacks as signatures, with all that it takes to send them; each of these hides its own arguments
in the same way, at any depth. So pages, REST, GraphQL and the change log never show a payload as it is stored: they
show what `shown` returns. Nor do they show the headers in which the engine keeps what it needs to know of a call.

Likewise an error repeats what another run said of its own end. That is for those who may view that run.
"""
import json
import re

from .branches import HEADER as BRANCH
from .headers import HEADER
from .payload import plain

__all__ = (
    'QUOTED_RUN',
    'hide',
    'shown',
)

#: Headers that say nothing to people: what they tell, a run's page says in words.
INTERNAL = frozenset((HEADER, BRANCH))
#: What stands in the JSON of a payload that hides something; both `argsrepr` and `kwargsrepr` end like the first one.
SIGNS = ('argsrepr"', *(f'"{header}"' for header in INTERNAL))

_UUID = '[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}'
#: How an error names the run whose name or error it repeats: in our words, and in Celery's. It is Python's and
#: PostgreSQL's alike.
QUOTED_RUN = re.compile(rf'\[({_UUID})\] (?:is|did not succeed)|Dependency ({_UUID}) raised')


def shown(value):
    """Return a payload as plain JSON data, with the arguments of the signatures in it as their authors show them."""
    return hide(plain(value))


def hide(data):
    """Hide the arguments of the signatures in JSON data, and those of a row that stand beside their `options`."""
    text = json.dumps(data)
    # Most payloads have none of these, and are returned as they are
    return json.loads(text, object_hook=_hide) if any(sign in text for sign in SIGNS) else data


def _hide(mapping):
    # A signature or a row. What is inside of it has been seen to before
    options = mapping.get('options')
    if isinstance(options, dict):
        for name in ('args', 'kwargs'):
            if name in mapping and options.get(f'{name}repr') is not None:
                mapping[name] = options[f'{name}repr']
        _drop_internal(options)
    return mapping


def _drop_internal(options):
    headers = options.get('headers')
    if isinstance(headers, dict) and not INTERNAL.isdisjoint(headers):
        if kept := {name: value for name, value in headers.items() if name not in INTERNAL}:
            options['headers'] = kept
        else:
            del options['headers']
