"""NetBox Branching."""
import pytest
from netbox_branching.choices import BranchStatusChoices
from netbox_branching.models import Branch, ChangeDiff
from netbox_branching.utilities import activate_branch

from dcim.models import Site
from netbox_celery.models import CeleryResult


@pytest.fixture
def provisioned(user):
    """Make branches that are ready; their schemas are gone after the test."""
    made = []

    def make(name='branch'):
        branch = Branch(name=name)
        branch.save(provision=False)
        branch.provision(user)
        branch.refresh_from_db()
        made.append(branch)
        return branch

    yield make
    for branch in made:
        branch.deprovision()


@pytest.fixture
def branch(provisioned):
    return provisioned()


def test_installed():
    from django.apps import apps

    assert apps.is_installed('netbox_branching')


def test_start_in_a_branch(branch, user):
    with activate_branch(branch):
        run = CeleryResult.enqueue('netbox_example_plugin:hello_world', user=user)
        assert CeleryResult.objects.filter(pk=run.pk).exists()
    assert run.branch == branch.schema_id
    assert CeleryResult.objects.get(pk=run.pk).branch == branch.schema_id
