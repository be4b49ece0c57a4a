"""Makes Django management commands available as tasks, as the setting `command_tasks` lists them.

    PLUGINS_CONFIG = {'netbox_celery': {'command_tasks': {'clearsessions': {'unique': True}}}}

creates the task `command.django.contrib.sessions.clearsessions`, based on `CeleryBaseTask`, in every NetBox process.
The arguments of a call are passed to the command, as in `django.core.management.call_command`; the output of the
command goes to the log of the run, line by line.
"""
import argparse
import io
import logging
import sys
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from inspect import Parameter, Signature, cleandoc
from traceback import walk_tb
from typing import Any

from celery import shared_task
from django.core.management import CommandError, call_command, get_commands, load_command_class
from django.utils.module_loading import import_string

from .choices import LogLevelChoices
from .config import get_config, suggestion, wrong
from .engine.calls.options import OWN_DICT, OWN_NAMES, OWN_PREFIX
from .engine.catalogue.commands import task_name
from .engine.exceptions import TaskFailed
from .tasks import CeleryBaseTask

__all__ = (
    'CommandFailed',
    'DjangoCommandTask',
    'register',
)

logger = logging.getLogger(__name__)

#: Task options that Celery reads but does not declare on its class.
UNDECLARED = frozenset((
    'autoretry_for', 'dont_autoretry_for', 'retry_kwargs', 'retry_backoff', 'retry_backoff_max', 'retry_jitter',
    'queue', 'exchange', 'routing_key', 'compression', 'delivery_mode', 'mandatory', 'immediate', 'typing',
    OWN_DICT, *(OWN_PREFIX + name for name in OWN_NAMES),
))
#: Attributes that the command determines.
FIXED = frozenset(('abstract', 'base', 'bind', 'command', 'name', 'run', 'takes_task_id'))

#: Options of every command that have no meaning in a task.
MEANINGLESS = frozenset((
    'help', 'version', 'settings', 'pythonpath', 'traceback', 'no_color', 'force_color', 'skip_checks',
))

#: Values of options that keep commands from prompting: there is no user who could answer.
UNATTENDED = {'interactive': False, 'no_input': True, 'noinput': True}

#: A signature that accepts all arguments.
ANYTHING = Signature([Parameter('args', Parameter.VAR_POSITIONAL), Parameter('options', Parameter.VAR_KEYWORD)])
#: Annotations by the parser's action for an argument, or else by the argument's type.
VALUES = {
    argparse._StoreTrueAction: 'bool', argparse._StoreFalseAction: 'bool', argparse.BooleanOptionalAction: 'bool',
    argparse._CountAction: 'int', argparse._AppendAction: 'list', argparse._AppendConstAction: 'list',
    argparse._ExtendAction: 'list',
}
TYPES = {None: 'str', str: 'str', int: 'int', float: 'float'}

#: The `stdout` and `stderr` of the command that the current context runs.
_streams: ContextVar[dict] = ContextVar('netbox_celery_streams', default={})


class CommandFailed(TaskFailed, CommandError):
    """A command raised `CommandError`, exited with an error code, or was called with an unknown option."""


class DjangoCommandTask(CeleryBaseTask):
    """Base class of tasks that run a Django management command."""

    abstract = True
    #: Name of the command.
    command: str = ''
    #: The signature of its calls for the catalogue.
    call_signature = ANYTHING
    #: The default, so that `unique` is enough: the slot is free again when the run finishes, however it does.
    stale_time_limit: Any = timedelta(days=1)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # Load the command only when the app's tasks are needed: its module may import anything.
        try:
            parser = _load(cls.command).create_parser('', cls.command)
        except Exception:
            logger.exception('The command %s could not be loaded: its runs will fail', cls.command)
        else:
            cls.__doc__ = _documentation(parser)
            cls.call_signature = _signature(parser)

    def run_command(self, args, options):
        """Run the command with its output in the log of the current run. Returns the return value of the command."""
        unattended = {name: UNATTENDED[name] for name in UNATTENDED.keys() & self.call_signature.parameters.keys()}
        options = unattended | options
        with _written_to(self.log) as streams:
            try:
                return call_command(self.command, *args, **options, **streams)
            except CommandError as exc:
                raise CommandFailed(str(exc), returncode=exc.returncode) from exc  # type: ignore[call-arg]  # CommandError's
            except TypeError as exc:
                if len(list(walk_tb(exc.__traceback__))) > 2:
                    raise
                # Raised by `call_command` itself, not by the command: an option that the command does not have
                raise CommandFailed(str(exc)) from exc
            except SystemExit as exc:
                if exc.code:
                    why = exc.code if isinstance(exc.code, str) else f'The command exited with code {exc.code}'
                    raise CommandFailed(why) from exc


def register() -> None:
    """Create the tasks that the setting `command_tasks` lists.

    Raises:
        django.core.exceptions.ImproperlyConfigured: A command or an option of its task is unknown.
    """
    for command, options in get_config().command_tasks.items():
        name = task_name(command)
        _register(command, name, {key: _option(command, key, value) for key, value in options.items()})


def _register(command, name, options):
    def run(self, task_id, /, *args, **options):
        return self.run_command(args, options)

    # The catalogue shows which app the command belongs to
    run.__module__ = f'{get_commands()[command]}.management.commands.{command}'
    run.__name__ = run.__qualname__ = command
    shared_task(run, name=name, base=DjangoCommandTask, bind=True, command=command, **options)


