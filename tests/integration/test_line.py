"""The waiting line advances as soon as a run ends, whatever ends it: here no sweep could do it instead."""
import pytest
from netbox_test_plugin.side import notes
from netbox_test_plugin.tasks.policies import keyed

from .support import ended, row, until

pytestmark = pytest.mark.usefixtures('without_shared_workers')


@pytest.fixture
def without_sweep(make_instance, make_worker):
    """A worker that sweeps once, when it starts."""
    instance = make_instance('without-sweep', sweep_interval=3600)
    return make_worker('without-sweep', instance=instance).start().ready()


def test_finished_by_the_parent(without_sweep):
    """The worker's parent writes the end after a cancel that terminates, a hard time limit and a killed child."""
    for how, options, reason in (
        ('terminated', {}, 'terminated'), ('limit', {'time_limit': 2}, 'time_limit'), ('kill', {}, 'worker_lost'),
    ):
        gate = None if how == 'kill' else 'never'
        first = without_sweep.send(keyed, how, gate, how, **options)
        second = without_sweep.send(keyed, how)
        until(lambda: notes(first.id))
        if how == 'terminated':
            row(first).cancel()
        assert ended(first, 30).reason == reason
        assert ended(second, 20).status == 'completed'
        assert row(second).started >= row(first).completed
