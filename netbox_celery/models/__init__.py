from .lease import Lease
from .log import CeleryLogEntry
from .result import CeleryResult
from .schedule import CelerySchedule
from .task import CeleryTask
from .window import IgnoreWindow
from .worker import CeleryWorker

__all__ = (
    'CeleryLogEntry',
    'CeleryResult',
    'CelerySchedule',
    'CeleryTask',
    'CeleryWorker',
    'IgnoreWindow',
    'Lease',
)
