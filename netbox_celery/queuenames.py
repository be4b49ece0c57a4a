"""Names that a queue must not have.

In Redis a queue is a list under the queue's name, beside keys of Kombu and Celery: a task that is sent to the queue
`unacked` turns Kombu's hash of that name into a list, and every worker stops at its next message. RabbitMQ reserves
some names for itself. A name is refused whatever the broker is, since the broker may change.
"""
import re
import unicodedata
from functools import lru_cache

__all__ = (
    'LONGEST',
    'has_control_characters',
    'is_key_of_redis',
    'why_reserved',
)

#: Longest name of a queue in RabbitMQ, bytes.
LONGEST = 255

#: Keys of Kombu and of the result backends in Redis.
KEYS = re.compile(r'unacked(?:_.*)?$|_kombu\.|celery-(?:task|taskset)-meta|chord-unlock|rq:', re.DOTALL)
#: Names that Celery's remote control, its events and the brokers use.
OTHERS = (
    (re.compile(r'amq\.'), 'RabbitMQ reserves names that start with "amq."'),
    (re.compile(r'(?:.*\.)?pidbox$', re.DOTALL), 'Celery uses it for remote control of workers'),
    (re.compile(r'celeryev(?:\.|$)'), 'Celery uses it for events of workers'),
    (re.compile(r'celery_delayed_'), 'Celery uses it for messages with an ETA'),
    (re.compile(r'ae\.undeliver$'), 'Kombu uses it for messages that cannot be delivered'),
)


def why_reserved(name: object, keys: tuple[str, ...] = ()) -> str:
    """Return in words why a queue cannot have a name, or an empty string.

    Args:
        name: The name.
        keys: Further prefixes of keys that are taken: those that settings name.
    """
    if not isinstance(name, str):
        return 'it is not a text'
    if not name.strip():
        return 'it is empty'
    return _why_reserved(name, keys)


@lru_cache(maxsize=1024)
def _why_reserved(name: str, keys: tuple[str, ...]) -> str:
    if has_control_characters(name):
        return 'it contains control characters or lone surrogates'
    if len(name.encode()) > LONGEST:
        return f'it is longer than {LONGEST} bytes'
    if is_key_of_redis(name, keys):
        return 'it is a key that Celery uses in Redis'
    return next((why for pattern, why in OTHERS if pattern.match(name)), '')


def has_control_characters(name: str) -> bool:
    """Whether a name contains control characters, at which brokers end or split names, or lone surrogates."""
    return any(unicodedata.category(character) in ('Cc', 'Cs') for character in name)


@lru_cache(maxsize=1024)
def is_key_of_redis(name: str, keys: tuple[str, ...] = ()) -> bool:
    """Whether Kombu or a result backend uses the name of a queue for another key in Redis."""
    return bool(KEYS.match(name)) or name.startswith(keys)
