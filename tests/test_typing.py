"""What the type checker of a plugin's author sees of the package."""
import inspect
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from celery import Celery, Task

from netbox_celery.config import Config
from netbox_celery.engine.calls.options import OWN_NAMES
from netbox_celery.engine.calls.policies import ON_CONFLICT, SETTINGS
from netbox_celery.optiontypes import CallOptions, OnConflict, OwnOptions, PolicyOptions, TaskOptions
from netbox_celery.tasks import CeleryBaseTask

ROOT = Path(__file__).parents[1]
AUTHOR = Path(__file__).parent / 'typing' / 'author.py'


def test_marker():
    """The package has the file without which type checkers look at none of its types."""
    assert files('netbox_celery').joinpath('py.typed').is_file()


def test_author(tmp_path):
    """A plugin's tasks pass a strict check, and each wrong use in them is reported.

    The package is found as an installed one is, on the path of the interpreter: mypy goes by its `py.typed`.
    """
    result = subprocess.run(
        [sys.executable, '-m', 'mypy', '--config-file', AUTHOR.with_name('mypy.ini'), '--cache-dir', tmp_path, AUTHOR],
        cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_options_of_ours():
    """The types name the options that there are, and no others."""
    assert OwnOptions.__optional_keys__ == {f'netbox_{name}' for name in (*OWN_NAMES, 'kwargs')}
    assert PolicyOptions.__optional_keys__ == SETTINGS
    assert OnConflict.__value__.__args__ == ON_CONFLICT


def test_options_of_calls():
    """A new version of Celery's may have further ones: they are added to the types."""
    parameters = {
        name for function in (Task.apply_async, Celery.send_task) for name in inspect.signature(function).parameters
    }
    assert parameters - {'self', 'name', 'args', 'kwargs', 'options'} - CallOptions.__optional_keys__ == set()


def test_options_of_tasks():
    attributes = {
        name for cls in (Task, CeleryBaseTask) for name, value in vars(cls).items()
        if not name.startswith('_') and not inspect.isroutine(value)
        and not isinstance(value, property | classmethod | staticmethod | type)
    }
    # Set by Celery, or by classes alone
    attributes -= {'abstract', 'app', 'from_config', 'request_stack', 'takes_task_id'}
    assert attributes - TaskOptions.__optional_keys__ == set()


def test_options_of_the_guide():
    """Each option in the table of the guide is one where the table says so."""
    text = (ROOT / 'docs' / 'celery-options.md').read_text()
    table = [line.split('|')[1:4] for line in text.splitlines() if line.startswith('| `')]
    assert len(table) > 15
    for names, of_task, of_call in table:
        for name in re.findall(r'`(\w+)`', names):
            assert '✓' not in of_task or name in TaskOptions.__optional_keys__, name
            assert '✓' not in of_call or name in CallOptions.__optional_keys__, name


def test_author_uses_all_public_names():
    """The plugin of the check uses what the package's modules for authors export."""
    text = AUTHOR.read_text()
    from netbox_celery import choices, models, tasks, testing

    names = {*choices.__all__, *tasks.__all__, *testing.__all__, *models.__all__, Config.__name__}
    internal = {'IgnoreWindow', 'Lease'}
    assert {name for name in names - internal if not re.search(rf'\b{name}\b', text)} == set()
