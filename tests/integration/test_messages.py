"""Messages that no worker can use end their runs, and never the worker."""
import json
from contextlib import closing
from uuid import uuid4

import pytest
from kombu import Connection
from netbox_test_plugin import tasks
from netbox_test_plugin.side import notes

from netbox_celery.celery import app
from netbox_celery.config import get_config
from tests.support import nested_json

from .support import ended, speaking_to, until

NOWHERE = 'a-queue-that-nobody-serves'


def publish(queue, task, task_id, /, body='[[], {}, {}]', broker=None, properties=None, **headers):
    """Put a message on a queue without checks, as a program without the plugin does."""
    with Connection(broker or app.conf.broker_url, transport_options=app.conf.broker_transport_options) as connection:
        with connection.Producer() as producer:
            producer.publish(
                body, routing_key=queue, exchange='', content_type='application/json', content_encoding='utf-8',
                headers={'id': task_id, 'task': task.name, 'lang': 'py'} | headers,
                **(properties or {})
            )


def lpush(queue, text):
    with closing(app.backend.client.__class__.from_url(app.conf.broker_url)) as client:
        client.lpush(get_config().key_prefix + queue, text)


def unacknowledged():
    """Return the tags of the messages that workers hold, those of other tests with a time to come among them."""
    with closing(app.backend.client.__class__.from_url(app.conf.broker_url)) as client:
        return set(client.hkeys(get_config().key_prefix + 'unacked'))


def state_of(worker):
    """Return what a worker that lives keeps: its process, and the messages that are held so far."""
    return worker.pid, unacknowledged()


def unsent(task, **options):
    """Make the row of a call whose message is in no queue that a worker serves."""
    return task.apply_async(queue=f'{NOWHERE}-{uuid4().hex}', **options)


def check_worker_lives(worker, before):
    """Check that the worker continues as the same process, and that no message comes back to it."""
    assert worker.run(tasks.echo, 'next').status == 'completed'
    pid, held = before
    assert worker.process.poll() is None and worker.pid == pid
    until(lambda: unacknowledged() <= held)


@pytest.mark.parametrize('headers', [{}, {'eta': '2001-01-01T00:00:00+00:00'}], ids=['now', 'eta'])
@pytest.mark.parametrize('task', [tasks.echo, tasks.echo_late], ids=['early', 'late'])
@pytest.mark.parametrize('depth', [101, 750, 5_000])
def test_nested_arguments(any_worker, depth, task, headers):
    """Arguments that are nested too deeply end the run, and the message is not requeued."""
    before, run = state_of(any_worker), unsent(task)
    for body in (f'[[{nested_json(depth)}], {{}}, {{}}]', f'[[], {{"x": {nested_json(depth)}}}, {{}}]'):
        publish(any_worker.queue, task, run.id, body, **headers)

    result = ended(run)
    assert (result.status, result.reason) == ('errored', 'rejected')
    assert 'deep' in result.error or 'ecursion' in result.error
    assert notes(run.id) == []
    with pytest.raises(Exception, match='could not be read'):
        run.get(timeout=20)
    check_worker_lives(any_worker, before)


def test_arguments_as_deep_as_allowed(any_worker):
    """Arguments nested as deeply as a call allows run."""
    run = unsent(tasks.echo, args=(json.loads(nested_json(98)),))
    publish(any_worker.queue, tasks.echo, run.id, f'[[{nested_json(98)}], {{}}, {{}}]')
    assert ended(run).status == 'completed'


@pytest.mark.parametrize('headers', [{}, {'eta': '2001-01-01T00:00:00+00:00'}], ids=['now', 'eta'])
@pytest.mark.parametrize('task', [tasks.echo, tasks.late_echo, tasks.echo_slowly], ids=['early', 'late', 'limited'])
def test_not_handed_over(prefork, task, headers):
    """A message that cannot be pickled for a process ends the run, for waiters, hooks and the next step too."""
    before, free = state_of(prefork), f'{NOWHERE}-{uuid4().hex}'
    result = (task.s().set(queue=free) | tasks.echo.s().set(queue=free)).apply_async()
    run = result.parent
    publish(prefork.queue, task, run.id, stamps={'x': json.loads(nested_json(900))}, **headers)

    errored = ended(run)
    assert (errored.status, errored.reason) == ('errored', 'rejected')
    assert 'RecursionError' in errored.error
    assert 'RecursionError' in errored.traceback
    after = ended(result)
    assert (after.status, after.reason) == ('errored', 'upstream_failed')
    with pytest.raises(Exception, match='RecursionError'):
        run.get(timeout=20)
    if task is tasks.late_echo:
        until(lambda: ['on_task_failure'] == [what.split()[0] for __, what in notes(run.id)])
    check_worker_lives(prefork, before)
    # Both processes of the pool are free
    assert {ended(prefork.send(tasks.echo)).status for __ in range(6)} == {'completed'}


