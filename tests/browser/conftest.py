import pytest

from .site import Site


@pytest.fixture(scope='session')
def site(services):
    """A whole NetBox that runs."""
    with Site(services) as site:
        yield site
