"""What people and programs do to existing runs: cancel them, and run them again."""
import math
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from types import SimpleNamespace
from uuid import uuid4

import pytest
from celery.app.control import Control
from django.db import OperationalError, connection, transaction
from django.utils import timezone

from dcim.models import Site
from netbox_celery.celery import app
from netbox_celery.choices import ResultStatusChoices
from netbox_celery.engine.sending import control
from netbox_celery.engine.sending.control import NotRerunnable, cancel_many, cancellation, rerun, terminate_cancelled
from netbox_celery.engine.store import lifecycle
from netbox_celery.models import CeleryResult
from tests.factories import make_result, make_worker
from tests.support import now, published
from users.models import User

pytestmark = pytest.mark.django_db(transaction=True)


def told(run):
    app.backend._cache.clear()
    return app.AsyncResult(str(run.task_id)).state


def test_terminate_what_the_worker_has_forgotten(shared, monkeypatch):
    """Celery forgets a request when an earlier one with its ID is done: it is registered before it is terminated."""
    from celery.worker import state

    worker = make_worker(key=uuid4(), pool='prefork')
    run = make_result('running', holder=worker.key, cancelled=timezone.now() - timedelta(seconds=9))
    request, other = SimpleNamespace(id=str(run.task_id)), SimpleNamespace(id=str(uuid4()))
    monkeypatch.setattr(state, 'active_requests', [request, other])
    monkeypatch.setattr(state, 'requests', {})
    told = []
    monkeypatch.setattr(
        app.control, 'revoke', lambda ids, **options: told.append((ids, options['destination'], dict(state.requests)))
    )
    terminate_cancelled(shared, app, SimpleNamespace(key=worker.key, name='celery@me'))
    assert told == [([request.id], ['celery@me'], {request.id: request})]


@pytest.mark.parametrize('status', ResultStatusChoices.values())
def test_cancel(status):
    """A waiting run is revoked immediately, an active one is marked, a finished one stays; once is enough."""
    run = make_result(status)
    before = run.error
    assert run.cancel() is (status in ResultStatusChoices.UNFINISHED)
    assert run.cancel() is False

    expected = 'revoked' if status in ResultStatusChoices.WAITING else status
    assert (now(run).status, run.is_cancelling) == (expected, status == 'running')
    assert run.error == ('Cancelled' if status in ResultStatusChoices.UNFINISHED else before)
    if status in ResultStatusChoices.WAITING:
        assert (run.reason, told(run)) == ('cancelled', 'REVOKED')


@pytest.mark.parametrize('status, pool, expected', [
    ('pending', None, 'revoke'), ('scheduled', None, 'revoke'), ('retrying', 'prefork', 'revoke'),
    ('running', 'prefork', 'terminate'), ('running', 'processes', 'terminate'),
    ('running', 'threads', 'cooperative'), ('running', 'solo', 'cooperative'), ('running', None, 'cooperative'),
    ('completed', 'prefork', 'none'), ('revoked', None, 'none'),
])
def test_cancellation(status, pool, expected):
    """What a cancel would do, before it is done."""
    worker = make_worker(pool=pool) if pool else None
    run = make_result(status, holder=worker and worker.key)
    assert cancellation(run) == expected
    run.cancel()
    if expected == 'revoke':
        assert cancellation(now(run)) == 'none'


@pytest.mark.parametrize('language, by', [(None, 'Cancelled by alice'), ('de', 'alice')])
def test_by_whom(language, by):
    from django.utils.translation import override

    run = make_result('pending')
    with override(language):
        run.cancel(user=User.objects.create_user('alice'))
    assert by in now(run).error
    other = make_result('pending')
    cancel_many([other.pk], error='Because')
    assert now(other).error == 'Because'


