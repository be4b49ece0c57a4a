"""The handle that an author gets as `self.celery_result`."""
import copy
import pickle

import pytest

from netbox_celery.commands import _Diverted
from netbox_celery.engine.calls.run import Run
from netbox_celery.engine.runs.tracked import TrackedResult
from netbox_celery.models import CeleryResult
from tests.factories import make_result

pytestmark = pytest.mark.django_db


@pytest.fixture
def tracked():
    run = make_result('running', step='one')
    return TrackedResult(Run(str(run.task_id), id=run.pk))


@pytest.mark.parametrize('make', [copy.copy, copy.deepcopy])
def test_copied(tracked, make):
    """A copy is a handle of the same run."""
    other = make(tracked)
    assert (other.pk, other.step, other.task_id) == (tracked.pk, 'one', tracked.task_id)
    assert copy.deepcopy({'result': tracked})['result'].step == 'one'


def test_pickled(tracked):
    """In another process, for example one that the body starts, it is the row."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        other = pickle.loads(pickle.dumps(tracked, protocol))
        assert isinstance(other, CeleryResult)
        assert (other.pk, other.step) == (tracked.pk, 'one')


def test_without_attributes():
    """An object that is being copied or unpickled has no attributes at first: nothing recurses."""
    for cls in (TrackedResult, _Diverted):
        empty = cls.__new__(cls)
        for name in ('__deepcopy__x', '__setstate__x', '_run', 'row', 'status'):
            with pytest.raises(AttributeError):
                getattr(empty, name)
        assert not hasattr(empty, 'whatever')


def test_no_such_attribute(tracked):
    with pytest.raises(AttributeError):
        tracked.whatever
    assert not hasattr(tracked, '__array__')
