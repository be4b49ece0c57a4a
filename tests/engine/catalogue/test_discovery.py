"""Task modules are imported one by one: a broken one is reported, and does not affect the others."""
import logging
import sys
from textwrap import dedent
from types import SimpleNamespace
from uuid import uuid4

import pytest
from celery import _state, signals
from celery.exceptions import NotRegistered
from django.core.checks import run_checks
from django.db import transaction

from netbox_celery import host
from netbox_celery.celery import NetBoxCelery, app
from netbox_celery.checks import check_tasks
from netbox_celery.engine.catalogue import discovery, registry
from netbox_celery.engine.schedules import sources
from netbox_celery.engine.schedules.sync import sync_catalogue
from netbox_celery.models import CelerySchedule, CeleryTask
from netbox_celery.services.runs import why_not_runnable
from tests.factories import make_result
from tests.factories import make_task as make_task_row

TASK = '''
from celery import shared_task

@shared_task(name='{name}')
def task():
    pass
'''


@pytest.fixture(autouse=True)
def nothing_failed(monkeypatch):
    """Start without failed imports, and leave none."""
    # Celery does so before it imports, which resets the log
    monkeypatch.setattr('django.setup', lambda: None)
    for name in ('_failures', '_unlogged'):
        monkeypatch.setattr(discovery, name, {})
    monkeypatch.setattr(discovery, '_halves', set())
    # What an app looks for when it is finalized
    monkeypatch.setattr(signals.import_modules, 'receivers', [*signals.import_modules.receivers])


@pytest.fixture
def write_plugin(tmp_path, monkeypatch):
    """Write a plugin's files: `write_plugin({'tasks.py': '...'})`; returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    tasks = set(app.tasks)

    def write(files, name=None):
        name = name or f'plugin_{uuid4().hex}'
        folder = tmp_path / name
        folder.mkdir()
        for file, text in {'__init__.py': '', **files}.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(dedent(text).replace('{name}', name))
        return name

    yield write
    for name in set(sys.modules) - before:
        if name.startswith('plugin_'):
            del sys.modules[name]
    for name in set(app.tasks) - tasks:
        app.tasks.pop(name)


@pytest.mark.parametrize('text, error', [
    ('import nothing_of_the_kind', "ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
    ('from json import nothing', "ImportError: cannot import name 'nothing' from 'json'"),
    ('def broken(:\n', 'SyntaxError: invalid syntax'),
    ('  x = 1\nif\n', 'IndentationError: unexpected indent'),
    ('1 / 0', 'ZeroDivisionError: division by zero'),
    ('raise SystemExit(3)', 'SystemExit: 3'),
    ('import sys; sys.exit()', 'SystemExit'),
    ('class Stop(BaseException): pass\nraise Stop("it")', 'Stop: it'),
    ('assert False', 'AssertionError'),
    ('from {name}.nothing import x', 'ModuleNotFoundError: No module named'),
    ('from celery import shared_task\n@shared_task(base=int)\ndef task(): pass', 'AttributeError: '),
    ('class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd', 'Odd: <Odd: str() raised'),
])
def test_other_modules_are_imported(text, error, write_plugin, caplog):
    """Whatever one module raises, the others are imported; the failure is logged once, with plugin, error and place."""
    broken, sound = write_plugin({'tasks.py': text}), write_plugin({'tasks.py': TASK.replace('{name}', '{name}:sound')})

    with caplog.at_level(logging.ERROR):
        app.loader.autodiscover_tasks([broken, sound])
        app.loader.autodiscover_tasks([broken, sound])

    assert f'{sound}:sound' in app.tasks
    failure, = discovery.failures()
    assert (failure.plugin, failure.module) == (broken, f'{broken}.tasks')
    assert failure.error.startswith(error)
    assert failure.place.startswith(f'{broken}/tasks.py:')
    said, = (record for record in caplog.records if broken in record.getMessage())
    assert 'Traceback (most recent call last)' in said.getMessage()


@pytest.mark.django_db
@pytest.mark.parametrize('is_caught', [False, True])
def test_transaction(write_plugin, is_caught):
    """A module with a failing query at import does not break the transaction in which a task is called."""
    text = 'from django.db import connection, DatabaseError\n'
    query = "connection.cursor().execute('SELECT nothing_of_the_kind')"
    name = write_plugin({'tasks.py': text + (
        f'try:\n    {query}\nexcept DatabaseError:\n    pass\n' if is_caught else query
    ) + TASK.replace('{name}', '{name}:task')})
    with transaction.atomic():
        app.loader.autodiscover_tasks([name])
        CeleryTask.objects.exists()  # raises if the transaction is broken
    assert (f'{name}:task' in app.tasks) is is_caught
    assert [f.error.partition(':')[0] for f in discovery.failures()] == ([] if is_caught else ['ProgrammingError'])


def test_keyboard_interrupt(write_plugin):
    """Ctrl-C ends the process."""
    with pytest.raises(KeyboardInterrupt):
        app.loader.autodiscover_tasks([write_plugin({'tasks.py': 'raise KeyboardInterrupt'})])


def test_no_tasks(write_plugin):
    """A plugin without tasks is not broken; one that does not exist is."""
    app.loader.autodiscover_tasks([write_plugin({}), 'plugin_nowhere'], 'jobs')

    assert [failure.module for failure in discovery.failures()] == ['plugin_nowhere.jobs']


def test_place_in_another_module(write_plugin):
    """The place is the plugin's own line, wherever the exception was raised."""
    name = write_plugin({'helpers/__init__.py': '', 'helpers/net.py': '\n\nimport missing_library\n',
                         'tasks.py': 'from {name}.helpers import net'})
    app.loader.autodiscover_tasks([name])

    assert discovery.failures()[0].place == f'{name}/helpers/net.py:3'


