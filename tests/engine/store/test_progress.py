"""Progress is written in one statement with the newest values, and never into the row of another claim."""
from unittest import mock

import pytest
from django.db import OperationalError

from netbox_celery.engine.calls.run import Run
from netbox_celery.engine.store.progress import Progress
from netbox_celery.models import CeleryResult
from tests.factories import make_result

pytestmark = pytest.mark.django_db


@pytest.fixture
def progress():
    return Progress()


@pytest.fixture
def run():
    result = make_result('running', claims=1, attempt=1)
    return Run(str(result.task_id), id=result.pk, claims=1)


class Away:
    """A database that is down."""

    def execute(self, *args):
        raise OperationalError('away')


def test_newest_wins(progress, run, shared):
    """Of the values between two writes the newest is written, in one statement."""
    assert not progress
    for value in range(1_000):
        progress.set(run, value=value, value_max=1_000)
    progress.set(run, step='nul \x00 \x1b[31mand colour' + 'x' * 500)
    assert progress
    with mock.patch.object(shared, 'execute', wraps=shared.execute) as execute:
        progress.write(shared)
    assert (execute.call_count, bool(progress)) == (1, False)
    result = CeleryResult.objects.get()
    assert (result.value, result.value_max) == (999, 1_000)
    assert result.step.startswith('nul \ufffd and colourxxx')
    assert len(result.step) == 255


@pytest.mark.parametrize('columns', [{'claims': 2}, {'status': 'completed'}], ids=str)
def test_row_of_another_claim(progress, run, shared, columns):
    """Progress changes no finished run, and none that another claim holds."""
    CeleryResult.objects.update(**columns)
    progress.set(run, value=1)
    progress.write(shared)
    assert CeleryResult.objects.get().value is None


def test_increments_while_the_database_is_unavailable(progress, run, shared):
    """Increments add up across a failed write; a later absolute value replaces them."""
    def fail():
        with pytest.raises(OperationalError):
            progress.write(Away())
        assert progress

    progress.set(run, value=3, increment=True)
    fail()
    progress.set(run, value=4, increment=True)
    progress.set(run, step='later')
    progress.write(shared)
    assert CeleryResult.objects.get().value == 7

    progress.set(run, value=1, increment=True)
    fail()
    progress.set(run, value=50, value_max=60)
    progress.set(run, value=1, increment=True)
    progress.write(shared)
    result = CeleryResult.objects.get()
    assert (result.value, result.value_max, result.step) == (51, 60, 'later')


def test_progress_during_a_failing_write(progress, run, shared):
    """Values that are set while a write fails are newer than those that could not be written."""
    class Interrupted:
        def execute(self, *args):
            progress.set(run, value=9, value_max=10)
            raise OperationalError('away')

    progress.set(run, value=3, value_max=8, step='kept')
    with pytest.raises(OperationalError):
        progress.write(Interrupted())
    progress.write(shared)
    result = CeleryResult.objects.get()
    assert (result.value, result.value_max, result.step) == (9, 10, 'kept')
