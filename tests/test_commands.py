"""Management commands as tasks: the setting, and what a command's parser says about its calls."""
import io
import json
import sys
import threading

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandParser, get_commands
from django.test import override_settings

from netbox_celery import commands
from netbox_celery.config import Config, get_config
from netbox_celery.engine.catalogue.checking import check_arguments
from netbox_celery.engine.catalogue.registry import describe_task
from netbox_celery.engine.exceptions import InvalidArguments
from netbox_celery.forms import RunForm
from netbox_celery.models import CeleryTask
from netbox_celery.tasks import CeleryBaseTask, get_django_command_task

CLEARSESSIONS = 'command.django.contrib.sessions.clearsessions'


@pytest.fixture
def configured():
    """Set `command_tasks` for the test."""
    overrides = []

    def configured(command_tasks):
        overrides.append(override_settings(PLUGINS_CONFIG={'netbox_celery': {'command_tasks': command_tasks}}))
        overrides[-1].enable()
        get_config.cache_clear()

    yield configured
    for override in reversed(overrides):
        override.disable()
    get_config.cache_clear()


def test_task():
    """The tests' own configuration lists a command: its task exists, with the options of the setting."""
    task = get_django_command_task('clearsessions')

    assert task.name == CLEARSESSIONS
    assert isinstance(task, CeleryBaseTask)
    assert task.time_limit == 600
    described = describe_task(task)
    assert (described['plugin'], described['defaults']) == ('django', {'time_limit': 600})
    assert described['description'].startswith('Can be run as a cronjob')


@pytest.mark.parametrize('command', ['clearsession', 'migrate'])
def test_no_such_task(command):
    """Neither for an unknown command, nor for one that the setting does not list."""
    with pytest.raises(ImproperlyConfigured, match=f'command_tasks .*{command}'):
        get_django_command_task(command)


@pytest.mark.parametrize('value, message', [
    ('clearsessions', "command_tasks must be of type dict, not str ('clearsessions')"),
    ([{'clearsessions': {}}], 'command_tasks must contain options by name'),
    ({'clearsessions': 5}, "command_tasks must contain options by name, as in {\"name\": {}}, not 'clearsessions': 5"),
    ({5: {}}, 'command_tasks must contain options by name'),
    (['clearsession'], "command_tasks names 'clearsession', which is not a command. Did you mean 'clearsessions'?"),
    ({'clearsessions': {'time_limits': 5}}, "'time_limits', which is not a task option. Did you mean 'time_limit'"),
    ({'clearsessions': {'name': 'x'}}, "command_tasks['clearsessions'] sets 'name', which the command determines"),
    (
        {'clearsessions': {'autoretry_for': ['no.Such']}},
        "sets 'autoretry_for' to ['no.Such'], which are not exceptions",
    ),
])
def test_invalid_setting(configured, value, message):
    """An invalid setting stops the start, in NetBox's settings or once the commands are known."""
    configured(value)
    with pytest.raises(ImproperlyConfigured) as caught:
        commands.register()
    assert message in str(caught.value)


@pytest.mark.parametrize('value', [
    ['check', 'migrate'], ('check', 'migrate'), {'check': None, 'migrate': {}},
])
def test_names_alone(value):
    assert Config.from_dict({'command_tasks': value}).command_tasks == {'check': {}, 'migrate': {}}


@pytest.fixture
def described():
    """Return the parameters of a command, given by the arguments of each `add_argument`."""
    def described(*arguments):
        parser = CommandParser(prog='prog')
        for names, options in arguments:
            parser.add_argument(*names, **options)
        task = type('task', (), {
            'call_signature': commands._signature(parser), '__doc__': commands._documentation(parser), 'run': None
        })
        return [
            (p['name'], p['kind'], p['annotation'], p['required'], p.get('default'))
            for p in describe_task(task)['parameters']
        ]
    return described


