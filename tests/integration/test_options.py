"""Celery's own options and classes, on our tasks: in the decorator, a base class, a class, and the call."""
import json
import threading
from ast import literal_eval
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta

import pytest
from celery import chain, chord, group
from django.db import DatabaseError, connection, transaction
from kombu.exceptions import EncodeError
from netbox_test_plugin import tasks
from netbox_test_plugin.side import noted, notes, open_gate
from netbox_test_plugin.tasks import classes, declared

from netbox_celery.celery import app
from netbox_celery.config import get_config
from netbox_celery.models import CeleryResult

from .support import Worker, ended, lines, row, until, waiting

HOWS = declared.HOWS


@pytest.fixture(scope='module')
def own_worker(make_instance, worker_log, side, django_db_blocker):
    """A worker with other settings: ignored results, a route, and a base class and names for the whole app."""
    instance = make_instance('options', celery={
        'task_ignore_result': True,
        'task_track_started': True,
        'task_routes': {'*:routed': {'queue': 'options-routed'}},
    })
    worker = Worker(
        instance, worker_log, 'options', options=['-O', 'fair', '--prefetch-multiplier', '1'],
        env={'NETBOX_TEST_APP_WIDE': '1'},
    )
    worker.command[worker.command.index('-Q') + 1] = 'options,options-routed'
    with django_db_blocker.unblock():
        worker.start().ready()
    yield worker
    worker.stop()


def broker():
    return closing(app.backend.client.__class__.from_url(app.conf.broker_url))


#
# Retries
#

@pytest.mark.parametrize('how', HOWS)
def test_delays_of_retries(threads, how):
    """The time of the next attempt is what Celery computes; the row has it immediately."""
    runs = [
        (threads.send(declared.delayed[name, how], retries=retries), name)
        for name, (__, delays) in declared.DELAYS.items() for retries in delays
    ]

    for run, name in runs:
        # The shortest may have been tried again by now
        result = waiting(run, 'retrying')
        attempt, = [attempt for attempt in result.attempts if attempt['number'] == result.attempt]
        started, ended = (datetime.fromisoformat(attempt[key]) for key in ('started', 'ended'))
        gap = timedelta(seconds=declared.DELAYS[name][1][result.attempt - 1])
        assert started + gap <= result.scheduled <= ended + gap, (name, result.attempt)
        result.cancel()


def test_jitter(threads):
    """With jitter the delay is random up to the computed one, which spreads runs that failed together."""
    runs = [threads.send(declared.jittered, retries=1) for __ in range(12)]
    delays = []
    for run in runs:
        result = until(lambda: (found := row(run)).scheduled and found)
        started = datetime.fromisoformat(result.attempts[0]['started'])
        delays.append((result.scheduled - started).total_seconds())
        result.cancel()

    assert all(0 <= delay <= 601 for delay in delays)
    assert max(delays) - min(delays) > 1


@pytest.mark.parametrize('how', HOWS)
def test_limits_of_retries(worker, how):
    """`max_retries` ends retries, and `dont_autoretry_for` prevents them; ID, row and queue stay."""
    exhausted, special = worker.send(declared.limited[how]), worker.send(declared.limited[how], True)

    result = ended(exhausted)
    assert (result.status, result.error, result.attempt, result.queue) == (
        'errored', 'ValueError: wrong', 3, worker.queue
    )
    result = ended(special)
    assert (result.status, result.error, result.attempt) == ('errored', 'Special: wrong', 1)
    assert CeleryResult.objects.count() == 2


@pytest.mark.parametrize('task', [declared.unthrown, declared.limited_by_kwargs], ids=lambda task: task.name)
def test_retry_kwargs(worker, task):
    """`retry_kwargs` are those of `self.retry()`: its own limit, and returning the exception."""
    result = worker.run(task)

    assert (result.status, result.error, result.attempt) == ('errored', 'ValueError: wrong', 2)


def test_options_of_retries(worker):
    """The next attempt has the options of the one before."""
    result = worker.run(declared.plain_at_last, **declared.SENT)

    assert (result.status, result.attempt) == ('completed', 2)
    assert [literal_eval(facts) for facts in noted(result.task_id)] == [result.result] * 2
    assert result.result['priority'] == 3


#
# How it is sent
#

