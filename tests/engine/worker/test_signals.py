"""Ends that Celery does not report to the result backend, with the requests that Celery makes."""
from types import SimpleNamespace
from uuid import uuid4

import pytest
from celery import states
from celery.exceptions import Ignore, Reject

from netbox_celery.celery import app
from netbox_celery.engine.runs.claim import begin
from netbox_celery.engine.store import lifecycle
from netbox_celery.engine.worker import signals
from netbox_celery.engine.worker.signals import Registration, on_postrun, on_received, on_rejected
from netbox_celery.models import CeleryResult
from tests.factories import HELLO_WORLD, make_result

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures('worker')]


def row():
    return CeleryResult.objects.get()


@pytest.mark.parametrize('state, retval, late, expected', [
    (states.IGNORED, Ignore('why'), False, ('ignored', '', 'why')),
    (states.IGNORED, None, False, ('ignored', '', '')),
    (states.REJECTED, Reject('why'), False, ('failed', 'rejected', 'Reject: why')),
    (states.REJECTED, Reject('why', requeue=True), False, ('failed', 'rejected', 'Reject: why')),
    (states.REJECTED, Reject('why', requeue=True), True, ('pending', '', '')),
    (states.SUCCESS, 5, False, ('running', '', '')),
    (states.FAILURE, ValueError(), False, ('running', '', '')),
])
def test_ends(deliver, state, retval, late, expected):
    task = deliver(make_result('pending').task_id, task_options={'acks_late': late})
    begin(task)
    on_postrun(sender=task, state=state, retval=retval)
    assert (row().status, row().reason, row().error) == expected


@pytest.mark.parametrize('status, headers, expected', [
    ('pending', {}, 'errored'), ('running', {}, 'running'), ('completed', {}, 'completed'),
    ('pending', {'id': 'odd'}, 'pending'), ('pending', None, 'pending'),
    ('pending', {'task': 'tests:another'}, 'pending'), ('pending', {'task': HELLO_WORLD}, 'errored'),
    ('pending', {'task': []}, 'errored'),
])
def test_message_that_cannot_be_read(status, headers, expected):
    """Its run ends, unless a worker has claimed the run by another message."""
    run = make_result(status)
    if headers is not None:
        headers = {'id': str(run.task_id), **headers}
    on_rejected(sender=SimpleNamespace(app=app), message=SimpleNamespace(headers=headers), exc=ValueError('bad JSON'))
    assert row().status == expected
    assert ('bad JSON' in row().error) is (expected == 'errored')
    # Those who wait for it get the error
    assert app.AsyncResult(str(run.task_id)).failed() is (expected == 'errored')


@pytest.mark.parametrize('requeue, columns, goes_back, status', [
    (True, {}, True, 'pending'), (False, {}, False, 'running'), (True, {'holder': uuid4()}, True, 'running'),
    (True, {'claims': lifecycle.MOST_LOSSES}, False, 'errored'),
])
def test_process_lost(deliver, worker, requeue, columns, goes_back, status):
    """A message is requeued after its run; one that was lost too often is not."""
    make = {'holder': worker.key, 'claims': 1, 'attempt': 1, 'attempts': [{}], **columns}
    task_id = str(make_result('running', **make).task_id)
    task = deliver(task_id, task_options={'acks_late': True})
    rejected = []
    request = SimpleNamespace(
        id=task_id, task=task, args=[], kwargs={}, request_dict={'retries': 0},
        on_reject=lambda log, errors, requeue: rejected.append(requeue),
    )
    on_received(request=request)
    request.on_reject(None, None, requeue)
    assert (rejected, row().status) == ([goes_back], status)


def test_early_acknowledgement_is_left_alone(deliver):
    request = SimpleNamespace(id=str(uuid4()), task=deliver(), on_reject=len)
    on_received(request=request)
    assert request.on_reject is len


@pytest.mark.parametrize('is_green, billiards, named', [
    (True, 'fork', 'on the command line'), (False, 'forkserver', 'worker_pool_start_method'),
])
def test_pools_in_which_runs_cannot_be_tracked(monkeypatch, caplog, is_green, billiards, named):
    """A worker with such a pool does not start, and says why."""
    monkeypatch.setattr(signals.billiard, 'get_start_method', lambda: billiards)
    worker = SimpleNamespace(pool=SimpleNamespace(is_green=is_green), pool_start_method='fork')
    with pytest.raises(SystemExit):
        Registration(worker).start(worker)
    assert named in caplog.text


def test_pool_before_the_worker(monkeypatch):
    """A solo pool reports its process when it is made: that is not a child, which would die with its parent."""
    monkeypatch.setattr(signals.identity, 'pid', None)
    monkeypatch.setattr(signals.ctypes, 'CDLL', lambda name: pytest.fail('The process is bound to its parent'))
    signals.on_worker_process_init()
