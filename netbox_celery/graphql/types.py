"""GraphQL types, with the same data and permissions as REST.

Queries load only the columns that they request. A resolver names the columns that it needs in `only`; otherwise each
row would cost another query.
"""
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import strawberry
import strawberry_django
from strawberry.scalars import JSON
from strawberry.types import Info
from strawberry_django.fields.types import field_type_map

from netbox.graphql.scalars import BigInt
from netbox.graphql.types import BaseObjectType, NetBoxObjectType

from .. import models
from ..engine.store import branches
from ..models.fields import IntervalField, MappingField, NamesField, ParametersField, TimeField
from ..models.redaction import shown
from ..reading.viewing import Reader
from .filters import (
    CeleryLogEntryFilter,
    CeleryResultFilter,
    CeleryScheduleFilter,
    CeleryTaskFilter,
    CeleryWorkerFilter,
)

if TYPE_CHECKING:
    from netbox.graphql.types import ContentTypeType
    from users.graphql.types import UserType

__all__ = (
    'CeleryLogEntryType',
    'CeleryResultType',
    'CeleryScheduleType',
    'CeleryTaskType',
    'CeleryWorkerType',
)


field_type_map[TimeField] = datetime
field_type_map[IntervalField] = float
field_type_map.update(dict.fromkeys((MappingField, NamesField, ParametersField), JSON))


def _reader(info):
    """Return the reader of a response, one for all its rows."""
    request = info.context.request
    if not hasattr(request, 'celery_reader'):
        request.celery_reader = Reader(request.user)
    return request.celery_reader


def _branch_name(info, branch):
    """Return the name of a branch, or `None` for main and for deleted branches; each is looked up once."""
    if not branch:
        return None
    request = info.context.request
    known = vars(request).setdefault('celery_branches', {})
    if branch not in known:
        known[branch] = branches.shown([branch]).get(branch, {}).get('name')
    return known[branch]


@strawberry_django.type(
    models.CeleryResult,
    fields=[
        'id', 'task_id', 'celery_name', 'name', 'status', 'reason', 'queue', 'worker', 'step', 'attempt', 'scheduled',
        'expires', 'sent', 'started', 'completed', 'cancelled', 'traceback', 'request_id', 'parent_id',
        'root_id', 'group_id', 'concurrency_key', 'stale_after', 'branch', 'created', 'last_updated',
    ],
    filters=CeleryResultFilter,
    pagination=True
)
class CeleryResultType(NetBoxObjectType):
    user: Annotated['UserType', strawberry.lazy('users.graphql.types')] | None
    schedule: Annotated['CeleryScheduleType', strawberry.lazy('netbox_celery.graphql.types')] | None
    object_type: Annotated['ContentTypeType', strawberry.lazy('netbox.graphql.types')] | None
    object_id: BigInt | None
    value: BigInt | None
    value_max: BigInt | None
    # A page of those that the reader may view, oldest first
    log_entries: list[Annotated['CeleryLogEntryType', strawberry.lazy('netbox_celery.graphql.types')]]

    @strawberry_django.field(only=['name', 'celery_name', 'task_id'])
    def display(self) -> str:
        return str(self)

    @strawberry_django.field(only=['branch'])
    def branch_name(self, info: Info) -> str | None:
        return _branch_name(info, self.branch)

    @strawberry_django.field(only=['value', 'value_max'])
    def percentage(self) -> float | None:
        return self.percentage

    # Redacted as the caller asked: `argsrepr` and `kwargsrepr` replace secret values
    @strawberry_django.field(only=['args', 'options'])
    def args(self) -> JSON | None:
        return self.display_args

    @strawberry_django.field(only=['kwargs', 'options'])
    def kwargs(self) -> JSON | None:
        return self.display_kwargs

    @strawberry_django.field(only=['options'])
    def options(self) -> JSON:
        return self.display_options

    @strawberry_django.field(only=['error', 'reason'])
    def error(self, info: Info) -> str:
        return _reader(info).error_of(self)

    @strawberry_django.field(only=['data'])
    def data(self) -> JSON | None:
        return shown(self.data)

    @strawberry_django.field(only=['result'])
    def result(self) -> JSON | None:
        return shown(self.result)

    @strawberry_django.field(only=['attempts', 'error', 'reason'])
    def attempts(self, info: Info) -> JSON:
        return _reader(info).attempts_of(self)


