"""What the documentation says about the code is true."""
import ast
import importlib
import re
from dataclasses import MISSING, fields
from pathlib import Path

import celery
import pytest
import yaml
from celery.app.defaults import NAMESPACES, flatten
from celery.bin.celery import celery as celery_command
from celery.exceptions import Retry
from django.conf import settings
from django.core.management import get_commands

import netbox_celery
from dcim.models import Site
from netbox_celery import tasks
from netbox_celery.api.urls import router
from netbox_celery.celery import app
from netbox_celery.choices import LogLevelChoices, ResultReasonChoices, ResultStatusChoices
from netbox_celery.config import Config
from netbox_celery.engine.calls.options import OWN_NAMES
from netbox_celery.models import CeleryResult
from netbox_celery.tasks import netbox_celery_task
from users.models import User

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CHANGELOG.md', ROOT / 'SECURITY.md', *sorted((ROOT / 'docs').rglob('*.md'))]
#: Pages for those who change the plugin: they name its folders, and files of Celery's.
INSIDE = {
    page for page in PAGES
    if page.parent.name == 'development' or page.name in {'contributing.md', 'how-it-works.md'}
}
#: What the paths on these pages start from.
FOLDERS = (
    ROOT, ROOT / 'netbox_celery', ROOT / 'netbox_celery' / 'engine', ROOT / 'tests', ROOT / 'tests' / 'neighbours',
    Path(celery.__file__).parent, Path(celery.__file__).parent / 'app',
)
#: Paths that running the plugin makes.
MADE = ('~/.cache/netbox-celery', 'development/.state', 'site/')


def rows(page, heading):
    """Return the rows of the first table after a heading, each a list of cells."""
    text = (ROOT / page).read_text()
    section = text[text.index(f'\n{heading}\n'):]
    table = re.search(r'(?:^\|.*\n)+', section, re.MULTILINE).group()
    return [[cell.strip() for cell in line.strip('|').split(' | ')] for line in table.splitlines()[2:]]


def code(page):
    return re.findall(r'^```python\n(.*?)^```', page.read_text(), re.MULTILINE | re.DOTALL)


def test_settings():
    documented = {
        row[0].strip('`| '): ast.literal_eval(row[1].strip('`')) for row in rows('docs/installation.md', '## Settings')
    }
    assert documented == {
        field.name: field.default if field.default is not MISSING else field.default_factory()
        for field in fields(Config)
    }


@pytest.mark.parametrize('example', [
    pytest.param(example, id=f'{page.name}-{number}') for page in PAGES for number, example in enumerate(code(page))
    if 'PLUGINS_CONFIG =' in example
])
def test_examples_of_settings(example):
    """The configuration in the guides is accepted."""
    namespace = {}
    exec(example, namespace)  # noqa: S102
    assert Config.from_dict(namespace['PLUGINS_CONFIG']['netbox_celery']) != Config()


def test_statuses():
    documented = {row[0].strip('*| '): row[2].rstrip(' |') for row in rows('docs/how-it-works.md', '## Statuses')}
    assert documented == {choice.value: str(choice.description) for choice in ResultStatusChoices.CHOICES}


def test_reasons():
    documented = {
        row[0].strip('`| '): row[1].rstrip(' |') for row in rows('docs/how-it-works.md', 'The reason tells why:')
    }
    assert documented == {choice.value: str(choice.description) for choice in ResultReasonChoices.CHOICES}


def test_levels():
    documented = {int(row[0].strip('| ')): row[1] for row in rows('docs/tasks.md', '### The log')}
    assert documented == {choice.value: str(choice.label) for choice in LogLevelChoices.CHOICES}


def test_options():
    documented = {row[0].strip('`| ') for row in rows('docs/tasks.md', '## Options of a run')}
    assert documented == {f'netbox_{name}' for name in (*OWN_NAMES, 'kwargs')}