@pytest.mark.parametrize('how', [*HOWS, 'call', 'many'])
def test_sent(worker, how):
    """A task's message options are those of the message, the run and its row."""
    before = datetime.now(UTC)
    if how == 'call':
        result = worker.run(declared.plain, **declared.SENT)
    elif how == 'many':
        result = ended(CeleryResult.enqueue_many(declared.sent['base'], [()], queue=worker.queue).get())
    else:
        result = worker.run(declared.sent[how])

    assert (result.status, result.error) == ('completed', '')
    assert result.result == {
        'priority': 3, 'limits': [50, 40], 'expires': result.result['expires'], 'ignored': True,
        'routing_key': worker.queue,
    }
    expires = datetime.fromisoformat(result.result['expires'])
    assert expires == result.expires
    assert before + timedelta(seconds=600) <= expires <= datetime.now(UTC) + timedelta(seconds=600)
    assert {key: result.options[key] for key in ('priority', 'time_limit', 'soft_time_limit', 'compression')} == {
        'priority': 3, 'time_limit': 50, 'soft_time_limit': 40, 'compression': 'gzip',
    }


@pytest.mark.parametrize('how', [*HOWS, 'call', 'many'])
def test_compressed(how):
    """The body of the message is compressed."""
    if how == 'many':
        CeleryResult.enqueue_many(declared.plain, [()], queue='options-nobody', **declared.SENT)
    else:
        task, given = (declared.plain, declared.SENT) if how == 'call' else (declared.sent[how], {})
        task.apply_async(queue='options-nobody', **given)

    with broker() as client:
        # With Redis each priority has a list of its own
        key, = client.keys(f'{get_config().key_prefix}options-nobody*')
        message = json.loads(client.lindex(key, 0))
        client.delete(key)
    assert message['headers']['compression'] == 'application/x-gzip'
    assert message['content-type'] == 'application/json'
    assert b'\x163' in key


@pytest.mark.parametrize('shape', [
    chain, group, lambda *steps: chord(steps[:1], steps[1]),
], ids=['chain', 'group', 'chord'])
def test_sent_in_a_workflow(threads, shape):
    """Options of a signature apply to its step, wherever it is."""
    steps = [declared.plain.si().set(queue=threads.queue, **declared.SENT | {'priority': priority})
             for priority in (3, 6)]
    shape(*steps).apply_async()
    until(lambda: CeleryResult.objects.filter(status='completed').count() == 2)

    results = [run.result | {'expires': None} for run in CeleryResult.objects.order_by('pk')]
    assert results == [
        {'priority': priority, 'limits': [50, 40], 'expires': None, 'ignored': True, 'routing_key': threads.queue}
        for priority in (3, 6)
    ]


def test_call_beats_task(worker):
    """Options of the call beat those of the task."""
    result = worker.run(declared.sent['decorator'], priority=6, time_limit=30, soft_time_limit=20, ignore_result=False)

    assert result.result | {'expires': None} == {
        'priority': 6, 'limits': [30, 20], 'expires': None, 'ignored': False, 'routing_key': worker.queue,
    }


@pytest.mark.parametrize('task, given, error', [
    # No worker reads anything but JSON
    (declared.plain, {'serializer': 'pickle'}, EncodeError),
    (declared.plain, {'serializer': 'yaml'}, EncodeError),
    (declared.unreadable, {}, EncodeError),
    (declared.plain, {'kwargs': {'surplus': 1}}, TypeError),
    (declared.contradicting, {}, ValueError),
], ids=['pickle', 'yaml', 'unreadable', 'surplus', 'contradicting'])
def test_refused(task, given, error):
    """What cannot work is an error of the call, and leaves nothing behind."""
    with pytest.raises(error):
        task.apply_async(queue='options-nobody', **given)
    assert not CeleryResult.objects.exists()
    with broker() as client:
        assert client.keys(f'{get_config().key_prefix}options-nobody*') == []


#
# How it runs
#

@pytest.mark.parametrize('how', HOWS)
def test_soft_time_limit(prefork, how):
    result = prefork.run(declared.soft[how])

    assert (result.status, result.reason) == ('errored', 'soft_time_limit')


