from typing import TYPE_CHECKING, Annotated

import strawberry
import strawberry_django
from strawberry.scalars import ID
from strawberry_django import BaseFilterLookup, DatetimeFilterLookup, FilterLookup, StrFilterLookup

from netbox.graphql.filters import BaseModelFilter, NetBoxModelFilter

from .. import models
from .enums import (
    CeleryResultReasonEnum,
    CeleryResultStatusEnum,
    CeleryScheduleKindEnum,
    CeleryScheduleMissedEnum,
    CeleryScheduleOriginEnum,
    CeleryScheduleOverlapEnum,
)

if TYPE_CHECKING:
    from core.graphql.filters import ContentTypeFilter
    from netbox.graphql.filter_lookups import BigIntegerLookup, FloatLookup, IntegerLookup
    from users.graphql.filters import UserFilter

__all__ = (
    'CeleryLogEntryFilter',
    'CeleryResultFilter',
    'CeleryScheduleFilter',
    'CeleryTaskFilter',
    'CeleryWorkerFilter',
)


@strawberry_django.filter_type(models.CeleryResult, lookups=True)
class CeleryResultFilter(NetBoxModelFilter):
    task_id: StrFilterLookup | None = strawberry_django.filter_field()
    celery_name: StrFilterLookup | None = strawberry_django.filter_field()
    name: StrFilterLookup | None = strawberry_django.filter_field()
    status: BaseFilterLookup[CeleryResultStatusEnum] | None = strawberry_django.filter_field()
    reason: BaseFilterLookup[CeleryResultReasonEnum] | None = strawberry_django.filter_field()
    error: StrFilterLookup | None = strawberry_django.filter_field()
    queue: StrFilterLookup | None = strawberry_django.filter_field()
    worker: StrFilterLookup | None = strawberry_django.filter_field()
    attempt: Annotated['IntegerLookup', strawberry.lazy('netbox.graphql.filter_lookups')] | None = (
        strawberry_django.filter_field()
    )
    user: Annotated['UserFilter', strawberry.lazy('users.graphql.filters')] | None = strawberry_django.filter_field()
    user_id: ID | None = strawberry_django.filter_field()
    schedule: Annotated['CeleryScheduleFilter', strawberry.lazy('netbox_celery.graphql.filters')] | None = (
        strawberry_django.filter_field()
    )
    schedule_id: ID | None = strawberry_django.filter_field()
    concurrency_key: StrFilterLookup | None = strawberry_django.filter_field()
    stale_after: DatetimeFilterLookup | None = strawberry_django.filter_field()
    object_type: Annotated['ContentTypeFilter', strawberry.lazy('core.graphql.filters')] | None = (
        strawberry_django.filter_field()
    )
    object_type_id: ID | None = strawberry_django.filter_field()
    object_id: Annotated['BigIntegerLookup', strawberry.lazy('netbox.graphql.filter_lookups')] | None = (
        strawberry_django.filter_field()
    )
    scheduled: DatetimeFilterLookup | None = strawberry_django.filter_field()
    expires: DatetimeFilterLookup | None = strawberry_django.filter_field()
    sent: DatetimeFilterLookup | None = strawberry_django.filter_field()
    started: DatetimeFilterLookup | None = strawberry_django.filter_field()
    completed: DatetimeFilterLookup | None = strawberry_django.filter_field()
    cancelled: DatetimeFilterLookup | None = strawberry_django.filter_field()
    request_id: StrFilterLookup | None = strawberry_django.filter_field()
    parent_id: StrFilterLookup | None = strawberry_django.filter_field()
    root_id: StrFilterLookup | None = strawberry_django.filter_field()
    group_id: StrFilterLookup | None = strawberry_django.filter_field()


@strawberry_django.filter_type(models.CeleryLogEntry, lookups=True)
class CeleryLogEntryFilter(BaseModelFilter):
    result: Annotated['CeleryResultFilter', strawberry.lazy('netbox_celery.graphql.filters')] | None = (
        strawberry_django.filter_field()
    )
    result_id: ID | None = strawberry_django.filter_field()
    attempt: Annotated['IntegerLookup', strawberry.lazy('netbox.graphql.filter_lookups')] | None = (
        strawberry_django.filter_field()
    )
    # A number, so that there is "this level and above"
    level: Annotated['IntegerLookup', strawberry.lazy('netbox.graphql.filter_lookups')] | None = (
        strawberry_django.filter_field()
    )
    grouping: StrFilterLookup | None = strawberry_django.filter_field()
    message: StrFilterLookup | None = strawberry_django.filter_field()
    object_type: Annotated['ContentTypeFilter', strawberry.lazy('core.graphql.filters')] | None = (
        strawberry_django.filter_field()
    )
    object_type_id: ID | None = strawberry_django.filter_field()
    object_id: Annotated['BigIntegerLookup', strawberry.lazy('netbox.graphql.filter_lookups')] | None = (
        strawberry_django.filter_field()
    )
    created: DatetimeFilterLookup | None = strawberry_django.filter_field()


