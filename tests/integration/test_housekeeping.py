"""The plugin's own tasks, on real workers."""
from datetime import timedelta

from django.utils import timezone

from netbox_celery.housekeeping import prune
from netbox_celery.models import CeleryResult
from tests.factories import make_log, make_result

from .support import lines


def test_prune(prefork):
    """Its log says what was deleted, its progress how far it is, its result how much was deleted."""
    for number in range(3):
        make_log(make_result(completed=timezone.now() - timedelta(days=5)), 'one', 'two')
    kept = make_result(completed=timezone.now() - timedelta(days=3))
    run = prefork.run(prune, kwargs={'days': 4})
    assert (run.status, run.result) == ('completed', {'runs': 3, 'lines': 6})
    assert (run.value, run.value_max) == (3, 3)
    assert lines(run)[-1] == 'Deleted 3 runs and 6 log entries'
    assert set(CeleryResult.objects.all()) == {kept, run}
