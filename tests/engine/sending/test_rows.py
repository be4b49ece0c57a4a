"""A call as the values of a row, and the statement that inserts them."""
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from uuid import uuid4

import pytest
from django.db import connection
from kombu import Exchange, Queue
from kombu.exceptions import EncodeError

from netbox_celery.celery import app
from netbox_celery.config import get_config
from netbox_celery.engine.calls.call import Call
from netbox_celery.engine.calls.options import Own
from netbox_celery.engine.sending.rows import INSERT, aware, build_row, foreign_row, insert_statement
from netbox_celery.engine.store.database import execute
from netbox_celery.engine.store.payload import PayloadDecoder
from netbox_celery.models import CeleryResult
from users.models import User

pytestmark = pytest.mark.django_db

NAME = 'tests:rows'
LIMIT = get_config().payload_length


def build(args=(), kwargs=None, *, name=NAME, own=None, task=None, run=None, **options):
    options = {'task_id': str(uuid4()), **options}
    return build_row(Call(app, name, args, kwargs, options, Own.merge(None, own or {}), task=task, run=run))


def insert(row, statement=INSERT):
    return CeleryResult.objects.get(pk=execute(connection, statement, row)[0][0])


def test_defaults():
    found = insert(build())
    assert (found.status, found.queue, found.name, found.celery_name) == ('pending', 'celery', NAME, NAME)
    assert (found.args, found.kwargs, found.options, found.message) == ([], {}, {}, None)
    assert (found.attempt, found.claims, found.attempts, found.nesting) == (0, 0, [], 0)
    assert found.root_id == found.request_id == found.task_id
    assert (found.user_id, found.parent_id, found.group_id, found.scheduled, found.sent) == (None,) * 5


ARGUMENTS = [1, None, 'é', {'a': [1.5]}, date(2026, 1, 2), datetime(2026, 1, 2, tzinfo=UTC), Decimal('1.50'), b'x']


def test_arguments():
    """A row holds the arguments with their types, as the message does, so that they can be sent again."""
    task_id = uuid4()
    found = insert(build([*ARGUMENTS, task_id], {'k': ARGUMENTS}))
    assert (found.args, found.kwargs) == ([*ARGUMENTS, task_id], {'k': ARGUMENTS})
    assert found.is_rerunnable


@pytest.mark.parametrize('args, shown', [
    (['x' * LIMIT], lambda args: args.startswith('["xxx') and args.endswith('characters left out]')),
    (['nul \x00', float('nan'), '\ud800'], lambda args: args == ['nul \ufffd', 'nan', '\ufffd']),
])
def test_arguments_that_a_row_cannot_show(args, shown):
    """They are cut or cleaned for display; the message to be sent again is the caller's own."""
    found = insert(build(args, {'a': 1}))
    assert shown(found.args)
    assert found.kwargs == {'a': 1}
    assert repr(PayloadDecoder().decode(found.message)) == repr([args, {'a': 1}])


def test_redacted():
    found = insert(build(['secret'], {'shown': 1}, argsrepr='(***)'))
    assert (found.args, found.kwargs, found.display_args) == (None, {'shown': 1}, '(***)')
    assert 'secret' in found.message
    assert not found.is_rerunnable


@pytest.mark.parametrize('options, message', [
    ({'args': [object()]}, r'tests:rows: args cannot be sent as JSON .* Pass primary keys'),
    ({'kwargs': {'user': User(username='x')}}, 'tests:rows: kwargs cannot be sent as JSON'),
    ({'headers': {'x': object()}}, 'tests:rows: an option cannot be sent as JSON'),
    ({'serializer': 'pickle'}, "serializer 'pickle' is not accepted by any worker"),
    # What looks like a type marker of Kombu's would make the whole message unreadable
    ({'args': [{'__type__': 'uuid', '__value__': 'x'}]}, 'args cannot be sent as JSON .* mark a type of Kombu'),
    ({'kwargs': {'__type__': 'mine', '__value__': 1}}, 'kwargs cannot be sent as JSON .* mark a type of Kombu'),
    ({'headers': {'x': {'__type__': 'date', '__value__': None}}}, 'an option cannot be sent as JSON .* mark a type'),
])
def test_what_cannot_be_sent(options, message):
    """Such a call fails with the task's name and the reason."""
    with pytest.raises(EncodeError, match=message):
        build(**options)


def test_arguments_that_contain_themselves():
    args = []
    args.append(args)
    with pytest.raises(EncodeError, match='Circular reference'):
        build(args)


@pytest.mark.parametrize('own, options, name', [
    ({'name': 'own'}, {'shadow': 'shadow'}, 'own'),
    ({}, {'shadow': 'shadow'}, 'shadow'),
    ({'name': 'a\x00b\x1b[31mred\x1b[0m'}, {}, 'a\ufffdbred'),
    ({'name': 'n' * 300}, {}, 'n' * 255),
    ({'name': 17}, {}, '17'),
    ({'name': 'a\ud800b'}, {}, 'a\ufffdb'),
    ({}, {'shadow': 'a\x00b'}, 'a\ufffdb'),
    ({}, {'name': 'tests:a\x00b\ud800'}, 'tests:a\ufffdb\ufffd'),
    ({}, {'name': 'tests:' + 'n' * 300}, 'tests:' + 'n' * 249),
    ({}, {'name': 'celery.map', 'kwargs': {'task': {'task': 'tests:x'}, 'it': [1, 2]}}, 'tests:x (map 2)'),
    ({}, {'name': 'celery.starmap', 'kwargs': {'task': {'task': 'tests:x'}}}, 'tests:x (starmap 0)'),
    ({}, {'name': 'celery.map', 'kwargs': {'task': 'odd'}}, 'celery.map'),
])
def test_name(own, options, name):
    assert insert(build(own=own, **options)).name == name


