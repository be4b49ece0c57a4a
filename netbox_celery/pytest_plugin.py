"""The package's pytest plugin, found by its entry point. It does not import NetBox before a fixture is used."""
from collections.abc import Callable
from typing import Any

import pytest

#: Celery's fixtures of a worker in the process of the tests, and the fixtures of its app.
WORKERS = {'celery_session_worker': 'celery_session_app', 'celery_worker': 'celery_app'}


@pytest.fixture
def run_task() -> Callable[..., Any]:
    """The function `netbox_celery.testing.run_task`: run a task in this process, tracked."""
    from netbox_celery.testing import run_task

    return run_task


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """Give Celery's worker fixtures access to the database of the tests, for as long as the worker runs.

    A worker is registered in the database when it starts, writes a heartbeat, and signs off when it stops.
    """
    name = fixturedef.argname
    if (
        name in WORKERS and request.config.pluginmanager.has_plugin('django')
        and type(request.getfixturevalue(WORKERS[name])).__module__ == 'netbox_celery.celery'
    ):
        request.getfixturevalue('django_db_setup')
        blocker = request.getfixturevalue('django_db_blocker')
        blocker.unblock()
        fixturedef.addfinalizer(blocker.restore)
    return (yield)
