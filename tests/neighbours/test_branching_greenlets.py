"""NetBox Branching with a pool of greenlets: a run in a branch has its own connection, which it closes."""
import pytest
from django.db import connection
from netbox_branching.utilities import activate_branch
from netbox_test_plugin.tasks import branches as tasks

from dcim.models import Site
from netbox_celery.engine.store.database import KEPT
from netbox_celery.models import CeleryResult
from tests.integration.conftest import workers_made
from tests.integration.support import until

NAME = 'branched-greenlets'
#: The worker's own threads', as in `test_greenlets`.
OF_THE_WORKER = 6
RUNS = 60


@pytest.fixture
def worker(make_instance, worker_log, side):
    instance = make_instance(NAME, branching=True, database_settings={'OPTIONS': {'application_name': NAME}})
    with workers_made(instance, worker_log) as make:
        yield make(NAME, pool='gevent', concurrency=10).start().ready(180)


def opened(query='%'):
    with connection.cursor() as cursor:
        cursor.execute(
            'SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND query LIKE %s', [NAME, query]
        )
        return cursor.fetchone()[0]


def names(branch=None):
    sites = Site.objects.using(branch.connection_name) if branch else Site.objects
    return set(sites.values_list('name', flat=True))


def test_connections(worker, make_branch, user):
    """Runs of two branches and of main, at the same time in one process: each is in its branch, none stays open."""
    places = [make_branch('first'), make_branch('second'), None]
    for number in range(RUNS):
        with activate_branch(places[number % 3]):
            worker.send(tasks.site_then_fail if number % 5 == 4 else tasks.site, f's{number}', netbox_user=user)

    until(lambda: not CeleryResult.objects.filter(completed=None).exists(), 120)
    for index, place in enumerate(places):
        assert names(place) == {f's{number}' for number in range(index, RUNS, 3)}
    assert set(CeleryResult.objects.values_list('status', flat=True)) == {'completed', 'errored'}
    until(lambda: opened() <= KEPT + OF_THE_WORKER, 10, opened)
