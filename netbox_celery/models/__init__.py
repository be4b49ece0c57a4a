from .log import CeleryLogEntry
from .result import CeleryResult
from .task import CeleryTask
from .window import IgnoreWindow
from .worker import CeleryWorker

__all__ = (
    'CeleryLogEntry',
    'CeleryResult',
    'CeleryTask',
    'CeleryWorker',
    'IgnoreWindow',
)
