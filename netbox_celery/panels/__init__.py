from .parts import PayloadPanel
from .results import (
    LIVE,
    ResultArgumentsPanel,
    ResultAttemptsPanel,
    ResultDataPanel,
    ResultErrorPanel,
    ResultLogPanel,
    ResultOptionsPanel,
    ResultRunPanel,
    ResultStatusPanel,
    ResultValuePanel,
    explain_status,
)
from .schedules import (
    ScheduleArgumentsPanel,
    ScheduleNextPanel,
    ScheduleOptionsPanel,
    SchedulePanel,
    SchedulePolicyPanel,
    ScheduleTimesPanel,
)
from .tasks import TaskDocumentationPanel, TaskPanel, TaskParametersPanel, TaskSchedulesPanel, TaskUnloadedPanel
from .workers import NotLoadedPanel, VersionsPanel, WorkerPanel

__all__ = (
    'LIVE',
    'NotLoadedPanel',
    'PayloadPanel',
    'ResultArgumentsPanel',
    'ResultAttemptsPanel',
    'ResultDataPanel',
    'ResultErrorPanel',
    'ResultLogPanel',
    'ResultOptionsPanel',
    'ResultRunPanel',
    'ResultStatusPanel',
    'ResultValuePanel',
    'ScheduleArgumentsPanel',
    'ScheduleNextPanel',
    'ScheduleOptionsPanel',
    'SchedulePanel',
    'SchedulePolicyPanel',
    'ScheduleTimesPanel',
    'TaskDocumentationPanel',
    'TaskPanel',
    'TaskParametersPanel',
    'TaskSchedulesPanel',
    'TaskUnloadedPanel',
    'VersionsPanel',
    'WorkerPanel',
    'explain_status',
)
