"""Tasks as authors write and call them: shapes, options, and the row as the task sees it."""
import json
from contextlib import closing
from unittest import mock
from uuid import UUID

import pytest
from celery import group
from celery.exceptions import CeleryError
from netbox_test_plugin import tasks
from netbox_test_plugin.side import noted, notes, open_gate

from dcim.models import Site
from extras.models import Tag
from netbox_celery.celery import app
from netbox_celery.config import get_config
from netbox_celery.models import CeleryResult

from .support import ended, lines, row, until


def test_without_self(worker):
    """Without `bind=True` the function is `f(task_id, ...)`, with positional, keyword and default arguments."""
    result = worker.run(tasks.unbound, 1, kwargs={'third': 3})

    assert result.result == [str(result.task_id), 1, 'two', 3]


def test_positional_only(worker):
    """Names of positional-only parameters are free for other arguments, in the call and in the body."""
    rest = {'first': 2, 'self': 3, 'task_id': 'x'}
    assert worker.run(tasks.positional, 1, kwargs=rest).result == [1, rest]
    result = CeleryResult.objects.get(task_id=tasks.positional.delay(1, **rest).id)
    assert result.kwargs == rest
    with pytest.raises(TypeError, match=r'missing 1 required positional argument'):
        tasks.positional.delay(first=1)


def test_callables(worker):
    """A lambda with a name, a callable object and a function with several decorators are tasks."""
    assert worker.run(tasks.anonymous, 21).result == 42
    assert worker.run(tasks.doubler, 21).result == 42
    result = worker.run(tasks.decorated)
    assert result.result == 'decorated'
    assert noted(result.task_id) == ['decorated', 'decorated']


def test_class(worker):
    """A class with `run` is instantiated once in a process, however many runs it has."""
    results = [worker.run(tasks.handlers, 'ok') for __ in range(3)]

    assert [result.result for result in results] == ['ok'] * 3
    assert {result.celery_name for result in results} == {'netbox_test_plugin:handlers'}


@pytest.mark.parametrize('args, kwargs', [
    ((), {}), ((1, 2, 3, 4), {}), ((1,), {'fourth': 4}), ((1,), {'task_id': 'x'}),
])
def test_arguments_are_checked_at_the_call(args, kwargs):
    """Arguments that do not fit are an error of the call, which names the task; no caller passes `task_id`."""
    with pytest.raises(TypeError, match=r'^netbox_test_plugin:unbound\(\) '):
        tasks.unbound.delay(*args, **kwargs)
    with pytest.raises(TypeError, match=r'^netbox_test_plugin:say\(\) missing'):
        tasks.say.delay()
    assert not CeleryResult.objects.exists()


@pytest.mark.parametrize('call', [
    lambda: tasks.whoami.apply().get(),
    lambda: tasks.whoami(),
], ids=['apply', 'direct'])
def test_untracked_calls(call):
    """`.apply()` and a direct call run in this process, without a row, and return the value."""
    assert call()['row'] is None
    assert not CeleryResult.objects.exists()


def test_eager(eager):
    """In eager mode calls run in this process, without a row."""
    assert tasks.whoami.delay().get()['row'] is None
    assert tasks.echo.delay(1, netbox_name='n', a=2).get() == [[1], {'a': 2}]
    assert not CeleryResult.objects.exists()


def test_enqueue_when_eager(eager):
    """There would be no row to return, so the call fails before anything is done."""
    with pytest.raises(CeleryError, match='task_always_eager'):
        CeleryResult.enqueue(tasks.echo)
    with pytest.raises(CeleryError, match='task_always_eager'):
        CeleryResult.enqueue_many(tasks.echo, [(1,)])


def test_enqueue_without_a_row():
    """A call that cannot have a row fails, and nothing is done."""
    with mock.patch.object(app, 'send_task') as send, pytest.raises(CeleryError, match='must be a UUID'):
        CeleryResult.enqueue(tasks.echo, queue='nobody', task_id='not-a-uuid')
    assert not send.called


def test_eager_failure():
    """An eager run that fails raises the error in its caller."""
    with pytest.raises(ValueError, match='wrong value'):
        tasks.fail.apply(('value',)).get()
    assert not CeleryResult.objects.exists()


