"""What could not be imported, and where: in NetBox itself, and in workers that the reader may view."""
from datetime import timedelta

import pytest
from django.utils import timezone

from netbox_celery.engine.catalogue import discovery, registry
from netbox_celery.engine.store.lifecycle import WORKER_STATE
from netbox_celery.models import CeleryWorker
from netbox_celery.reading.unloaded import unloaded_modules
from tests.factories import grant, make_worker
from users.models import User

pytestmark = pytest.mark.django_db

FAILURE = {'plugin': 'p', 'module': 'p.tasks', 'error': 'ImportError: no', 'place': 'p/tasks.py:1'}
OTHER = {**FAILURE, 'plugin': 'a', 'module': 'a.tasks'}


@pytest.fixture(autouse=True)
def nothing_failed(monkeypatch):
    registry.registered_tasks()
    monkeypatch.setattr(discovery, '_failures', {})


@pytest.fixture
def user():
    user = User.objects.create_user('reader')
    grant(user, CeleryWorker, constraints={'name__startswith': 'seen'})
    return user


def worker(name, *failures, **columns):
    return make_worker(name, versions={WORKER_STATE: {'not_loaded': list(failures)}}, **columns)


def test_nothing(user):
    make_worker('seen@a')
    worker('seen@b')
    assert unloaded_modules(user) == []


def test_where(user):
    """One line for each failure, sorted by plugin, with all processes that have it."""
    worker('seen@a', FAILURE, FAILURE)
    worker('seen@b', FAILURE, OTHER)
    assert unloaded_modules(user) == [OTHER | {'where': ['seen@b']}, FAILURE | {'where': ['seen@a', 'seen@b']}]


def test_workers_that_are_left_out(user):
    """Workers that the reader may not view, that have stopped, or are silent."""
    worker('hidden@a', FAILURE)
    worker('seen@stopped', FAILURE, stopped=timezone.now())
    worker('seen@silent', FAILURE, heartbeat=timezone.now() - timedelta(days=1))
    assert unloaded_modules(user) == []


def test_plugin(user):
    """Only the plugin with that exact name."""
    worker('seen@a', FAILURE, OTHER)
    assert [found['module'] for found in unloaded_modules(user, 'p')] == ['p.tasks']
    assert unloaded_modules(user, 'p.x') == unloaded_modules(user, '') == []


def test_this_process(user, monkeypatch):
    """NetBox comes first if a worker has the same failure."""
    monkeypatch.setattr(discovery, '_failures', {'p.tasks': discovery.Failure(**FAILURE)})
    worker('seen@a', FAILURE)
    worker('seen@b', {**FAILURE, 'error': 'SyntaxError: no'})
    assert [(found['error'], found['where']) for found in unloaded_modules(user)] == [
        ('ImportError: no', ['NetBox', 'seen@a']), ('SyntaxError: no', ['seen@b']),
    ]


@pytest.mark.parametrize('state', [
    None, 'odd', [], {'not_loaded': 'odd'}, {'not_loaded': [5, None]}, {'not_loaded': {'plugin': 'p'}},
], ids=str)
def test_odd_rows(user, state):
    """Values that no worker of this version writes are ignored."""
    make_worker('seen@a', versions={WORKER_STATE: state})
    assert unloaded_modules(user) == []


def test_fields_that_are_missing(user):
    worker('seen@a', {'plugin': 'p', 'more': 1})
    assert unloaded_modules(user) == [
        {'plugin': 'p', 'module': '', 'error': '', 'place': '', 'where': ['seen@a']}
    ]
