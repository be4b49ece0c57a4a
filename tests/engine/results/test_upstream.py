"""Steps that will never run: which get rows, and which rows are not changed."""
from uuid import uuid4

import pytest
from celery import chain, chord, group

from netbox_celery.celery import app
from netbox_celery.engine.workflows.canvas import as_request
from netbox_celery.models import CeleryResult
from tests.factories import make_result
from users.models import User

pytestmark = pytest.mark.django_db(transaction=True)


def step(name, task_id=None, **options):
    return app.signature(name, options={'task_id': task_id or str(uuid4()), **options})


def later(*signatures):
    """Return the rest of a chain as a message holds it: the last step first."""
    return [*reversed(signatures)]


def found():
    return {
        run.celery_name: (run.status, run.reason)
        for run in CeleryResult.objects.exclude(celery_name='tests:culprit')
    }


NOT_RUN = ('errored', 'upstream_failed')
SHAPES = {
    'chain': (lambda: later(step('a'), step('b')), 'a b'),
    'group': (lambda: later(group(step('a'), step('b'), app=app)), 'a b'),
    'chord': (lambda: later(chord([step('a'), step('b')], step('c'), app=app)), 'a b c'),
    'nested': (lambda: later(step('a'), group(chain(step('b'), step('c'), app=app), step('d'), app=app)), 'a b c d'),
}


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('end', ['failure', 'revoked', 'ignored', 'refused', 'sweep'])
def test_closed(shape, end):
    """However a run ends without success, what depends on it is closed once, and names it and its user."""
    make, names = SHAPES[shape]
    user = User.objects.create_user('alice')
    rest = make()
    culprit = make_result('errored', celery_name='tests:culprit', name='The culprit', error='ValueError: no',
                          options={'chain': rest}, user=user)
    task_id, options = str(culprit.task_id), {'task_id': str(culprit.task_id), 'chain': rest}
    request = as_request(task_id, 'tests:culprit', options)
    for __ in range(2):
        if end == 'failure':
            app.backend.mark_as_failure(task_id, ValueError('no'), request=request, call_errbacks=False)
        elif end == 'revoked':
            app.backend.mark_as_revoked(task_id, 'revoked', request)
        elif end == 'ignored':
            app.backend.end_dependents(request, ValueError('no'))
        elif end == 'refused':
            app.backend.close_dependents('tests:culprit', options, ValueError('no'))
        else:
            app.backend.report_end(task_id, ValueError('no'), 'FAILURE')
    assert found() == {name: NOT_RUN for name in names.split()}
    for run in CeleryResult.objects.exclude(pk=culprit.pk):
        assert run.error == f'Not run, because The culprit [{task_id}] is errored: ValueError: no'
        assert run.culprit_id == task_id
        assert (run.user, run.completed is not None, run.claims) == (user, True, 0)
        if end != 'refused':
            assert app.AsyncResult(str(run.task_id)).state == 'FAILURE'


@pytest.mark.parametrize('columns', [
    {'status': 'running'}, {'status': 'completed'}, {'status': 'pending'}, {'status': 'retrying', 'claims': 1},
    {'status': 'pending', 'nesting': 1, 'message': '[]'},
], ids=str)
def test_step_that_was_sent(columns):
    """A step that was sent keeps its status, and so do the steps after it."""
    sent = make_result(celery_name='a', **columns)
    culprit = make_result('errored', celery_name='tests:culprit')
    options = {'chain': later(step('a', str(sent.task_id)), step('b'))}
    request = as_request(culprit.task_id, 'tests:culprit', options)
    app.backend.mark_as_failure(request.id, ValueError(), request=request, call_errbacks=False)
    assert found() == {'a': (columns['status'], '')}


@pytest.mark.parametrize('sent, expected', [('ab', ''), ('a', 'b d e'), ('b', 'a d e')], ids=str)
def test_chord_that_was_sent(sent, expected):
    """Its body will run, unless the broker refused a part; of a part that was started, the rest will run."""
    steps = {name: step(name) for name in 'abcde'}
    ids = {name: steps[name].options['task_id'] for name in sent}
    for name, task_id in ids.items():
        make_result(celery_name=name, status='running', task_id=task_id)
    header = [chain(steps['a'], steps['c'], app=app), steps['b']] if sent == 'ab' else [steps['a'], steps['b']]
    rest = later(chord(header, steps['d'], app=app), steps['e'])
    culprit = make_result('errored', celery_name='tests:culprit')
    request = as_request(culprit.task_id, 'tests:culprit', {'chain': rest})
    app.backend.mark_as_failure(request.id, ValueError(), request=request, call_errbacks=False)
    assert {name for name, end in found().items() if end == NOT_RUN} == set(expected.split())


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('end', ['failure', 'revoked', 'sweep'])
def test_closed_without_the_backend(monkeypatch, shape, end):
    """Rows are closed also if Redis is down, although the backend stores the end first."""
    make, names = SHAPES[shape]
    rest = make()
    culprit = make_result('errored', celery_name='tests:culprit', options={'chain': rest})
    task_id = str(culprit.task_id)
    request = as_request(task_id, 'tests:culprit', {'task_id': task_id, 'chain': rest})

    def away(*args, **kwargs):
        raise ConnectionError('Redis is away')
    monkeypatch.setattr(app.backend, 'store_result', away)
    if end == 'sweep':
        app.backend.report_end(task_id, ValueError('no'), 'FAILURE')
    else:
        with pytest.raises(ConnectionError):
            if end == 'failure':
                app.backend.mark_as_failure(task_id, ValueError('no'), request=request)
            else:
                app.backend.mark_as_revoked(task_id, 'revoked', request)
    assert found() == dict.fromkeys(names.split(), NOT_RUN)


def test_step_that_waits_for_an_earlier_one():
    """The row of a task that replaced itself with a chain, which fails before its last step."""
    waits = make_result('pending', celery_name='a', nesting=1, attempt=0)
    culprit = make_result('errored', celery_name='tests:culprit')
    options = {'chain': later(step('a', str(waits.task_id)))}
    request = as_request(culprit.task_id, 'tests:culprit', options)
    app.backend.mark_as_failure(request.id, ValueError(), request=request, call_errbacks=False)
    assert found() == {'a': NOT_RUN}
    assert CeleryResult.objects.count() == 2


def test_culprit_without_a_row():
    """For a run that is not tracked there is only its ID and its exception."""
    task_id = str(uuid4())
    request = as_request(task_id, 'tests:untracked', {'chain': later(step('a'))})
    app.backend.mark_as_failure(task_id, ValueError('no'), request=request, call_errbacks=False)
    run = CeleryResult.objects.get(celery_name='a')
    assert run.error == f"Not run, because [{task_id}] did not succeed: ValueError('no')"


def test_steps_that_cannot_be_read(caplog):
    """They are logged; the end of the run itself is reported."""
    culprit = make_result('errored', celery_name='tests:culprit')
    request = as_request(culprit.task_id, 'tests:culprit', {
        'chain': later(step('a', netbox_tags=['no such tag']), step('b'))
    })
    app.backend.mark_as_failure(request.id, ValueError(), request=request, call_errbacks=False)
    assert 'could not be closed' in caplog.text
    assert app.AsyncResult(request.id).state == 'FAILURE'
