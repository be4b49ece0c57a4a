"""OpenTelemetry, with its instrumentation for Celery in the caller and in the worker."""
import json
import sys
from pathlib import Path

import pytest
from celery import chain
from django.db import transaction
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from netbox_celery.models import CeleryResult

from ..integration.support import ended, lines, row, settled, until

INSTRUMENTED = Path(__file__).with_name('instrumented')


@pytest.fixture(scope='module')
def worker(make_instance, make_module_worker, django_db_blocker, side):
    path = [str(INSTRUMENTED), *filter(None, map(str, sys.path))]
    worker = make_module_worker(
        'traced', instance=make_instance('traced', celery={'imports': ['netbox_test_traced']}),
        env={'PYTHONPATH': ':'.join(path)},
    )
    with django_db_blocker.unblock():
        return worker.start().ready()


@pytest.fixture(scope='module')
def traced():
    """The worker's tasks."""
    sys.path.insert(0, str(INSTRUMENTED))
    import netbox_test_traced

    yield netbox_test_traced
    sys.path.remove(str(INSTRUMENTED))


@pytest.fixture
def caller():
    """Trace this process; yields what was exported."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    CeleryInstrumentor().instrument(tracer_provider=provider)
    with provider.get_tracer('test').start_as_current_span('caller') as span:
        exporter.trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        yield exporter
    CeleryInstrumentor().uninstrument()


@pytest.fixture
def spans(side):
    """Wait for the spans of a run in the worker, and return them."""
    def find(run, number=1, what='run'):
        def found():
            path = side / 'spans'
            every = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            mine = [span for span in every if span['attributes'].get('celery.action') == what
                    and span['attributes'].get('messaging.message.id') == str(run.id)]
            return len(mine) >= number and mine

        return until(found, what=lambda: (side / 'spans').read_text())
    return find


def sent(caller, run):
    """Return the one span in which this process sent a run."""
    span, = (span for span in caller.get_finished_spans() if span.attributes.get('messaging.message.id') == run.id)
    return trace.format_span_id(span.context.span_id)


def check(caller, run, span):
    """Check that a span of the worker belongs to the call."""
    assert span['context']['trace_id'] == f'0x{caller.trace_id}'
    assert span['parent_id'] == f'0x{sent(caller, run)}'


def test_run(worker, traced, caller, spans):
    """The body runs in the trace of its caller; the run's options have nothing of that."""
    run = worker.send(traced.where)
    result = ended(run)

    span, = spans(run)
    check(caller, run, span)
    assert result.result == [caller.trace_id, span['context']['span_id'].removeprefix('0x')]
    assert lines(run) == ['A line of the log']
    assert 'traceparent' not in json.dumps(result.options)


def test_failure(worker, traced, caller, spans):
    """The span of a failing run has the error, like its row."""
    run = worker.send(traced.fail)
    assert ended(run).error == 'ValueError: out of order'

    span, = spans(run)
    check(caller, run, span)
    assert span['status'] == {'status_code': 'ERROR', 'description': 'out of order'}
    assert [event['name'] for event in span['events']] == ['exception']


def test_retry(worker, traced, caller, spans):
    """Each attempt has its span, in the same trace."""
    run = worker.send(traced.where, True)
    assert (settled(run).status, len(row(run).attempts)) == ('completed', 2)

    found = spans(run, 2)
    assert {span['context']['trace_id'] for span in found} == {f'0x{caller.trace_id}'}
    assert row(run).result[0] == caller.trace_id


def test_transaction(worker, traced, caller, spans):
    """So does a call in a transaction, whose message is sent on commit."""
    with transaction.atomic():
        run = worker.send(traced.where)

    assert ended(run).result[0] == caller.trace_id
    check(caller, run, spans(run)[0])


def test_workflow(worker, traced, caller, spans):
    """Steps of a chain, and calls of a body, are in that trace too."""
    step = traced.where.si().set(queue=worker.queue)
    outcome = chain(step, step.clone(), traced.parent.si(worker.queue).set(queue=worker.queue)).apply_async()
    until(lambda: CeleryResult.objects.filter(completed__isnull=False).count() == 4)

    where = list(CeleryResult.objects.filter(celery_name=traced.where.name))
    assert len(where) == 3
    assert {run.result[0] for run in where} == {caller.trace_id}
    assert str(row(outcome).result) in {str(run.task_id) for run in where}


def test_many(worker, traced, caller, spans):
    """Each of many runs that are sent together has a span of its own."""
    CeleryResult.enqueue_many(traced.where, [()] * 5, queue=worker.queue)
    runs = list(CeleryResult.objects.all())

    assert {ended(run).result[0] for run in runs} == {caller.trace_id}
    assert len({row(run).result[1] for run in runs}) == 5
    assert worker.tracebacks() == []
