"""Names that a queue must not have.

With Redis a queue is a list under its own name, beside what Kombu and Celery keep there: a task that is sent to the
queue `unacked` makes a list of Kombu's hash of that name, and every worker ends at its next message. With RabbitMQ some
names belong to the server. A name is refused whatever the broker is: that may change.
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

#: Most bytes in the name of a queue of RabbitMQ.
LONGEST = 255

#: Keys of Kombu's and of the result backends' in Redis.
KEYS = re.compile(r'unacked(?:_.*)?$|_kombu\.|celery-(?:task|taskset)-meta|chord-unlock|rq:', re.DOTALL)
#: What Celery's remote control, its events, and brokers have for themselves.
OTHERS = (
    (re.compile(r'amq\.'), 'RabbitMQ keeps names that begin with "amq." for itself'),
    (re.compile(r'(?:.*\.)?pidbox$', re.DOTALL), 'Celery speaks to its workers by it'),
    (re.compile(r'celeryev(?:\.|$)'), 'it carries the events of Celery\'s workers'),
    (re.compile(r'celery_delayed_'), 'it holds back what has an ETA'),
    (re.compile(r'ae\.undeliver$'), 'it takes what cannot be delivered'),
)


def why_reserved(name, keys=()):
    """Return in words why no queue can have a name, or an empty string.

    Args:
        name: The name.
        keys: Further beginnings of keys that are taken: those that settings name.
    """
    if not isinstance(name, str):
        return 'it is no text'
    if not name.strip():
        return 'it is empty'
    return _why_reserved(name, keys)


@lru_cache(maxsize=1024)
def _why_reserved(name, keys):
    if has_control_characters(name):
        return 'it holds control characters, or characters that no text can hold'
    if len(name.encode()) > LONGEST:
        return f'it is longer than {LONGEST} bytes'
    if is_key_of_redis(name, keys):
        return 'Celery keeps other things in Redis under it'
    return next((why for pattern, why in OTHERS if pattern.match(name)), '')


def has_control_characters(name):
    """Whether a name holds what ends, or takes apart, the texts in which brokers keep it; or what no text can hold."""
    return any(unicodedata.category(character) in ('Cc', 'Cs') for character in name)


@lru_cache(maxsize=1024)
def is_key_of_redis(name, keys=()):
    """Whether Kombu or a result backend keeps something else in Redis under the name of a queue."""
    return bool(KEYS.match(name)) or name.startswith(keys)
