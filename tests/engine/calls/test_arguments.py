"""The check of a call's arguments, and the arguments of a retry."""
import inspect
from functools import partial
from types import SimpleNamespace

import pytest

from netbox_celery.engine.calls.arguments import header, merge_arguments


def function(self, task_id, pos: int, /, text='x', *more: int, kw: str = 'k', needed, **rest):
    pass


@pytest.mark.parametrize('args, kwargs', [
    ((1,), {'needed': 1}),
    ((1, 'y', 2, 3), {'needed': 1, 'kw': 'l', 'other': 2}),
    ((1,), {'needed': 1, 'pos': 2, 'self': 3, 'task_id': 4}),
    ((1,), {'needed': 1, 'head': 2, 'name': 3, 'args': 4, 'kwargs': 5}),
], ids=str)
def test_arguments_that_fit(args, kwargs):
    """The check accepts what Python accepts: names of positional-only parameters are free for keyword arguments."""
    function(None, 'id', *args, **kwargs)
    header(function, 'tests:f')(*args, **kwargs)


@pytest.mark.parametrize('args, kwargs, message', [
    ((), {'needed': 1}, r"missing 1 required positional argument: 'pos'"),
    ((), {'needed': 1, 'pos': 1}, r"missing 1 required positional argument: 'pos'"),
    ((1,), {}, r"missing 1 required keyword-only argument: 'needed'"),
    ((1, 'y'), {'needed': 1, 'text': 'z'}, r"got multiple values for argument 'text'"),
], ids=str)
def test_arguments_that_do_not_fit(args, kwargs, message):
    """The error names the task and says what Python would say."""
    with pytest.raises(TypeError, match=rf'^tests:f\(\) {message}'):
        header(function, 'tests:f')(*args, **kwargs)
    with pytest.raises(TypeError, match=message):
        function(None, 'id', *args, **kwargs)


def test_without_further_arguments():
    def plain(self, task_id, pos, /, text):
        pass

    header(plain, 't')(1, text='x')
    for args, kwargs in (((1, 'x', 2), {}), ((1, 'x'), {'other': 2}), ((), {'pos': 1, 'text': 'x'})):
        with pytest.raises(TypeError):
            header(plain, 't')(*args, **kwargs)


def test_unbound():
    """Celery tells how to call an errback from the type of the header and its parameters."""
    def unbound(task_id, first, *rest):
        pass

    head = header(staticmethod(unbound), 't')
    assert not isinstance(head, partial) and isinstance(header(function, 't'), partial)
    assert inspect.getfullargspec(head)[:2] == (['first'], 'rest')


@pytest.mark.parametrize('args, kwargs, expected', [
    (None, {'text': 'y'}, ([1, 'y'], {'needed': 2})),
    (None, {'needed': 3}, ([1, 'x'], {'needed': 3})),
    (None, {'pos': 3}, ([1, 'x'], {'needed': 2, 'pos': 3})),
    ((5, 'z'), None, ((5, 'z'), {'needed': 2})),
], ids=str)
def test_retry_with_some_arguments(args, kwargs, expected):
    """Arguments that the retry does not name keep their values, also beside positional-only ones."""
    request = SimpleNamespace(args=[1, 'x'], kwargs={'needed': 2})
    task = SimpleNamespace(run=partial(function, None), request=request)
    assert merge_arguments(task, args, kwargs) == expected
