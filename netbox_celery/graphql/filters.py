from typing import TYPE_CHECKING, Annotated

import strawberry
import strawberry_django
from django.db.models import QuerySet
from strawberry.scalars import ID
from strawberry.types import Info
from strawberry_django import BaseFilterLookup, DatetimeFilterLookup, FilterLookup, StrFilterLookup
from strawberry_django.filters import process_filters

from netbox.graphql.filters import BaseModelFilter, NetBoxModelFilter
from users.models import User

from .. import models
from ..reading.viewing import error_is_readable, is_viewable
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


def _beside(name, model, info, queryset, value, prefix):
    """Filter rows by a related object, limited to objects that the user may view."""
    queryset, matching = process_filters(value, queryset, info, prefix=f'{prefix}{name}__')
    return queryset, matching & is_viewable(name, model, info.context.request.user, prefix)


@strawberry_django.filter_type(models.CeleryResult, lookups=True)
class CeleryResultFilter(NetBoxModelFilter):
    task_id: StrFilterLookup | None = strawberry_django.filter_field()
    celery_name: StrFilterLookup | None = strawberry_django.filter_field()
    name: StrFilterLookup | None = strawberry_django.filter_field()
    status: BaseFilterLookup[CeleryResultStatusEnum] | None = strawberry_django.filter_field()
    reason: BaseFilterLookup[CeleryResultReasonEnum] | None = strawberry_django.filter_field()

    @strawberry_django.filter_field
    def error(self, info: Info, queryset: QuerySet, value: StrFilterLookup, prefix: str):
        queryset, matching = process_filters(
            value, queryset, info, prefix=f'{prefix}error__'  # type: ignore[arg-type]  # strawberry defines it at run time
        )
        return queryset, matching & error_is_readable(info.context.request.user, prefix)

    queue: StrFilterLookup | None = strawberry_django.filter_field()
    worker: StrFilterLookup | None = strawberry_django.filter_field()
    attempt: Annotated['IntegerLookup', strawberry.lazy('netbox.graphql.filter_lookups')] | None = (
        strawberry_django.filter_field()
    )

    @strawberry_django.filter_field
    def user(
        self, info: Info, queryset: QuerySet,
        value: Annotated['UserFilter', strawberry.lazy('users.graphql.filters')], prefix: str
    ):
        return _beside('user', User, info, queryset, value, prefix)

    user_id: ID | None = strawberry_django.filter_field()

    @strawberry_django.filter_field
    def schedule(
        self, info: Info, queryset: QuerySet,
        value: Annotated['CeleryScheduleFilter', strawberry.lazy('netbox_celery.graphql.filters')], prefix: str
    ):
        return _beside('schedule', models.CelerySchedule, info, queryset, value, prefix)

    schedule_id: ID | None = strawberry_django.filter_field()
    branch: StrFilterLookup | None = strawberry_django.filter_field()
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
    # A number, to allow "this level and above"
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

    @strawberry_django.filter_field
    def owner(
        self, info: Info, queryset: QuerySet,
        value: Annotated['UserFilter', strawberry.lazy('users.graphql.filters')], prefix: str
    ):
        return _beside('owner', User, info, queryset, value, prefix)

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

    @strawberry_django.filter_field
    def task(
        self, info: Info, queryset: QuerySet,
        value: Annotated['CeleryTaskFilter', strawberry.lazy('netbox_celery.graphql.filters')], prefix: str
    ):
        return _beside('task', models.CeleryTask, info, queryset, value, prefix)

    task_id: ID | None = strawberry_django.filter_field()
    queue: StrFilterLookup | None = strawberry_django.filter_field()
    branch: StrFilterLookup | None = strawberry_django.filter_field()
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
