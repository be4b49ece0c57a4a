"""Changes to Celery's modules work, and what they change still exists."""
import ast
import inspect
import re
import sys
import textwrap
import threading
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from celery import _state, chain, result
from celery.app.task import Context
from celery.backends import redis
from celery.schedules import crontab
from celery.utils.functional import regen

from netbox_celery.engine import internals
from tests.support import call_in_thread

PACKAGE = Path(internals.__file__).parents[1]
#: Celery's own function
ORIGINAL = next(function for function in internals.BY_THREAD if function.__name__ == 'allow_join_result')


@pytest.fixture
def app():
    from netbox_celery.celery import app

    return app


@pytest.fixture
def blocks():
    """Be in a process of a worker's pool, where tasks must not wait for results."""
    before = _state.task_join_will_block()
    _state._set_task_join_will_block(True)
    yield
    _state._set_task_join_will_block(before)


def test_join_by_thread(blocks):
    """A thread that may wait for results, for a while, changes nothing for other threads."""
    inside, leave = threading.Event(), threading.Event()

    def other():
        with result.allow_join_result():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    with pytest.raises(RuntimeError, match='Never call result.get'):
        result.assert_will_not_block()
    with result.allow_join_result():
        leave.set()
        thread.join()
        result.assert_will_not_block()
        with result.denied_join_result():
            assert redis.task_join_will_block()
            assert call_in_thread(result.task_join_will_block)
        result.assert_will_not_block()
    assert call_in_thread(result.task_join_will_block)
    with pytest.raises(RuntimeError):
        result.assert_will_not_block()


def test_setting_of_the_process(blocks):
    """It applies to each thread without a setting of its own."""
    with result.allow_join_result():
        pass
    assert result.task_join_will_block()
    _state._set_task_join_will_block(False)
    result.assert_will_not_block()
    with result.denied_join_result():
        assert result.task_join_will_block()
    assert not result.task_join_will_block()


def test_everywhere(app):
    """No module of Celery keeps the original functions, also not one that is imported later."""
    import_module('celery.backends.rpc')
    assert app.backend and {'celery.canvas', 'celery.app.task', 'celery.backends.redis'} <= sys.modules.keys()
    theirs = [
        (name, attribute) for name, module in sys.modules.items() for attribute in internals.JOINING
        if name.partition('.')[0] == 'celery'
        and getattr(vars(module).get(attribute), '__module__', internals.__name__) != internals.__name__
    ]
    assert theirs == []


def test_plugin_that_was_imported_earlier(monkeypatch):
    """Its tasks may wait for results in `apply()`, as with Celery alone, and that changes no flag of the process."""
    before = _state.task_join_will_block()
    plugin = ModuleType('plugin_that_was_imported_earlier')
    plugin.allow_join_result = ORIGINAL
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
    internals.join_by_thread()
    with result.denied_join_result(), plugin.allow_join_result():
        result.assert_will_not_block()
    assert _state.task_join_will_block() == before


def test_setting_of_celerys_test_worker(blocks):
    """It lets all threads of the process wait."""
    result._set_task_join_will_block(False)
    assert not call_in_thread(result.task_join_will_block)


# Private names

def find(path):
    module, name = path.split(':')
    return getattr(import_module(module), name)


def signature_of(function):
    """Return the signature of a function without its annotations, which may change."""
    signature = inspect.signature(function)
    parameters = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


@pytest.mark.parametrize('path', internals.OVERRIDDEN)
def test_overridden(path):
    """The signatures of what our classes override are as they were when these were written."""
    expected = internals.OVERRIDDEN[path]
    assert {name: signature_of(getattr(find(path), name)) for name in expected} == expected


@pytest.mark.parametrize('path', internals.USED)
def test_used(path):
    """What our classes use exists on the class, or is set by its instances."""
    cls = find(path)
    known = {
        node.attr for base in cls.__mro__[:-1] for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(base))))
        if isinstance(node, ast.Attribute)
    }
    assert [name for name in internals.USED[path] if not hasattr(cls, name) and name not in known] == []


