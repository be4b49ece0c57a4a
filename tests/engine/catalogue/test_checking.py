"""Arguments that people enter, checked against the signatures of the catalogue."""
from contextlib import nullcontext

import pytest

from netbox_celery.engine.catalogue.checking import check_arguments
from netbox_celery.engine.exceptions import InvalidArguments
from netbox_celery.models import CeleryTask

PARAMETERS = [
    {'name': 'device', 'kind': 'positional_or_keyword', 'annotation': 'int', 'required': True},
    {'name': 'name', 'kind': 'positional_or_keyword', 'annotation': 'str', 'required': False, 'default': 'x'},
    {'name': 'flag', 'kind': 'keyword_only', 'annotation': 'bool', 'required': False, 'default': False},
]


@pytest.mark.parametrize('args, kwargs, wrong', [
    ([1], {}, None),
    ([], {'device': 1, 'name': 'y', 'flag': True}, None),
    ([1, 'y'], {'flag': False}, None),
    ([], {}, ['device']),
    ([1, 'y', True], {}, ['__all__']),
    ([1], {'device': 2}, ['device']),
    ([1], {'colour': 'red'}, ['colour']),
    (['1'], {}, ['device']),
    ([True], {}, ['device']),
    ([1.5], {}, ['device']),
    ([1], {'name': None}, ['name']),
    ([1], {'flag': 1}, ['flag']),
    ([None], {'name': 1, 'x': 2}, ['device', 'name', 'x']),
], ids=str)
def test_check_arguments(args, kwargs, wrong):
    """Each parameter gets its own error."""
    task = CeleryTask(name='t', parameters=PARAMETERS)
    if wrong is None:
        check_arguments(task, args, kwargs)
    else:
        with pytest.raises(InvalidArguments) as raised:
            check_arguments(task, args, kwargs)
        assert sorted(raised.value.errors) == wrong


def test_options_are_not_arguments():
    """Code may pass `netbox_*` options among the arguments; people may not, whatever the task accepts."""
    task = CeleryTask(name='t', parameters=[
        {'name': 'netbox_mine', 'kind': 'keyword_only', 'annotation': '', 'required': False},
        {'name': 'rest', 'kind': 'var_keyword', 'annotation': '', 'required': False},
    ])
    check_arguments(task, [], {'netbox_mine': 1, 'other': 2})
    with pytest.raises(InvalidArguments) as raised:
        check_arguments(task, [], {'netbox_object': ['dcim.device', 1], 'netbox_schedule': 1, 'netbox_x': 1})
    assert sorted(raised.value.errors) == ['netbox_object', 'netbox_schedule', 'netbox_x']


@pytest.mark.parametrize('value, wrong', [
    ({'__type__': 'uuid', '__value__': 'x'}, True), ({'__type__': 'mine', '__value__': 1}, True),
    ({'__type__': 'date', '__value__': '2030-01-02'}, False), ({'__type__': 'mine'}, False),
])
def test_arguments_that_no_worker_could_read(value, wrong):
    task = CeleryTask(name='t', parameters=[
        {'name': 'rest', 'kind': 'var_keyword', 'annotation': '', 'required': False},
    ])
    with pytest.raises(InvalidArguments, match='mark a type') if wrong else nullcontext():
        check_arguments(task, [], {'deep': [{'value': value}]})


KINDS = [
    {'name': 'pos', 'kind': 'positional_only', 'annotation': 'int', 'required': True},
    {'name': 'items', 'kind': 'positional_or_keyword', 'annotation': 'list', 'required': False, 'default': None},
    {'name': 'flag', 'kind': 'positional_or_keyword', 'annotation': 'bool', 'required': False, 'default': True},
    {'name': 'more', 'kind': 'var_positional', 'annotation': 'int', 'required': False},
    {'name': 'rest', 'kind': 'var_keyword', 'annotation': 'Literal[1, 2]', 'required': False},
]


@pytest.mark.parametrize('args, kwargs, wrong', [
    ([1], {}, {}),
    ([1, None, True, 5, 6], {'x': 1, 'pos': 2, 'more': 1, 'rest': 1}, {}),
    ([], {'pos': 1}, {'pos': 'must be given by position'}),
    ([1, 'x', 1], {}, {'items': "must be list, not 'x'", 'flag': 'must be bool, not 1'}),
    ([1, None, True, 5, 'five'], {}, {'more': "must be int, not 'five'"}),
    ([1], {'x': 1, 'y': 3}, {'rest': 'must be Literal[1, 2], not 3'}),
    ([1], {'items': None, 'pos': True}, {'rest': 'must be Literal[1, 2], not True'}),
], ids=str)
def test_kinds_of_parameters(args, kwargs, wrong):
    """Arguments are bound as in Python; a default is valid whatever the annotation says."""
    task = CeleryTask(name='t', parameters=KINDS)
    if not wrong:
        check_arguments(task, args, kwargs)
        return
    with pytest.raises(InvalidArguments) as raised:
        check_arguments(task, args, kwargs)
    assert raised.value.errors == wrong


def test_positional_only_by_name():
    """Also without `**kwargs`, and where the parameter is optional."""
    for required in (True, False):
        task = CeleryTask(name='t', parameters=[KINDS[0] | {'required': required}])
        with pytest.raises(InvalidArguments, match='pos: must be given by position'):
            check_arguments(task, [], {'pos': 1})