@strawberry_django.filter_type(models.CelerySchedule, lookups=True)
class CeleryScheduleFilter(NetBoxModelFilter):
    name: StrFilterLookup | None = strawberry_django.filter_field()
    description: StrFilterLookup | None = strawberry_django.filter_field()
    enabled: FilterLookup[bool] | None = strawberry_django.filter_field()
    present: FilterLookup[bool] | None = strawberry_django.filter_field()
    origin: BaseFilterLookup[CeleryScheduleOriginEnum] | None = strawberry_django.filter_field()
    owner: Annotated['UserFilter', strawberry.lazy('users.graphql.filters')] | None = strawberry_django.filter_field()
    owner_id: ID | None = strawberry_django.filter_field()
    kind: BaseFilterLookup[CeleryScheduleKindEnum] | None = strawberry_django.filter_field()
    crontab: StrFilterLookup | None = strawberry_django.filter_field()
    timezone: StrFilterLookup | None = strawberry_django.filter_field()
    interval: Annotated['FloatLookup', strawberry.lazy('netbox.graphql.filter_lookups')] | None = (
        strawberry_django.filter_field()
    )
    at: DatetimeFilterLookup | None = strawberry_django.filter_field()
    start: DatetimeFilterLookup | None = strawberry_django.filter_field()
    end: DatetimeFilterLookup | None = strawberry_django.filter_field()
    task: Annotated['CeleryTaskFilter', strawberry.lazy('netbox_celery.graphql.filters')] | None = (
        strawberry_django.filter_field()
    )
    task_id: ID | None = strawberry_django.filter_field()
    queue: StrFilterLookup | None = strawberry_django.filter_field()
    priority: Annotated['IntegerLookup', strawberry.lazy('netbox.graphql.filter_lookups')] | None = (
        strawberry_django.filter_field()
    )
    expires: Annotated['IntegerLookup', strawberry.lazy('netbox.graphql.filter_lookups')] | None = (
        strawberry_django.filter_field()
    )
    object_type: Annotated['ContentTypeFilter', strawberry.lazy('core.graphql.filters')] | None = (
        strawberry_django.filter_field()
    )
    object_type_id: ID | None = strawberry_django.filter_field()
    object_id: Annotated['BigIntegerLookup', strawberry.lazy('netbox.graphql.filter_lookups')] | None = (
        strawberry_django.filter_field()
    )
    missed: BaseFilterLookup[CeleryScheduleMissedEnum] | None = strawberry_django.filter_field()
    overlap: BaseFilterLookup[CeleryScheduleOverlapEnum] | None = strawberry_django.filter_field()
    last_run: DatetimeFilterLookup | None = strawberry_django.filter_field()
    next_run: DatetimeFilterLookup | None = strawberry_django.filter_field()
    stopped: DatetimeFilterLookup | None = strawberry_django.filter_field()


@strawberry_django.filter_type(models.CeleryTask, lookups=True)
class CeleryTaskFilter(NetBoxModelFilter):
    name: StrFilterLookup | None = strawberry_django.filter_field()
    plugin: StrFilterLookup | None = strawberry_django.filter_field()
    description: StrFilterLookup | None = strawberry_django.filter_field()
    enabled: FilterLookup[bool] | None = strawberry_django.filter_field()
    present: FilterLookup[bool] | None = strawberry_django.filter_field()
    last_seen: DatetimeFilterLookup | None = strawberry_django.filter_field()


@strawberry_django.filter_type(models.CeleryWorker, lookups=True)
class CeleryWorkerFilter(BaseModelFilter):
    key: StrFilterLookup | None = strawberry_django.filter_field()
    name: StrFilterLookup | None = strawberry_django.filter_field()
    host: StrFilterLookup | None = strawberry_django.filter_field()
    pid: Annotated['IntegerLookup', strawberry.lazy('netbox.graphql.filter_lookups')] | None = (
        strawberry_django.filter_field()
    )
    pool: StrFilterLookup | None = strawberry_django.filter_field()
    concurrency: Annotated['IntegerLookup', strawberry.lazy('netbox.graphql.filter_lookups')] | None = (
        strawberry_django.filter_field()
    )
    started: DatetimeFilterLookup | None = strawberry_django.filter_field()
    heartbeat: DatetimeFilterLookup | None = strawberry_django.filter_field()
    stopped: DatetimeFilterLookup | None = strawberry_django.filter_field()
