"""What a run's row knows about itself."""
from datetime import date, timedelta
from decimal import Decimal
from uuid import uuid4

import pytest
from django.utils import timezone

from core.models import ObjectChange
from netbox_celery.choices import ResultStatusChoices
from netbox_celery.models import CeleryResult
from tests.factories import make_result

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize('value, value_max, percentage', [
    (None, None, None), (None, 10, None), (5, None, None), (5, 0, None), (0, 10, 0), (5, 10, 50), (1, 3, 100 / 3),
    (15, 10, 100), (-5, 10, 0), (2 ** 62, 2 ** 63 - 1, 50), (5, -10, 0),
])
def test_percentage(value, value_max, percentage):
    """Between 0 and 100, whatever the task sets; nothing while it is unknown."""
    found = make_result(value=value, value_max=value_max).percentage
    assert found == (None if percentage is None else pytest.approx(percentage))


@pytest.mark.parametrize('started, completed, seconds', [
    (None, None, None), (None, 5, None), (0, 5, 5), (5, 0, 0), (0, 0, 0),
])
def test_duration(started, completed, seconds):
    """Never negative, even if clocks differ."""
    start = timezone.now()
    run = CeleryResult(
        started=None if started is None else start + timedelta(seconds=started),
        completed=None if completed is None else start + timedelta(seconds=completed),
    )
    assert run.duration == (None if seconds is None else timedelta(seconds=seconds))


def test_duration_so_far():
    run = CeleryResult(started=timezone.now() - timedelta(minutes=1))
    assert timedelta(seconds=60) <= run.duration < timedelta(seconds=70)


@pytest.mark.parametrize('columns, text', [
    ({'name': 'Own', 'celery_name': 'tests:x'}, 'Own'), ({'name': '', 'celery_name': 'tests:x'}, 'tests:x'),
    ({'name': '', 'celery_name': ''}, None),
])
def test_name(columns, text):
    run = make_result(**columns)
    assert str(run) == (text or str(run.task_id))


OTHER = 'aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa'


@pytest.mark.parametrize('reason, error, expected', [
    ('upstream_failed', f'Not run, because x [{OTHER}] is errored', OTHER), ('joined', f'Not run: [{OTHER}]', OTHER),
    ('skipped', f'Not run: [{OTHER}] with the same key', OTHER), ('cancelled', f'Superseded by [{OTHER}]', OTHER),
    ('cancelled', 'Cancelled by admin', None), ('upstream_failed', 'Not run, because [x] did not succeed', None),
    ('upstream_failed', '', None), ('', f'What a task says: [{OTHER}]', None),
])
def test_culprit(reason, error, expected):
    """Only if the error text is the engine's own."""
    assert make_result('errored', reason=reason, error=error).culprit_id == expected


ODD = [Decimal('1.5'), date(2026, 1, 2), b'bytes \xff', {'a': [uuid4()]}]


def test_arguments_for_people():
    """As plain JSON, or as the caller wants them to be shown."""
    shown = ['1.5', '2026-01-02', 'bytes \ufffd', {'a': [str(ODD[3]['a'][0])]}]
    run = CeleryResult.objects.get(pk=make_result(args=ODD, kwargs={'k': ODD}, options={}).pk)
    assert (run.display_args, run.display_kwargs) == (shown, {'k': shown})
    run.options = {'argsrepr': '(***)', 'kwargsrepr': ''}
    assert (run.display_args, run.display_kwargs) == ('(***)', '')
    run.options = None
    assert run.display_args == shown


@pytest.mark.parametrize('status', ResultStatusChoices.values())
@pytest.mark.parametrize('cancelled', [False, True])
def test_state(status, cancelled):
    run = make_result(status, cancelled=timezone.now() if cancelled else None)
    assert run.is_finished is (status in ResultStatusChoices.FINISHED)
    assert run.is_cancelling is (cancelled and status in ResultStatusChoices.UNFINISHED)
    assert run.get_status_color()


def test_change_log():
    """The engine's own columns are not shown, least of all arguments that the caller hides."""
    run = make_result(message='["secret"]', holder=uuid4(), claims=3, nesting=1, concurrency_slot=1)
    change = run.to_objectchange('delete')
    text = str(change.prechange_data) + str(change.postchange_data) + str(run.serialize_object())
    for name in ('message', 'secret', 'holder', 'claims', 'nesting', 'in_backend', 'concurrency_slot'):
        assert name not in text
    assert 'celery_name' in run.serialize_object()
    assert 'celery_name' not in run.serialize_object(exclude=['celery_name'])
    assert isinstance(change, ObjectChange)
