"""The layers over the configured result backend, in one list."""
from functools import cache
from typing import Any

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

#: From the outermost to the innermost: the layer, the backends of Celery's that get it, and what it adds.
LAYERS: tuple[tuple[type, Any], ...] = (
    (TrackingMixin, Backend),  # writes the end of a run into its row, before it becomes visible elsewhere
    (StoringMixin, BaseKeyValueStoreBackend),  # stores the result of a claimed run without reading an earlier one
    (RowResultsMixin, RedisBackend),  # finds results in rows, and publishes them without storing them
    (ChordsMixin, RedisBackend),  # keeps the state of a chord in a message, which outlives Redis
    (UpstreamMixin, Backend),  # closes the steps that will never run, because a run that they depend on failed
)


@cache
def tracked_backend(cls: Any) -> type:
    """Return a class of Celery's result backends with our layers over it.

    Args:
        cls: The class, such as `celery.backends.redis.RedisBackend`.

    Returns:
        A subclass of it, the same for each call.
    """
    layers = [layer for layer, base in LAYERS if issubclass(cls, base)]
    return type(f'Tracked{cls.__name__}', (*layers, cls), {'__module__': __name__, '__doc__': cls.__doc__})