def test_calls_within_a_body(worker):
    """Tasks that a body calls as functions or eagerly have no row, and leave the row of the body alone."""
    result = worker.run(tasks.call_directly)

    called, eager, mine = result.result
    assert (called['row'], called['id']) == (None, None)
    assert eager['row'] is None
    assert mine == str(result.task_id)
    assert lines(result) == ['mine']
    assert CeleryResult.objects.count() == 1


def test_canvas_of_one_task(worker):
    """`map`, `starmap` and `chunks` have a row for the whole, and none for their items."""
    run = tasks.whoami.map([()] * 0)
    assert run
    result = ended(tasks.doubler.map([1, 2, 3]).apply_async(queue=worker.queue))
    assert (result.status, result.result) == ('completed', [2, 4, 6])
    assert result.name == 'netbox_test_plugin:object (map 3)'
    result = ended(tasks.unbound.starmap([(1, 2), (3, 4)]).apply_async(queue=worker.queue))
    assert [item[1:3] for item in result.result] == [[1, 2], [3, 4]]
    chunks = tasks.doubler.chunks([(1,), (2,), (3,)], 2).apply_async(queue=worker.queue)
    assert chunks.get(timeout=20) == [[2, 4], [6]]
    assert CeleryResult.objects.count() == 4


def test_link(worker):
    """A linked task is a run of its own, under the one that it follows."""
    first = worker.run(tasks.echo, 1, link=tasks.echo.si('linked').set(queue=worker.queue))
    until(lambda: CeleryResult.objects.filter(status='completed').count() == 2)

    linked = CeleryResult.objects.exclude(pk=first.pk).get()
    assert (linked.result, linked.root_id) == ([['linked'], {}], first.task_id)


def test_group(worker):
    """Each task of a group is a run with the group's ID."""
    outcome = group(tasks.echo.s(number) for number in range(4)).apply_async(queue=worker.queue)

    assert outcome.get(timeout=20) == [[[number], {}] for number in range(4)]
    assert set(CeleryResult.objects.values_list('group_id', flat=True)) == {UUID(outcome.id)}


#
# Options
#

def test_options_of_the_call(worker, user):
    """Our options are in the row, and are not passed to the function."""
    site = Site.objects.create(name='s', slug='s')
    tag = Tag.objects.create(name='Night shift', slug='night')
    result = worker.run(
        tasks.echo, 1, netbox_name='A name', netbox_user=user, netbox_object=site, netbox_value_max=7,
        netbox_data={'a': [1]}, netbox_tags=['night'], priority=3,
    )

    assert result.result == [[1], {}]
    assert (result.name, result.user, result.object, result.value_max) == ('A name', user, site, 7)
    assert (result.data, list(result.tags.all())) == ({'a': [1]}, [tag])
    assert result.options['priority'] == 3
    assert not any('netbox_' in key for key in result.options)


def test_options_among_the_arguments_of_delay():
    """`delay()` accepts our options among its arguments, one by one and as a dict."""
    options = {'value_max': 3, 'netbox_name': 'from the dict'}
    runs = [
        tasks.echo.delay(1, netbox_name='by itself', netbox_kwargs=options, a=2),
        tasks.echo.delay(1, netbox_kwargs=options, a=2),
    ]

    assert [(row(run).name, row(run).value_max) for run in runs] == [('by itself', 3), ('from the dict', 3)]
    assert [(row(run).args, row(run).kwargs) for run in runs] == [([1], {'a': 2})] * 2
    assert options == {'value_max': 3, 'netbox_name': 'from the dict'}
    app.control.purge()


def test_same_signature_twice(worker):
    """A call changes neither the caller's signature nor its dict: the second call equals the first."""
    options = {'netbox_name': 'twice', 'queue': worker.queue, 'headers': {'mine': 1}}
    signature = tasks.echo.s(1).set(**options)
    before = json.loads(json.dumps(signature))
    results = [ended(signature.delay()) for __ in range(2)] + [ended(tasks.echo.apply_async((1,), **options))]

    assert [result.name for result in results] == ['twice'] * 3
    assert json.loads(json.dumps(signature)) == before
    assert options == {'netbox_name': 'twice', 'queue': worker.queue, 'headers': {'mine': 1}}
    assert len({result.task_id for result in results}) == 3


