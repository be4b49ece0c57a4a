"""What pytest finds in the package by its entry point. It imports nothing of NetBox before a fixture is used."""
import pytest

#: Celery's fixtures of a worker in the process of the tests, and those of its app.
WORKERS = {'celery_session_worker': 'celery_session_app', 'celery_worker': 'celery_app'}


@pytest.fixture
def run_task():
    """Run a task in this process, tracked: `netbox_celery.testing.run_task`."""
    from netbox_celery.testing import run_task

    return run_task


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """Let Celery's fixtures of a worker have the database of the tests, as long as the worker lives.

    A worker is registered in the database when it starts, has a heartbeat there, and signs off when it stops.
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