def test_addresses():
    """The REST guide lists each URL, with its methods."""
    documented = {}
    for row in rows('docs/rest.md', 'Everything is under `/api/plugins/celery/`:'):
        methods = set(re.findall(r'`(\w+)`', row[1]))
        documented |= dict.fromkeys(re.findall(r'`(\S+)`', row[0]), methods)
    actions = {'GET': 'list', 'POST': 'create', 'PUT': 'update', 'PATCH': 'partial_update', 'DELETE': 'destroy'}
    expected = {}
    for prefix, viewset, __ in router.registry:
        methods = {name for name, action in actions.items()
                   if hasattr(viewset, action) and name.lower() in viewset.http_method_names}
        expected |= {f'{prefix}/': methods, f'{prefix}/{{id}}/': methods}
        for action in viewset.get_extra_actions():
            expected[f'{prefix}/{{id}}/{action.url_path}/'] = {name.upper() for name in action.mapping}
    assert documented == expected


def test_public_names():
    """The reference has everything that plugin authors import."""
    text = (ROOT / 'docs' / 'tasks.md').read_text()
    assert {name for name in tasks.__all__ if f'\n::: netbox_celery.tasks.{name}\n' not in text} == {
        'default_unique_key_generator',  # a page of its own: unique tasks
    }


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_examples_are_python(page):
    for example in code(page):
        # An example may be the end of a function, or leave a body out
        ast.parse(example)


@pytest.fixture
def own_tasks(monkeypatch):
    """Remove the tasks that a test makes, and what it sets for the whole app."""
    known = set(app.tasks)
    for name in ('task_cls', 'gen_task_name'):
        monkeypatch.setattr(app, name, getattr(app, name))
    yield
    for name in set(app.tasks) - known:
        del app.tasks[name]


@pytest.mark.django_db
@pytest.mark.parametrize('page,runs', [
    ('docs/celery-options.md', [
        ('my_plugin:backup', {}, [7]), ('my_plugin:backup', {}, [7]), ('my_plugin:backup', {}, [7]),
        ('my_plugin:greet', {}, [{'name': 'Ann'}]),
    ]),
    ('docs/retries.md', [
        (f'my_plugin:{name}', {}, ['switch1']) for name in ('poll', 'push', 'fetch')
    ]),
    ('docs/cancel.md', [('my_plugin:sweep', {}, [['switch1', 'switch2']])]),
    ('docs/workflows.md', [
        # Those that start immediately; later steps get their rows when it is their turn
        *(('my_plugin:fetch', {}, [number]) for number in range(1, 6)), ('my_plugin:fetch', {}, [1_000]),
    ]),
    ('docs/concurrency.md', [
        ('my_plugin:backup_device', {}, [1]), ('my_plugin:push', {}, [7]), ('my_plugin:push', {}, [7]),
        ('my_plugin:refresh', {}, [3]), ('my_plugin:refresh', {}, [3]),
    ]),
])
def test_examples_run(own_tasks, page, runs):
    """The examples of a page run, from top to bottom, and create the runs that it describes."""
    namespace = {
        '__name__': 'my_plugin.tasks', 'user': User.objects.create(username='ann'),
        'site': Site.objects.create(pk=1_000, name='ams', slug='ams'),
    }
    for example in code(ROOT / page):
        exec(example, namespace)  # noqa: S102

    assert list(CeleryResult.objects.order_by('pk').values_list('celery_name', 'kwargs', 'args')) == runs


def test_delays(own_tasks):
    """The table shows the delays of tasks with these options."""
    for options, delays in rows('docs/retries.md', 'The delay before each attempt, in seconds:'):
        options = eval(f'dict({options.strip("| `").removeprefix("none")})')  # noqa: S307
        expected = ast.literal_eval(f'[{delays.strip("| ")}]')

        @netbox_celery_task(name=f'my_plugin:{expected}', autoretry_for=(ValueError,), max_retries=None, **options)
        def failing(self, task_id):
            raise ValueError

        for retries, delay in enumerate(expected):
            failing.push_request(id='x', called_directly=False, is_eager=True, retries=retries, args=[], kwargs={})
            with pytest.raises(Retry) as caught:
                failing.run('x')
            failing.pop_request()
            assert caught.value.when == delay, options


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    # In code alone: people make other things as well
    commands = re.findall(r'`make ([a-z-]+)|^make ([a-z-]+)', page.read_text(), re.MULTILINE)
    assert {one or other for one, other in commands} <= targets


