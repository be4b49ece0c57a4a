"""Error callbacks that are called in the process of the failure: the run's log names them."""
from uuid import uuid4

import pytest
from celery import signature
from django.db import OperationalError

from netbox_celery.celery import app
from netbox_celery.engine.runs.errbacks import note_errbacks
from netbox_celery.engine.workflows.canvas import as_request
from netbox_celery.models import CeleryLogEntry
from tests.factories import make_result

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def callbacks(make_task):
    make_task(lambda request, exc, traceback: None, name='tests:inline', bind=False)
    make_task(lambda task_id: None, name='tests:sent', bind=False)


def request_of(task_id, *names):
    return as_request(task_id, 'tests:failed', {'link_error': [dict(signature(name, app=app)) for name in names]})


def lines(run):
    return list(CeleryLogEntry.objects.filter(result=run).values_list('message', 'attempt'))


@pytest.mark.parametrize('name, is_noted', [('tests:inline', True), ('tests:sent', False), ('tests:unknown', False)])
def test_which(name, is_noted):
    """Only those that Celery calls in the process; others are runs of their own, or are sent to other workers."""
    run = make_result('running', attempt=2, claims=2)
    note_errbacks(app.backend, request_of(str(run.task_id), name))
    assert lines(run) == ([(f'Error callback: {name}', 2)] if is_noted else [])


def test_once(worker):
    """Celery may process a failure twice; callbacks are noted once, in the order of their calls."""
    run = make_result('running', attempt=1, claims=1)
    request = request_of(str(run.task_id), 'tests:inline', 'tests:sent', 'tests:inline')
    for __ in range(2):
        note_errbacks(app.backend, request)
    assert lines(run) == [('Error callback: tests:inline', 1)] * 2


def test_cancelled():
    """The failure of a cancelled run has no callbacks."""
    run = make_result('running', attempt=1, claims=1, cancelled='2030-01-01T00:00:00Z')
    note_errbacks(app.backend, request_of(str(run.task_id), 'tests:inline'))
    assert lines(run) == []


@pytest.mark.parametrize('task_id', [str(uuid4()), 'not-a-uuid', None], ids=['unknown', 'odd', 'none'])
def test_without_a_row(task_id):
    note_errbacks(app.backend, request_of(task_id, 'tests:inline'))
    assert not CeleryLogEntry.objects.exists()


def test_nothing_to_note():
    for request in (as_request(str(uuid4()), 'tests:failed', {}), None):
        note_errbacks(app.backend, request)
    assert not CeleryLogEntry.objects.exists()


def test_unavailable_database(monkeypatch, caplog):
    """The end of the run is written without the note."""
    def away():
        raise OperationalError('away')
    monkeypatch.setattr('netbox_celery.engine.runs.errbacks.get_connection', away)
    run = make_result('running')
    note_errbacks(app.backend, request_of(str(run.task_id), 'tests:inline'))
    assert f'The error callbacks of {run.task_id} could not be logged' in caplog.text
