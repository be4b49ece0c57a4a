"""How a worker's main process handles messages, and reports of its pool."""
from types import SimpleNamespace
from unittest import mock
from uuid import UUID

import pytest
from billiard.einfo import ExceptionInfo
from celery.exceptions import InvalidTaskError
from celery.worker.request import Request

from netbox_celery.celery import app
from netbox_celery.engine.exceptions import BodyInterrupted
from netbox_celery.engine.worker import messages as worker
from tests.support import nested


def message(body='[[], {}, {}]', payload=([], {}, {}), **headers):
    headers = {'id': 'x', 'task': 'y', **headers}
    return SimpleNamespace(body=body, payload=payload, headers=headers, acknowledged=False)


@pytest.mark.parametrize('headers', [
    {}, {'retries': 3, 'timelimit': [None, 2.5], 'eta': '2030-01-01', 'netbox_celery': {'window': 'a', 'length': 1.0}},
    {'netbox_celery': {'opens': {'a': 1.0}, 'differs': True}},
    {'netbox_celery': {'differs': True, 'window': 'a\n', 'length': None, 'opens': {'b': 86400 * 366 * 99, 'c': 0.5}}},
    {'id': str(UUID(int=5)), 'netbox_celery_spelling': UUID(int=5).hex.upper()},
    {'timelimit': [3, None], 'netbox_celery': True, 'stamped_headers': ['a'], 'stamps': {'a': 'b'}},
])
def test_what_celery_sends_is_valid(headers):
    worker._check_message(message(**headers))


@pytest.mark.parametrize('headers', [
    {'id': []}, {'task': {}}, {'retries': True}, {'retries': 2 ** 31}, {'timelimit': [float('nan'), None]},
    {'timelimit': [float('inf'), None]}, {'timelimit': 'ab'}, {'eta': 5}, {'netbox_celery': {'window': []}},
    *({'netbox_celery': {'window': 'a', 'length': length}} for length in (
        -1, 1e300, float('nan'), 10 ** 400, 'x', True
    )),
    *({'netbox_celery': {'opens': opens}} for opens in (
        [], 'x', 5, {'a': 'x'}, {'a': []}, {'a': 1e300}, {'a': -1}, {'a\0': 1}, {'\ud800': 1}, {'a': float('nan')}
    )),
    *({'netbox_celery_spelling': spelling} for spelling in ([], 5, '', 'z', '0' * 32, {})),
    {'netbox_celery': {'window': 'a\0'}}, {'timelimit': [10 ** 400, None]}, {'timelimit': [None, 1e300]},
])
def test_invalid_headers(headers):
    with pytest.raises(InvalidTaskError):
        worker._check_message(message(**headers))


@pytest.mark.parametrize('value, is_deeper', [
    (nested(99, []), False), (nested(100, []), True), ({'a': nested(98, [])}, False), ({'a': nested(99, [])}, True),
    (None, False), ([[1, 'x', {}]] * 300, False),
])
def test_depth(value, is_deeper):
    assert worker._is_deeper(value, 100) is is_deeper


def consumer(**handlers):
    return SimpleNamespace(connection_errors=(OSError, KeyError), channel_errors=(), on_invalid_task=mock.Mock())


@pytest.mark.parametrize('exc', [KeyError('id'), TypeError(), RecursionError(), MemoryError(), UnicodeError()])
def test_handler_that_fails(exc):
    """The message is rejected, and never acknowledged a second time."""
    the_consumer, the_message = consumer(), message()
    worker._rejecting(the_consumer, mock.Mock(side_effect=exc))(the_message)
    the_consumer.on_invalid_task.assert_called_once_with(None, the_message, exc)
    the_message.ack(), the_message.reject()


def test_lost_connection_is_celerys():
    with pytest.raises(ConnectionResetError):
        worker._rejecting(consumer(), mock.Mock(side_effect=ConnectionResetError))(message())


def test_requests_are_tolerant_once():
    cls = worker.tolerant(Request)
    assert issubclass(cls, Request) and worker.tolerant(cls) is cls


@pytest.mark.parametrize('exc', [MemoryError('x'), GeneratorExit()])
def test_failure_that_celery_takes_for_its_own(exc, monkeypatch):
    """The worker's main process gets a stand-in exception."""
    heard = []
    monkeypatch.setattr(Request, 'on_failure', lambda self, info, **options: heard.append(info.exception))
    request = object.__new__(worker.tolerant(Request))
    request.__dict__['_context'] = SimpleNamespace()
    try:
        raise exc
    except BaseException:
        request.on_failure(ExceptionInfo())
    assert isinstance(heard[0], BodyInterrupted)
    assert type(exc).__name__ in str(heard[0])


def test_app_makes_this_worker():
    assert issubclass(app.Worker, worker.Worker)
