"""Writes what a task logs by Python's `logging` into the run's log."""
import logging

from celery.utils.log import task_logger

from ... import host
from ...choices import LogLevelChoices
from ...config import get_config
from ..calls.run import current_run
from ..store.recorder import recorder

__all__ = (
    'RunLogHandler',
    'install_log_handler',
    'remove_log_handler',
)

#: The level of a log entry for each of Python's levels: the highest one that is not above it.
LEVELS = (
    (logging.CRITICAL, LogLevelChoices.LEVEL_CRITICAL),
    (logging.ERROR, LogLevelChoices.LEVEL_FAILURE),
    (logging.WARNING, LogLevelChoices.LEVEL_WARNING),
    (LogLevelChoices.LEVEL_SUCCESS, LogLevelChoices.LEVEL_SUCCESS),
    (logging.INFO, LogLevelChoices.LEVEL_INFO),
    (0, LogLevelChoices.LEVEL_DEBUG),
)


class RunLogHandler(logging.Handler):
    """Adds records to the log of the run that the thread executes; outside of a run it does nothing."""

    def emit(self, record):
        run = current_run()
        if run is None or getattr(record, 'netbox_celery_handled', None) is run:
            return
        record.netbox_celery_handled = run  # once, also if several of our loggers handle the record
        try:
            level = next(level for lower, level in LEVELS if record.levelno >= lower)
            recorder.log(run, self.format(record), level=level)
        except Exception:  # noqa: BLE001 - as logging's own handlers do
            self.handleError(record)


def _logger(name):
    """Return a logger without changing the parent of Celery's task loggers below it.

    A new logger becomes the parent of the loggers below it, even if Celery has given them another one.
    """
    known = [found for found in logging.Logger.manager.loggerDict.values() if isinstance(found, logging.Logger)]
    parents = {found: found.parent for found in known if found.parent is task_logger}
    logger = logging.getLogger(name)
    for found, parent in parents.items():
        found.parent = parent
    if logger not in known and logger.parent is task_logger:
        logger.parent = logging.root
    return logger


class ConsoleFilter(logging.Filter):
    """Keeps records that only the logs of runs should have, by the setting `log_level`, out of the worker's own log.

    Args:
        levels: For each logger whose level was lowered, the one that held for it before.
    """

    def __init__(self, levels):
        super().__init__()
        self.levels = levels

    def filter(self, record):
        logger = logging.getLogger(record.name)
        while not logger.level and logger.parent:
            logger = logger.parent
        return record.levelno >= self.levels.get(logger, 0)


def install_log_handler():
    """Listen to Celery's task loggers (`get_task_logger`) and to the loggers of all plugins.

    The level of the worker's own log (`-l`) and that of runs' logs are independent. If the level of a plugin's logger
    was set, it applies to both.
    """
    log_level = get_config().log_level
    lowered = {}
    levels = {}
    # The engine's own messages belong in the worker's log
    targets = [task_logger, *(_logger(name) for name in host.plugin_packages() if name != 'netbox_celery')]
    for target in targets:
        if not any(isinstance(handler, RunLogHandler) for handler in target.handlers):
            target.addHandler(RunLogHandler(level=log_level))
        level = target.getEffectiveLevel()
        if level > log_level and (target is task_logger or not target.level):
            lowered[target] = level
    for target in lowered:
        levels[target] = target.level
        target.setLevel(log_level)
    _before.append(levels)
    if lowered:
        for handler in {*logging.root.handlers, *task_logger.handlers}:
            if not isinstance(handler, RunLogHandler):
                handler.addFilter(ConsoleFilter(lowered))


#: The levels that loggers had before they were lowered, for each time.
_before: list[dict[logging.Logger, int]] = []


def remove_log_handler():
    """Undo `install_log_handler()`: this process no longer runs tasks."""
    while _before:
        for target, level in _before.pop().items():
            target.setLevel(level)
    for name in (task_logger.name, *host.plugin_packages()):
        target = logging.getLogger(name)
        target.handlers = [handler for handler in target.handlers if not isinstance(handler, RunLogHandler)]
    for handler in {*logging.root.handlers, *task_logger.handlers}:
        for console_filter in [found for found in handler.filters if isinstance(found, ConsoleFilter)]:
            handler.removeFilter(console_filter)
