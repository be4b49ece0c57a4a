"""The names of the tasks that run management commands, and which commands have a task."""
import pytest
from django.core.exceptions import ImproperlyConfigured

from netbox_celery.celery import app
from netbox_celery.engine.catalogue.commands import command_task, task_name


@pytest.mark.parametrize('command, expected', [
    ('clearsessions', 'command.django.contrib.sessions.clearsessions'),
    ('migrate', 'command.django.core.migrate'),
    ('celery_prune', 'command.netbox_celery.celery_prune'),
])
def test_name(command, expected):
    """The name contains the app of the command, whether or not the setting lists it."""
    assert task_name(command) == expected


@pytest.mark.parametrize('function', [task_name, command_task])
def test_no_such_command(function):
    """What was probably meant is said, too."""
    with pytest.raises(ImproperlyConfigured, match="names 'clearsession', which is not a command.*clearsessions"):
        function('clearsession')


def test_task():
    task = command_task('clearsessions')
    assert task is app.tasks['command.django.contrib.sessions.clearsessions']


def test_command_that_the_setting_does_not_list():
    with pytest.raises(ImproperlyConfigured, match="does not name the command 'migrate'"):
        command_task('migrate')
