import strawberry

from ..choices import (
    ResultReasonChoices,
    ResultStatusChoices,
    ScheduleKindChoices,
    ScheduleMissedChoices,
    ScheduleOriginChoices,
    ScheduleOverlapChoices,
)

__all__ = (
    'CeleryResultReasonEnum',
    'CeleryResultStatusEnum',
    'CeleryScheduleKindEnum',
    'CeleryScheduleMissedEnum',
    'CeleryScheduleOriginEnum',
    'CeleryScheduleOverlapEnum',
)

CeleryResultReasonEnum = strawberry.enum(ResultReasonChoices.as_enum(prefix='reason'), name='CeleryResultReasonEnum')
CeleryResultStatusEnum = strawberry.enum(ResultStatusChoices.as_enum(prefix='status'), name='CeleryResultStatusEnum')
CeleryScheduleKindEnum = strawberry.enum(
    ScheduleKindChoices.as_enum(prefix='kind'), name='CeleryScheduleKindEnum'
)
CeleryScheduleMissedEnum = strawberry.enum(
    ScheduleMissedChoices.as_enum(prefix='missed'), name='CeleryScheduleMissedEnum'
)
CeleryScheduleOriginEnum = strawberry.enum(
    ScheduleOriginChoices.as_enum(prefix='origin'), name='CeleryScheduleOriginEnum'
)
CeleryScheduleOverlapEnum = strawberry.enum(
    ScheduleOverlapChoices.as_enum(prefix='overlap'), name='CeleryScheduleOverlapEnum'
)
