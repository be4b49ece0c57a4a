"""Names and types of the options of tasks and calls, for type checkers.

A misspelled option is not an error at runtime: Celery makes it an attribute of the task, or a property of the message.
Type checkers report it. With a `base` class of its own, which may have further attributes, a task takes any option.
"""
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict

from django.db.models import Model

__all__ = (
    'CallOptions',
    'EnqueueOptions',
    'OnConflict',
    'OwnOptions',
    'PolicyOptions',
    'Span',
    'TaskOptions',
)

#: A length of time: a `timedelta`, or seconds.
type Span = timedelta | float
#: What happens to a call past the limit.
type OnConflict = Literal['join', 'queue', 'skip', 'replace', 'fail']


class OwnOptions(TypedDict, total=False):
    """The `netbox_*` options, of tasks and of calls."""
    netbox_name: str | None
    netbox_user: Model | int | None
    netbox_object: Model | tuple[str, int] | None
    netbox_value_max: int | None
    netbox_data: Any
    netbox_tags: Collection[Model | str] | None
    netbox_track: bool | None
    netbox_schedule: Model | int | None
    netbox_kwargs: Mapping[str, Any] | None


class PolicyOptions(TypedDict, total=False):
    """Concurrency and deduplication policies, of tasks and of calls."""
    unique: bool
    stale_time_limit: Span | None
    concurrency_key: str | Callable[..., Any] | None
    limit: int
    on_conflict: OnConflict
    ignore_task_after_success: bool
    ignore_task_timedelta: Span | None


class MessageOptions(TypedDict, total=False):
    """Options of Celery's that a task sets for its calls, and a call for itself."""
    compression: str | None
    exchange: Any
    ignore_result: bool | None
    priority: int | None
    routing_key: str | None
    serializer: str | None
    soft_time_limit: float | None
    time_limit: float | None


class TaskOptions(OwnOptions, PolicyOptions, MessageOptions, total=False):
    """Options of a task, in its decorator; without `base` and `bind`."""
    name: str
    queue: Any
    # Ours
    default_retry_delays: Sequence[float] | None
    schedule: Any
    strategy_claims: bool
    unique_key_generator: str | Callable[..., str]
    # Celery's
    acks_late: bool | None
    acks_on_failure: bool | None
    acks_on_failure_or_timeout: bool | None
    acks_on_timeout: bool | None
    autoretry_for: Collection[type[BaseException]]
    default_retry_delay: float
    dont_autoretry_for: Collection[type[BaseException]]
    expires: float | datetime | None
    lazy: bool
    max_retries: int | None
    pydantic: bool
    pydantic_context: dict[str, Any] | None
    pydantic_dump_kwargs: dict[str, Any] | None
    pydantic_strict: bool
    rate_limit: str | float | None
    reject_on_worker_lost: bool | None
    Request: Any
    resultrepr_maxsize: int
    retry_backoff: bool | float
    retry_backoff_max: float
    retry_jitter: bool
    retry_kwargs: dict[str, Any]
    retry_on_worker_lost: bool | None
    send_events: bool
    shared: bool
    store_eager_result: bool | None
    store_errors_even_if_ignored: bool | None
    Strategy: Any
    throws: type[Exception] | tuple[type[Exception], ...]
    track_started: bool | None
    trail: bool
    typing: bool | None


class EnqueueOptions(OwnOptions, PolicyOptions, MessageOptions, total=False):
    """Options of `CeleryResult.enqueue`, besides the parameters that it names."""
    add_to_parent: bool
    argsrepr: str
    chain: Any
    chord: Any
    confirm_timeout: float | None
    connection: Any
    content_encoding: str
    content_type: str
    correlation_id: str
    countdown: float | None
    declare: Any
    delivery_mode: int | str | None
    eta: datetime | None
    expiration: float | None
    expires: float | datetime | None
    group_id: str | None
    group_index: int | None
    headers: dict[str, Any] | None
    immediate: bool
    kwargsrepr: str
    link: Any
    link_error: Any
    mandatory: bool
    parent_id: str | None
    producer: Any
    publisher: Any
    reply_to: str | None
    replaced_task_nesting: int
    result_cls: Any
    retries: int
    retry: bool
    retry_policy: dict[str, Any] | None
    root_id: str | None
    route_name: str | None
    router: Any
    shadow: str | None
    stamped_headers: Collection[str] | None
    task_id: Any
    task_type: Any


class CallOptions(EnqueueOptions, total=False):
    """Options of a call, besides the arguments of its task."""
    queue: Any
