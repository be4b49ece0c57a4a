"""Ends that a worker's parent reports, immediately or when the database is back."""
from unittest import mock
from uuid import uuid4

import pytest
from django.db import DataError, OperationalError, ProgrammingError

from netbox_celery.engine.runs import reports
from tests.factories import make_result

RUN = str(uuid4())


@pytest.fixture(autouse=True)
def nothing_deferred():
    yield
    reports._deferred.clear()


@pytest.mark.parametrize('unusable', [OperationalError, ProgrammingError])
def test_writes_wait_for_the_database(identity, monkeypatch, unusable):
    """Writes that fail are repeated later, in order, and one that cannot succeed is dropped."""
    away, written = True, []
    connection = object()

    def write(name, error=None):
        def function(given):
            if away:
                raise unusable('away')
            if error:
                raise error
            written.append(name)
        return function
    monkeypatch.setattr(reports, 'get_connection', lambda: connection)

    assert reports._write(RUN, write('first')) is None
    away = False
    # The database is back, but what waits goes first
    reports._write(RUN, write('hopeless', DataError('odd')))
    reports._write(RUN, write('third'))
    assert written == []
    reports.write_deferred(connection)
    assert written == ['first', 'third']
    reports._write(RUN, write('at once'))
    assert written == ['first', 'third', 'at once']


def test_no_error_reaches_the_parent(monkeypatch):
    """An error in a worker's main process would end the worker."""
    monkeypatch.setattr(reports, 'get_connection', mock.Mock(side_effect=RuntimeError))
    assert reports._write(RUN, lambda connection: None) is None


@pytest.mark.django_db
def test_close_run(identity, shared, monkeypatch):
    """A parent closes waiting runs, and those that its own child held, if it knows the attempt."""
    monkeypatch.setattr(reports, 'get_connection', lambda: shared)
    waiting = make_result('pending')
    mine = make_result('running', claims=1, attempt=1, holder=identity.key, attempts=[{}])
    others = make_result('running', claims=1, attempt=1, holder=uuid4(), attempts=[{}])

    for run in (waiting, mine, others):
        reports.close_run(run.task_id, 'revoked')
        run.refresh_from_db()
    assert [run.status for run in (waiting, mine, others)] == ['revoked', 'running', 'running']
    for run in (mine, others):
        reports.close_run(run.task_id, 'errored', attempt=1)
        run.refresh_from_db()
    assert [run.status for run in (mine, others)] == ['errored', 'running']
    assert (reports.status_of(others.task_id), reports.status_of(mine.task_id)) == ('running', 'errored')


@pytest.mark.django_db
@pytest.mark.parametrize('columns, status, ended', [
    ({}, 'pending', None),
    ({'claims': 5}, 'errored', 'errored'),
    ({'cancelled': '2030-01-01T00:00:00Z'}, 'revoked', 'revoked'),
    ({'status': 'pending'}, 'pending', None),
], ids=str)
def test_requeue_run(identity, shared, monkeypatch, columns, status, ended):
    """A message is requeued unless its run was cancelled, or has lost its process too often."""
    monkeypatch.setattr(reports, 'get_connection', lambda: shared)
    run = make_result(**{
        'status': 'running', 'claims': 1, 'attempt': 1, 'holder': identity.key, 'attempts': [{}], **columns
    })

    assert reports.requeue_run(run.task_id, attempt=1, reason='worker_lost', error='lost') == ended
    run.refresh_from_db()
    assert run.status == status
