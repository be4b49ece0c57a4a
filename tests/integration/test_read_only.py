"""Workers and beat on a server that is read-only for a while, as a standby is before its promotion."""
import time
from contextlib import contextmanager
from datetime import timedelta

import pytest
from celery import chain
from django.db import connections
from django.utils import timezone
from netbox_test_plugin import tasks
from netbox_test_plugin.side import noted, open_gate

from netbox_celery.engine.exceptions import DatabaseReadOnly
from netbox_celery.models import CeleryResult, CelerySchedule, CeleryTask
from users.models import User

from .support import ended, row, until


@contextmanager
def read_only_server(services):
    """Make the whole server read-only, also for existing sessions."""
    def say(value):
        with services.cluster.connect() as admin:
            admin.execute('SET default_transaction_read_only = off')
            admin.execute(f'ALTER SYSTEM SET default_transaction_read_only = {value}')
            admin.execute('SELECT pg_reload_conf()')
        connections.close_all()
        until(lambda: is_read_only() == (value == 'on'))

    def is_read_only():
        with services.cluster.connect('netbox') as other:
            return other.execute('SHOW default_transaction_read_only').fetchone() == ('on',)

    say('on')
    try:
        yield
    finally:
        say('off')


@pytest.mark.parametrize('has_key', [False, True])
def test_worker(services, worker, gate, has_key):
    """An active run continues, its end and the next step wait; a run that was sent before waits, and runs once."""
    run = chain(tasks.hold.si(gate).set(queue=worker.queue), tasks.echo.si('next').set(
        queue=worker.queue, **({'concurrency_key': f'read-only-{worker.name}', 'limit': 1} if has_key else {})
    )).delay()
    first = run.parent
    until(lambda: 'started' in noted(first.id))
    early = worker.send(tasks.echo, 'early', countdown=2)
    with read_only_server(services):
        with pytest.raises(DatabaseReadOnly):
            worker.send(tasks.echo, 'refused')
        worker.says('trying again in')
        open_gate(gate)
        until(lambda: 'ended' in noted(first.id))
        time.sleep(6)
        assert noted(early.id) == noted(run.id) == []
        # It waits, and is not sent again and again by a sweep that cannot write that it did
        assert worker.output.count(f'{early.id}] received') <= 2
        assert worker.output.count('trying again in') < 40

    assert [ended(each).status for each in (first, run, early)] == ['completed'] * 3
    assert (noted(early.id), noted(run.id)) == (['ran'], ['ran'])
    assert [row(each).claims for each in (first, run, early)] == [1, 1, 1]
    assert CeleryResult.objects.count() == 3
    assert worker.run(tasks.echo, 'after').status == 'completed'


def test_beat(services, make_beat):
    """What is due is sent when it can be; until then beat logs the reason every few seconds."""
    beat = make_beat('read-only-beat')
    beat.says('this one is active')
    task, __ = CeleryTask.objects.get_or_create(name=tasks.echo.name)
    owner = User.objects.create_superuser('olga')
    schedule = CelerySchedule.objects.create(
        name='due', task=task, owner=owner, kind='once', at=timezone.now() + timedelta(seconds=4), queue='nobody',
    )
    with read_only_server(services):
        beat.says('beat: nothing is sent, the database')
        time.sleep(6)
        assert not CeleryResult.objects.exists()
        assert beat.output.count('nothing is sent, the database') < 10
        assert 'Traceback' not in beat.output
    until(lambda: CeleryResult.objects.filter(schedule=schedule).exists(), 30)
    time.sleep(4)
    assert CeleryResult.objects.filter(schedule=schedule).count() == 1


def test_worker_starts(services, make_worker):
    """A worker that starts meanwhile waits, and works as soon as it can register."""
    with read_only_server(services):
        worker = make_worker('read-only-start', concurrency=1).start()
        worker.says('trying again in')
        assert worker.process.poll() is None
    assert worker.ready().run(tasks.echo, timeout=60).status == 'completed'
