"""The claim before the body, by the requests that Celery makes."""
from uuid import uuid4

import pytest
from celery import states
from celery.exceptions import Ignore
from django.db import DatabaseError, OperationalError, ProgrammingError
from kombu.exceptions import EncodeError

from netbox_celery.celery import app
from netbox_celery.engine import claim, lifecycle
from netbox_celery.engine.admission import open_window
from netbox_celery.engine.claim import begin
from netbox_celery.engine.database import get_connection
from netbox_celery.engine.exceptions import IgnoredByWindow
from netbox_celery.engine.run import get_run
from netbox_celery.engine.signals import on_postrun
from netbox_celery.models import CeleryLogEntry, CeleryResult
from tests.factories import make_result

pytestmark = pytest.mark.django_db(transaction=True)


def row():
    return CeleryResult.objects.get()


def test_claim(deliver, worker):
    task = deliver(make_result('pending').task_id)
    begin(task)
    run = get_run(task.request)
    assert (row().status, row().holder, row().worker, row().claims) == ('running', worker.key, 'celery@me', 1)
    assert (run.id, run.claims, run.attempt) == (row().pk, 1, 1)
    begin(task)  # whatever `before_start` an author calls by himself
    assert row().claims == 1


@pytest.mark.parametrize('columns, request_, why', [
    ({'status': 'completed'}, {}, 'it is completed'),
    ({'status': 'revoked', 'reason': 'expired'}, {}, r'it is revoked \(expired\)'),
    ({'status': 'running', 'attempt': 1, 'claims': 1, 'worker': 'w2'}, {}, 'w2 is running it'),
    ({'status': 'retrying', 'attempt': 2, 'claims': 2}, {'retries': 1}, 'it is retrying'),
    (None, {}, 'its row was deleted'),
])
def test_refused(deliver, caplog, columns, request_, why):
    """The body does not run, the row stays as it is, and the log says why."""
    run = make_result(**columns) if columns else None
    task = deliver(run and run.task_id, **request_)
    with pytest.raises(Ignore, match=why):
        begin(task)
    assert get_run(task.request) is None
    assert 'is not run: ' in caplog.text
    on_postrun(sender=task, state=states.IGNORED, retval=Ignore())
    if run:
        assert (row().status, row().claims) == (run.status, run.claims)


def test_refused_without_a_row(deliver):
    """Who waits for a run that was deleted, or for what comes after it, hears that it does not come."""
    following = str(uuid4())
    task = deliver(chain=[{'task': 'tests:delivered', 'options': {'task_id': following}, 'args': [], 'kwargs': {}}])
    with pytest.raises(Ignore):
        begin(task)
    assert app.AsyncResult(task.request.id).state == 'REVOKED'
    assert (row().status, row().reason, str(row().task_id)) == ('errored', 'upstream_failed', following)
    assert app.AsyncResult(following).state == 'FAILURE'


@pytest.mark.parametrize('options, header, tracked', [
    ({}, None, True), ({}, True, True), ({}, {'window': None}, True), ({}, False, False),
    ({'netbox_track': False}, None, False), ({'netbox_track': False}, True, True),
])
def test_message_without_a_row(deliver, options, header, tracked):
    """The message says whether there is a row; one that says nothing gets one, if its task has them."""
    task = deliver(task_options=options, netbox_celery=header)
    if header:
        with pytest.raises(Ignore, match='its row was deleted'):
            begin(task)
    else:
        begin(task)
        assert (get_run(task.request) is not None) is tracked
    assert CeleryResult.objects.count() == (1 if tracked and not header else 0)


@pytest.mark.parametrize('request_', [{'called_directly': True}, {'is_eager': True}, {'id': 'not-a-uuid'}], ids=str)
def test_not_tracked(deliver, request_):
    task = deliver(**request_)
    begin(task)
    assert get_run(task.request) is None
    assert CeleryResult.objects.count() == 0


def test_later_attempt(deliver):
    """An attempt goes on where the earlier ones have stopped: with the limit of its log, for one."""
    run = make_result('retrying', attempt=1, claims=1)
    for number in range(3):
        CeleryLogEntry.objects.create(result=run, message=str(number))
    task = deliver(run.task_id, retries=1)
    begin(task)
    assert (get_run(task.request).lines, row().attempt, row().claims) == (3, 2, 2)


@pytest.mark.parametrize('error', [ProgrammingError('no such table'), OperationalError('x'), DatabaseError('x')])
def test_claim_that_cannot_be_taken(deliver, monkeypatch, caplog, error):
    """The task is worth more than its row: it is run without one."""
    def fail(*args, **kwargs):
        raise error
    monkeypatch.setattr(claim, 'PATIENCE', 0)
    monkeypatch.setattr(lifecycle, 'claim', fail)
    task = deliver(make_result('pending').task_id)
    begin(task)
    assert task.request.netbox_unclaimed
    assert get_run(task.request) is None
    assert 'run without being tracked' in caplog.text


def test_window(deliver):
    """A run that waited while another one succeeded goes no further; that which opened the window does."""
    header = {'window': 'w', 'length': 60}
    opener, other = make_result('pending'), make_result('pending')
    open_window(get_connection().execute, 'w', 60, opener.task_id)
    task = deliver(opener.task_id, netbox_celery=header)
    begin(task)
    assert get_run(task.request).opens == {'w': 60}
    with pytest.raises(IgnoredByWindow) as caught:
        begin(deliver(other.task_id, netbox_celery=header))
    on_postrun(sender=app.tasks['tests:delivered'], state=states.IGNORED, retval=caught.value)
    other.refresh_from_db()
    assert (other.status, other.reason) == ('ignored', 'ignore_window')


def deep(depth):
    value = None
    for __ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize('request_', [{'args': [deep(150)]}, {'kwargs': {'x': deep(800)}}], ids=['args', 'kwargs'])
def test_foreign_message_that_no_call_could_send(deliver, request_):
    """It gets a row, which shows its arguments as text, and does not run."""
    task = deliver(netbox_celery=None, **request_)
    with pytest.raises(EncodeError, match='nested too deeply'):
        begin(task)
    assert row().status == 'running'
    assert '[[' in (row().args if 'args' in request_ else row().kwargs)
    assert not row().is_rerunnable
    app.backend.mark_as_failure(task.request.id, EncodeError('nested too deeply'), None, task.request)
    assert (row().status, row().error) == ('errored', 'EncodeError: nested too deeply')