def test_rolled_back():
    """A cancel that was rolled back is not published, and can be repeated."""
    def stored():
        return app.backend.client.get(app.backend.get_key_for_task(str(run.task_id)))
    run = make_result('pending')
    with transaction.atomic():
        assert run.cancel()
        assert stored() is None
        transaction.set_rollback(True)
    assert (now(run).status, stored()) == ('pending', None)
    assert run.cancel()
    assert b'REVOKED' in stored()


def test_broker_unavailable(monkeypatch, caplog):
    """The row alone keeps the run from starting: a broker that is down only causes a warning."""
    def away(*args, **kwargs):
        raise ConnectionError('away')
    monkeypatch.setattr(app.control, 'revoke', away)
    run = make_result('pending')
    assert run.cancel()
    assert now(run).status == 'revoked'
    assert 'could not be notified that 1 runs were cancelled: away' in caplog.text


def test_many():
    """The runs that were cancelled are returned; unknown and finished ones are no error."""
    waits, runs, ended = make_result('pending'), make_result('running'), make_result()
    assert sorted(cancel_many([waits.pk, runs.pk, ended.pk, 0])) == [waits.pk, runs.pk]
    assert cancel_many([]) == []


def test_at_the_same_time():
    """Of several simultaneous cancels of a run, one does it."""
    run, together = make_result('running'), Barrier(8)

    def cancel():
        try:
            together.wait(10)
            return run.cancel()
        finally:
            connection.close()
    with ThreadPoolExecutor(8) as pool:
        answers = [future.result() for future in [pool.submit(cancel) for __ in range(8)]]
    assert answers.count(True) == 1


# Run again

@pytest.fixture
def task(make_task):
    return make_task(lambda self, task_id, *args, **kwargs: None, name='tests:again')


def test_rerun(task):
    """The same task with the same arguments and its general options; the first run stays."""
    alice, bob = (User.objects.create_user(name) for name in ('alice', 'bob'))
    site = Site.objects.create(name='s', slug='s')
    first = CeleryResult.enqueue(
        task, args=[1, uuid4()], kwargs={'b': 2}, user=alice, instance=site, netbox_name='Mine', queue='nobody',
        priority=3, time_limit=50, countdown=1000, expires=2000, task_id=str(uuid4()), link=app.signature('tests:again')
    )
    first = CeleryResult.objects.get(pk=first.pk)
    second = CeleryResult.objects.get(pk=first.rerun().pk)

    assert second.pk != first.pk and second.task_id != first.task_id
    for name in ('celery_name', 'name', 'args', 'kwargs', 'queue', 'user', 'object'):
        assert getattr(second, name) == getattr(first, name), name
    kept = {name: value for name, value in second.options.items() if name != 'headers'}
    assert kept == {'queue': 'nobody', 'priority': 3, 'time_limit': 50}
    assert (second.status, second.scheduled, second.expires) == ('pending', None, None)
    assert (second.root_id, second.parent_id) == (second.task_id, None)
    assert rerun(first, user=bob).user == bob
    assert now(first).status == 'scheduled'


def test_rerun_of_an_unknown_task():
    """Another process may have it."""
    run = make_result(celery_name='tests:of another plugin', args=[1], kwargs={}, options={'queue': 'nobody'})
    assert run.rerun().args == [1]


@pytest.mark.parametrize('columns', [
    {'args': None, 'kwargs': {}}, {'args': [], 'kwargs': None}, {'args': '[1, 2… [cut: 5 of 9 left out]', 'kwargs': {}},
], ids=str)
def test_arguments_that_were_not_kept(columns):
    run = make_result(options={'argsrepr': '***'}, **columns)
    with pytest.raises(NotRerunnable, match='arguments of this run are not stored'):
        run.rerun()
    assert CeleryResult.objects.count() == 1


def test_rerun_of_what_no_longer_fits(make_task):
    """A task whose parameters have changed since is not sent."""
    make_task(lambda self, task_id, new: None, name='tests:changed')
    run = make_result(celery_name='tests:changed', args=[1, 2], kwargs={}, options={})
    with pytest.raises(TypeError):
        run.rerun()
    assert CeleryResult.objects.count() == 1


