"""The names of the tasks that run management commands."""
from typing import Any

from django.core.management import get_commands

from ...config import get_config, suggestion, wrong
from ..app import get_app

__all__ = (
    'command_task',
    'task_name',
)


def command_task(command: str) -> Any:
    """Return the task of a command (see `netbox_celery.tasks.get_django_command_task`)."""
    name = task_name(command)
    if command not in get_config().command_tasks:
        raise wrong('command_tasks', f'does not name the command {command!r}')
    return get_app().tasks[name]


def task_name(command: str) -> str:
    """Return the name of a command's task: `command.<app>.<command>`, with Django's name of the command's app.

    Raises:
        django.core.exceptions.ImproperlyConfigured: There is no such command.
    """
    commands = get_commands()
    if command not in commands:
        raise wrong('command_tasks', f'names {command!r}, which is not a command{suggestion(command, commands)}')
    return f'command.{commands[command]}.{command}'
