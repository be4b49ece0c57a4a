"""Django's management commands as tasks, as the setting `command_tasks` names them.

    PLUGINS_CONFIG = {'netbox_celery': {'command_tasks': {'clearsessions': {'unique': True}}}}

makes the task `command.django.contrib.sessions.clearsessions` on `CeleryBaseTask`, in every NetBox process. What its
call is given goes to the command, as `django.core.management.call_command` takes it; what the command writes goes to
the log of the run, line by line.
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

#: Task options that Celery reads and does not declare on its class.
UNDECLARED = frozenset((
    'autoretry_for', 'dont_autoretry_for', 'retry_kwargs', 'retry_backoff', 'retry_backoff_max', 'retry_jitter',
    'queue', 'exchange', 'routing_key', 'compression', 'delivery_mode', 'mandatory', 'immediate', 'typing',
    OWN_DICT, *(OWN_PREFIX + name for name in OWN_NAMES),
))
#: What makes it this task, and not another one.
FIXED = frozenset(('abstract', 'base', 'bind', 'command', 'name', 'run', 'takes_task_id'))

#: Options of every command that mean nothing to one that runs as a task.
MEANINGLESS = frozenset((
    'help', 'version', 'settings', 'pythonpath', 'traceback', 'no_color', 'force_color', 'skip_checks',
))

#: Defaults of options by which commands ask nobody anything: there is nobody who could answer.
UNATTENDED = {'interactive': False, 'no_input': True, 'noinput': True}

#: A signature that says nothing.
ANYTHING = Signature([Parameter('args', Parameter.VAR_POSITIONAL), Parameter('options', Parameter.VAR_KEYWORD)])
#: Kinds of values by what the parser does with an argument, else by the type that it makes of it.
VALUES = {
    argparse._StoreTrueAction: 'bool', argparse._StoreFalseAction: 'bool', argparse.BooleanOptionalAction: 'bool',
    argparse._CountAction: 'int', argparse._AppendAction: 'list', argparse._AppendConstAction: 'list',
    argparse._ExtendAction: 'list',
}
TYPES = {None: 'str', str: 'str', int: 'int', float: 'float'}

#: Where the command that the current thread runs writes to: its `stdout` and `stderr`.
_streams: ContextVar[dict] = ContextVar('netbox_celery_streams', default={})


class CommandFailed(TaskFailed, CommandError):
    """A command ended with a `CommandError`, by leaving with an exit code, or was called with an option it has not."""


class DjangoCommandTask(CeleryBaseTask):
    """Base class of tasks that run a command of Django's."""

    abstract = True
    #: Name of the command.
    command: str = ''
    #: What the catalogue takes for the signature of its calls.
    call_signature = ANYTHING
    #: A unique command needs nothing said of this: its place is free again at its end, whatever that is.
    stale_time_limit = timedelta(days=1)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # Not before the app's tasks are needed: the module of a command may import anything.
        try:
            parser = _load(cls.command).create_parser('', cls.command)
        except Exception:
            logger.exception('The command %s cannot be loaded: its runs will fail', cls.command)
        else:
            cls.__doc__ = _documentation(parser)
            cls.call_signature = _signature(parser)

    def run_command(self, args, options):
        """Run the command, with its output in the log of the current run; returns what the command returns."""
        unattended = {name: UNATTENDED[name] for name in UNATTENDED.keys() & self.call_signature.parameters.keys()}
        options = unattended | options
        with _written_to(self.log) as streams:
            try:
                return call_command(self.command, *args, **options, **streams)
            except CommandError as exc:
                raise CommandFailed(str(exc), returncode=exc.returncode) from exc
            except TypeError as exc:
                if len(list(walk_tb(exc.__traceback__))) > 2:
                    raise
                # Not from within the command, but of `call_command` itself: an option that the command has not
                raise CommandFailed(str(exc)) from exc
            except SystemExit as exc:
                if exc.code:
                    why = exc.code if isinstance(exc.code, str) else f'The command ended with exit code {exc.code}'
                    raise CommandFailed(why) from exc