def named(page):
    """Return what a page writes as code in its text."""
    text = re.sub(r'^ *```.*?^ *```', '', page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return set(re.findall(r'(?<!`)`([^`\n]+)`(?!`)', text))


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_names_exist(page):
    """Modules, classes, functions and attributes of ours that a page names."""
    for name in sorted(named(page)):
        match = re.fullmatch(r'(netbox_celery(?:[.:]\w+)+)(?:\(.*\))?', name)
        if not match or re.fullmatch(r'netbox_celery(\.[EW]\d+|:\w+|\.\w+_celery\w+)', match[1]):
            # A check of Django's, a task, a permission
            continue
        path = match[1].replace(':', '.').split('.')
        for end in range(len(path), 0, -1):
            try:
                found = importlib.import_module('.'.join(path[:end]))
            except ModuleNotFoundError:
                continue
            for attribute in path[end:]:
                assert hasattr(found, attribute), name
                found = getattr(found, attribute)
            break


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_files_exist(page):
    """Files that a page names, and on the pages for contributors also folders and files of Celery's."""
    ours = r'(?:netbox_celery|development|docs|tests|\.ci)/[\w./-]*'
    inside = rf'{ours}|[\w./-]+\.(?:py|toml|md)|(?:[\w.-]+/)+'
    for name in sorted(named(page)):
        if re.fullmatch(inside if page in INSIDE else ours, name) and not name.startswith(MADE):
            assert any((folder / name).exists() for folder in FOLDERS), name


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_settings_exist(page):
    """What a page calls a setting is one of the plugin's, of Celery's or of NetBox's."""
    text = page.read_text()
    names = set(re.findall(r'\bsettings? \[?`(\w+)`|\[`(\w+)`\]\([\w.-]*#settings\)', ' '.join(text.split())))
    known = {field.name for field in fields(Config)} | {name for name, __ in flatten(NAMESPACES)}
    assert {name for name in map(''.join, names) if name not in known and not hasattr(settings, name)} == set()


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_of_celery_and_netbox_exist(page):
    text = page.read_text()
    # `flower` is installed beside the plugin
    assert set(re.findall(r'celery -A netbox_celery (\w+)', text)) <= {*celery_command.commands, 'flower'}
    assert set(re.findall(r'\bnetbox (celery_\w+)|manage\.py ([a-z_]+)', text)) <= {
        pair for command in get_commands() for pair in ((command, ''), ('', command))
    }


def test_guarantees_are_attacked():
    """Each guarantee lists tests that exist."""
    text = (ROOT / 'docs' / 'guarantees.md').read_text()
    guarantees = [line for line in re.findall(r'^\|.*$', text, re.MULTILINE) if not re.match(r'\| (When|---)', line)]
    for guarantee in guarantees:
        names = re.findall(r'`([\w/]+\.py)::(\w+)`', guarantee.split(' | ')[-1])
        assert names, guarantee
        for path, name in names:
            tree = ast.parse((ROOT / 'tests' / path).read_text())
            assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, guarantee


def test_plugin_file():
    """netbox-plugin.yaml agrees with the plugin's configuration."""
    document = yaml.safe_load((ROOT / 'netbox-plugin.yaml').read_text())
    config = netbox_celery.config
    assert {
        'release': config.version, 'netbox_min': config.min_version, 'netbox_max': config.max_version,
    } in document['compatibility']
    assert f'## {config.version}' in (ROOT / 'CHANGELOG.md').read_text()
