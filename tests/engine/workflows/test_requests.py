"""Requests of runs, made from their rows."""
from uuid import uuid4

import pytest

from netbox_celery.celery import app
from netbox_celery.engine.workflows.requests import load_requests
from tests.factories import make_result

pytestmark = pytest.mark.django_db(transaction=True)


def test_requests():
    """Only of runs on whose end something depends, with what that is."""
    rest = [app.signature('a', options={'task_id': str(uuid4())})]
    has, has_not = make_result(options={'chain': rest}), make_result(options={'queue': 'q'})
    requests = load_requests([has.task_id, str(has_not.task_id), uuid4()])
    assert list(requests) == [str(has.task_id)]
    assert [it['task'] for it in requests[str(has.task_id)].chain] == ['a']
    assert load_requests([]) == {}


@pytest.mark.parametrize('name', ['chain', 'chord', 'link_error'])
def test_what_depends_on_a_run(name):
    """Later steps, a chord and error callbacks do; success callbacks do not."""
    step = {'task': 'a', 'options': {}}
    has = make_result(celery_name='tests:has', options={name: step if name == 'chord' else [step]})
    has_not = make_result(options={'link': [step]})
    found = load_requests([has.task_id, has_not.task_id])
    assert list(found) == [str(has.task_id)]
    request = found[str(has.task_id)]
    assert (request.id, request.task) == (str(has.task_id), 'tests:has')
    assert {'chain': request.chain, 'chord': request.chord, 'link_error': request.errbacks}[name]


def test_exact_steps():
    """Exactly as the call was made, not what PostgreSQL makes of it."""
    chain = [{'task': 'a', 'args': [-0.0], 'options': {}}]
    run = make_result(options={'chain': chain}, exact_call=(
        '[null, null, {"chain": [{"task": "a", "args": [-0.0], "options": {}}]}]'
    ))
    (request,) = load_requests([run.task_id]).values()
    assert repr(request.chain) == repr(chain)