def test_functions(app, make_task):
    """Each function of the module does what it says."""
    task = make_task(lambda self, task_id: None, name='tests:internals', queue='slow')
    assert task.name in app.tasks
    assert internals.registered(app)[task.name] is app.tasks[task.name]
    assert internals.call_options(task)['queue'] == 'slow'
    assert any(type(fixup).__name__ == 'DjangoFixup' for fixup in internals.fixups(app))
    channel = SimpleNamespace(global_keyprefix='p:', _q_for_pri=lambda queue, priority: f'{queue}:{priority}')
    assert internals.key_of_queue(channel, 'q', 3) == 'p:q:3'
    request = Context({})
    assert not internals.is_protected(request)
    internals.protect(request)
    assert internals.is_protected(request)
    assert internals.takes_exception(app.backend, app.tasks['celery.chord'].s()) is True
    assert [internals.is_regenerated(value) for value in (regen(iter([1])), [1])] == [True, False]
    assert internals.crontab_fields(crontab('1', '2', '3', '4', '5')) == ('1', '2', '4', '5', '3')
    assert isinstance(chain(task.si(), task.si()), internals.chain_type)
    assert internals.task_stack.top is None


def test_replaced(app):
    """What is replaced for a while is restored, also if it did not exist."""
    backend, pool = app.backend, app.amqp.producer_pool
    with internals.backend_replaced(app, other := object()), internals.producer_pool_replaced(app, third := object()):
        assert (app.backend, app.amqp.producer_pool) == (other, third)
    assert (app.backend, app.amqp.producer_pool) == (backend, pool)
    owner = SimpleNamespace()
    with internals.replaced(owner, 'x', 1):
        assert owner.x == 1
    assert vars(owner) == {}


def private_names(tree):
    """Yield the private names that a module takes from others, also by `getattr()`, that it defines, and of `self`."""
    slots = {
        name for node in ast.walk(tree) if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__slots__'
        for name in ast.walk(node.value)
    }
    parts = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in {'self', 'cls'}
            yield 'given' if isinstance(node.ctx, ast.Store) else 'own' if own else 'taken', node.attr
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.split('.')[0] in THEIRS:
            for alias in node.names:
                if is_private(alias.name) or any(map(is_private, node.module.split('.'))):
                    yield 'taken', alias.name
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield 'given', node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield 'given', node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and is_private(node.value):
            if node not in parts:
                yield ('given' if node in slots else 'taken'), node.value


def is_private(name):
    return name.startswith('_') and not name.startswith('__')


def test_private_names():
    """The search finds each way to use a private name."""
    source = '''
from celery.canvas import _chain
class Own:
    __slots__ = ('_slot',)
def _own(x):
    x._given = x._taken
    return getattr(x, '_by_name'), vars(x).pop('_by_key'), f'{x}_part', self._inherited
'''
    assert sorted(private_names(ast.parse(source))) == [
        ('given', 'Own'), ('given', '__slots__'), ('given', '_given'), ('given', '_own'), ('given', '_slot'),
        ('own', '_inherited'), ('taken', '_by_key'), ('taken', '_by_name'), ('taken', '_chain'), ('taken', '_taken'),
    ]


THEIRS = {'celery', 'kombu', 'billiard', 'amqp', 'vine'}


def private_names_of_libraries():
    """Return each private name in the source of the libraries."""
    folders = [Path(import_module(name).__file__).parent for name in THEIRS]
    return {
        name for folder in folders for path in folder.rglob('*.py')
        for name in re.findall(r'\b_[a-z]\w*', path.read_text(errors='replace'))
    }


def test_no_other_module_uses_private_names():
    """Only `internals` uses private names of Celery and its libraries."""
    modules = {
        path: list(private_names(ast.parse(path.read_text()))) for path in PACKAGE.rglob('*.py')
        if path.name != 'internals.py' and 'migrations' not in path.parts
    }
    ours = {path: {name for kind, name in names if kind == 'given'} for path, names in modules.items()}
    all_ours = set().union(*ours.values())
    allowed = {name for names in (*internals.OVERRIDDEN.values(), *internals.USED.values()) for name in names}
    theirs = private_names_of_libraries() - allowed - {'_meta', '_state', '_chain', '_all'}  # Django's and NetBox's
    assert {
        str(path.relative_to(PACKAGE)): sorted(taken) for path, names in modules.items() if (taken := theirs & (
            {name for kind, name in names if kind == 'taken'} - ours[path]
            | {name for kind, name in names if kind == 'own'} - all_ours
        ))
    } == {}
