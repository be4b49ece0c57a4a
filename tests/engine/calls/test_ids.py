"""A task ID has one spelling, wherever it comes from."""
import json
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from celery import Celery, chain, chord, group
from celery.result import AsyncResult
from celery.worker.control import Panel

from netbox_celery.celery import app
from netbox_celery.engine.calls import ids
from netbox_celery.engine.calls.ids import SPELLING, OneSpelling, canonical, respell
from netbox_celery.engine.sending.control import cancel
from netbox_celery.engine.worker import missing
from netbox_celery.models import CeleryResult
from tests.factories import make_result

pytestmark = pytest.mark.django_db(transaction=True)

ID = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'
SPELLINGS = [
    ID, UUID(ID), UUID(ID).hex, ID.upper(), UUID(ID).hex.upper(), f'{{{ID}}}', f'urn:uuid:{ID}',
    f'urn:uuid:{ID.upper()}', f'{{{ID.upper()}}}',
]


@pytest.fixture
def task(make_task):
    return make_task(lambda self, task_id, *args: None, name='tests:spelled')


@pytest.fixture
def sent(monkeypatch):
    """What was passed to Celery: the options of each call."""
    sent, send = [], Celery.send_task

    def send_task(self, name, args=None, kwargs=None, **options):
        sent.append(options)
        return send(self, name, args, kwargs, **options)
    monkeypatch.setattr(Celery, 'send_task', send_task)
    return sent


@pytest.mark.parametrize('spelling', SPELLINGS, ids=repr)
def test_spellings_of_a_uuid(spelling):
    assert canonical(spelling) == ID


@pytest.mark.parametrize('other', ['x', '', None, 5, ID[:-1], f'{ID}0', 'my-task'], ids=repr)
def test_id_that_is_not_a_uuid(other):
    assert canonical(other) is other


@pytest.mark.parametrize('spelling', SPELLINGS, ids=repr)
def test_id_of_a_call(task, sent, spelling):
    calls = (
        lambda: task.apply_async((), task_id=spelling), lambda: app.send_task('tests:spelled', task_id=spelling),
        lambda: task.s().set(task_id=spelling).delay(),
        lambda: chain(task.si().set(task_id=spelling), task.si())(),
        lambda: SimpleNamespace(id=str(CeleryResult.enqueue(task, task_id=spelling).task_id)),
        lambda: SimpleNamespace(
            id=str(CeleryResult.enqueue_job('tests:spelled', None, task_id=spelling).task_id)
        ),
    )
    for call in calls:
        sent.clear()
        result = call()
        assert sent[0]['task_id'] == ID
        assert (result.parent or result).id == ID if hasattr(result, 'parent') else result.id == ID
        assert str(CeleryResult.objects.get(task_id=ID).task_id) == ID
        CeleryResult.objects.all().delete()


def test_ids_in_signatures(task, sent):
    """IDs that an author gives to steps that are sent later, and the results by which one waits for them."""
    one, two, three = (uuid4() for __ in range(3))
    result = chain(task.si().set(task_id=one.hex), task.si().set(task_id=two.hex.upper()),
                   task.si().set(task_id=f'urn:uuid:{three}'))()
    assert [result.parent.parent.id, result.parent.id, result.id] == [str(one), str(two), str(three)]
    assert [step['options']['task_id'] for step in sent[0]['chain']] == [str(three), str(two)]
    sent.clear()
    parts, body = [uuid4(), uuid4()], uuid4()
    result = chord([task.si().set(task_id=id.hex) for id in parts], task.si().set(task_id=body.hex))()
    assert (result.id, [part.id for part in result.parent.results]) == (str(body), list(map(str, parts)))
    assert [options['task_id'] for options in sent] == list(map(str, parts))
    assert sent[0]['chord']['options']['task_id'] == str(body)
    sent.clear()
    group(task.si(), task.si()).apply_async(root_id=ID.upper(), parent_id=UUID(ID).hex)
    assert {(options['root_id'], options['parent_id']) for options in sent} == {(ID, ID)}


@pytest.mark.parametrize('spell', ['{}', '{{{}}}', 'urn:uuid:{}', '{0.hex}'])
@pytest.mark.parametrize('case', [str.lower, str.upper])
def test_result_by_another_spelling(spell, case):
    run = make_result('completed', result=5)
    spelling = case(spell.format(run.task_id)).replace('URN:UUID', 'urn:uuid')
    for result in (app.AsyncResult(spelling), AsyncResult(spelling), AsyncResult(spelling, app=app)):
        assert (result.id, result.get(timeout=1), result.state) == (str(run.task_id), 5, 'SUCCESS')
    assert app.backend.get_result(spelling) == 5
    assert app.backend.get_many([spelling], timeout=1)
    assert list(app.ResultSet([AsyncResult(spelling)]).join_native(timeout=1)) == [5]


