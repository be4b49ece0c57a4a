"""Bodies that end with a `BaseException` that is not an `Exception`: whether the run ends, and how it is reported."""
import asyncio
import os
from uuid import uuid4

import pytest
from celery import signals
from celery.exceptions import WorkerShutdown, WorkerTerminate

from netbox_celery.celery import app
from netbox_celery.engine.exceptions import BodyInterrupted
from netbox_celery.engine.identity import identity
from netbox_celery.engine.runs.interruption import is_interruption, is_order, report_interruption
from netbox_celery.tasks import CeleryBaseTask
from tests.factories import make_result


class OwnInterrupt(BaseException):
    pass


ENDS_PROCESS = [SystemExit(3), KeyboardInterrupt()]
OTHERS = [asyncio.CancelledError(), GeneratorExit(), OwnInterrupt('by hand')]
ORDERS = [WorkerShutdown(0), WorkerTerminate(1)]


def name_of(exc):
    return type(exc).__name__


@pytest.fixture(params=['parent', 'child', 'neither'])
def process(request, monkeypatch):
    """Be a worker's main process, a child of its pool, or neither."""
    pid = {'parent': os.getpid(), 'child': os.getpid() + 1, 'neither': None}[request.param]
    monkeypatch.setattr(identity, 'pid', pid)
    return request.param


@pytest.mark.parametrize('exc', OTHERS, ids=name_of)
def test_interruption(process, exc):
    assert is_interruption(exc) and not is_order(exc)


@pytest.mark.parametrize('exc', ENDS_PROCESS, ids=name_of)
def test_end_of_a_process(process, exc):
    """In a child its parent reports the end; elsewhere the process must do so itself."""
    assert is_interruption(exc) is (process != 'child')
    assert not is_order(exc)


@pytest.mark.parametrize('exc', ORDERS, ids=name_of)
def test_order(process, exc):
    """Such an exception is about the worker, not about the run."""
    assert is_order(exc) and not is_interruption(exc)


@pytest.mark.parametrize('exc', [None, ValueError(), MemoryError()], ids=name_of)
def test_ordinary_failure(process, exc):
    """Celery reports it by itself."""
    assert not is_interruption(exc) and not is_order(exc)


def test_process_that_got_a_signal(monkeypatch):
    """What a body then raises comes from the signal."""
    monkeypatch.setattr('netbox_celery.engine.runs.interruption.terminate_handler_fired', lambda: True)
    assert is_order(SystemExit(1)) and not is_interruption(SystemExit(1))


class Told(CeleryBaseTask):
    abstract = True

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        heard.append(('on_failure', exc, task_id, einfo.type))
        raise ValueError('an error of its own')

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        heard.append(('after_return', retval, task_id, einfo.type))


heard = []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize('is_backend_away', [False, True])
def test_reported(deliver, monkeypatch, is_backend_away):
    """Row, result, handlers and signal all get the stand-in exception, even if one of them fails."""
    heard.clear()
    run = make_result('pending')
    task = deliver(run.task_id, {'base': Told})
    task.before_start(str(run.task_id), (), {})
    task_id = str(run.task_id)

    def listen(sender, task_id, exception, einfo, **kwargs):
        heard.append(('signal', exception, task_id, einfo.type))
    signals.task_failure.connect(listen)
    if is_backend_away:
        def away(*args, **kwargs):
            raise ConnectionError('Redis is away')
        monkeypatch.setattr(app.backend, 'store_result', away)
    try:
        raise OwnInterrupt('by hand')
    except OwnInterrupt as exc:
        report_interruption(task, task.request_stack.top, exc)
    finally:
        signals.task_failure.disconnect(listen)

    run.refresh_from_db()
    assert (run.status, run.error) == ('errored', 'OwnInterrupt: by hand')
    assert 'in test_reported' in run.traceback
    told = heard[0][1]
    assert isinstance(told, BodyInterrupted) and str(told) == 'OwnInterrupt: by hand'
    assert heard == [(what, told, task_id, BodyInterrupted) for what in ('on_failure', 'after_return', 'signal')]
    if not is_backend_away:
        assert app.AsyncResult(task_id).state == 'FAILURE'


@pytest.mark.django_db(transaction=True)
def test_untracked(make_task):
    """A run without a row is ended for Celery."""
    task_id = str(uuid4())
    task = make_task(lambda self, task_id: None, name='tests:untracked')
    task.push_request(id=task_id, args=[], kwargs={}, called_directly=False)
    try:
        raise SystemExit(3)
    except SystemExit as exc:
        report_interruption(task, task.request_stack.top, exc)
    finally:
        task.pop_request()
    outcome = app.AsyncResult(task_id)
    assert (outcome.state, str(outcome.result)) == ('FAILURE', 'SystemExit: 3')
