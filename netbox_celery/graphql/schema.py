import strawberry
import strawberry_django

from .types import CeleryLogEntryType, CeleryResultType, CeleryScheduleType, CeleryTaskType, CeleryWorkerType

__all__ = (
    'CeleryQuery',
    'schema',
)


@strawberry.type(name='Query')
class CeleryQuery:
    celery_log_entry: CeleryLogEntryType = strawberry_django.field()
    celery_log_entry_list: list[CeleryLogEntryType] = strawberry_django.field()

    celery_result: CeleryResultType = strawberry_django.field()
    celery_result_list: list[CeleryResultType] = strawberry_django.field()

    celery_schedule: CeleryScheduleType = strawberry_django.field()
    celery_schedule_list: list[CeleryScheduleType] = strawberry_django.field()

    celery_task: CeleryTaskType = strawberry_django.field()
    celery_task_list: list[CeleryTaskType] = strawberry_django.field()

    celery_worker: CeleryWorkerType = strawberry_django.field()
    celery_worker_list: list[CeleryWorkerType] = strawberry_django.field()


schema = [
    CeleryQuery,
]
