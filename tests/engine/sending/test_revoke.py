"""Celery's `revoke` and `terminate`: what they write into rows, and what they broadcast."""
from uuid import uuid4

import pytest
from celery.app.control import Control
from django.db import OperationalError, transaction

from netbox_celery.celery import app
from netbox_celery.engine.sending import revoke
from tests.factories import make_result
from tests.support import now

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def broadcast(monkeypatch):
    """What is broadcast; no worker receives it."""
    heard = []
    monkeypatch.setattr(
        Control, 'broadcast',
        lambda self, command, arguments, destination, **options: heard.append((command, arguments, destination))
    )
    return heard


@pytest.mark.parametrize('status, terminate, expected', [
    ('pending', False, ('revoked', True)), ('scheduled', False, ('revoked', True)),
    ('retrying', True, ('revoked', True)), ('running', False, ('running', False)), ('running', True, ('running', True)),
    ('completed', True, ('completed', False)),
])
def test_rows(broadcast, status, terminate, expected):
    """A waiting run is revoked; an active one is cancelled only by a `terminate`; a finished one stays."""
    run = make_result(status)
    app.control.revoke(str(run.task_id), terminate=terminate)
    assert (now(run).status, run.cancelled is not None) == expected
    assert ('revoke', {'task_id': str(run.task_id), 'terminate': terminate, 'signal': 'SIGTERM'}, None) in broadcast


@pytest.mark.parametrize('terminate, is_cancelled', [
    (0, False), (1, True), (None, False), ('', False), ('true', True), ([], False),
])
def test_terminate_of_any_type(broadcast, terminate, is_cancelled):
    """Programs such as Flower send other types for `terminate`: its truth value counts, as for Celery."""
    waits, runs = make_result('pending'), make_result('running')
    for run in (waits, runs):
        app.control.broadcast('revoke', {'task_id': str(run.task_id), 'terminate': terminate, 'signal': 'SIGTERM'})
    assert now(waits).status == 'revoked'
    assert (now(runs).cancelled is not None) is is_cancelled


def test_commands(broadcast):
    """As `celery control` sends them, with one ID or several, of any type; other commands are not changed."""
    one, two, three = (make_result('pending') for __ in range(3))
    app.control.broadcast('terminate', {'signal': 'KILL', 'task_id': [str(one.task_id)]})
    app.control.revoke({two.task_id})
    app.control.broadcast('rate_limit', {'task_name': 'x', 'rate_limit': 1})
    assert [now(run).status for run in (one, two, three)] == ['revoked', 'revoked', 'pending']
    assert broadcast[-1][0] == 'rate_limit'


def test_some_workers(broadcast):
    """A revoke for some workers only, or of unknown IDs, changes no row."""
    run = make_result('pending')
    app.control.revoke(str(run.task_id), destination=['somebody@else'])
    app.control.revoke([str(uuid4()), 'not-a-uuid'])
    assert now(run).status == 'pending'
    assert [destination for *__, destination in broadcast] == [['somebody@else'], None]


def test_transaction(broadcast):
    """Workers get the revoke immediately, and the row is written on commit; not after a rollback."""
    kept, run = make_result('pending'), make_result('pending')
    with transaction.atomic():
        app.control.revoke(str(kept.task_id))
        transaction.set_rollback(True)
    with transaction.atomic():
        sent = make_result('pending')
        app.control.revoke([str(sent.task_id), str(run.task_id)])
        assert now(run).status == 'pending'
        assert len(broadcast) == 2
    assert [now(each).status for each in (kept, run, sent)] == ['pending', 'revoked', 'revoked']


def test_database_unavailable(broadcast, monkeypatch, caplog):
    """Workers get the revoke all the same."""
    def away(*args):
        raise OperationalError('away')
    monkeypatch.setattr(revoke, 'execute', away)
    app.control.revoke('an-id')
    assert broadcast == [('revoke', {'task_id': 'an-id', 'terminate': False, 'signal': 'SIGTERM'}, None)]
    assert 'The revocation of an-id could not be written' in caplog.text
