import pytest
from django.db import connection as django_connection

from netbox_celery.engine import database


class Shared:
    """The test's own connection, used as the engine uses its own: what the test did is rolled back at its end."""

    def execute(self, sql, params=None, patience=0):
        return database.execute(django_connection, sql, params)


@pytest.fixture
def shared():
    return Shared()


@pytest.fixture
def make_task():
    """Register a task for the duration of the test: `make_task(function, name=...)`, as `netbox_celery_task` does."""
    from netbox_celery.celery import app
    from netbox_celery.tasks import CeleryBaseTask

    made = []

    def make(function, **options):
        task = app.task(**{'base': CeleryBaseTask, 'bind': True, 'lazy': False, **options})(function)
        made.append(task.name)
        return task

    yield make
    for name in made:
        app.tasks.pop(name, None)
