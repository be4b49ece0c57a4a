"""Message headers: the engine's own, and those by which tracing tools follow a call across processes.

Tracing headers (of Sentry, OpenTelemetry, Datadog and the like) concern one message, and the tool sets new ones
whenever a message is sent. So messages carry them, but rows do not: a run that is sent again, rerun or repeated gets
new ones. Sentry sets them twice, among the headers and in a dict named `headers` within them, together with the
caller's own.

The headers that Sentry's monitor of a schedule needs at the end of a run are kept in the row, because they are set only
once. Pages do not show them.
"""
from typing import Any

__all__ = (
    'HEADER',
    'hide_tracing',
    'without_tracing',
)

#: The message header of a run that has a row; `False` means that the run must not get one.
HEADER = 'netbox_celery'

#: Names of tracing headers, in lower case.
NAMES = frozenset((
    'b3', 'baggage', 'correlation-context', 'dd-pathway-ctx', 'dd-pathway-ctx-base64', 'elastic-apm-traceparent',
    'elasticapm', 'grpc-trace-bin', 'newrelic', 'newrelicid', 'newrelicsynthetics', 'newrelictransaction', 'sw8',
    'sw8-correlation', 'sw8-x', 'traceparent', 'tracestate', 'uber-trace-id', 'x-amzn-trace-id',
    'x-cloud-trace-context', 'x-dynatrace', 'x-honeycomb-trace', 'x-newrelic-id', 'x-newrelic-transaction',
    'x-ot-span-context',
))
PREFIXES = ('ot-baggage-', 'ot-tracer-', 'sentry-', 'uberctx-', 'x-b3-', 'x-datadog-', 'x-instana-', 'x-sentry-')
#: Headers that a run keeps until its end.
MONITOR = frozenset(('sentry-monitor-check-in-id', 'sentry-monitor-config', 'sentry-monitor-slug'))


def _is_tracing(name: object) -> bool:
    return isinstance(name, str) and ((lowered := name.lower()) in NAMES or lowered.startswith(PREFIXES))


def without_tracing(headers: dict[str, Any]) -> dict[str, Any]:
    """Return the headers of a call as a row keeps them: a new dict, or the same one if it has no tracing headers.

    Args:
        headers: The option `headers` of the call.
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
    # Without the headers that are also in the outer dict
    rest = {
        name: value for name, value in inner.items()
        if not _is_tracing(name) and not (name in kept and kept[name] == value)
    }
    return kept | ({'headers': rest} if rest else {})


def hide_tracing(options: Any) -> Any:
    """Return the options of a row without the headers of this kind, also for rows of earlier versions."""
    headers = options.get('headers') if isinstance(options, dict) else None
    if not isinstance(headers, dict):
        return options
    kept = without_tracing(headers)
    if kept is headers:
        return options
    kept = {name: value for name, value in kept.items() if name not in MONITOR}
    rest = {name: value for name, value in options.items() if name != 'headers'}
    return rest | {'headers': kept} if kept else rest
