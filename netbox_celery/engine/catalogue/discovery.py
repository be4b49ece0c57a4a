"""Imports the task modules of plugins one by one, so that an error in one module does not affect the others.

Celery imports the `tasks` modules of all plugins in sequence, and the modules in its settings (`imports`, `include`).
With Celery alone, an exception in one of them stops a worker at its start, and makes every call by name fail in NetBox.
Here, only that module is skipped, and its plugin, its error and its place are kept (`failures`). Each process imports
for itself, and may lack modules that another one has. A module is tried once: what its first part has done is not
repeated before a restart.

Tasks of a module that was executed only in part are not registered, since their bodies may use names that were never
defined. Tasks of the plugin's other modules are registered.
"""
import importlib
import logging
import os
import sys
import traceback as traceback_module
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from celery import signals
from celery.loaders.app import AppLoader
from celery.loaders.base import find_related_module
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, transaction

from ..internals import fixups, registered
from ..store.database import caller
from ..store.payload import clean_text, cut_text, text_of

__all__ = (
    'Failure',
    'Loader',
    'failed_plugins',
    'failures',
    'forget_halves',
    'is_half',
    'log_failures',
    'note_failure',
    'package_of',
    'why_unregistered',
)

logger = logging.getLogger(__name__)

IMPORTLIB = os.path.dirname(importlib.__file__)

#: Length of the longest error of a failure, characters.
MOST_TEXT = 500

#: Modules that this process could not import, by name.
_failures: dict[str, 'Failure'] = {}
#: Tracebacks that are not logged yet, by name of the module.
_unlogged: dict[str, str] = {}
#: Names of modules that were executed only in part.
_halves: set[str | None] = set()


@dataclass(frozen=True)
class Failure:
    """A module whose tasks this process does not have."""
    #: Package of the module.
    plugin: str
    module: str
    #: Type and text of the exception.
    error: str
    #: File and line in the plugin at which the exception was raised, or through which it passed.
    place: str

    def __str__(self) -> str:
        return f'{self.module}: {self.error}' + (f' ({self.place})' if self.place else '')

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def failures() -> list[Failure]:
    """Return the modules that this process could not import, sorted by name."""
    return [failure for __, failure in sorted(dict(_failures).items())]


def failed_plugins() -> set[str]:
    """Return the names of the packages whose tasks this process lacks."""
    return {failure.plugin for failure in failures()}


def why_unregistered(name: str, plugin: str | None = None) -> str:
    """Return the reason why this process does not know a task, or an empty string if it is unknown.

    Args:
        name: The task's name, which starts with the name of its plugin by convention.
        plugin: The package of the task, if it is known.
    """
    plugin = plugin or package_of(name)
    return '; '.join(str(failure) for failure in failures() if failure.plugin == plugin)


def package_of(name: str) -> str:
    """Return the first part of the dotted name of a module or of a task: its package."""
    return name.split(':')[0].split('.')[0]


class Loader(AppLoader):
    """Celery's loader, which skips modules that cannot be imported."""

    #: Whether logging is not set up yet: a worker or beat does that after it has imported all modules.
    is_early = False

    def init_worker(self):
        self.is_early = True
        try:
            super().init_worker()
        finally:
            self.is_early = False

    def autodiscover_tasks(self, packages, related_name='tasks'):
        for package in packages or ():
            module = f'{package}.{related_name}' if related_name else package
            if found := self._attempt(module, find_related_module, package, related_name):
                self.task_modules.add(found.__name__)

    def import_task_module(self, module):
        return self._attempt(module, super().import_task_module, module)

    def import_default_modules(self):
        for receiver, response in signals.import_modules.send(sender=self.app):
            if not isinstance(response, Exception):
                continue
            # Celery's Django fixup sets Django up: that must not fail
            if getattr(receiver, '__self__', None) in fixups(self.app):
                raise response
            with self._noting(_name_of(receiver)):
                raise response
        return [module for name in self.default_modules if (module := self.import_task_module(name))]

    def _attempt(self, module, function, *args):
        """Return what `function` returns, which imports a module; `None` if that fails now or failed before."""
        if module in _failures:
            if module not in sys.modules:
                return None
            del _failures[module]  # other code has imported it since
        with self._noting(module):
            return _in_savepoint(function, *args)
        return None

    @contextmanager
    def _noting(self, module):
        """Catch what is raised in the block, and record it under the name of a module."""
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # noqa: BLE001 - a module can raise anything, `SystemExit` too
            note_failure(module, exc)
            forget_halves(self.app)
            if not self.is_early:
                log_failures()


