"""Which chords are stalled, and what is reported to Celery about their parts."""
import json
from contextlib import closing
from datetime import timedelta
from unittest import mock
from uuid import uuid4

import pytest
from celery import chord, group
from celery.exceptions import ChordError
from django.utils import timezone
from redis.exceptions import ConnectionError as RedisConnectionError

from netbox_celery.celery import app
from netbox_celery.engine.results import chords
from netbox_celery.engine.results.chords import GRACE, Watch
from netbox_celery.engine.store.database import EngineConnection
from netbox_celery.engine.store.payload import cut_json
from netbox_celery.models import CeleryResult, CeleryWorker
from tests.factories import make_result, make_worker

pytestmark = pytest.mark.django_db(transaction=True)

BODY = str(uuid4())
GROUP = str(uuid4())
LONG_AGO = timedelta(seconds=2 * GRACE)


@pytest.fixture(autouse=True)
def task(make_task):
    return make_task(lambda self, task_id, *args: None, name='tests:part')


@pytest.fixture
def told(monkeypatch):
    """What is reported to Celery about parts: states and results, or exceptions."""
    found = []
    monkeypatch.setattr(
        app.backend, 'on_chord_part_return',
        lambda request, state, result: found.append((request.group_index, request.id, state, result)), raising=False
    )
    return found


@pytest.fixture
def look():
    with closing(EngineConnection()) as connection:
        yield lambda watch=None: (watch or Watch()).look(connection, app)


def make_part(index, status='completed', *, size=2, ago=LONG_AGO, **columns):
    body = {'task': 'tests:part', 'args': [], 'kwargs': {}, 'options': {'task_id': BODY}}
    if size:
        body['chord_size'] = size
    ended = status not in ('pending', 'running')
    return make_result(status, **{
        'celery_name': 'tests:part', 'root_id': GROUP, 'group_id': GROUP, 'result': index if ended else None,
        'options': {'chord': body, 'group_id': GROUP, 'group_index': index},
        'completed': timezone.now() - ago if ended else None, **columns,
    })


def test_ends_of_parts(told, look):
    parts = [
        make_part(0, size=None), make_part(1, 'errored', error='ValueError: x'), make_part(2, 'revoked', error='bob'),
        make_part(3, 'ignored', error='Not run'), make_part(4, size=5, result='x' * 10),
    ]
    CeleryResult.objects.filter(pk=parts[4].pk).update(result=json.loads(cut_json('"' + 'x' * 99 + '"', 50)))
    with mock.patch.object(app.backend, 'restore_chord') as restore:
        assert look() == 1
    restore.assert_called_once_with(GROUP, 5, None)
    told.sort(key=lambda part: part[0])
    assert [part[1] for part in told] == [str(part.task_id) for part in parts]
    assert [part[2] for part in told] == ['SUCCESS', 'FAILURE', 'REVOKED', 'FAILURE', 'FAILURE']
    assert [str(part[3]) for part in told] == [
        '0', 'ValueError: x', 'bob', 'Not run', 'Its result is lost: the row does not hold all of it'
    ]
    assert type(told[4][3]) is ChordError


@pytest.mark.parametrize('parts', [
    [{}],  # the other one has no row yet, or none at all
    [{}, {'status': 'running'}],
    [{}, {'status': 'pending'}],
    [{}, {'ago': timedelta(seconds=GRACE / 2)}],  # Celery may be about to continue
    [{'size': None}, {'size': None}],
    [{'group_id': None}, {'group_id': None}],
], ids=['missing', 'running', 'pending', 'recent', 'size unknown', 'no group'])
def test_left_alone(told, look, parts):
    for index, columns in enumerate(parts):
        make_part(index, **columns)
    assert look() == 0
    assert told == []


@pytest.mark.parametrize('status', ['pending', 'completed', 'errored'])
def test_body_is_there(told, look, status):
    for index in range(2):
        make_part(index)
    make_result(status, task_id=BODY)
    assert look() == 0
    assert told == []


@pytest.mark.parametrize('ended, goes_on', [('before', True), ('after', False), (None, False)])
def test_chord_that_is_applied_again(look, told, ended, goes_on):
    """A body that finished before the parts were called again belongs to the earlier application."""
    started = timezone.now() - 2 * LONG_AGO
    for index in range(2):
        part = make_part(index, started=started)
        part.options |= {'headers': {'netbox_celery': {'begun': 1, 'before': 1}}}
        part.save()
    completed = {'before': started - LONG_AGO, 'after': started + LONG_AGO, None: None}[ended]
    make_result('completed' if ended else 'pending', task_id=BODY, completed=completed, celery_name='tests:part')
    with mock.patch.object(app.backend, 'restore_chord'):
        assert look() == goes_on
    assert len(told) == 2 * goes_on


