"""The history of a schedule: how often it succeeds, and how long it takes."""
from datetime import timedelta
from unittest.mock import patch

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from netbox_celery.models import CeleryResult
from netbox_celery.reading import history
from tests.factories import grant, make_result, make_schedule
from users.models import User

pytestmark = pytest.mark.django_db


@pytest.fixture
def schedule():
    return make_schedule()


def ran_for(schedule, seconds, status='completed'):
    now = timezone.now()
    return make_result(status, schedule=schedule, started=now - timedelta(seconds=seconds), completed=now)


def runs(schedule):
    return CeleryResult.objects.filter(schedule=schedule).order_by('-pk')


def test_figures(schedule):
    for seconds in (1, 2, 3, 4):
        ran_for(schedule, seconds)
    ran_for(schedule, 90, 'errored')
    found = history.measure(runs(schedule))
    assert (found.count, found.statuses, found.is_cut) == (5, {'completed': 4, 'errored': 1}, False)
    assert found.success_rate == 80
    assert (found.shortest, found.median, found.longest) == (
        timedelta(seconds=1), timedelta(seconds=3), timedelta(seconds=90)
    )
    assert found.mean == timedelta(seconds=20)
    # Between the two last ones, four fifths of the way
    assert found.p95 == timedelta(seconds=4 + 0.8 * 86)


@pytest.mark.parametrize('status', ['pending', 'scheduled', 'running', 'retrying', 'revoked', 'ignored'])
def test_runs_that_do_not_count(schedule, status):
    """Unfinished, cancelled and ignored runs say nothing about whether the task works."""
    make_result(status, schedule=schedule)
    found = history.measure(runs(schedule))
    assert (found.count, found.success_rate, found.median) == (1, None, None)
    ran_for(schedule, 1)
    assert history.measure(runs(schedule)).success_rate == 100


def test_nothing(schedule):
    found = history.measure(runs(schedule))
    assert (found.count, found.statuses, found.success_rate, found.longest) == (0, {}, None, None)


def test_latest_runs_only(schedule):
    """A long history costs no more than a short one."""
    ran_for(schedule, 500, 'failed')
    for __ in range(3):
        ran_for(schedule, 1)
    with patch.object(history, 'HISTORY', 3), CaptureQueriesContext(connection) as queries:
        found = history.measure(runs(schedule))
        assert (found.count, found.success_rate, found.longest) == (3, 100, timedelta(seconds=1))
        assert found.is_cut
    assert len(queries) == 1


def test_runs_of(schedule):
    """The schedule's runs that the user may view."""
    user = User.objects.create_user('olga')
    hidden, visible = ran_for(schedule, 1), ran_for(schedule, 1)
    make_result(schedule=make_schedule('Another'))
    assert not history.runs_of(schedule, user)
    permission = grant(user, CeleryResult, constraints={'pk': visible.pk})
    assert list(history.runs_of(schedule, User.objects.get(pk=user.pk))) == [visible]
    permission.delete()
    grant(user, CeleryResult)
    assert list(history.runs_of(schedule, User.objects.get(pk=user.pk))) == [visible, hidden]
