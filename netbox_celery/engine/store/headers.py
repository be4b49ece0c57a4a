"""Headers of messages: the engine's own, and those by which other tools follow a call from process to process.

The latter (of Sentry, OpenTelemetry, Datadog and the like) are about one message, and each tool sets its own whenever
one is sent. So messages carry them and rows do not: a run that is sent again, run again, or repeated has those that are
made then. Sentry sets them twice, among the headers and in a dict of that name in them, and the caller's own with them.

What Sentry's monitor of a schedule needs to hear the end of a run, a row keeps, since nobody makes it a second time;
people are not shown it.
"""

__all__ = (
    'HEADER',
    'hide_tracing',
    'without_tracing',
)

#: The message header that says that a run has a row (or, if `False`, shall have none).
HEADER = 'netbox_celery'

#: Names in lower case.
NAMES = frozenset((
    'b3', 'baggage', 'correlation-context', 'dd-pathway-ctx', 'dd-pathway-ctx-base64', 'elastic-apm-traceparent',
    'elasticapm', 'grpc-trace-bin', 'newrelic', 'newrelicid', 'newrelicsynthetics', 'newrelictransaction', 'sw8',
    'sw8-correlation', 'sw8-x', 'traceparent', 'tracestate', 'uber-trace-id', 'x-amzn-trace-id',
    'x-cloud-trace-context', 'x-dynatrace', 'x-honeycomb-trace', 'x-newrelic-id', 'x-newrelic-transaction',
    'x-ot-span-context',
))
PREFIXES = ('ot-baggage-', 'ot-tracer-', 'sentry-', 'uberctx-', 'x-b3-', 'x-datadog-', 'x-instana-', 'x-sentry-')
#: What a run is to carry to its end.
MONITOR = frozenset(('sentry-monitor-check-in-id', 'sentry-monitor-config', 'sentry-monitor-slug'))


def _is_tracing(name):
    return isinstance(name, str) and ((lowered := name.lower()) in NAMES or lowered.startswith(PREFIXES))


def without_tracing(headers):
    """Return the headers of a call as a row keeps them: a new dict, or the same one if it has none of these.

    Args:
        headers: The option `headers` of the call, a dict.
    """
    inner = headers.get('headers')
    inner = inner if isinstance(inner, dict) else {}
    if not any(map(_is_tracing, headers)) and not any(map(_is_tracing, inner)):
        return headers
    monitor = {name: value for name, value in inner.items() if name in MONITOR}
    kept = monitor | {
        name: value for name, value in headers.items()
        if name in MONITOR or name != 'headers' and not _is_tracing(name)
    }
    # Without what is in there a second time
    rest = {
        name: value for name, value in inner.items()
        if not _is_tracing(name) and not (name in kept and kept[name] == value)
    }
    return kept | ({'headers': rest} if rest else {})


def hide_tracing(options):
    """Return the options of a row as people see them, also those of earlier versions."""
    headers = options.get('headers') if isinstance(options, dict) else None
    if not isinstance(headers, dict):
        return options
    kept = without_tracing(headers)
    if kept is headers:
        return options
    kept = {name: value for name, value in kept.items() if name not in MONITOR}
    rest = {name: value for name, value in options.items() if name != 'headers'}
    return rest | {'headers': kept} if kept else rest