def test_partly_imported_module(write_plugin):
    """A module that fails has no tasks; the complete modules that it imports keep theirs."""
    name = write_plugin({
        'whole.py': TASK.replace('{name}', '{name}:whole'),
        'tasks.py': 'from {name} import whole' + TASK.replace('{name}', '{name}:half') + '\nimport missing_library\n',
    })
    app.loader.autodiscover_tasks([name])

    assert f'{name}:whole' in app.tasks
    assert f'{name}:half' not in app.tasks


def make_app(**conf):
    """Make an app that is not finalized yet."""
    made = NetBoxCelery(uuid4().hex, set_as_current=False)
    made.conf.update(broker_url='memory://', result_backend='cache+memory://', **conf)
    return made


def test_finalize(write_plugin, monkeypatch):
    """A decorator that fails when the app is finalized costs its own task only."""
    # As in a worker that starts: nothing is finalized while plugins are imported
    monkeypatch.setattr(_state, '_on_app_finalizers', set(_state._on_app_finalizers))
    monkeypatch.setattr(_state, '_get_active_apps', lambda: ())
    made = make_app()
    broken = write_plugin({'tasks.py': '''
        from celery import shared_task

        @shared_task(name='{name}:first')
        def first():
            pass

        @shared_task(name='{name}:bad', base=int)
        def bad():
            pass

        @shared_task(name='{name}:last')
        def last():
            pass
    '''})
    half = write_plugin({'tasks.py': TASK.replace('{name}', '{name}:half') + '\n1 / 0'})
    made.loader.autodiscover_tasks([broken, half])

    # Plugins of other tests are among them
    assert {name for name in made.tasks if name.startswith((broken, half))} == {f'{broken}:first', f'{broken}:last'}
    assert 'celery.map' in made.tasks
    assert {failure.module for failure in discovery.failures() if failure.plugin in (broken, half)} == {
        f'{broken}.tasks:bad', f'{half}.tasks'
    }


@pytest.mark.parametrize('setting', ['imports', 'include'])
def test_settings(setting, write_plugin):
    """Modules listed in settings are imported one by one as well, also when a worker starts."""
    broken, sound = write_plugin({'jobs.py': '1 / 0'}), write_plugin({'jobs.py': 'done = True'})
    made = make_app(**{setting: [f'{broken}.jobs', 'plugin_nowhere.jobs', f'{sound}.jobs']})

    made.loader.init_worker()

    assert sys.modules[f'{sound}.jobs'].done
    assert {f.module for f in discovery.failures()} == {f'{broken}.jobs', 'plugin_nowhere.jobs'}


def test_receivers(write_plugin):
    """A plugin that finds tasks by itself, and fails, does not affect the others either."""
    made = make_app()
    sound = write_plugin({'jobs.py': 'done = True'})

    def packages():
        raise RuntimeError('no packages')

    made.autodiscover_tasks(packages, related_name='jobs')
    made.autodiscover_tasks([sound], related_name='jobs')
    made.loader.import_default_modules()

    assert sys.modules[f'{sound}.jobs'].done
    assert [(f.plugin, f.error) for f in discovery.failures()] == [('tests', 'RuntimeError: no packages')]


