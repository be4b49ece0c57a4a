"""Headers of tracing tools are in messages, but neither kept in rows nor shown on pages."""
from types import SimpleNamespace
from uuid import uuid4

import pytest
from django.test import Client

from netbox_celery.celery import app
from netbox_celery.engine.calls.options import sent_options
from netbox_celery.engine.sending.publish import COLUMNS, send_row
from netbox_celery.engine.store.headers import hide_tracing, without_tracing
from netbox_celery.models import CeleryResult
from users.models import User

SENTRY = {
    'sentry-trace': '771a43a4192642f0b136d5159a501700-1234567890abcdef-1', 'baggage': 'sentry-environment=production',
    'sentry-task-enqueued-time': 1.5,
}
MONITOR = {
    'sentry-monitor-slug': 'nightly', 'sentry-monitor-config': {'schedule': {'type': 'crontab', 'value': '0 0 * * *'}},
    'sentry-monitor-check-in-id': 'd85c7910a6be4de9af45a6bed8f27e72',
}


@pytest.mark.parametrize('headers, kept', [
    ({'mine': 1}, {'mine': 1}), ({}, {}),
    # What looks twice the same is the caller's own, if no tool has been there
    ({'mine': 1, 'headers': {'mine': 1}}, {'mine': 1, 'headers': {'mine': 1}}),
    # As Sentry leaves them
    (SENTRY | {'headers': SENTRY}, {}),
    (SENTRY | {'mine': 1, 'headers': SENTRY | {'mine': 1}}, {'mine': 1}),
    (SENTRY | {'mine': 1, 'headers': SENTRY | {'mine': 2, 'b': None}}, {'mine': 1, 'headers': {'mine': 2, 'b': None}}),
    (SENTRY | MONITOR | {'headers': SENTRY | MONITOR}, MONITOR),
    ({'headers': SENTRY | MONITOR}, MONITOR),
    *(({name: 'x', 'mine': 1, 'headers': {name: 'x'}}, {'mine': 1}) for name in (
        'traceparent', 'tracestate', 'Traceparent', 'baggage', 'b3', 'X-B3-TraceId', 'x-datadog-trace-id',
        'x-datadog-sampling-priority', 'dd-pathway-ctx-base64', 'uber-trace-id', 'uberctx-user', 'X-Amzn-Trace-Id',
        'elastic-apm-traceparent', 'newrelic', 'X-NewRelic-Transaction', 'X-INSTANA-T', 'sentry-anything',
    )),
    ({'headers': 'not a dict', 'traceparent': 'x'}, {}),
    ({5: 1, 'b3': 'x'}, {5: 1}),
])
def test_kept(headers, kept):
    before = repr(headers)
    assert without_tracing(headers) == kept
    assert repr(headers) == before
    assert hide_tracing({'queue': 'q', 'headers': headers}).get('headers', {}) == {
        name: value for name, value in kept.items() if name not in MONITOR
    }
    sent = sent_options({'headers': headers}, SimpleNamespace())
    assert sent == ({'headers': kept} if kept else {})


def test_nothing_to_hide():
    for options in ({}, {'headers': None}, {'headers': [1]}, None, [1], {'headers': {'a': 1}}):
        assert hide_tracing(options) is options


@pytest.fixture
def messages(monkeypatch):
    """The headers of the messages that are sent."""
    sent = []
    monkeypatch.setitem(
        vars(app.amqp), 'send_task_message',
        lambda producer, name, message, **options: sent.append(message.headers | (options.get('headers') or {}))
    )
    return sent


@pytest.mark.django_db(transaction=True)
def test_run(make_task, messages):
    """The message has them, its run and its repetition do not; what Sentry's monitor waits for is sent again."""
    task = make_task(lambda self, task_id: None, name='tests:traced', queue='nobody')
    headers = SENTRY | MONITOR | {'mine': 1, 'headers': SENTRY | MONITOR | {'mine': 1}}
    task_id = str(uuid4())
    task.apply_async(task_id=task_id, headers=headers)
    run = CeleryResult.objects.get(task_id=task_id)

    assert messages[-1].items() >= headers.items()
    assert run.options['headers'] == MONITOR | {'mine': 1}
    assert run.display_options['headers'] == {'mine': 1}
    assert run.serialize_object()['options']['headers'] == {'mine': 1}

    from django.db import connection
    with connection.cursor() as cursor:
        cursor.execute(f'SELECT {COLUMNS} FROM netbox_celery_celeryresult WHERE id = %s', (run.pk,))
        send_row(app, *cursor.fetchone())
    assert messages[-1].items() >= (MONITOR | {'mine': 1}).items()
    assert not SENTRY.keys() & messages[-1].keys()


@pytest.mark.django_db(transaction=True)
def test_row_of_an_earlier_version():
    """Headers that it still has are not shown."""
    from tests.factories import make_result

    run = make_result(options={'queue': 'q', 'headers': SENTRY | MONITOR | {'headers': SENTRY, 'mine': 1}})
    assert run.display_options == {'queue': 'q', 'headers': {'mine': 1}}

    client = Client()
    client.force_login(User.objects.create_superuser('root'))
    for address in (
        run.get_absolute_url(), f'/api/plugins/celery/results/{run.pk}/',
        '/api/plugins/celery/results/?fields=id,options', f'/plugins/celery/results/{run.pk}/changelog/',
    ):
        page = client.get(address).content.decode()
        assert 'sentry' not in page, address
    assert client.get(f'/api/plugins/celery/results/{run.pk}/').json()['options'] == run.display_options
