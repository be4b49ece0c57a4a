from .bulk_edit import CeleryTaskBulkEditForm
from .filtersets import CeleryResultFilterForm, CeleryTaskFilterForm, CeleryWorkerFilterForm
from .log import LogForm
from .model_forms import CeleryTaskForm
from .run import RunForm

__all__ = (
    'CeleryResultFilterForm',
    'CeleryTaskBulkEditForm',
    'CeleryTaskFilterForm',
    'CeleryTaskForm',
    'CeleryWorkerFilterForm',
    'LogForm',
    'RunForm',
)