def _option(command, name, value):
    setting = f'command_tasks[{command!r}]'
    if name in FIXED:
        raise wrong(setting, f'sets {name!r}, which the command determines')
    if name not in UNDECLARED and not hasattr(CeleryBaseTask, name):
        known = {*UNDECLARED, *(name for name in dir(CeleryBaseTask) if not name.startswith('_'))}
        raise wrong(setting, f'sets {name!r}, which is not a task option{suggestion(name, known)}')
    if name in ('autoretry_for', 'dont_autoretry_for'):
        # The exceptions may be given as dotted names: NetBox's configuration cannot import everything
        try:
            return tuple(import_string(item) if isinstance(item, str) else item for item in value)
        except (ImportError, TypeError) as exc:
            raise wrong(setting, f'sets {name!r} to {value!r}, which are not exceptions ({exc})') from exc
    return value


def _load(command):
    return load_command_class(get_commands()[command], command)


# The arguments of a command

def _signature(parser):
    """Return the signature of a command's calls, with positional arguments by position and options by name.

    If a signature cannot express what the parser expects, as with subcommands, the command accepts all arguments.
    """
    by_position, further, by_name = [], [], []
    try:
        for action in _actions(parser):
            if action.option_strings:
                by_name.append(_parameter(action, Parameter.KEYWORD_ONLY, required=action.required))
            elif action.nargs in (None, '?'):
                by_position.append(_parameter(action, Parameter.POSITIONAL_ONLY, required=action.nargs is None))
            else:
                further.append(Parameter(action.dest, Parameter.VAR_POSITIONAL))
        signature = Signature([*by_position, *further, *by_name])
    except ValueError:
        return ANYTHING
    return signature if len(further) <= 1 else ANYTHING


def _actions(parser):
    return [
        action for action in parser._actions
        if action.dest not in MEANINGLESS and argparse.SUPPRESS not in (action.dest, action.help)
    ]


def _parameter(action, kind, required):
    default = UNATTENDED.get(action.dest, action.default if action.default != argparse.SUPPRESS else None)
    return Parameter(
        action.dest, kind, annotation=_annotation(action, required or default is not None),
        default=Parameter.empty if required else default
    )


def _annotation(action, has_value):
    """Return the annotation of a command's argument, or `Parameter.empty` if only the command knows its type."""
    kind: str | None
    if type(action) in VALUES:
        kind = VALUES[type(action)]
    elif action.nargs not in (None, '?'):
        kind = 'list' if action.nargs != 0 else None
    elif action.choices is not None:
        kind = f'Literal{list(action.choices)!r}'
    else:
        kind = TYPES.get(action.type)
    if kind is None:
        return Parameter.empty
    return kind if has_value else f'{kind} | None'


def _documentation(parser):
    """Return a docstring generated from the help of a command."""
    text = cleandoc(parser.description or '')
    described = [f'    {action.dest}: {_help(parser, action)}' for action in _actions(parser) if action.help]
    return '\n'.join([text, '', 'Args:', *described]) if described else text


def _help(parser, action):
    return ' '.join(parser._get_formatter()._expand_help(action).split())


# The output of a command

class _LogStream(io.TextIOBase):
    """A file that writes its lines to a log."""

    def __init__(self, write_line):
        self._write_line = write_line
        self._rest = ''

    def write(self, text):
        *lines, self._rest = f'{self._rest}{text}'.split('\n')
        for line in lines:
            self._end(line)
        return len(text)

    def finish(self):
        """Write the last line, which may have no line break."""
        self._end(self._rest)
        self._rest = ''

    def _end(self, line):
        # If a line returned to its start, as progress bars do, only what was written last is visible
        if line := line.rstrip('\r').rsplit('\r', 1)[-1]:
            # What logging prints meanwhile is not output of the command
            token = _streams.set({})
            try:
                self._write_line(line)
            finally:
                _streams.reset(token)


class _Diverted:
    """Replaces `sys.stdout` or `sys.stderr` while commands run: what a thread's command prints goes to its log.

    For threads that run no command, it behaves as the file that it replaced. It stays usable after the last command,
    since other code, such as a logging handler, may hold a reference to it.
    """

    def __init__(self, name, original):
        self._name = name
        self._original = original

    def __getattr__(self, name):
        if '_name' not in vars(self):
            raise AttributeError(name)  # it is being copied
        return getattr(_streams.get().get(self._name, self._original), name)


class _Diversion:
    """Diverts `sys.stdout` and `sys.stderr` when the first command starts, and restores them after the last one."""

    def __init__(self):
        self._lock = threading.Lock()
        self._commands = 0
        self._diverted = []

    def __enter__(self):
        with self._lock:
            self._commands += 1
            for name in ('stdout', 'stderr'):
                # Other code may replace the file meanwhile: the next command diverts the new file as well
                if not isinstance(file := getattr(sys, name), _Diverted):
                    self._diverted.append((name, diverted := _Diverted(name, file), file))
                    setattr(sys, name, diverted)

    def __exit__(self, *exc_info):
        with self._lock:
            self._commands -= 1
            while self._diverted and not self._commands:
                name, diverted, file = self._diverted.pop()
                if getattr(sys, name) is diverted:
                    setattr(sys, name, file)


_diversion = _Diversion()


@contextmanager
def _written_to(log):
    streams = {
        'stdout': _LogStream(log),
        'stderr': _LogStream(lambda line: log(line, LogLevelChoices.LEVEL_WARNING)),
    }
    with _diversion:
        token = _streams.set(streams)
        try:
            yield streams
        finally:
            _streams.reset(token)
            for stream in streams.values():
                stream.finish()