@pytest.mark.parametrize('value_max, expected', [
    (7, 7), (2.5, 2), (float('nan'), None), ('many', None), (10 ** 30, None),
])
def test_value_max(value_max, expected):
    assert insert(build(own={'value_max': value_max})).value_max == expected


@pytest.mark.parametrize('options, queue', [
    ({}, 'celery'), ({'queue': 'q'}, 'q'), ({'queue': Queue('q')}, 'q'), ({'queue': 'q' * 300}, 'q' * 255),
    ({'queue': 'a\x00b\ud800'}, 'a\ufffdb\ufffd'),
    ({'exchange': 'e', 'routing_key': 'r'}, ''), ({'exchange': 'e'}, 'celery'), ({'routing_key': 'r'}, 'celery'),
    ({'exchange': Exchange(''), 'routing_key': 'r'}, 'r'), ({'exchange': 'celery', 'routing_key': 'celery'}, 'celery'),
])
def test_queue(options, queue):
    assert insert(build(**options)).queue == queue


def test_routed(monkeypatch):
    """A row names the queue that a route leads to, unless the call gives another."""
    monkeypatch.setitem(app.conf.changes, 'task_routes', {'tests:*': {'queue': 'routed'}})
    forget_routes()
    try:
        assert build()['queue'] == 'routed'
        assert build(queue='q')['queue'] == 'q'
        assert build(name='other:task')['queue'] == 'celery'
    finally:
        monkeypatch.undo()
        forget_routes()


def forget_routes():
    """Let Celery read its setting again: another test may have sent a task."""
    app.amqp.flush_routes()
    vars(app.amqp).pop('router', None)


@pytest.mark.parametrize('seconds, status', [(60, 'scheduled'), (-60, 'pending'), (0, 'pending')])
def test_eta(seconds, status):
    eta = datetime.now(UTC) + timedelta(seconds=seconds)
    found = insert(build(eta=eta, expires=eta.isoformat()))
    assert (found.status, found.scheduled, found.expires) == (status, eta if status == 'scheduled' else None, eta)


@pytest.mark.parametrize('value, expected', [
    (None, None), ('', None), ('2026-07-01T12:00:00Z', datetime(2026, 7, 1, 12, tzinfo=UTC)),
    ('2026-07-01T12:00:00+02:00', datetime(2026, 7, 1, 10, tzinfo=UTC)),
    (datetime(2026, 7, 1, 12, tzinfo=UTC), datetime(2026, 7, 1, 12, tzinfo=UTC)),
    (datetime(2026, 7, 1, 12), datetime(2026, 7, 1, 12).astimezone()),
])
def test_aware(value, expected):
    assert aware(value) == expected
    assert expected is None or aware(value).tzinfo


def test_user():
    """The user that the call names, else the user of the run that makes the call."""
    alice, bob = (User.objects.create_user(name) for name in ('alice', 'bob'))
    run = SimpleNamespace(user_id=bob.pk)
    assert build(own={'user': alice}, run=run)['user_id'] == alice.pk
    assert build(run=run)['user_id'] == bob.pk
    assert build(run=SimpleNamespace(user_id=None))['user_id'] is None


@pytest.mark.parametrize('name', ['parent_id', 'root_id', 'group_id'])
def test_ids_of_relatives_that_are_not_uuids(name):
    """Celery accepts any string; such an ID is left out of the row."""
    row = build(**{name: 'not-a-uuid'})
    assert row[name] == (row['task_id'] if name == 'root_id' else None)
    relative = uuid4()
    assert build(**{name: relative})[name] == str(relative)


def test_own_parent():
    """A run is not its own parent, though the message of a retry says so."""
    task_id = str(uuid4())
    assert build(task_id=task_id, parent_id=task_id)['parent_id'] is None


def test_same_id_twice():
    """The first row stays as it is."""
    row = build([1])
    first = insert(row)
    assert execute(connection, INSERT, row | {'args': '[2]'}) == []
    first.refresh_from_db()
    assert first.args == [1]


def test_further_columns():
    row = build()
    found = insert(row | {'why': 'x'}, insert_statement(reason='%(why)s', completed='now()'))
    assert (found.reason, found.completed is not None) == ('x', True)


def test_foreign_message(make_task):
    """A message without a row gets one with what the message says."""
    task = make_task(lambda self, task_id, a: None, name='tests:foreign', netbox_name='Decorated')
    eta = datetime.now(UTC) + timedelta(hours=1)
    request = SimpleNamespace(
        id=str(uuid4()), args=[1], kwargs={'b': 2}, shadow=None, eta=eta.isoformat(), expires=None, root_id=None,
        parent_id='odd', group=None, replaced_task_nesting=0, delivery_info={'routing_key': 'q'},
    )
    found = insert(foreign_row(task, request))
    assert (str(found.task_id), found.name, found.args, found.kwargs) == (request.id, 'Decorated', [1], {'b': 2})
    assert (found.queue, found.status, found.scheduled, found.parent_id) == ('q', 'scheduled', eta, None)
    request.id, request.delivery_info, request.eta = str(uuid4()), None, None
    assert insert(foreign_row(task, request)).queue == 'celery'


def test_options_are_sent_again():
    """A row keeps the call's own options as JSON that gives them back unchanged."""
    expires = datetime(2030, 1, 2, 3, tzinfo=UTC)
    row = build(priority=0, expires=expires, link=[], time_limit=5, add_to_parent=False, headers={'x': 1})
    assert PayloadDecoder().decode(row['options']) == {
        'priority': 0, 'expires': expires, 'time_limit': 5, 'headers': {'x': 1}
    }
    assert json.loads(row['options'])
