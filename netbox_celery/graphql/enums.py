import strawberry

from ..choices import ResultReasonChoices, ResultStatusChoices

__all__ = (
    'CeleryResultReasonEnum',
    'CeleryResultStatusEnum',
)

CeleryResultReasonEnum = strawberry.enum(ResultReasonChoices.as_enum(prefix='reason'), name='CeleryResultReasonEnum')
CeleryResultStatusEnum = strawberry.enum(ResultStatusChoices.as_enum(prefix='status'), name='CeleryResultStatusEnum')