@pytest.mark.parametrize('tracked', [True, False])
@pytest.mark.parametrize('message, goes_on', [(None, 1), ('[[], {}, "tests:part", {}]', 0)])
def test_body_is_the_row_of_a_task_that_replaced_itself(told, look, make_task, tracked, message, goes_on):
    """The row exists before the body is sent; once it is sent, the row says so."""
    for index in range(2):
        part = make_part(index)
        if not tracked:
            part.options['chord']['task'] = 'celery.accumulate'
            part.save()
    make_result('pending', task_id=BODY, nesting=1, reason='replaced', message=message)
    assert look() == goes_on
    assert len(told) == 2 * goes_on


def test_each_look_starts_where_the_last_one_stopped(told, look):
    make_part(0), make_part(1)
    watch = Watch()
    assert look(watch) == 1
    assert look(watch) == 0  # the body's row may have been deleted since
    assert len(told) == 2


def test_look_of_a_new_worker(told, look):
    """A worker that starts looks at what finished since the other workers fell silent."""
    make_part(0, ago=timedelta(hours=5)), make_part(1, ago=timedelta(hours=5))
    worker = make_worker()
    assert look() == 0
    CeleryWorker.objects.filter(pk=worker.pk).update(heartbeat=timezone.now() - timedelta(hours=6))
    assert look() == 1


def test_one_looks_at_a_time(told, look):
    make_part(0), make_part(1)
    watch = Watch()
    with closing(EngineConnection()) as other, other.advisory_lock(chords.LOCK, 60):
        assert look(watch) == 0
    assert look(watch) == 1


def test_redis_is_unavailable(look, monkeypatch, caplog):
    """What could not be reported is reported at the next look."""
    make_part(0), make_part(1)
    watch = Watch()
    with mock.patch.object(app.backend, 'set_chord_size', side_effect=RedisConnectionError('away')):
        assert look(watch) == 0
    assert 'away' in caplog.text
    with mock.patch.object(app.backend, 'on_chord_part_return') as tell:
        assert look(watch) == 1
    assert tell.call_count == 2


def test_chord_that_cannot_be_read(told, look, caplog):
    """It does not keep other chords from continuing."""
    odd = make_part(0, root_id=(other := uuid4()), group_id=other)
    odd.options['chord']['options']['netbox_user'] = 'nobody of that name'
    odd.save()
    make_part(0), make_part(1)
    assert look() == 1
    assert f'The state of the chord {other} is unknown' in caplog.text


@pytest.mark.parametrize('untracked', ['call', 'task'])
def test_body_without_a_row(told, look, make_task, untracked):
    """Nothing shows whether such a body was sent."""
    make_task(lambda self, task_id: None, name='tests:untracked', netbox_track=False)
    for part in (make_part(0), make_part(1)):
        body = part.options['chord']
        if untracked == 'task':
            body['task'] = 'tests:untracked'
        else:
            body['options']['netbox_track'] = False
        part.save()
    assert look() == 0
    assert told == []


def test_size_comes_with_the_last_part(task):
    """The last part has Celery's own count, and the shape of results that are not a plain list."""
    def sizes(header):
        CeleryResult.objects.all().delete()
        chord(header, part)()
        return [run.options.get('chord', {}).get('chord_size') for run in CeleryResult.objects.order_by('pk')]

    part = task.si().set(queue=f'chords-{uuid4().hex}')
    assert sizes([part, part, part])[-1] == 3
    assert sizes(part for __ in range(3))[-1] == 3
    assert sizes([group(part, part), part])[-1] == 3
    assert 'chord_header' not in CeleryResult.objects.last().options['chord']
    assert sizes([part | group(part, part), part]) == [None, 3]
    last = CeleryResult.objects.order_by('pk').last()
    (group_id, __), (inner, plain) = last.options['chord']['chord_header']
    assert (group_id, plain[0][0], len(inner[1])) == (str(last.group_id), str(last.task_id), 2)


def test_header_that_is_a_generator(make_task):
    """Parts are sent while later ones are still being generated; Celery reads a few ahead."""
    task, sent = make_task(lambda self, task_id, *args: None, name='tests:lazy'), []

    def parts():
        for number in range(5):
            sent.append(CeleryResult.objects.filter(celery_name=task.name).count())
            yield task.s(number).set(queue='nobody')
    chord(parts(), task.s().set(queue='nobody')).apply_async()
    assert CeleryResult.objects.count() == 5
    assert sent[-1] > 0, f'The header was unrolled before anything was sent: {sent}'


def test_no_body():
    """Nothing is remembered for a chord without a body."""
    group_id = str(uuid4())
    app.backend.apply_chord((group_id, [app.AsyncResult(str(uuid4()))]), None)
    app.backend.set_chord_size(group_id, 1)