def _in_savepoint(function, *args):
    """Call a function whose queries must not break the caller's transaction, in main or in a branch."""
    found = None
    try:
        with ExitStack() as savepoints:
            for alias in {DEFAULT_DB_ALIAS, caller().alias}:
                if connections[alias].in_atomic_block:
                    savepoints.enter_context(transaction.atomic(using=alias))
            found = function(*args)
    except DatabaseError:
        # A module that handles a failed query itself was imported
        if found is None:
            raise
    return found


def note_failure(module: str, exc: BaseException) -> None:
    """Record that a module could not be imported, or that it has a task that cannot be created."""
    traceback = exc.__traceback__
    _halves.update(
        frame.f_globals.get('__name__') for frame, __ in traceback_module.walk_tb(traceback)
        if frame.f_code.co_name == '<module>' and frame.f_globals.get('__name__') not in sys.modules
    )
    plugin = package_of(module)
    text = text_of(exc)
    error = ' '.join((f'{type(exc).__name__}: {text}' if text else type(exc).__name__).split())
    _failures[module] = Failure(
        plugin=plugin, module=module, error=cut_text(clean_text(error), MOST_TEXT), place=_place(plugin, exc)
    )
    _unlogged[module] = ''.join(traceback_module.format_exception(exc))


def log_failures() -> None:
    """Log the modules that could not be imported and were not logged yet, with tracebacks."""
    while _unlogged:
        module, traceback = _unlogged.popitem()
        logger.error(
            'The tasks of %s are not available in this process, which continues without them: %s\n%s',
            package_of(module), _failures.get(module, module), traceback.rstrip()
        )


def is_half(target: object) -> bool:
    """Whether a function comes from a module that was executed only in part."""
    name = getattr(target, '__module__', None)
    return name in _halves and name not in sys.modules


def forget_halves(app: Any) -> None:
    """Remove tasks from the registry whose modules were executed only in part."""
    for name, task in list(registered(app).items()):
        if is_half(task):
            registered(app).pop(name, None)


def _name_of(receiver):
    """Return the module of a receiver of Celery's signal `import_modules`; for a promise, that of its callback."""
    function = next(filter(callable, getattr(receiver, 'args', None) or ()), getattr(receiver, 'fun', receiver))
    return getattr(function, '__module__', None) or type(function).__module__


def _place(plugin, exc):
    """Return the file and line in a plugin from which an exception came; outside of it if no frame is in the plugin."""
    if isinstance(exc, SyntaxError) and exc.filename:
        return f'{_short(exc.filename)}:{exc.lineno}'
    frames = [
        frame for frame in traceback_module.extract_tb(exc.__traceback__)
        if frame.filename != __file__ and not frame.filename.startswith(('<frozen importlib', IMPORTLIB))
    ]
    folder = _folder(plugin)
    own = [frame for frame in frames if folder and frame.filename.startswith(folder)]
    for frame in (own or [frame for frame in frames if f'{os.sep}celery{os.sep}' not in frame.filename])[-1:]:
        return f'{_short(frame.filename)}:{frame.lineno}'
    return ''


def _folder(package):
    try:
        spec = find_spec(package)
    except Exception:  # noqa: BLE001 - this imports parent packages, which may raise anything
        return ''
    places = spec and spec.submodule_search_locations
    return os.path.join(next(iter(places)), '') if places else ''


def _short(filename):
    """Return a file's path from its package on: users of NetBox see it, who need not know where it is installed."""
    places = [os.path.join(place, '') for place in sys.path if place and filename.startswith(os.path.join(place, ''))]
    return filename[len(max(places, key=len)):] if places else os.path.basename(filename)
