"""What Redis is told of ends that rows hold."""
from types import SimpleNamespace
from uuid import uuid4

import pytest
from celery.backends.redis import RedisBackend

from development.stack.processes import free_port
from netbox_celery.celery import app
from netbox_celery.engine.backend import tracking


@pytest.mark.parametrize('stored', [False, True])
def test_ignored_while_redis_is_away(caplog, stored):
    """The row has ended: a run that was ignored keeps its worker waiting no longer than for a broken connection."""
    backend = tracking(RedisBackend(url=f'redis://127.0.0.1:{free_port()}/0', app=app))
    task_id = str(uuid4())
    backend.tell_ignored(task_id, SimpleNamespace(id=task_id, group=None, parent_id=None, netbox_stored=stored))
    assert caplog.text.count('Connection to Redis lost') == 1
    assert f'Nobody could be told that task {task_id} was ignored' in caplog.text
