"""Which calls count as the same, and how the settings of a call and of its task combine."""
import json
from datetime import timedelta
from types import SimpleNamespace
from uuid import NAMESPACE_OID, UUID, uuid5

import pytest
from celery.exceptions import CeleryError
from django.db import connection

from netbox_celery.engine.calls.policies import (
    EngineKey,
    Policy,
    default_unique_key_generator,
    policy_of,
    split_settings,
)
from netbox_celery.engine.store.database import execute
from netbox_celery.engine.store.payload import PayloadEncoder


@pytest.fixture
def tasks(make_task):
    def parameters(self, task_id, first, second='two', *, third='three'):
        pass

    def anything(self, task_id, *args, **kwargs):
        pass

    def device(self, task_id, device):
        pass

    return SimpleNamespace(
        parameters=make_task(parameters, name='tests:parameters'),
        anything=make_task(anything, name='tests:anything'),
        unique=make_task(anything, name='tests:unique', unique=True, stale_time_limit=300),
        nameless=make_task(anything, name='tests:nameless', unique=True),
        keyed=make_task(device, name='tests:keyed', concurrency_key='device-{device}', on_conflict='queue'),
        fresh=make_task(
            anything, name='tests:fresh', ignore_task_after_success=True, ignore_task_timedelta=timedelta(seconds=3)
        ),
        manual=make_task(anything, name='tests:manual', ignore_task_timedelta=60),
    )


def key(task, *args, **kwargs):
    return default_unique_key_generator(task, 'unique', args, kwargs)


SAME = [
    ((1,), {}), ((), {'first': 1}), ((1, 'two'), {}), ((), {'second': 'two', 'first': 1}), ((1,), {'third': 'three'}),
]
OTHER = [((2,), {}), (('1',), {}), ((1, 'three'), {}), ((1,), {'third': 3}), ((), {}), ((1, 'two', 3, 4, 5), {})]


def test_same_calls_have_the_same_key(tasks):
    """However the arguments are passed, and whether or not defaults are given."""
    assert len({key(tasks.parameters, *args, **kwargs) for args, kwargs in SAME}) == 1


def test_other_calls_have_other_keys(tasks):
    assert len({key(tasks.parameters, *args, **kwargs) for args, kwargs in [SAME[0], *OTHER]}) == 1 + len(OTHER)
    assert key(tasks.parameters, 1) != key(tasks.anything, 1)
    assert key(tasks.parameters, 1) != default_unique_key_generator(tasks.parameters, 'ignore', (1,), {})


@pytest.mark.parametrize('one,other', [
    ({'a': 1, 'b': 2}, {'b': 2, 'a': 1}), ({'x': {'a': 1, 'b': 2}}, {'x': {'b': 2, 'a': 1}}),
])
def test_order_of_keyword_arguments(tasks, one, other):
    assert key(tasks.anything, **one) == key(tasks.anything, **other)


def test_call_beats_task(tasks):
    policy = policy_of(tasks.keyed, ('sw1',), {}, {'limit': 3, 'stale_time_limit': timedelta(minutes=1)})
    assert policy == Policy(
        task=tasks.keyed.name, key='device-sw1', limit=3, on_conflict='queue', stale_after=60
    )
    assert policy_of(tasks.unique, (), {}, {'unique': False}) is None


def test_key_by_name(tasks):
    assert policy_of(tasks.keyed, (), {'device': 'sw2'}).key == 'device-sw2'


ODD = ['a\x00b', 'a\ufffdb', 'a\ud800b', 'a\udfffb', 'x' * 300, 'x' * 301, 'x' * 300 + '\x00', 'x' * 300 + '\ud800']


@pytest.mark.django_db
@pytest.mark.parametrize('settings', [
    {'concurrency_key': 'device-{device}'}, {'concurrency_key': lambda task, args, kwargs: f'device-{args[0]}'},
    {'unique': True, 'stale_time_limit': 60},
    {'unique': True, 'stale_time_limit': 60, 'unique_key_generator': lambda task, prefix, args, kwargs: args[0]},
    {'ignore_task_timedelta': 60},
    {'ignore_task_timedelta': 60, 'unique_key_generator': lambda task, prefix, args, kwargs: args[0]},
], ids=lambda settings: ' '.join(settings))
def test_odd_keys(make_task, settings):
    """Keys that PostgreSQL would refuse are changed so that they stay distinct, and equal for equal calls."""
    def device(self, task_id, device):
        pass

    task = make_task(device, name='tests:odd', **settings)
    keys = set()
    for value in ODD:
        policy = policy_of(task, (value,), {})
        key = policy.key or policy.window
        assert (policy_of(task, (value,), {}).key or policy.window) == key
        assert execute(connection, 'SELECT %s::varchar(255)', (key,)) == [(key,)]
        keys.add(key)
    assert len(keys) == len(ODD)


def test_key_that_is_not_text(tasks):
    assert policy_of(tasks.anything, (), {}, {'concurrency_key': 17}).key == '17'


@pytest.mark.parametrize('task,settings', [
    ('', {'unique': True}), ('', {'ignore_task_after_success': True}), ('keyed', {'limit': True}),
    ('keyed', {'limit': 1.5}), ('keyed', {'limit': 0}), ('keyed', {'limit': 10_001}),
    ('keyed', {'on_conflict': 'join '}),
    ('keyed', {'unique': True, 'stale_time_limit': 1}), ('nameless', {}),
])
def test_invalid_settings(tasks, task, settings):
    with pytest.raises(CeleryError):
        policy_of(getattr(tasks, task, None), ('sw1',) if task == 'keyed' else (), {}, settings)