def test_redacted_arguments(worker):
    """A caller's `argsrepr` keeps secrets out of the row and its pages, but not from the task."""
    run = worker.send(tasks.echo, 'secret', kwargs={'password': 'secret'}, argsrepr="('***',)", kwargsrepr='{...}')

    assert run.get(timeout=20) == [['secret'], {'password': 'secret'}]
    result = row(run)
    assert (result.display_args, result.display_kwargs) == ("('***',)", '{...}')
    assert 'secret' not in f'{result.args}{result.kwargs}{result.options}{result.message}'
    assert not result.is_rerunnable


def test_redacted_arguments_of_many():
    """They are also kept out of the headers of many messages, which workers log."""
    CeleryResult.enqueue_many(tasks.echo, [('secret',)], argsrepr="('***',)", queue='redacted')
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue('redacted')
        message = queue.get(timeout=5)
        message.ack()
        queue.close()

    assert (message.headers['argsrepr'], message.headers['kwargsrepr']) == ("('***',)", '{}')
    assert 'secret' not in str(message.headers)


def test_large_arguments(worker):
    """Arguments of any size reach the task; the row says how much was cut."""
    run = worker.send(tasks.echo, 'x' * 200_000)

    assert len(run.get(timeout=20)[0][0]) == 200_000
    assert 'cut:' in str(row(run).display_args)
    assert len(json.dumps(row(run).args)) < 70_000


def test_large_data(worker):
    """So does its data."""
    result = worker.run(tasks.echo, netbox_data={'x': 'y' * 200_000})

    assert 'cut:' in str(result.data)
    assert len(json.dumps(result.data)) < 70_000


def test_types_of_arguments(worker):
    """Types that Kombu can write as JSON arrive unchanged, and are readable in the row."""
    value = UUID(int=5)
    result = worker.run(tasks.echo, value, (1, 2), kwargs={'nested': {'id': value}})

    assert result.result == [[value, [1, 2]], {'nested': {'id': value}}]
    assert result.display_args == [str(value), [1, 2]]


def test_key_prefix(prefork):
    """All keys in Redis have our prefix: NetBox's own jobs in the same database are untouched."""
    with closing(app.backend.client.__class__.from_url(app.conf.broker_url)) as client:
        client.rpush('rq:queue:default', 'a job of NetBox')
        before = set(client.keys())
        run = prefork.send(tasks.echo, countdown=1)
        assert ended(run).status == 'completed'
        assert run.get(timeout=10)
        prefix = get_config().key_prefix.encode()
        assert {key for key in set(client.keys()) - before if not key.startswith(prefix)} == set()
        app.control.purge()
        assert client.lrange('rq:queue:default', 0, -1) == [b'a job of NetBox']
        client.delete('rq:queue:default')


#
# Calls from NetBox's code
#

def test_enqueue(worker, user):
    """`CeleryResult.enqueue` returns the row, for a task or its name, known here or not."""
    site = Site.objects.create(name='s', slug='s')
    for task in (tasks.echo, tasks.echo.name):
        result = CeleryResult.enqueue(task, args=(1,), kwargs={'a': 2}, user=user, instance=site, queue=worker.queue)
        assert (result.user, result.object, result.queue) == (user, site, worker.queue)
        assert ended(result).result == [[1], {'a': 2}]
    assert ended(CeleryResult.enqueue('no:such', queue=worker.queue)).reason == 'unregistered'


def test_enqueue_checks_arguments(worker):
    """Arguments are checked if this process knows the task, also if it is given by name."""
    with pytest.raises(TypeError):
        CeleryResult.enqueue('netbox_test_plugin:unbound', queue=worker.queue)
    assert not CeleryResult.objects.exists()


