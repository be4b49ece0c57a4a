"""Which queues people can choose."""
from dataclasses import replace
from datetime import timedelta

import pytest
from django.utils import timezone
from kombu import Exchange, Queue

from netbox_celery.celery import app
from netbox_celery.engine.calls import queues as names
from netbox_celery.engine.catalogue import queues
from netbox_celery.engine.catalogue.queues import check_choice, check_repeated, offered
from netbox_celery.engine.exceptions import QueueRefused
from netbox_celery.models import CeleryResult
from netbox_celery.services import runs
from tests.factories import make_result, make_worker
from tests.factories import make_task as make_catalogued

pytestmark = pytest.mark.django_db

QUEUES = [Queue('celery', Exchange('celery'), 'celery'), Queue('large', Exchange('orders', 'direct'), 'big')]


def route(name, args, kwargs, options, task=None, **kw):
    return {'exchange': 'orders', 'routing_key': 'big'}


def test_offered(configured, monkeypatch, make_task):
    configured(task_queues=[Queue('celery'), Queue('configured')], task_routes=(
        {'a': 'routed', 'b*': {'queue': 'routed2'}, 'c': {'exchange': 'x', 'routing_key': 'y'}}, [('d', 'routed3')],
        route,
    ))
    make_task(lambda self, task_id: None, name='tests:x', queue='decorated')
    make_catalogued('far:away', present=True, defaults={'queue': 'catalogued'})
    make_catalogued('far:gone', present=False, defaults={'queue': 'gone'})
    make_worker(queues=['consumed', 'celery'])
    make_worker(queues=['stopped'], stopped=timezone.now())
    make_worker(queues=['dead'], heartbeat=timezone.now() - timedelta(minutes=5))
    app.send_task('tests:x', queue='named-in-code')
    known = ['catalogued', 'celery', 'configured', 'consumed', 'decorated', 'routed', 'routed2', 'routed3']
    assert set(known) <= set(offered(app))
    assert not {'gone', 'stopped', 'dead', 'named-in-code'} & set(offered(app))
    for name in (*known, 'slow', 'lab-5'):  # the last by the setting
        check_choice(app, name)
    for name in ('gone', 'named-in-code', 'lab', 'unacked', 'lab-\x06\x163', '*', 'lab-' + 'x' * 300):
        with pytest.raises(QueueRefused):
            check_choice(app, name)
    with pytest.raises(QueueRefused, match=r'There is no queue "gone". Queues are: .*catalogued.*celery'):
        check_choice(app, 'gone')


def test_setting_does_not_free_what_is_reserved(monkeypatch):
    config = replace(queues.get_config(), allowed_queues=['*'])
    monkeypatch.setattr(queues, 'get_config', lambda: config)
    monkeypatch.setattr(names, 'get_config', lambda: config)
    check_choice(app, 'whatever')
    with pytest.raises(QueueRefused):
        check_choice(app, 'unacked')


@pytest.mark.parametrize('options, is_allowed', [
    ({}, True), ({'queue': 'celery'}, True), ({'queue': 'slow'}, True), ({'queue': 'odd'}, False),
    ({'queue': 'unacked'}, False), ({'exchange': 'orders', 'routing_key': 'big'}, True),
    ({'exchange': 'orders', 'routing_key': 'new'}, True), ({'exchange': 'new', 'routing_key': 'x'}, False),
    ({'routing_key': 'x'}, True),
], ids=str)
def test_run_again(configured, rf, admin_user, options, is_allowed):
    """A run is run again only on a queue that people can choose."""
    configured(task_queues=QUEUES)
    result = make_result('completed', celery_name='tests:unknown', options=options)
    if is_allowed:
        check_repeated(app, result.celery_name, options)
    else:
        request = rf.post('/')
        request.user = admin_user
        with pytest.raises(QueueRefused):
            runs.rerun(request, result)
    assert CeleryResult.objects.count() == 1
