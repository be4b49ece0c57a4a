"""How fast a run is, and how long it will still take, in words."""
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

import pytest

from netbox_celery.models import CeleryResult
from netbox_celery.reading.pace import measure_pace

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def now():
    with patch('netbox_celery.reading.pace.timezone.now', return_value=NOW):
        yield


def run(seconds, value, value_max=None, **columns):
    columns = {'status': 'running', 'attempt': 1, 'started': NOW - timedelta(seconds=seconds), **columns}
    return CeleryResult(value=value, value_max=value_max, **columns)


@pytest.mark.parametrize('seconds, value, value_max, rate, left', [
    (25, 50, 200, '2.0/s', 'about 1m 15s left'),
    (10, 12_345_678, None, '1,234,568/s', ''),
    (10, 155, 156, '16/s', 'about 1s left'),
    (10, 5, 50, '30/min', 'about 1m 30s left'),
    (60, 1, 10, '1.0/min', 'about 9m left'),
    (600, 1, 100, '6.0/h', 'about 16h 30m left'),
    (864_000, 1, 2, '0.0/h', 'about 10d left'),
    (7, 12, 10, '1.7/s', 'about 1s left'),
    (10, 1, 2 ** 63 - 1, '6.0/min', ''),
])
def test_pace(seconds, value, value_max, rate, left):
    pace = measure_pace(run(seconds, value, value_max))
    assert (pace.rate_text, pace.left_text) == (rate, left)


@pytest.mark.parametrize('result', [
    run(0.5, 10, 20),
    run(10, 0, 20),
    run(10, None, 20),
    run(10, -5, 20),
    run(10, 10, 20, status='completed'),
    run(10, 10, 20, status='retrying'),
    run(10, 10, 20, started=None),
    run(-10, 10, 20),
])
def test_unknown_pace(result):
    assert measure_pace(result) is None


def test_attempt():
    """Progress of an earlier attempt does not make this one faster."""
    attempts = [
        {'number': 1, 'started': '2026-05-01T10:00:00+00:00'}, {'number': 2, 'started': '2026-05-01T11:59:50+00:00'},
    ]
    pace = measure_pace(run(7200, 20, 40, attempt=2, attempts=attempts))
    assert (pace.rate_text, pace.left_text) == ('2.0/s', 'about 10s left')
