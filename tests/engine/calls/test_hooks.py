"""Hooks of tasks: which tasks have any, what they are called with, and that they change nothing."""
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from celery import signals

from netbox_celery.engine.calls import hooks
from netbox_celery.tasks import CeleryBaseTask


class Hearing(CeleryBaseTask):
    abstract = True

    def on_invocation_apply(self, *args):
        heard.append(('apply', *args))

    def on_invocation_timeout(self, *args):
        heard.append(('timeout', *args))

    def on_task_retry(self, *args):
        heard.append(('retry', *args))

    def on_task_failure(self, *args):
        heard.append(('failure', *args))

    def on_task_success(self, *args):
        heard.append(('success', *args))


class Raising(CeleryBaseTask):
    abstract = True

    def on_invocation_apply(self, *args):
        raise ValueError('by hand')


heard = []


@pytest.fixture(autouse=True)
def nothing_heard():
    heard.clear()
    hooks._reported.clear()


@pytest.fixture
def task(make_task):
    return make_task(lambda self, task_id: None, name='tests:hearing', base=Hearing)


@pytest.fixture
def deaf(make_task):
    return make_task(lambda self, task_id: None, name='tests:deaf')


def test_tasks_with_and_without_hooks(task, deaf):
    """A task without a hook for its calls costs nothing, nor does one that is not of the plugin's class."""
    assert isinstance(hooks.invocation_of(task, (), {}, {}), hooks.Invocation)
    assert hooks.invocation_of(deaf, (), {}, {}) is None
    assert hooks.invocation_of(None, (), {}, {}) is None


def test_invocation(task):
    """All hooks of a call get the same ID, arguments and options, without the options that are not sent."""
    options = {'queue': 'q', **dict.fromkeys(hooks.NOT_SENT)}
    invocation, result = hooks.invocation_of(task, [1], None, options), SimpleNamespace(id='the-id')
    invocation.tell('apply', result)
    exc = TimeoutError()
    invocation.tell('timeout', result, exc)
    assert heard == [
        ('apply', invocation.id, (1,), {}, {'queue': 'q'}, result),
        ('timeout', invocation.id, (1,), {}, 'the-id', exc, {'queue': 'q'}, result),
    ]
    assert result.netbox_invocation is invocation
    assert UUID(invocation.id) and hooks.invocation_of(task, (), {}, {}).id != invocation.id


def test_hook_that_raises(make_task, caplog):
    """The error is logged with the names of the hook and of the task."""
    raising = make_task(lambda self, task_id: None, name='tests:raising', base=Raising)
    hooks.invocation_of(raising, (), {}, {}).tell('apply', SimpleNamespace(id='x'))
    assert 'on_invocation_apply of tests:raising failed' in caplog.text
    assert 'ValueError: by hand' in caplog.text


def test_failure_hook_is_called_once(task, deaf):
    """Celery sends its signal twice, and other receivers get it twice."""
    others, exc = [], ValueError('no')
    signals.task_failure.connect(listen := lambda sender, task_id, **kwargs: others.append((sender, task_id)))
    for task_id in ('a', 'a', 'b'):
        hooks.report_failure(task, task_id, [1], {'x': 2}, exc)
    hooks.report_failure(deaf, 'c', [], {}, exc)
    signals.task_failure.disconnect(listen)
    assert [entry[:-1] for entry in heard] == [('failure', task_id, [1], {'x': 2}, exc) for task_id in 'ab']
    assert heard[0][-1].type is ValueError
    assert 'ValueError: no' in heard[0][-1].traceback
    assert others == [(task, 'a'), (task, 'a'), (task, 'b'), (deaf, 'c')]


def test_memory_of_failures_is_bounded(task, monkeypatch):
    monkeypatch.setattr(hooks, 'MOST_REPORTED', 2)
    for number in range(5):
        hooks.report_failure(task, str(number), [], {}, ValueError())
    assert len(hooks._reported) == 2


def test_retry(task):
    """A countdown in seconds is given as a time, too."""
    request, exc, when = SimpleNamespace(id='x', args=[1], kwargs={}), ValueError(), datetime(2030, 1, 2, tzinfo=UTC)
    for given in (when, 60):
        signals.task_retry.send(sender=task, request=request, reason=SimpleNamespace(when=given, exc=exc))
    (*first, eta), (*second, later) = heard
    assert first == second == ['retry', 'x', [1], {}, exc]
    assert eta == when
    assert timedelta(seconds=50) < later - datetime.now(UTC) <= timedelta(seconds=60)


def test_success(task):
    task_id = str(uuid4())
    task.push_request(id=task_id, args=[1], kwargs={'x': 2})
    signals.task_success.send(sender=task, result='done')
    task.pop_request()
    signals.task_success.send(sender=object(), result='of another')
    assert heard == [('success', task_id, [1], {'x': 2}, 'done')]
