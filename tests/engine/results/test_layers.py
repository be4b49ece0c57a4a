"""Which layers are put over which result backend, and in which order."""
import pickle

import pytest
from celery.backends.cache import CacheBackend
from celery.backends.redis import RedisBackend, SentinelBackend
from celery.backends.rpc import RPCBackend

from netbox_celery.celery import app
from netbox_celery.engine.results.layers import LAYERS, tracked_backend

ALL = ['TrackingMixin', 'StoringMixin', 'RowResultsMixin', 'ChordsMixin', 'UpstreamMixin']


@pytest.mark.parametrize('cls, expected', [
    (RedisBackend, ALL), (SentinelBackend, ALL),
    (CacheBackend, ['TrackingMixin', 'StoringMixin', 'UpstreamMixin']),
    (RPCBackend, ['TrackingMixin', 'UpstreamMixin']),
])
def test_order(cls, expected):
    """The row is written before the result is stored, and what depends on the run is closed last."""
    tracked = tracked_backend(cls)
    layers = [layer for layer, __ in LAYERS]
    assert [base.__name__ for base in tracked.__mro__ if base in layers] == expected
    assert issubclass(tracked, cls) and tracked_backend(cls) is tracked
    assert tracked.__mro__.index(layers[-1]) < tracked.__mro__.index(cls)


def test_configured():
    """The app has the layers over the configured backend, and a pickled copy is the app's own."""
    assert isinstance(app.backend, tracked_backend(RedisBackend))
    assert pickle.loads(pickle.dumps(app.backend)) is app.backend
