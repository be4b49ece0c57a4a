"""Management commands as tasks, on real workers: their arguments, their output, and how they end."""
from datetime import timedelta

import pytest
from django.contrib.sessions.models import Session
from django.db import transaction
from django.utils import timezone
from netbox_test_plugin.side import open_gate

from netbox_celery.celery import app
from netbox_celery.models import CeleryLogEntry, CeleryResult, CeleryTask
from netbox_celery.tasks import get_django_command_task

from .support import ended, lines, row, until

SPEAK = 'command.netbox_test_plugin.speak'


def speak(worker, *args, **kwargs):
    """Run the test plugin's command, which this process does not know."""
    return app.send_task(SPEAK, args, kwargs, queue=worker.queue)


def log(run):
    return list(CeleryLogEntry.objects.filter(result__task_id=run.id).order_by('pk').values_list('level', 'message'))


def test_clearsessions(worker):
    """A command of Django, sent on commit, is run by the worker."""
    old = Session.objects.create(session_key='old', expire_date=timezone.now() - timedelta(days=1))
    kept = Session.objects.create(session_key='new', expire_date=timezone.now() + timedelta(days=1))
    task = get_django_command_task('clearsessions')
    with transaction.atomic():
        task.apply_async_on_commit(queue=worker.queue)
        assert not CeleryResult.objects.exists()

    result = ended(CeleryResult.objects.get())
    assert (result.celery_name, result.status) == ('command.django.contrib.sessions.clearsessions', 'completed')
    assert result.queue == worker.queue
    assert list(Session.objects.filter(pk__in=(old.pk, kept.pk))) == [kept]


def test_unique(worker):
    """A unique command runs once for all calls while it waits, and again after it has finished."""
    task = get_django_command_task('clearsessions')
    first, second = (worker.send(task, countdown=1) for __ in range(2))
    other = worker.send(task, kwargs={'verbosity': 2})

    assert first.id == second.id != other.id
    assert [ended(run).status for run in (first, other)] == ['completed'] * 2
    assert ended(worker.send(task)).task_id != row(first).task_id
    assert CeleryResult.objects.count() == 3


def test_arguments(worker):
    """Positional arguments are passed by position, options by name."""
    run = speak(worker, 'hello', 1, 'two', times=2, tone='loud', end='over', task_id='of its own')

    result = ended(run)
    assert (result.status, result.result) == ('completed', 'over')
    assert (result.args, result.kwargs) == (['hello', 1, 'two'], {
        'times': 2, 'tone': 'loud', 'end': 'over', 'task_id': 'of its own'
    })
    assert lines(run) == ["hello ['1', 'two'] loud"] * 2 + ['over']


def test_output(worker):
    """Its output is in the log, errors as warnings, without colors; and it asks no questions."""
    run = speak(worker, 'hello', aside=True)

    assert ended(run).status == 'completed'
    assert log(run) == [
        (20, 'hello [] None'), (30, 'aside False'), (20, 'printed with print()'), (30, 'printed as an error'),
    ]


def test_output_while_it_runs(worker, gate):
    """Complete lines are visible as they are written."""
    run = speak(worker, 'hello', gate=gate)
    until(lambda: lines(run) == ['hello [] None'])
    open_gate(gate)

    assert ended(run).status == 'completed'
    assert lines(run) == ['hello [] None', '20 %', 'the last line']


def test_output_of_commands_in_parallel(threads):
    """Commands in threads of one process print into their own logs."""
    runs = [speak(threads, f'word {number}', times=20, aside=True) for number in range(12)]

    for number, run in enumerate(runs):
        ended(run)
        assert lines(run) == [f'word {number} [] None'] * 20 + [
            'aside False', 'printed with print()', 'printed as an error'
        ]


@pytest.mark.parametrize('how, status, error, attempts', [
    # The setting lets it be tried again
    ('error', 'failed', 'It did not work', 2),
    ('exit', 'failed', 'The command exited with code 4', 2),
    ('exception', 'errored', 'ValueError: unexpected', 2),
    ('exit well', 'completed', '', 1),
    # What the command gives to another one is its own error
    ('another', 'errored', 'TypeError: Unknown option(s) for speak command: volume. Valid', 1),
])
def test_ends(worker, how, status, error, attempts):
    """A `CommandError` or an exit code is a failure of the task, any other exception an error."""
    result = ended(speak(worker, 'hello', end=how))

    assert (result.status, result.attempt) == (status, attempts)
    assert result.error.startswith(error) and bool(result.error) == bool(error)
    assert lines(result) == ['hello [] None'] * attempts


@pytest.mark.parametrize('args, kwargs, error', [
    ((), {}, 'the following arguments are required: word'),
    (('hello',), {'volume': 11}, 'Unknown option(s) for speak command: volume.'),
    (('hello',), {'stdout': 'x'}, "multiple values for keyword argument 'stdout'"),
])
def test_wrong_arguments(prefork, args, kwargs, error):
    """Arguments that the command does not accept fail the run, with Django's message."""
    result = ended(speak(prefork, *args, **kwargs))

    assert result.status == 'failed'
    assert error in result.error


def test_registered(prefork):
    """Commands are among a worker's tasks and in the catalogue, with their help."""
    said = prefork.log.read_text()
    assert f'  . {SPEAK}\n' in said
    assert '  . command.django.contrib.sessions.clearsessions\n' in said
    task = until(lambda: CeleryTask.objects.filter(name=SPEAK).first())

    assert (task.plugin, task.description) == ('netbox_test_plugin', 'Say something, and end in some way.')
    assert task.defaults['max_retries'] == 1
    assert [(p['name'], p['kind'], p['annotation'], p.get('default')) for p in task.parameters] == [
        ('word', 'positional_only', 'str', None),
        ('more', 'var_positional', '', None),
        ('verbosity', 'keyword_only', 'Literal[0, 1, 2, 3]', 1),
        ('times', 'keyword_only', 'int', 1),
        ('tone', 'keyword_only', "Literal['soft', 'loud'] | None", None),
        ('aside', 'keyword_only', 'bool', False),
        ('gate', 'keyword_only', 'str | None', None),
        ('end', 'keyword_only', 'str', 'well'),
        ('task_id', 'keyword_only', 'str | None', None),
        ('interactive', 'keyword_only', 'bool', False),
    ]