@pytest.mark.parametrize('how', HOWS)
def test_late_acknowledgement(worker, how, gate):
    """The broker keeps the message until the run has finished; without the option, until it starts."""
    late, early = worker.send(declared.late[how], gate), worker.send(declared.held[how], gate)
    for run in (late, early):
        waiting(run, 'running')
    with broker() as client:
        def is_kept(run):
            return any(run.id.encode() in value for value in client.hvals(f'{get_config().key_prefix}unacked'))
        assert is_kept(late)
        until(lambda: not is_kept(early))
        open_gate(gate)
        assert ended(late).status == 'completed'
        until(lambda: not is_kept(late))


@pytest.mark.parametrize('how', HOWS)
def test_track_started(worker, how, gate):
    """Celery's backend reports started and then success; the row has these statuses without the option."""
    run, silent = worker.send(declared.held[how], gate), worker.send(declared.unseen['base'], gate)
    for each in (run, silent):
        waiting(each, 'running')
    assert until(lambda: run.state == 'STARTED')
    assert silent.state == 'PENDING'

    open_gate(gate)
    for each in (run, silent):
        assert each.get(timeout=20) == 'held'
        assert (each.state, row(each).status) == ('SUCCESS', 'completed')


def test_state_without_the_database(threads, gate):
    """If the row cannot be read, what Celery's backend knows is returned."""
    run = threads.send(declared.held['base'], gate)
    assert until(lambda: run.state == 'STARTED')
    with transaction.atomic():
        with pytest.raises(DatabaseError):
            connection.cursor().execute('SELECT nonsense')
        assert run.state == 'STARTED'
        transaction.set_rollback(True)


def test_send_events(worker):
    """A task without events sends none, and has a row like any other."""
    seen, stop = [], threading.Event()

    def types(run):
        return {event['type'] for event in seen if event.get('uuid') == run.id}

    with app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={'*': seen.append})

        def capture():
            while not stop.is_set():
                with suppress(TimeoutError):
                    receiver.capture(limit=None, timeout=0.2, wakeup=False)
        listener = threading.Thread(target=capture)
        listener.start()
        try:
            # An event that arrives shows that the next ones will
            until(lambda: worker.run(declared.plain) and any(event['type'] == 'task-succeeded' for event in seen), 30)
            silent = [worker.send(task) for task in declared.unseen.values()]
            assert [ended(run).status for run in silent] == ['completed'] * len(HOWS)
            loud = worker.send(declared.plain)
            until(lambda: {'task-received', 'task-started', 'task-succeeded'} <= types(loud))
        finally:
            stop.set()
            listener.join()
    assert [types(run) for run in silent] == [set()] * len(HOWS)


@pytest.mark.parametrize('how', HOWS)
def test_rate_limit(threads, how):
    """Runs beyond the rate wait, and are not shown as running."""
    runs = [threads.send(declared.rated[how]) for __ in range(8)]

    assert row(runs[-1]).status == 'pending'
    starts = sorted(ended(run).started for run in runs)
    assert all(after - before >= timedelta(seconds=0.2) for before, after in zip(starts, starts[1:]))


#
# Ignored results
#

def test_ignore_result(own_worker, worker):
    """Setting, task, call: each beats the one before. The row has the result in any case."""
    by_setting = ((declared.plain, True), (declared.stored, False), (declared.ignored, True))
    calls = [
        (task, given, expected) for task, by_task in by_setting
        for given, expected in (({}, by_task), ({'ignore_result': True}, True), ({'ignore_result': False}, False))
    ]
    ids = own_worker.run(
        declared.spread, [(task.name, {'queue': own_worker.queue, **given}) for task, given, __ in calls]
    ).result
    for id, (task, given, expected) in zip(ids, calls, strict=True):
        result = ended(id)
        assert (result.status, result.result['ignored']) == ('completed', expected), (task.name, given)
        assert [(a['number'], a['error']) for a in result.attempts] == [(1, '')]

    # Without the setting
    for task, given, expected in ((declared.plain, {}, False), (declared.plain, {'ignore_result': True}, True),
                                  (declared.ignored, {'ignore_result': False}, False), (declared.ignored, {}, True)):
        assert worker.run(task, **given).result['ignored'] == expected


#
# Queues
#

