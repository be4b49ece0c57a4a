from .bulk import CeleryResultBulkCancelView, CeleryResultBulkRerunView
from .logs import (
    CeleryResultLogDownloadView,
    CeleryResultLogGroupsView,
    CeleryResultLogLinesView,
    CeleryResultLogView,
)
from .results import (
    CeleryResultBulkDeleteView,
    CeleryResultCancelView,
    CeleryResultChangesView,
    CeleryResultDeleteView,
    CeleryResultListView,
    CeleryResultRerunView,
    CeleryResultView,
)
from .schedule_actions import (
    CeleryScheduleDisableView,
    CeleryScheduleEnableView,
    CeleryScheduleRunView,
    CeleryScheduleTakeOverView,
)
from .schedules import (
    CeleryScheduleBulkDeleteView,
    CeleryScheduleBulkEditView,
    CeleryScheduleBulkImportView,
    CeleryScheduleDeleteView,
    CeleryScheduleEditView,
    CeleryScheduleListView,
    CeleryScheduleRunsView,
    CeleryScheduleView,
    SchedulePreviewView,
)
from .tasks import (
    CeleryTaskBulkDeleteView,
    CeleryTaskBulkEditView,
    CeleryTaskDeleteView,
    CeleryTaskEditView,
    CeleryTaskListView,
    CeleryTaskRunView,
    CeleryTaskView,
)
from .workers import CeleryWorkerListView, CeleryWorkerView
from .workflow import CeleryResultCancelWorkflowView, CeleryResultWorkflowView

__all__ = (
    'CeleryResultBulkCancelView',
    'CeleryResultBulkDeleteView',
    'CeleryResultBulkRerunView',
    'CeleryResultCancelView',
    'CeleryResultCancelWorkflowView',
    'CeleryResultChangesView',
    'CeleryResultDeleteView',
    'CeleryResultListView',
    'CeleryResultLogDownloadView',
    'CeleryResultLogGroupsView',
    'CeleryResultLogLinesView',
    'CeleryResultLogView',
    'CeleryResultRerunView',
    'CeleryResultView',
    'CeleryResultWorkflowView',
    'CeleryScheduleBulkDeleteView',
    'CeleryScheduleBulkEditView',
    'CeleryScheduleBulkImportView',
    'CeleryScheduleDeleteView',
    'CeleryScheduleDisableView',
    'CeleryScheduleEditView',
    'CeleryScheduleEnableView',
    'CeleryScheduleListView',
    'CeleryScheduleRunView',
    'CeleryScheduleRunsView',
    'CeleryScheduleTakeOverView',
    'CeleryScheduleView',
    'CeleryTaskBulkDeleteView',
    'CeleryTaskBulkEditView',
    'CeleryTaskDeleteView',
    'CeleryTaskEditView',
    'CeleryTaskListView',
    'CeleryTaskRunView',
    'CeleryTaskView',
    'CeleryWorkerListView',
    'CeleryWorkerView',
    'SchedulePreviewView',
)
