from .bulk_edit import CeleryScheduleBulkEditForm, CeleryTaskBulkEditForm
from .bulk_import import CeleryScheduleImportForm
from .filtersets import (
    CeleryResultFilterForm,
    CeleryScheduleFilterForm,
    CeleryTaskFilterForm,
    CeleryWorkerFilterForm,
)
from .log import LogForm
from .model_forms import CeleryTaskForm
from .run_task import RunForm
from .schedule import CeleryScheduleForm

__all__ = (
    'CeleryResultFilterForm',
    'CeleryScheduleBulkEditForm',
    'CeleryScheduleFilterForm',
    'CeleryScheduleForm',
    'CeleryScheduleImportForm',
    'CeleryTaskBulkEditForm',
    'CeleryTaskFilterForm',
    'CeleryTaskForm',
    'CeleryWorkerFilterForm',
    'LogForm',
    'RunForm',
)
