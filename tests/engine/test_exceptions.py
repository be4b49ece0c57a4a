"""The engine's exceptions: their base classes, and their texts."""
import asyncio
import pickle

import pytest
from celery.exceptions import CeleryError, Ignore
from django.db import DatabaseError, InternalError
from kombu.exceptions import EncodeError

from netbox_celery.engine import exceptions


class Unspeakable(BaseException):
    def __str__(self):
        raise ValueError


@pytest.mark.parametrize('original, expected', [
    (SystemExit(3), 'SystemExit: 3'), (KeyboardInterrupt(), 'KeyboardInterrupt'),
    (asyncio.CancelledError('by hand'), 'CancelledError: by hand'), (Unspeakable(), 'Unspeakable'),
    ('as it was told', 'as it was told'),
], ids=lambda value: value if isinstance(value, str) else type(value).__name__)
@pytest.mark.parametrize('cls', [exceptions.BodyInterrupted, exceptions.OutOfMemory])
def test_stand_in(cls, original, expected):
    """Its text names the original, even if the original's `str` raises."""
    assert str(cls(original)) == expected
    assert not isinstance(cls(original), SystemExit | KeyboardInterrupt | MemoryError)


def test_read_only():
    """NetBox's maintenance mode recognizes it by its class, and programs by its SQLSTATE."""
    exc = exceptions.DatabaseReadOnly('Task x was not sent')
    assert isinstance(exc, InternalError) and isinstance(exc, DatabaseError) and isinstance(exc, CeleryError)
    assert str(exc).startswith('Task x was not sent: the database is read-only (SQLSTATE 25006)')


def test_invalid_arguments():
    """An error of a parameter names it; an error of the call stands alone."""
    errors = {'__all__': 'too many positional arguments', 'device': 'is required'}
    exc = exceptions.InvalidArguments(errors)
    assert (str(exc), exc.errors) == ('too many positional arguments; device: is required', errors)


def test_conflict():
    exc = exceptions.TaskConflict('in the way', 'the-id')
    assert (str(exc), exc.task_id) == ('in the way', 'the-id')
    assert exceptions.TaskConflict('in the way').task_id is None


@pytest.mark.parametrize('name, base', [
    ('QueueRefused', ValueError), ('QueueRefused', CeleryError), ('NotJSON', EncodeError), ('NotJSON', TypeError),
    ('OutOfRange', ValueError), ('InvalidArguments', ValueError), ('IgnoredByWindow', Ignore),
    ('TaskConflict', CeleryError), ('BranchNotReady', CeleryError), ('OutOfMemory', exceptions.BodyInterrupted),
])
def test_base_classes(name, base):
    assert issubclass(getattr(exceptions, name), base)


@pytest.mark.parametrize('exc', [
    exceptions.TaskFailed('no'), exceptions.BodyInterrupted(SystemExit(3)), exceptions.OutOfMemory(MemoryError('x')),
    exceptions.NotHandedOver('x'), exceptions.IgnoredByWindow('x'),
    exceptions.DatabaseReadOnly('x was not sent'), exceptions.RetryNotSent(),
    exceptions.InvalidArguments({'device': 'is required'}),
], ids=lambda exc: type(exc).__name__)
def test_pickled(exc):
    """It passes unchanged from a pool's process to its parent."""
    again = pickle.loads(pickle.dumps(exc))
    assert (type(again), str(again)) == (type(exc), str(exc))
