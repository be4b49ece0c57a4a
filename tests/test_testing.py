"""What plugin authors test their tasks with."""
import pytest
from celery import chord, group
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.log import get_task_logger
from django.db import IntegrityError, connection, transaction
from django.test import TestCase, TransactionTestCase

from dcim.models import Site
from netbox_celery.celery import app
from netbox_celery.engine.presence import identity
from netbox_celery.models import CeleryLogEntry, CeleryResult
from netbox_celery.tasks import TaskFailed
from netbox_celery.testing import TaskError
from users.models import User

logger = get_task_logger(__name__)

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch):
    """There is neither a broker nor a result backend."""
    monkeypatch.setattr(app.amqp, '_producer_pool', app.producer_pool)

    def away(*args, **kwargs):
        raise AssertionError('The broker was asked')
    monkeypatch.setattr('kombu.connection.Connection._ensure_connection', away)
    monkeypatch.setattr('redis.connection.AbstractConnection.connect', away)


def test_outcome(run_task, make_task):
    def body(self, task_id, name, size=1):
        self.log(f'Hello {name}', grouping='greetings', obj=Site.objects.create(name=name, slug=name))
        logger.warning('By logging')
        self.progress(3, 4, step='Nearly')
        return {'id': task_id, 'size': (size, size), 'pk': self.celery_result.pk}
    user = User.objects.create_user('alice')
    run = run_task(make_task(body, name='tests:body'), 'bob', size=2, netbox_user=user, netbox_name='Greeting')
    assert (run.status, run.reason, run.error, run.traceback, run.exception) == ('completed', '', '', '', None)
    assert run.result == {'id': run.task_id, 'size': [2, 2], 'pk': run.row.pk}
    assert [(line.level, line.message, line.grouping, line.attempt) for line in run.log] == [
        (20, 'Hello bob', 'greetings', 1), (30, 'By logging', 'main', 1),
    ]
    assert run.log[0].object == Site.objects.get()
    assert (run.row.user, run.row.name, run.row.value, run.row.value_max, run.row.step) == (user, 'Greeting', 3, 4, 'Nearly')
    assert run.row.attempts[0]['worker'] == run.row.worker == 'in-process@test'
    assert run.raise_for_error() is run
    assert identity.key is None
