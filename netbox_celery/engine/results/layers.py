"""The layers that lie over the configured result backend, in one list."""
from functools import cache

from celery.backends.base import Backend, BaseKeyValueStoreBackend
from celery.backends.redis import RedisBackend

from .backend import StoringMixin, TrackingMixin
from .chords import ChordsMixin
from .rowresults import RowResultsMixin
from .upstream import UpstreamMixin

__all__ = (
    'LAYERS',
    'tracked_backend',
)

#: From the outside in: a layer, the backends of Celery's that have it, and what it adds.
LAYERS = (
    (TrackingMixin, Backend),  # writes the outcome of a run into its row, before anybody hears of it
    (StoringMixin, BaseKeyValueStoreBackend),  # stores the result of a claimed run without asking for an earlier one
    (RowResultsMixin, RedisBackend),  # finds results in rows, and tells of them without storing them
    (ChordsMixin, RedisBackend),  # keeps what it knows of a chord where that outlives Redis
    (UpstreamMixin, Backend),  # closes the steps that will never run, since what they depend on did not succeed
)


@cache
def tracked_backend(cls):
    """Return a class of Celery's result backends with our layers over it.

    Args:
        cls: The class, such as `celery.backends.redis.RedisBackend`.

    Returns:
        A subclass of it, the same for each call.
    """
    layers = [layer for layer, base in LAYERS if issubclass(cls, base)]
    return type(f'Tracked{cls.__name__}', (*layers, cls), {'__module__': __name__, '__doc__': cls.__doc__})