def test_enqueue_many(worker, user):
    """Hundreds of runs are created together, in order, each with its arguments."""
    calls = [(number,) for number in range(300)] + [{'word': 'x'}, ((1, 2), {'a': 3})]
    results = CeleryResult.enqueue_many(tasks.echo, calls, user=user, queue=worker.queue)

    assert len(results) == 302
    unfinished = CeleryResult.objects.exclude(status='completed')
    until(lambda: not unfinished.exists(), 60, lambda: list(unfinished.values('pk', 'status', 'error', 'claims')))
    assert [result.result for result in results.all()][:2] == [[[0], {}], [[1], {}]]
    assert [result.result for result in results.all()][-2:] == [[[], {'word': 'x'}], [[1, 2], {'a': 3}]]
    assert {result.user for result in results.all()} == {user}


def test_enqueue_job(worker, user):
    """The older signature works."""
    own = str(UUID(int=99))
    result = CeleryResult.enqueue_job(
        tasks.echo.name, user, celery_kwargs={'queue': worker.queue}, task_id=own, args=(1,), kwargs={'a': 2}
    )

    assert str(result.task_id) == own
    assert ended(result).result == [[1], {'a': 2}]
    assert result.user == user


def test_rerun(worker, user):
    """A run can be repeated from its row: a new run with the same arguments."""
    first = worker.run(tasks.echo, 1, kwargs={'a': UUID(int=3)}, netbox_name='named')
    again = CeleryResult.objects.get(pk=first.pk).rerun(user=user)

    assert (again.pk, again.name, again.user, again.queue) != (first.pk, 'named', user, worker.queue)
    assert (again.name, again.user, again.queue) == ('named', user, worker.queue)
    assert ended(again).result == first.result


#
# The row as its task sees it
#

def test_celery_result(worker, gate):
    """The progress that a body sets is visible while it runs."""
    run = worker.send(tasks.measure, gate)
    until(lambda: ('measured',) in [(what,) for __, what in notes(run.id)])
    result = until(lambda: (found := row(run)).value == 4 and found)
    assert (result.value_max, result.step, result.data) == (10, 'first', {'seen': [1, 2]})
    assert result.percentage == 40

    open_gate(gate)
    until(lambda: ('custom',) in [(what,) for __, what in notes(run.id)])
    result = until(lambda: (found := row(run)).value == 7 and found)
    assert (result.value_max, result.step) == (14, 'custom')
    assert run.state == 'CUSTOM'
    assert run.info['current'] == 7

    open_gate(f'{gate}-end')
    result = ended(run)
    assert result.result == [result.pk, str(result.task_id), 'running']


def test_update_state(worker, gate):
    """`update_state` with a percentage sets the row's progress, and the backend's state."""
    run = worker.send(tasks.percent, gate)

    result = until(lambda: (found := row(run)).value == 40 and found)
    assert (result.value_max, result.status) == (100, 'running')
    assert run.state == 'PROGRESS'
    assert run.info == {'percent': 40}
    open_gate(gate)
    assert ended(run).status == 'completed'
    assert run.get(timeout=10) is None


def test_track_all(make_worker, make_instance, worker):
    """With `track = "all"` tasks without the base class have rows with their ends; otherwise they have none."""
    assert tasks.plain.apply_async((5,), queue=worker.queue).get(timeout=20) == 5
    assert not CeleryResult.objects.exists()
    if worker.pool == 'threads':
        return

    everything = make_worker('track-all', instance=make_instance('track-all', track='all'), concurrency=1)
    everything.start().ready()
    runs = [
        everything.send(tasks.plain, 5), everything.send(tasks.plain_failing), everything.send(tasks.plain_replace, 7),
    ]
    results = [until(lambda: CeleryResult.objects.filter(task_id=run.id).exclude(completed=None).first())
               for run in runs]
    assert [(result.status, result.result, result.error) for result in results] == [
        ('completed', 5, ''), ('errored', None, 'ValueError: plain'), ('completed', 7, ''),
    ]
    assert runs[2].get(timeout=10) == 7


def test_tracked_by_name(worker):
    """A caller who asks for a row gets one, also for a task without the base class."""
    result = CeleryResult.enqueue(tasks.plain, args=(5,), queue=worker.queue)

    assert (ended(result).status, row(result).result) == ('completed', 5)
