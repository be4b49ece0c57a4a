"""The structure of the package: imports go one way, without circles, and tests mirror the code."""
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'netbox_celery'
#: Folders whose modules have a test module each.
MIRRORED = ('engine', 'services', 'reading')
#: What is tested elsewhere, and where.
ELSEWHERE = {
    'engine/app': 'tests/test_plugin.py',
}


@pytest.fixture(scope='module')
def imports():
    """Which module imports which, also within functions, without the imports of the models' facade."""
    graph = grimp.build_graph('netbox_celery', cache_dir=None)
    configuration = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['importlinter']
    for contract in configuration['contracts']:
        for exception in contract.get('ignore_imports', ()):
            importer, imported = exception.split(' -> ')
            graph.remove_import(importer=importer, imported=imported)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def circles(imports):
    """Return the sets of modules that import each other, by Tarjan's algorithm."""
    number, least, stack, found = {}, {}, [], []

    def visit(module):
        number[module] = least[module] = len(number)
        stack.append(module)
        for imported in imports[module]:
            if imported not in number:
                visit(imported)
                least[module] = min(least[module], least[imported])
            elif imported in stack:
                least[module] = min(least[module], number[imported])
        if least[module] == number[module]:
            circle = set(stack[stack.index(module):])
            del stack[-len(circle):]
            if len(circle) > 1 or module in imports[module]:
                found.append(circle)

    for module in imports:
        if module not in number:
            visit(module)
    return found


def test_circles():
    """The search finds circles."""
    assert circles({'a': {'b'}, 'b': {'c'}, 'c': {'b'}, 'd': {'a', 'd'}}) == [{'b', 'c'}, {'d'}]


def test_no_circle(imports):
    assert len(imports) > 150
    assert circles(imports) == []


@pytest.mark.parametrize('folder', MIRRORED)
def test_tests_mirror_the_package(folder):
    """Each module has a test module, and each test module a module."""
    modules = {str(path.relative_to(PACKAGE).with_suffix('')) for path in (PACKAGE / folder).rglob('*.py')}
    modules = {module for module in modules if not module.endswith('__init__')} - ELSEWHERE.keys()
    tests = {
        str(path.relative_to(ROOT / 'tests').with_name(path.stem.removeprefix('test_')))
        for path in (ROOT / 'tests' / folder).rglob('test_*.py')
    }
    assert (sorted(modules - tests), sorted(tests - modules)) == ([], [])


def test_rooms_are_small():
    """A room of the engine has at most ten modules, besides its `__init__`, so it can be understood as a whole."""
    rooms = [path for path in (PACKAGE / 'engine').iterdir() if path.is_dir() and path.name != '__pycache__']
    assert len(rooms) == 9
    assert {room.name: len([*room.glob('*.py')]) for room in rooms if len([*room.glob('*.py')]) > 11} == {}