def test_routes(own_worker):
    """A route in the settings decides the queue, unless the call names one; rows have the real queue."""
    calls = [(declared.routed.name, {}), (declared.routed.name, {'queue': own_worker.queue})]
    by_route, by_call = (ended(id) for id in own_worker.run(declared.spread, calls).result)

    assert (by_route.queue, by_route.result) == ('options-routed', 'options-routed')
    assert (by_call.queue, by_call.result) == (own_worker.queue, own_worker.queue)


def test_fair(own_worker, gate):
    """With `-O fair` short tasks do not wait behind a long one while another process is free."""
    long = own_worker.send(tasks.hold, gate, ignore_result=False)
    waiting(long, 'running')
    # The setting `task_track_started`
    assert until(lambda: long.state == 'STARTED')
    short = [own_worker.send(tasks.echo, number) for number in range(8)]

    assert [ended(run).status for run in short] == ['completed'] * 8
    assert row(long).status == 'running'
    open_gate(gate)
    assert ended(long).status == 'completed'


def test_priority(make_worker):
    """The most urgent message in a queue is first: with Redis the lowest number."""
    worker = make_worker('urgent', concurrency=1, options=['--prefetch-multiplier', '1'])
    runs = {priority: worker.send(tasks.echo, priority=priority) for priority in (9, 6, 3, 0)}
    worker.start()

    starts = {priority: ended(run, 60).started for priority, run in runs.items()}
    assert sorted(starts, key=starts.get) == [0, 3, 6, 9]


def test_dedicated_queues(prefork, threads, gate):
    """A worker with its own queue is not delayed by a busy one."""
    long = [prefork.send(tasks.hold, gate) for __ in range(6)]
    until(lambda: sum(row(run).status == 'running' for run in long) == 2)

    assert threads.run(tasks.echo).status == 'completed'
    assert not any(row(run).completed for run in long)
    open_gate(gate)
    assert [ended(run).status for run in long] == ['completed'] * 6


#
# Classes
#

@pytest.mark.parametrize('task, soft, reason', [
    (classes.own_request, True, 'soft_time_limit'), (classes.own_request_by_name, False, 'time_limit'),
], ids=['class', 'name'])
def test_own_request(prefork, task, soft, reason):
    """An author's request class, given as a class or by name, is used in the worker's parent."""
    calm, late = prefork.send(task, 0), prefork.send(task, 20)
    begins = ['accepted'] if soft else ['strategy', 'accepted']

    assert (ended(calm).status, ended(late).reason) == ('completed', reason)
    assert until(lambda: len(noted(calm.id)) == len(begins) and noted(calm.id)) == begins
    limit = 'timeout soft 0.5' if soft else 'timeout hard 1'
    assert until(lambda: len(noted(late.id)) > len(begins) and noted(late.id)) == [*begins, limit]


def test_inheritance(prefork):
    """Tasks share their classes' methods, and each has its own state: one instance and one cache per process."""
    runs = [prefork.send(classes.counting[name], 3) for name in ('single', 'double') for __ in range(8)]
    results = [ended(run).result for run in runs]

    assert {(name, value) for name, __, value in results} == {('single', 3), ('double', 6)}
    for name in ('single', 'double'):
        # Where tasks are made: before the fork
        assert [pid for pid, __ in notes(f'init-{name}')].count(prefork.pid) == 1
        assert not set(prefork.children) & {pid for pid, __ in notes(f'init-{name}')}
        processes = [pid for pid, __ in notes(f'resource-{name}')]
        assert len(processes) == len(set(processes))
        assert {pid for made_for, pid, __ in results if made_for == name} <= set(processes)
    until(lambda: noted(runs[0].id) == ['base on_success'])
    until(lambda: noted(runs[-1].id) == ['double on_success', 'base on_success'])


def test_app_wide_class_and_names(own_worker):
    """Tasks without a class or a name get the app's."""
    run = app.send_task('generated:declared.nameless', (1, 2), queue=own_worker.queue)
    result = ended(run)
    assert (result.status, result.result) == ('completed', [run.id, 1, 2])

    result = own_worker.run(declared.named, 5, netbox_track=True)
    assert result.result[1:] == [str(result.task_id), 5]
    assert result.result[0] is True
    # A given name is kept
    assert '  . netbox_test_plugin:named\n' in own_worker.output