def test_unregistered_task():
    """A key without arguments in it needs no task."""
    assert policy_of(None, (), {}, {'concurrency_key': 'x', 'on_conflict': 'skip'}).key == 'x'


def test_settings_are_removed_from_the_options():
    """The options of the caller stay as they are."""
    options = {'queue': 'x', 'unique': True, 'limit': 2}
    assert split_settings(options) == ({'queue': 'x'}, {'unique': True, 'limit': 2})
    assert options == {'queue': 'x', 'unique': True, 'limit': 2}
    assert split_settings(without := {'queue': 'x'}) == ({'queue': 'x'}, {}) and split_settings(without)[0] is without


@pytest.mark.parametrize('settings,window,length', [
    ({}, True, 3), ({'ignore_task_after_success': False}, False, None), ({'ignore_task_timedelta': 60}, True, 60),
])
def test_ignore_window(tasks, settings, window, length):
    policy = policy_of(tasks.fresh, (), {}, settings)
    assert (policy is not None and policy.window is not None, policy and policy.window_length) == (window, length)


def test_ignore_window_opened_by_the_body(tasks):
    policy = policy_of(tasks.manual, (), {})
    assert policy.window and policy.window_length is None


@pytest.mark.parametrize('key', [
    'schedule:5', 'unique:x', '=', '=schedule:5', 'schedule:' + 'x' * 300, '\x00schedule:5',
], ids=ascii)
def test_keys_of_the_engine(tasks, key):
    """A caller's key is never one of the engine's own, and two keys never become the same."""
    made = policy_of(tasks.anything, (), {}, {'concurrency_key': key}).key
    own = policy_of(tasks.anything, (), {}, {'concurrency_key': EngineKey(key.replace('\x00', ''))}).key
    assert made != own and not made.startswith(('schedule:', 'unique:')) and len(made) <= 255
    others = [policy_of(tasks.anything, (), {}, {'concurrency_key': mark + key}).key for mark in ('=', '==', 'x')]
    assert len({made, *others}) == 4


@pytest.mark.parametrize('key', ['schedule', 'Schedule:5', ' schedule:5', 'unique', 'device-7', 'my:schedule:5'])
def test_ordinary_keys(tasks, key):
    assert policy_of(tasks.anything, (), {}, {'concurrency_key': key}).key == key


def test_unique_keys(make_task):
    """A generator's return value is the key, except that it cannot be a schedule's."""
    def policy(generated):
        task = make_task(
            lambda self, task_id: None, name=f'tests:{generated}', unique=True, stale_time_limit=1,
            unique_key_generator=lambda task, prefix, args, kwargs: generated
        )
        return policy_of(task, (), {}).key

    assert policy('unique:mine') == 'unique:mine'
    assert policy('mine') == 'mine'
    assert policy('schedule:5') == '=schedule:5'


@pytest.mark.parametrize('key, value', [
    ('{device:d}', 'x'), ('{device:>10}', [1]), ('{device}', 10 ** 5000), ('{device[x]}', 'y'), ('{device.x}', 'y'),
    ('{other}', 'x'), ('{0}', 'x'), ('{device', 'x'), ('{device!x}', 'y'),
    (lambda task, args, kwargs: kwargs['other'], 'x'), (lambda task, args, kwargs: int(kwargs['device']), 'x'),
], ids=lambda value: type(value).__name__)
def test_argument_that_does_not_fit_the_key(tasks, key, value):
    """Such an argument is reported as the caller's mistake."""
    with pytest.raises(CeleryError, match='concurrency_key'):
        policy_of(tasks.keyed, (), {'device': value}, {'concurrency_key': key})


@pytest.mark.parametrize('value', ['{0.__class__}', '{device}', '{', '%s', '{x:>999999999}'])
def test_arguments_are_not_formatted(tasks, value):
    """A caller's argument is put into the key as it is."""
    assert policy_of(tasks.keyed, (value,), {}).key == f'device-{value}'


def test_keys_of_several_types(tasks):
    """A dict whose keys cannot be sorted makes a key as well, the same for the same arguments."""
    one, other = {1: 'a', 'b': 2}, {'b': 2, 1: 'a'}
    assert key(tasks.anything, one) == key(tasks.anything, other) != key(tasks.anything, {1: 'a', 'b': 3})
    assert policy_of(tasks.unique, (one,), {}).key == policy_of(tasks.unique, (other,), {}).key
    assert policy_of(tasks.fresh, (one,), {}).window == policy_of(tasks.fresh, (other,), {}).window


def test_keys_stay_the_same(tasks):
    """A rolling upgrade has old and new workers, so keys equal those of earlier versions."""
    for args in [('x', 1, None, 1.5), ({'b': 1, 'a': [UUID(int=1)]},), ({2: 'x', 10: 'y'},)]:
        values = json.dumps(['tests:anything', {'args': args, 'kwargs': {}}], cls=PayloadEncoder, sort_keys=True)
        assert key(tasks.anything, *args) == f'unique:{uuid5(NAMESPACE_OID, values)}'
