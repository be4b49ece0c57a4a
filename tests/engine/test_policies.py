"""Which calls are the same, and what a call's settings and its task's come to."""
from datetime import timedelta

import pytest
from celery.exceptions import CeleryError
from netbox_test_plugin import policies as test_tasks
from netbox_test_plugin import tasks

from netbox_celery.engine.policies import Policy, default_unique_key_generator, policy_of, take_settings


def key(*args, **kwargs):
    return default_unique_key_generator(tasks.unbound, 'unique', args, kwargs)


SAME = [((1,), {}), ((), {'first': 1}), ((1, 'two'), {}), ((), {'second': 'two', 'first': 1}), ((1,), {'third': 'three'})]
OTHER = [((2,), {}), (('1',), {}), ((1, 'three'), {}), ((1,), {'third': 3}), ((), {}), ((1, 'two', 3, 4, 5), {})]


def test_same_calls_have_the_same_key():
    """However arguments are passed, and whether those that have defaults are."""
    assert len({key(*args, **kwargs) for args, kwargs in SAME}) == 1


def test_other_calls_have_other_keys():
    assert len({key(*args, **kwargs) for args, kwargs in [SAME[0], *OTHER]}) == 1 + len(OTHER)
    assert key(1) != default_unique_key_generator(tasks.echo, 'unique', (1,), {})
    assert key(1) != default_unique_key_generator(tasks.unbound, 'ignore', (1,), {})


@pytest.mark.parametrize('one,other', [
    ({'a': 1, 'b': 2}, {'b': 2, 'a': 1}), ({'x': {'a': 1, 'b': 2}}, {'x': {'b': 2, 'a': 1}}),
])
def test_order_of_keyword_arguments(one, other):
    keys = {default_unique_key_generator(tasks.echo, 'unique', (), kwargs) for kwargs in (one, other)}
    assert len(keys) == 1


def test_call_beats_task():
    policy = policy_of(test_tasks.keyed, ('sw1',), {}, {'limit': 3, 'stale_time_limit': timedelta(minutes=1)})
    assert policy == Policy(
        task=test_tasks.keyed.name, key='device-sw1', limit=3, on_conflict='queue', stale_after=60
    )
    assert policy_of(test_tasks.unique, (), {}, {'unique': False}) is None


def test_key_by_name():
    assert policy_of(test_tasks.keyed, (), {'device': 'sw2'}).key == 'device-sw2'


@pytest.mark.parametrize('task,settings', [
    (None, {'unique': True}), (None, {'ignore_task_after_success': True}), (test_tasks.keyed, {'limit': True}),
    (test_tasks.keyed, {'limit': 1.5}), (test_tasks.keyed, {'on_conflict': 'join '}),
    (test_tasks.keyed, {'unique': True, 'stale_time_limit': 1}), (test_tasks.nameless, {}),
])
def test_wrong_settings(task, settings):
    with pytest.raises(CeleryError):
        policy_of(task, ('sw1',) if task is test_tasks.keyed else (), {}, settings)


def test_task_that_is_not_known_here():
    """A key without arguments in it needs no task."""
    assert policy_of(None, (), {}, {'concurrency_key': 'x', 'on_conflict': 'skip'}).key == 'x'


def test_settings_are_taken_out():
    options = {'queue': 'x', 'unique': True, 'limit': 2}
    assert take_settings(options) == {'unique': True, 'limit': 2}
    assert options == {'queue': 'x'}


@pytest.mark.parametrize('settings,window,length', [
    ({}, True, 3), ({'ignore_task_after_success': False}, False, None), ({'ignore_task_timedelta': 60}, True, 60),
])
def test_windows(settings, window, length):
    policy = policy_of(test_tasks.fresh, (), {}, settings)
    assert (policy is not None and policy.window is not None, policy and policy.window_length) == (window, length)


def test_window_that_only_the_body_opens():
    policy = policy_of(test_tasks.manual, (), {})
    assert policy.window and policy.window_length is None
