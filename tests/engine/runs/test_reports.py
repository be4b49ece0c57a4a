"""What a worker's parent writes, now or when the database is back."""
from unittest import mock
from uuid import uuid4

import pytest
from django.db import DataError, OperationalError, ProgrammingError

from netbox_celery.engine.runs import reports

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

    assert reports.write(RUN, write('first')) is None
    away = False
    # The database is back, but what waits goes first
    reports.write(RUN, write('hopeless', DataError('odd')))
    reports.write(RUN, write('third'))
    assert written == []
    reports.write_deferred(connection)
    assert written == ['first', 'third']
    reports.write(RUN, write('at once'))
    assert written == ['first', 'third', 'at once']


def test_no_error_reaches_the_parent(monkeypatch):
    """An error in a worker's main process would end the worker."""
    monkeypatch.setattr(reports, 'get_connection', mock.Mock(side_effect=RuntimeError))
    assert reports.write(RUN, lambda connection: None) is None