def test_failure_before_logging_is_set_up(write_plugin, caplog):
    """A worker reports it later in its log, in its banner, and in Celery's report."""
    broken = write_plugin({'tasks.py': '1 / 0'})
    made = make_app()
    made.autodiscover_tasks([broken])
    made.loader.init_worker()
    assert broken not in caplog.text

    discovery.log_failures()
    assert f'{broken}.tasks: ZeroDivisionError' in caplog.text
    assert f'{broken}.tasks: ZeroDivisionError: division by zero ({broken}/tasks.py:1)' in made.bugreport()


def test_repaired(write_plugin, tmp_path):
    """A module that was imported since has not failed."""
    broken = write_plugin({'tasks.py': 'import missing_library'})
    app.loader.autodiscover_tasks([broken])
    (tmp_path / broken / 'tasks.py').write_text(f'# mended by now, and longer\n{TASK.replace("{name}", broken)}')
    __import__(f'{broken}.tasks')
    app.loader.autodiscover_tasks([broken])

    assert discovery.failures() == []
    assert broken in app.tasks


@pytest.fixture
def broken(write_plugin, monkeypatch):
    """An installed plugin whose tasks cannot be imported here."""
    name = write_plugin({'tasks.py': 'import missing_library'})
    monkeypatch.setattr(host, 'plugin_packages', lambda: [name])
    registry._import_task_modules.cache_clear()
    yield name
    registry._import_task_modules.cache_clear()


@pytest.mark.django_db
def test_catalogue(broken):
    """Its tasks stay in the catalogue as they were: another process may have them."""
    old = {'last_seen': '2020-01-01T00:00:00Z', 'present': True}
    CeleryTask.objects.filter(pk=make_task_row(f'{broken}:task').pk).update(plugin=broken, **old)
    CeleryTask.objects.filter(pk=make_task_row('gone:task').pk).update(plugin='gone', **old)

    sync_catalogue()

    assert CeleryTask.objects.get(name=f'{broken}:task').present
    assert not CeleryTask.objects.get(name='gone:task').present


@pytest.mark.django_db
def test_schedules(broken):
    """Beat keeps the schedules of its tasks, too."""
    for name, plugin in ((f'{broken}:task', broken), ('gone:task', 'gone')):
        task = make_task_row(name)
        CeleryTask.objects.filter(pk=task.pk).update(plugin=plugin)
        task.refresh_from_db()
        CelerySchedule.objects.create(name=name, task=task, kind='interval', interval=60, origin='code')
    registry.registered_tasks()
    sources.sync(app, {}, is_leader=True)

    assert CelerySchedule.objects.get(name=f'{broken}:task').present
    assert not CelerySchedule.objects.get(name='gone:task').present


@pytest.mark.django_db
def test_reason_of_an_absent_task(broken):
    """The reason why an absent task cannot run names the failed import."""
    registry.registered_tasks()
    task = make_task_row(f'{broken}:task')
    task.present, task.plugin = False, broken

    assert "No module named 'missing_library'" in why_not_runnable(task)


@pytest.mark.django_db
@pytest.mark.parametrize('is_catalogued', [True, False])
def test_unregistered(is_catalogued, broken, shared, monkeypatch):
    """A run of a task that this worker could not import finishes with an error that says why."""
    monkeypatch.setattr('netbox_celery.engine.results.backend.get_connection', lambda: shared)
    monkeypatch.setattr('netbox_celery.engine.runs.reports.get_connection', lambda: shared)
    registry.registered_tasks()
    name = 'any name' if is_catalogued else f'{broken}.tasks.task'
    if is_catalogued:
        CeleryTask.objects.filter(pk=make_task_row(name).pk).update(plugin=broken)
    run = make_result(status='pending', celery_name=name)
    request = SimpleNamespace(
        name=name, chord=None, root_id=None, correlation_id=None, reply_to=None, errbacks=None, id=str(run.task_id)
    )
    app.backend.mark_as_failure(str(run.task_id), NotRegistered(name), request=request)

    run.refresh_from_db()
    assert (run.status, run.reason) == ('errored', 'unregistered')
    assert f"could not import {broken}.tasks: ModuleNotFoundError: No module named 'missing_library'" in run.error


def test_check(broken):
    """`netbox check` warns, with an ID that can be silenced."""
    warning, = check_tasks(None)

    assert (warning.id, warning.obj) == ('netbox_celery.W001', f'{broken}.tasks')
    assert 'missing_library' in warning.msg
    assert warning in run_checks(tags=['netbox_celery'])
