"""What is read from the code of registered tasks."""
from types import SimpleNamespace

from netbox_celery.engine.catalogue.registry import describe_task, parameters


def test_describe(described):
    """A description has the docstring, the options that differ from Celery's settings, and the parameters."""
    found = describe_task(described)

    assert found['description'] == 'The first line.'
    assert found['documentation'] == 'The first line.\n\nThe rest of it.'
    assert found['defaults'] == {'max_retries': 7, 'time_limit': 5}
    assert [(p['name'], p['kind'], p['annotation'], p['required'], p.get('default')) for p in found['parameters']] == [
        ('device', 'positional_or_keyword', 'int', True, None),
        ('name', 'positional_or_keyword', 'str', False, 'x'),
        ('rest', 'var_positional', '', False, None),
        ('flag', 'keyword_only', 'bool', False, False),
        ('more', 'var_keyword', '', False, None),
    ]


def test_task_without_a_docstring(make_task):
    """The docstrings of base classes are not the task's."""
    found = describe_task(make_task(lambda task_id: None, name='tests:undescribed', bind=False))

    assert (found['description'], found['documentation'], found['parameters']) == ('', '', [])


def test_parameters_of_a_plain_task():
    """A task without the base class has no `task_id` to leave out."""
    assert [p['name'] for p in parameters(SimpleNamespace(run=lambda first, second=2: None))] == ['first', 'second']
