"""Single steps that will never run: which rows they get, and which rows are not changed."""
from uuid import uuid4

import pytest

from netbox_celery.celery import app
from netbox_celery.engine.results.closing import (
    Blame,
    close_step,
    failed_member,
    is_known_step,
    is_tracked_step,
    load_culprit,
)
from netbox_celery.engine.workflows.canvas import as_request
from netbox_celery.models import CeleryResult
from tests.factories import make_result

pytestmark = pytest.mark.django_db(transaction=True)


def step(task_id):
    return app.signature('a', options={'task_id': str(task_id)})


def blame(culprit):
    return Blame(str(culprit.task_id), as_request(culprit.task_id, culprit.celery_name, {}), ValueError('no'))


def test_closed():
    """The row names the run that failed, and belongs to its user and its workflow."""
    culprit = make_result('errored', name='The culprit', error='ValueError: no')
    task_id = uuid4()
    assert close_step(app, step(task_id), blame(culprit), '{"exc_type": "ValueError"}', in_backend=True)
    row = CeleryResult.objects.get(task_id=task_id)
    assert (row.status, row.reason, row.user_id) == ('errored', 'upstream_failed', culprit.user_id)
    assert row.error == f'Not run, because The culprit [{culprit.task_id}] is errored: ValueError: no'
    assert (row.in_backend, row.exact_result) == (True, '{"exc_type": "ValueError"}')


@pytest.mark.parametrize('columns', [
    {'status': 'running'}, {'status': 'completed'}, {'status': 'pending'}, {'status': 'retrying', 'claims': 1},
    {'status': 'pending', 'nesting': 1, 'message': '[]'},
], ids=str)
def test_sent(columns):
    """A step that was sent is not changed."""
    sent = make_result(celery_name='a', **columns)
    assert not close_step(app, step(sent.task_id), blame(make_result('errored')))
    sent.refresh_from_db()
    assert (sent.status, sent.reason) == (columns['status'], '')


def test_closed_twice():
    culprit, task_id = make_result('errored'), uuid4()
    assert close_step(app, step(task_id), blame(culprit))
    assert close_step(app, step(task_id), blame(culprit))
    assert CeleryResult.objects.count() == 2


def test_step_that_waits_for_an_earlier_one():
    """The row of a task that replaced itself by a chain, which fails before its last step."""
    waits = make_result('pending', celery_name='a', nesting=1, attempt=0)
    assert close_step(app, step(waits.task_id), blame(make_result('errored')))
    waits.refresh_from_db()
    assert (waits.status, waits.reason) == ('errored', 'upstream_failed')
    assert CeleryResult.objects.count() == 2


def test_culprit_without_a_row():
    """For a run that is not tracked, only its ID and its exception are known."""
    task_id = str(uuid4())
    culprit = load_culprit(Blame(task_id, None, ValueError('no')))
    assert culprit.sentence == f"Not run, because [{task_id}] did not succeed: ValueError('no')"
    assert load_culprit(Blame(None, None, ValueError('no'))).sentence == 'Not run: ValueError: no'


def test_failed_member():
    root_id, group_id = uuid4(), uuid4()
    make_result('completed', root_id=root_id, group_id=group_id)
    failed = make_result('errored', root_id=root_id, group_id=group_id)
    options = {'root_id': str(root_id), 'group_id': str(group_id)}
    assert failed_member(as_request(uuid4(), 'a', options)) == str(failed.task_id)
    assert failed_member(as_request(uuid4(), 'a', options | {'group_id': str(uuid4())})) is None
    assert failed_member(None) is None


def test_known():
    assert is_tracked_step(app, step(uuid4()))
    assert is_known_step(app, step(make_result(celery_name='a').task_id))
    assert not is_known_step(app, step(uuid4()))
    assert is_known_step(app, step('no UUID'))