GARBAGE = {
    'id': [[], {}, 5, '', None, [['x']]],
    'task': [[], {}, 5, None],
    'retries': ['x', [], -1, 2 ** 40, 1.5, {}],
    'eta': [5, [], {}, 'soon', '0001-01-01T00:00:00+14:00', '9999-12-31T23:59:59-12:00'],
    'expires': [5, [], {}, 'never', '0001-01-01T00:00:00+14:00'],
    'timelimit': ['xy', [1], [None, 'x'], ['x', None], {'a': 1, 'b': 2}, [-1, -1], [[], []], 5],
    'replaced_task_nesting': ['x', [], 2 ** 40],
    'stamped_headers': [5, [[]], {'a': 1}],
    'stamps': [5, [1]],
    'root_id': [[], 5, 'x'],
    'parent_id': [[], {}, 'x'],
    'group': [5, 'x'],
    'shadow': [[], 5],
    'argsrepr': [5, []],
    'ignore_result': ['x', []],
    'origin': [5],
    'netbox_celery': [5, 'x', [], {'window': [], 'length': 'x'}, {'opens': {'x': 'y'}}, {'opens': {'x\0': 1e300}}],
    'netbox_celery_spelling': [5, [], 'x'],
}
BODIES = [
    '', 'x', 'null', '5', '{}', '[]', '[[], {}]', '[[], [], {}]', '[{}, {}, {}]', '["x", {}, {}]', '[[], {}, []]',
    '[[], {}, 5]', '[[], {}, {"chain": 5}]', '[[], {}, {"errbacks": "x"}]', '[[], {}, {"chord": []}]',
    '[[], {}, {"callbacks": [5]}]', '[[], {}, {"chain": [5]}]', '[[], {}, {"retries": "x"}]', '[[], {}, {"id": []}]',
    '{"task": []}', '{"task": "netbox_test_plugin:echo"}', '[[], {}, {"__type__": "datetime", "__value__": "x"}]',
]


@pytest.mark.parametrize('task', [tasks.echo, tasks.echo_late, tasks.plain_leave], ids=['early', 'late', 'untracked'])
def test_garbage_in_headers(any_worker, task):
    """Whatever a header holds, the worker continues, and the run that the message names ends."""
    before, runs = state_of(any_worker), []
    for name, values in GARBAGE.items():
        for value in values:
            run = unsent(tasks.echo if task is tasks.plain_leave else task)
            publish(any_worker.queue, task, run.id, **{name: value})
            if name not in ('id', 'task', 'eta') and task is not tasks.plain_leave:
                runs.append(run)
    check_worker_lives(any_worker, before)
    for run in runs:
        ended(run)


@pytest.mark.parametrize('task', [tasks.echo, tasks.echo_late, tasks.plain_leave], ids=['early', 'late', 'untracked'])
def test_garbage_in_the_body(any_worker, task):
    """The same for the body."""
    before, runs = state_of(any_worker), [unsent(tasks.echo if task is tasks.plain_leave else task) for __ in BODIES]
    for run, body in zip(runs, BODIES):
        publish(any_worker.queue, task, run.id, body)
    check_worker_lives(any_worker, before)
    if task is not tasks.plain_leave:
        for run in runs:
            ended(run)


def test_no_message_at_all(any_worker):
    """Entries of a Redis queue that are not messages are skipped and logged."""
    before = state_of(any_worker)
    for text in ENTRIES:
        lpush(any_worker.queue, text)
    check_worker_lives(any_worker, before)


ENTRIES = [
    'x', '', 'null', '5', '[]', '{}', '{"headers": 5}', '{"body": "x"}', '{"properties": 5}', '{"properties": {}}',
    '{"properties": {"delivery_tag": []}}', '{"properties": {"delivery_tag": "x"}}', b'\xff\x00',
    '{"properties": {"delivery_tag": "y", "delivery_info": 5}, "headers": {"id": "x", "task": "celery.chain"}}',
    '{"properties": {"delivery_tag": "z", "body_encoding": "base64"}, "body": "x", "headers": null}',
    '{"properties": {"delivery_tag": "z2", "body_encoding": "nothing"}, "body": "x", "headers": null}',
    nested_json(750), nested_json(200_000),
]


@pytest.mark.parametrize('task', [tasks.echo, tasks.echo_late], ids=['early', 'late'])
def test_rabbitmq(rabbitmq, make_instance, make_worker, without_shared_workers, task):
    """RabbitMQ does not redeliver such messages either."""
    instance = make_instance('rabbitmq-messages', broker_url=rabbitmq.url())
    worker = make_worker(f'rabbitmq-messages-{task.name[-4:]}', instance=instance)
    with speaking_to(rabbitmq.url()):
        worker.start().ready()
        runs = [unsent(task) for __ in range(3)]
        url = rabbitmq.url()
        publish(worker.queue, task, runs[0].id, f'[[{nested_json(750)}], {{}}, {{}}]', url)
        publish(worker.queue, task, runs[1].id, broker=url, timelimit='xy')
        publish(worker.queue, task, runs[2].id, broker=url, eta='2001-01-01T00:00:00+00:00', body='[[], [], {}]')
        for run in runs:
            row = ended(run, 40)
            assert (row.status, row.reason) == ('errored', 'rejected')
        assert ended(worker.send(tasks.echo), 40).status == 'completed'
        assert worker.process.poll() is None
        with app.connection_for_write() as connection:
            assert connection.default_channel.queue_declare(worker.queue, passive=True).message_count == 0
