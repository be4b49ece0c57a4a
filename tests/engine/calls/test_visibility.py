"""Tasks whose messages Redis would redeliver are reported, once each, and no others."""
import logging
from datetime import UTC, datetime, timedelta

import pytest

from netbox_celery.celery import NetBoxCelery
from netbox_celery.engine.calls import visibility
from netbox_celery.engine.calls.visibility import warn_of_eta, warn_of_limits


@pytest.fixture(autouse=True)
def nobody_warned(monkeypatch):
    monkeypatch.setattr(visibility, '_warned', set())


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, visibility.logger.name)
    return lambda: [record.getMessage() for record in caplog.records if record.name == visibility.logger.name]


def make_app(broker='redis://', **conf):
    app = NetBoxCelery('tests', broker=broker, set_as_current=False)
    app.conf.update(conf)
    return app


def nothing():
    pass


def later(seconds):
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.mark.parametrize('broker, options, seconds, is_warned', [
    ('redis://', {}, 3_700, True),
    ('redis://', {}, 3_500, False),
    ('redis://', {'visibility_timeout': 10_000}, 3_700, False),
    ('redis://', {'visibility_timeout': 60}, 70, True),
    ('redis://', None, 3_700, True),
    ('rediss://h:1/0', {}, 3_700, True),
    ('sentinel://a:1;sentinel://b:2', {}, 3_700, True),
    ('amqp://', {}, 1_000_000, False),
    ('redis://', {}, -1_000_000, False),
])
def test_etas(warnings, broker, options, seconds, is_warned):
    warn_of_eta(make_app(broker, broker_transport_options=options), 'tests:x', later(seconds))
    assert len(warnings()) == is_warned


def test_broker_that_is_written_to(warnings):
    """With separate brokers for reading and writing, the one that messages are sent to counts."""
    warn_of_eta(make_app(broker_write_url='amqp://', broker_read_url='redis://'), 'tests:x', later(9_999))
    assert not warnings()


@pytest.mark.parametrize('eta', [None, '2040-01-01T00:00:00', datetime(2040, 1, 1), 9_999])
def test_eta_that_is_not_an_aware_time(warnings, eta):
    warn_of_eta(make_app(), 'tests:x', eta)
    assert not warnings()


def test_one_warning_for_each_task(warnings):
    for name in ('tests:x', 'tests:y', 'tests:x'):
        warn_of_eta(make_app(), name, later(9_999))
    assert [text.split()[1] for text in warnings()] == ['tests:x', 'tests:y']
    assert all(visibility.ADVICE in text for text in warnings())


@pytest.mark.parametrize('of_task, conf, limit', [
    ({'time_limit': 4_000}, {}, 4_000),
    ({'soft_time_limit': 4_000}, {}, 4_000),
    ({'time_limit': 5_000, 'soft_time_limit': 4_000}, {}, 5_000),
    ({}, {'task_time_limit': 4_000}, 4_000),
    ({}, {'task_soft_time_limit': 4_000}, 4_000),
    ({'time_limit': 60}, {'task_time_limit': 4_000}, None),
    ({'time_limit': 3_600}, {}, None),
    ({}, {}, None),
    ({'time_limit': 4_000, 'acks_late': False}, {}, None),
    ({'time_limit': 4_000}, {'broker_transport_options': {'visibility_timeout': 4_000}}, None),
    ({'time_limit': 4_000}, {'broker_url': 'amqp://'}, None),
])
def test_limits(warnings, of_task, conf, limit):
    app = make_app(**conf)
    app.task(name='tests:x', lazy=False, **{'acks_late': True, **of_task})(nothing)
    warn_of_limits(app)
    # The app has the tasks of all plugins too
    own = [text for text in warnings() if text.startswith('Task tests:x ')]
    assert [f'Task tests:x acknowledges late and may take {limit} s' in text for text in own] == (
        [True] if limit else []
    )
