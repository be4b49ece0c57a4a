"""Redis' visibility timeout: a message that takes longer is redelivered, and does not run again."""
import logging

from netbox_test_plugin import tasks
from netbox_test_plugin.side import noted, notes, open_gate

from netbox_celery.celery import app
from netbox_celery.config import get_config
from netbox_celery.engine.calls import visibility

from .support import ended, row, speaking_to, until

TIMEOUT = 2


def test_delivered_again(make_instance, make_worker, gate, caplog, monkeypatch):
    """A late-acknowledged run and one with an ETA exceed the timeout: each runs once, with a warning."""
    instance = make_instance('visibility', celery={'task_time_limit': 600, 'broker_transport_options': {
        # Kombu looks every second, and not every 100, for what it has to deliver again
        'visibility_timeout': TIMEOUT, 'unacked_restore_interval': 1, 'unacked_restore_throttle': 1,
    }})
    worker = make_worker('visibility', instance=instance, concurrency=3).start().ready()
    assert f'{tasks.hold_late.name} acknowledges late and may take 600 s' in worker.output
    assert f'{tasks.hold.name} acknowledges late' not in worker.output

    monkeypatch.setattr(visibility, '_warned', set())
    long = worker.send(tasks.hold_late, gate)
    until(lambda: notes(long.id))
    with speaking_to(app.conf.broker_url, broker_transport_options={
        'global_keyprefix': get_config().key_prefix, 'visibility_timeout': TIMEOUT,
    }), caplog.at_level(logging.WARNING):
        later = worker.send(tasks.echo, countdown=8)
    assert f'Task {tasks.echo.name} is called for' in caplog.text
    until(lambda: f'{long.id} is not run: ' in worker.output, 40)
    until(lambda: worker.output.count(f'{later.id}] received') > 1, 40)

    assert row(long).status == 'running'
    open_gate(gate)
    for run in (long, later):
        assert (ended(run, 60).status, row(run).claims) == ('completed', 1)
    until(lambda: f'{later.id} is not run: it is completed' in worker.output)
    assert noted(long.id) == ['started', 'ended']
    assert len(notes(later.id)) == 1