def test_abortable(worker, gate):
    """A task that is aborted in Celery's way sees that, and ends as it decides."""
    run = worker.send(classes.abortable, gate)
    until(lambda: noted(run.id) == ['aborted False'])
    run.abort()
    assert run.is_aborted()
    open_gate(gate)

    result = ended(run)
    assert (result.status, result.result) == ('completed', 'aborted True')
    assert run.get(timeout=20) == 'aborted True'
    # Celery's backend stored the abort, and then the success
    assert until(lambda: app.AsyncResult(run.id).state == 'SUCCESS')


#
# Pydantic
#

@pytest.mark.parametrize('args, kwargs, body, expected', [
    (({'name': 'Ann', 'age': 1},), {}, [[{'name': 'Ann', 'age': 1}], {}], {'name': 'Hello Ann', 'age': 1}),
    ((classes.Person(name='Ann', age=1),), {}, [[{'name': 'Ann', 'age': 1}], {}], {'name': 'Hello Ann', 'age': 1}),
    ((classes.Person(name='Ann'), classes.Person(name='Bob', age=2)), {'word': 'Hi'},
     [[{'name': 'Ann', 'age': 0}, {'name': 'Bob', 'age': 2}], {'word': 'Hi'}], {'name': 'Hi Ann', 'age': 2}),
    ((), {'person': classes.Person(name='Ann', age=1)},
     [[], {'person': {'name': 'Ann', 'age': 1}}], {'name': 'Hello Ann', 'age': 1}),
])
def test_pydantic(worker, args, kwargs, body, expected):
    """Models are sent as their dump, which is in the row, and are models again in the task."""
    result = worker.run(classes.greet, *args, kwargs=kwargs)

    assert (result.error, result.result) == ('', expected)
    assert [result.args, result.kwargs] == body


def test_pydantic_many(worker):
    result, = CeleryResult.enqueue_many(
        classes.greet, [(classes.Person(name='Ann', age=1),)], queue=worker.queue
    )

    assert ended(result).result == {'name': 'Hello Ann', 'age': 1}
    assert result.args == [{'name': 'Ann', 'age': 1}]


def test_pydantic_without_self(worker):
    result = worker.run(classes.greet_unbound, classes.Person(name='Ann', age=1))

    assert result.result == {'name': f'{result.task_id} Ann', 'age': 1}


def test_pydantic_with_invalid_data(worker):
    """Invalid data ends the run with Pydantic's error."""
    result = worker.run(classes.greet, {'age': 'old'})

    assert result.status == 'errored'
    assert 'validation errors for Person' in result.error


#
# Waiting
#

def test_waiting_inside_a_task(worker):
    """Celery refuses to wait for a task inside a task; the line before is in both logs."""
    run = worker.send(declared.wait_inside, worker.queue)

    assert 'Never call result.get() within a task' in ended(run).result
    assert lines(run) == ['about to wait']
    assert until(lambda: f'{declared.wait_inside.name}[{run.id}]: about to wait' in worker.output)


def test_waiting_does_not_query_the_database(worker, gate, services):
    """A caller waits for Redis: its connection to PostgreSQL is idle."""
    run = worker.send(tasks.hold, gate)
    waiting(run, 'running')
    seen = []

    def watch():
        with services.cluster.connect('netbox') as other:
            for __ in range(5):
                threading.Event().wait(0.3)
                seen.append(other.execute(
                    'SELECT pid, query_start FROM pg_stat_activity WHERE client_port IS NOT NULL AND pid = ANY(%s)',
                    (pids,)
                ).fetchall())
        open_gate(gate)

    connection.ensure_connection()
    pids = [connection.connection.info.backend_pid]
    watcher = threading.Thread(target=watch)
    watcher.start()
    assert run.get(timeout=20) == gate
    watcher.join()
    assert len(seen) == 5
    assert all(found and found == seen[0] for found in seen)


@pytest.mark.parametrize('ignored', [False, True])
def test_retry_that_is_not_sent(worker, ignored):
    """A `Retry` that a task raises itself, without a message, ends the run."""
    run = worker.send(declared.retry_raised, ignore_result=ignored)

    result = ended(run)
    assert (result.status, result.attempt) == ('errored', 1)
    assert 'raise self.retry(...) instead' in result.error
    # Nothing is reported of a run whose result is ignored
    assert until(lambda: app.AsyncResult(run.id).state == ('PENDING' if ignored else 'FAILURE'))
