import pytest

from .site import Site


@pytest.fixture(scope='session')
def site(services):
    """A complete NetBox that is running."""
    with Site(services) as site:
        yield site
