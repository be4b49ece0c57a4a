from .log import CeleryLogEntry
from .result import CeleryResult
from .task import CeleryTask
from .worker import CeleryWorker

__all__ = (
    'CeleryLogEntry',
    'CeleryResult',
    'CeleryTask',
    'CeleryWorker',
)
