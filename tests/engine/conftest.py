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