@pytest.mark.parametrize('names, options, expected', [
    (['name'], {}, ('name', 'positional_only', 'str', True, None)),
    (['name'], {'nargs': '?', 'type': int}, ('name', 'positional_only', 'int | None', False, None)),
    (['names'], {'nargs': '+'}, ('names', 'var_positional', '', False, None)),
    (['pair'], {'nargs': 2}, ('pair', 'var_positional', '', False, None)),
    (['--name'], {'required': True, 'type': float}, ('name', 'keyword_only', 'float', True, None)),
    (['--long-name'], {'default': 'x'}, ('long_name', 'keyword_only', 'str', False, 'x')),
    (['--when'], {'type': bytes.fromhex}, ('when', 'keyword_only', '', False, None)),
    (['-n', '--names'], {'nargs': '*', 'default': []}, ('names', 'keyword_only', 'list', False, [])),
    (['--name'], {'action': 'append'}, ('name', 'keyword_only', 'list | None', False, None)),
    (['-v'], {'action': 'count', 'default': 0}, ('v', 'keyword_only', 'int', False, 0)),
    (['--level'], {'action': 'store_const', 'const': 7}, ('level', 'keyword_only', '', False, None)),
    (['--quiet'], {'action': 'store_false'}, ('quiet', 'keyword_only', 'bool', False, True)),
    (['--noinput'], {'action': 'store_false', 'dest': 'interactive'},
     ('interactive', 'keyword_only', 'bool', False, False)),
    (['--no-input'], {'action': 'store_true'}, ('no_input', 'keyword_only', 'bool', False, True)),
    (['--shuffle'], {'type': int, 'default': '==SUPPRESS=='}, ('shuffle', 'keyword_only', 'int | None', False, None)),
])
def test_parameters(described, names, options, expected):
    assert described((names, options)) == [expected]


@pytest.mark.parametrize('arguments', [
    # No signature can say this
    [(['first'], {'nargs': '*'}), (['second'], {'nargs': '*'})],
    [(['two words'], {})],
    [(['--class'], {})],
])
def test_unknown_parameters(described, arguments):
    """Such a command accepts anything; its own parser reports errors."""
    assert [parameter[:2] for parameter in described(*arguments)] == [
        ('args', 'var_positional'), ('options', 'var_keyword')
    ]


def test_hidden_parameters(described):
    """Parameters that the command's author hides are not shown."""
    assert described((['--secret'], {'help': '==SUPPRESS=='})) == []


def test_every_command():
    """All commands of Django, NetBox and its plugins can be described, and the description is JSON."""
    for command in get_commands():
        parser = commands._load(command).create_parser('', command)
        task = type('task', (), {
            'call_signature': commands._signature(parser), '__doc__': commands._documentation(parser), 'run': None
        })
        described = describe_task(task)
        assert json.dumps(described), command
        RunForm(CeleryTask(name=command, **described))


def test_form():
    """A command's form has its options, with their help, and leaves out empty ones."""
    task = CeleryTask(name=CLEARSESSIONS, **describe_task(get_django_command_task('clearsessions')))
    form = RunForm(task, {'parameter_verbosity': '2'})

    assert form.is_valid(), form.errors
    assert form.arguments == ([], {'verbosity': 2})
    assert 'Verbosity level' in form.fields['parameter_verbosity'].help_text
    with pytest.raises(InvalidArguments, match='volume: is not a parameter'):
        check_arguments(task, [], {'volume': 11})


class TestStandardStreams:
    """`sys.stdout` and `sys.stderr` are diverted while commands run, and are themselves again after the last one."""

    @staticmethod
    def log():
        lines = []
        return lines, lambda line, level=None: lines.append(line)

    def test_put_back(self, capsys):
        before = sys.stdout, sys.stderr
        lines, log = self.log()
        with commands._written_to(log):
            held = sys.stdout
            print('to the log')
        print('to the file')
        print('of one who holds it', file=held)

        assert (sys.stdout, sys.stderr) == before
        assert lines == ['to the log']
        assert capsys.readouterr().out == 'to the file\nof one who holds it\n'

    def test_side_by_side(self, capsys):
        """The command that started first finishes first, in another thread."""
        before, started, finish = sys.stdout, threading.Event(), threading.Event()

        def command(log):
            with commands._written_to(log):
                started.set()
                finish.wait(10)
                print('first')

        first, second = self.log(), self.log()
        thread = threading.Thread(target=command, args=(first[1],))
        thread.start()
        started.wait(10)
        with commands._written_to(second[1]):
            finish.set()
            thread.join(10)
            print('second')

        assert (first[0], second[0]) == (['first'], ['second'])
        assert sys.stdout is before
        assert not capsys.readouterr().out

    def test_replaced_meanwhile(self, capsys):
        """Another file that code has put there stays, and the next command diverts it."""
        before, (lines, log) = sys.stdout, self.log()
        try:
            with commands._written_to(log):
                sys.stdout = other = io.StringIO()
            assert sys.stdout is other
            with commands._written_to(log):
                print('second')
            assert sys.stdout is other
            assert (lines, other.getvalue()) == (['second'], '')
        finally:
            sys.stdout = before

    def test_command_fails(self):
        before = sys.stdout
        with pytest.raises(ZeroDivisionError), commands._written_to(self.log()[1]):
            raise ZeroDivisionError
        assert sys.stdout is before