def test_rerun_in_a_transaction(task):
    """A rollback leaves neither row nor message."""
    run = make_result(celery_name=task.name, args=[], kwargs={}, options={'queue': 'nobody'})
    with transaction.atomic():
        run.rerun()
        transaction.set_rollback(True)
    assert list(CeleryResult.objects.all()) == [run]


@pytest.mark.parametrize('args, kwargs', [
    ([1e23, -0.0, float('inf')], {}), ([], {'z': 1, 'a': {'y': 1, 'x': 2}}), (['nul \x00'], {'k': 1e16}),
], ids=repr)
@pytest.mark.parametrize('many', [False, True])
def test_rerun_exactly(make_task, shared, args, kwargs, many):
    """A repetition has the numbers and the key order of the call, also after the first run has finished."""
    task = make_task(lambda self, task_id, *args, **kwargs: None, name='tests:anything')
    if many:
        first, = CeleryResult.enqueue_many(task, [(args, kwargs)])
    else:
        first = CeleryResult.enqueue(task, args=args, kwargs=kwargs)
    lifecycle.finish(shared, first.task_id, 'completed')
    with published() as bodies:
        CeleryResult.objects.get(pk=first.pk).rerun()
    assert repr((list(bodies[0][0]), bodies[0][1])) == repr((args, kwargs))


def test_rerun_of_nan(make_task):
    task = make_task(lambda self, task_id, *args: None, name='tests:anything')
    first = CeleryResult.enqueue(task, args=[float('nan')])
    with published() as bodies:
        first.rerun()
    assert math.isnan(bodies[0][0][0])


def test_secrets_are_not_kept(make_task):
    """Redacted arguments are not kept beyond the end, also if the row cannot hold them exactly."""
    task = make_task(lambda self, task_id, *args, **kwargs: None, name='tests:anything')
    run = CeleryResult.enqueue(task, args=['secret', 1e23], kwargs={'b': 1, 'a': 2}, argsrepr='***')
    assert 'secret' in run.message
    assert 'secret' not in run.exact_call


# Celery's `revoke` and `terminate`: what they write into rows, and what they broadcast

@pytest.fixture
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
def test_revoke(broadcast, status, terminate, expected):
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


def test_commands_that_cancel(broadcast):
    """As `celery control` sends them, with one ID or several, of any type; other commands are not changed."""
    one, two, three = (make_result('pending') for __ in range(3))
    app.control.broadcast('terminate', {'signal': 'KILL', 'task_id': [str(one.task_id)]})
    app.control.revoke({two.task_id})
    app.control.broadcast('rate_limit', {'task_name': 'x', 'rate_limit': 1})
    assert [now(run).status for run in (one, two, three)] == ['revoked', 'revoked', 'pending']
    assert broadcast[-1][0] == 'rate_limit'


def test_revoke_for_some_workers(broadcast):
    """A revoke for some workers only, or of unknown IDs, changes no row."""
    run = make_result('pending')
    app.control.revoke(str(run.task_id), destination=['somebody@else'])
    app.control.revoke([str(uuid4()), 'not-a-uuid'])
    assert now(run).status == 'pending'
    assert [destination for *__, destination in broadcast] == [['somebody@else'], None]


def test_revoke_in_a_transaction(broadcast):
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


def test_revoke_without_the_database(broadcast, monkeypatch, caplog):
    """Workers get the revoke all the same."""
    def away(*args):
        raise OperationalError('away')
    monkeypatch.setattr(control, 'execute', away)
    app.control.revoke('an-id')
    assert broadcast == [('revoke', {'task_id': 'an-id', 'terminate': False, 'signal': 'SIGTERM'}, None)]
    assert 'The revocation of an-id could not be written' in caplog.text