def test_results_of_other_apps():
    other = Celery('other', backend='cache+memory://', set_as_current=False)
    assert AsyncResult(ID.upper(), app=other).id == ID.upper()


@pytest.mark.parametrize('spelling', SPELLINGS[2:], ids=repr)
@pytest.mark.parametrize('several', [False, True])
def test_revoke_by_another_spelling(monkeypatch, spelling, several):
    told = []
    monkeypatch.setattr(
        'celery.app.control.Control.broadcast',
        lambda self, command, arguments=None, *args, **kw: told.append(arguments)
    )
    make_result('pending', task_id=ID)
    app.control.revoke([spelling] if several else spelling)
    assert CeleryResult.objects.get().status == 'revoked'
    assert told[-1]['task_id'] in (ID, [ID])


def test_call_with_an_id_that_is_not_a_uuid(task):
    """Celery accepts any string; such a run has no row."""
    assert task.apply_async((), task_id='mine').id == 'mine'
    assert not CeleryResult.objects.exists()


# What other programs send

def test_message():
    message = {'id': ID.upper(), 'root_id': UUID(ID).hex, 'parent_id': None, 'group': ID.upper(), 'task': 'x'}
    respell(message)
    assert message == {
        'id': ID, 'root_id': ID, 'parent_id': None, 'group': ID.upper(), 'task': 'x', SPELLING: ID.upper()
    }
    for other in ({'id': ID, 'root_id': ID}, {'id': 'x'}, {}, None, 'x'):
        before = dict(other) if isinstance(other, dict) else other
        respell(other)
        assert other == before


def test_worker(monkeypatch):
    """Message IDs and the IDs of revokes have one spelling in the worker."""
    received, revoked = [], []
    for name in ('revoke', 'terminate', 'query_task'):
        monkeypatch.setitem(Panel.data, name, lambda state, *args, **kwargs: revoked.append((args, kwargs)))
    consumer = SimpleNamespace(create_task_handler=lambda: received.append)
    OneSpelling(consumer)
    handle = consumer.create_task_handler()
    handle(SimpleNamespace(headers={'id': ID.upper()}))
    assert received[0].headers['id'] == ID
    Panel.data['revoke'](None, task_id=[ID.upper(), 'x'], terminate=True)
    Panel.data['terminate'](None, 'KILL', UUID(ID).hex)
    Panel.data['query_task'](None, ids=(ID.upper(),))
    assert revoked == [
        ((), {'task_id': [ID, 'x'], 'terminate': True}), (('KILL', ID), {}), ((), {'ids': [ID]}),
    ]
    OneSpelling(consumer)  # the connection was lost, and there is a new consumer
    Panel.data['revoke'](None, ID.upper())
    assert revoked[-1] == ((ID,), {})


def test_result_under_the_senders_spelling(deliver):
    """The result is stored under the spelling that the sender waits for, and found under ours."""
    run = make_result('pending')
    spelling = run.task_id.hex
    task = deliver(run.task_id, **{SPELLING: spelling})
    from netbox_celery.engine.runs.claim import begin

    begin(task)
    app.backend.mark_as_done(str(run.task_id), 5, task.request, True)
    client = app.backend.client
    assert b'SUCCESS' in client.get(app.backend.get_key_for_task(spelling))
    assert app.AsyncResult(spelling).get(timeout=1) == 5


@pytest.mark.parametrize('spelling', [5, [1], {}, str(UUID(int=7)), UUID(int=8).hex, 'x'], ids=repr)
def test_spelling_of_something_else(deliver, spelling):
    """Only another spelling of the run's own ID is used for its result, whatever the header says."""
    run = make_result('pending')
    task = deliver(run.task_id, **{SPELLING: spelling})
    from netbox_celery.engine.runs.claim import begin

    begin(task)
    app.backend.mark_as_done(str(run.task_id), 5, task.request, True)
    assert app.AsyncResult(str(run.task_id)).get(timeout=1) == 5
    if isinstance(spelling, str):
        assert app.backend.client.get(app.backend.get_key_for_task(spelling)) is None


def test_message_in_a_queue():
    assert missing._task_id(json.dumps({'headers': {'id': ID.upper()}})) == ID
    assert missing._task_id(json.dumps([{'headers': {'id': ID.upper()}}, 'exchange', 'key']), 0) == ID
    for entry in ('{"headers": {}}', '{}', '[]', '5', 'no JSON', b'\xff', '{"headers": null}'):
        assert missing._task_id(entry) is missing._task_id(entry, 0) is None
    assert ids.respelled({ID.upper()}) == [ID]


def test_cancel_uses_the_spelling_of_workers(task):
    """A cancel names the run to workers as they know it."""
    task.apply_async((), task_id=UUID(ID).hex)
    assert cancel(CeleryResult.objects.get())
    assert app.AsyncResult(UUID(ID).hex).state == 'REVOKED'
