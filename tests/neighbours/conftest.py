"""Other software as it is installed: NetBox Branching, Flower, gevent, PgBouncer and more.

The NetBox of the test process has NetBox Branching as well. Workers belong to the NetBox of the integration tests, on
the same database, which has not: `make_instance(branching=True)` makes one for workers that has.
"""
import pytest

from tests.integration.conftest import (  # noqa: F401 - fixtures
    committed,
    gate,
    instance,
    make_beat,
    make_instance,
    make_module_worker,
    make_worker,
    rabbitmq,
    shared_workers,
    side,
    user,
    worker_log,
)


@pytest.fixture
def make_branch(user):  # noqa: F811 - the fixture
    """Make branches of NetBox Branching that are ready; their schemas are dropped after the test."""
    from netbox_branching.models import Branch

    made = []

    def make(name='branch'):
        branch = Branch(name=name)
        branch.save(provision=False)
        branch.provision(user)
        made.append(branch)
        return Branch.objects.get(pk=branch.pk)

    yield make
    for branch in made:
        branch.deprovision()


@pytest.fixture
def branch(make_branch):
    return make_branch()