def register():
    """Make the tasks that the setting `command_tasks` asks for.

    Raises:
        django.core.exceptions.ImproperlyConfigured: A command or an option of its task is unknown.
    """
    for command, options in get_config().command_tasks.items():
        name = task_name(command)
        _register(command, name, {key: _option(command, key, value) for key, value in options.items()})


def _register(command, name, options):
    def run(self, task_id, /, *args, **options):
        return self.run_command(args, options)

    # The catalogue shows whose command it is
    run.__module__ = f'{get_commands()[command]}.management.commands.{command}'
    run.__name__ = run.__qualname__ = command
    shared_task(run, name=name, base=DjangoCommandTask, bind=True, command=command, **options)


def _option(command, name, value):
    setting = f'command_tasks[{command!r}]'
    if name in FIXED:
        raise wrong(setting, f'sets {name!r}, which the command decides')
    if name not in UNDECLARED and not hasattr(CeleryBaseTask, name):
        known = {*UNDECLARED, *(name for name in dir(CeleryBaseTask) if not name.startswith('_'))}
        raise wrong(setting, f'sets {name!r}, which is no option of a task{suggestion(name, known)}')
    if name in ('autoretry_for', 'dont_autoretry_for'):
        # NetBox's configuration cannot import everything
        try:
            return tuple(import_string(item) if isinstance(item, str) else item for item in value)
        except (ImportError, TypeError) as exc:
            raise wrong(setting, f'sets {name!r} to {value!r}, which are no exceptions ({exc})') from exc
    return value


def _load(command):
    return load_command_class(get_commands()[command], command)


# What a command can be given

def _signature(parser):
    """Return the signature of a command's calls: its positional arguments by position, its options by name.

    Where a signature cannot say what the parser wants, as with subcommands, the command takes anything.
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
    """Return what values an argument of a command has, or nothing where only the command knows."""
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
    """Return a docstring made of a command's help."""
    text = cleandoc(parser.description or '')
    described = [f'    {action.dest}: {_help(parser, action)}' for action in _actions(parser) if action.help]
    return '\n'.join([text, '', 'Args:', *described]) if described else text


def _help(parser, action):
    return ' '.join(parser._get_formatter()._expand_help(action).split())


# What it writes

class _LogStream(io.TextIOBase):
    """A file whose lines are those of a log."""

    def __init__(self, say):
        self._say = say
        self._begun = ''

    def write(self, text):
        *lines, self._begun = f'{self._begun}{text}'.split('\n')
        for line in lines:
            self._end(line)
        return len(text)

    def finish(self):
        """Write what was begun: the last line needs no line break."""
        self._end(self._begun)
        self._begun = ''

    def _end(self, line):
        # A line that returned to its beginning, as progress bars do, shows what was written last
        if line := line.rstrip('\r').rsplit('\r', 1)[-1]:
            # What logging prints on the way is not the command's
            token = _streams.set({})
            try:
                self._say(line)
            finally:
                _streams.reset(token)


class _Diverted:
    """Stands for `sys.stdout` or `sys.stderr` while commands run: what a thread's command prints goes to its log.

    For threads that run no command it is the file that it has replaced. It stays usable after the last command, since
    other code may hold it (a logging handler, say).
    """

    def __init__(self, name, original):
        self._name = name
        self._original = original

    def __getattr__(self, name):
        if '_name' not in vars(self):
            raise AttributeError(name)  # it is being copied
        return getattr(_streams.get().get(self._name, self._original), name)


class _Diversion:
    """Puts `_Diverted` in place of `sys.stdout` and `sys.stderr` with the first command, and back after the last."""

    def __init__(self):
        self._lock = threading.Lock()
        self._commands = 0
        self._diverted = []

    def __enter__(self):
        with self._lock:
            self._commands += 1
            for name in ('stdout', 'stderr'):
                # Code that runs meanwhile may put another file there: the next command diverts that one as well
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