@strawberry_django.type(
    models.CeleryLogEntry,
    fields=['id', 'attempt', 'level', 'grouping', 'message', 'created'],
    filters=CeleryLogEntryFilter,
    pagination=True
)
class CeleryLogEntryType(BaseObjectType):
    result: Annotated['CeleryResultType', strawberry.lazy('netbox_celery.graphql.types')]
    object_type: Annotated['ContentTypeType', strawberry.lazy('netbox.graphql.types')] | None
    object_id: BigInt | None

    @strawberry_django.field(only=['message'])
    def display(self) -> str:
        return str(self)


@strawberry_django.type(
    models.CelerySchedule,
    fields=[
        'id', 'name', 'description', 'enabled', 'origin', 'present', 'kind', 'crontab', 'timezone', 'interval', 'at',
        'start', 'end', 'queue', 'priority', 'expires', 'missed', 'missed_max', 'overlap', 'last_run', 'next_run',
        'stopped', 'branch', 'created', 'last_updated',
    ],
    filters=CeleryScheduleFilter,
    pagination=True
)
class CeleryScheduleType(NetBoxObjectType):
    owner: Annotated['UserType', strawberry.lazy('users.graphql.types')] | None
    # Every schedule has one, but not every user may view it
    task: Annotated['CeleryTaskType', strawberry.lazy('netbox_celery.graphql.types')] | None
    object_type: Annotated['ContentTypeType', strawberry.lazy('netbox.graphql.types')] | None
    object_id: BigInt | None

    @strawberry_django.field(only=['name'])
    def display(self) -> str:
        return str(self)

    @strawberry_django.field(only=['branch'])
    def branch_name(self, info: Info) -> str | None:
        return _branch_name(info, self.branch)

    @strawberry_django.field(only=['kind', 'crontab', 'timezone', 'interval', 'at'])
    def in_words(self) -> str:
        return self.in_words

    @strawberry_django.field(only=['args', 'options'])
    def args(self) -> JSON:
        return self.display_args

    @strawberry_django.field(only=['kwargs', 'options'])
    def kwargs(self) -> JSON:
        return self.display_kwargs

    @strawberry_django.field(only=['options'])
    def options(self) -> JSON:
        return self.display_options


@strawberry_django.type(
    models.CeleryTask,
    fields=[
        'id', 'name', 'plugin', 'description', 'documentation', 'enabled', 'present', 'last_seen', 'defaults',
        'parameters', 'created', 'last_updated',
    ],
    filters=CeleryTaskFilter,
    pagination=True
)
class CeleryTaskType(NetBoxObjectType):

    @strawberry_django.field(only=['name'])
    def display(self) -> str:
        return str(self)


@strawberry_django.type(
    models.CeleryWorker,
    fields=[
        'id', 'key', 'name', 'host', 'pid', 'pool', 'concurrency', 'queues', 'started', 'heartbeat', 'stopped',
    ],
    filters=CeleryWorkerFilter,
    pagination=True
)
class CeleryWorkerType(BaseObjectType):

    @strawberry_django.field(only=['name'])
    def display(self) -> str:
        return str(self)

    @strawberry_django.field(only=['versions'])
    def versions(self) -> JSON:
        return self.package_versions

    @strawberry_django.field(only=['versions'])
    def autoscale(self) -> JSON | None:
        return self.autoscale

    @strawberry_django.field(only=['versions'])
    def not_loaded(self) -> JSON:
        return self.not_loaded

    @strawberry_django.field(only=['heartbeat', 'stopped', 'versions'])
    def is_alive(self) -> bool:
        return self.is_alive
