"""Imported by a worker (Celery's setting `imports`) to be traced, as OpenTelemetry's documentation says."""
import json
import os
from pathlib import Path

from celery.signals import worker_process_init
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from netbox_celery.tasks import netbox_celery_task


class ToFile(SpanExporter):
    """Writes each span as a line of JSON."""

    def export(self, spans):
        with (Path(os.environ['NETBOX_TEST_SIDE']) / 'spans').open('a') as file:
            for span in spans:
                file.write(f'{json.dumps(json.loads(span.to_json()))}\n')
        return SpanExportResult.SUCCESS


@worker_process_init.connect(weak=False)
def instrument(**kwargs):
    trace.set_tracer_provider(TracerProvider())
    trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(ToFile()))
    CeleryInstrumentor().instrument()


@netbox_celery_task(name='netbox_test_traced:where', max_retries=1, default_retry_delay=0)
def where(self, task_id, retry=False):
    """Return the trace and the span in which the body runs."""
    if retry and not self.request.retries:
        raise self.retry(exc=ValueError('once more'))
    context = trace.get_current_span().get_span_context()
    self.log('A line of the log')
    return [trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)]


@netbox_celery_task(name='netbox_test_traced:fail')
def fail(self, task_id):
    raise ValueError('out of order')


@netbox_celery_task(name='netbox_test_traced:parent')
def parent(self, task_id, queue):
    """Call another task from the body."""
    return where.apply_async(queue=queue).id
