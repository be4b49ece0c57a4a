"""Branches of NetBox's data: which branch a call belongs to, with and without something that knows branches."""
import pytest
from celery import chain, chord, group
from django.db import connections, transaction

from netbox_celery.celery import app
from netbox_celery.engine.exceptions import BranchNotReady
from netbox_celery.engine.store import branches, database
from netbox_celery.engine.store.branches import HEADER, Branches
from netbox_celery.engine.workflows.canvas import with_branch
from netbox_celery.models import CeleryResult
from tests.factories import HELLO_WORLD, make_result

pytestmark = pytest.mark.django_db


class Known(Branches):
    """Knows of branches; one of them is current."""

    def __init__(self, current=''):
        self.branch = current

    def current(self):
        return self.branch

    def enter(self, branch):
        entered, self.branch = self.branch, branch
        return (entered,)

    def enter_main(self):
        return self.enter('')

    def leave(self, entered):
        self.branch, = entered

    def check(self, branch):
        return ''


@pytest.fixture
def known(monkeypatch):
    known = Known()
    monkeypatch.setattr(branches, '_branches', known)
    return known


def all_headers(value):
    """Return the branches of single tasks in signatures, by the tasks' first arguments."""
    if isinstance(value, list | tuple):
        return {name: branch for item in value for name, branch in all_headers(item).items()}
    found = {}
    if isinstance(value, dict):
        if value.get('task') == 'step':
            found[value['args'][0]] = (value['options'].get('headers') or {}).get(HEADER)
        for item in value.values():
            found |= all_headers(item) if isinstance(item, dict | list | tuple) else {}
    return found


def test_no_branches():
    """Where branches are unknown, a run that names one fails with a reason; main is always known."""
    with pytest.raises(BranchNotReady, match='not known here'):
        branches.enter('b1')
    assert (branches.current(), branches.alias(), branches.check('')) == ('', None, '')
    assert branches.shown(['b1', '']) == {}
    assert branches.check('b1')
    assert with_branch({}) == {}


def test_stamp(known):
    """Everything that follows a call gets its branch, however deep, unless it names one itself."""
    known.branch = 'b1'

    def step(name, **headers):
        return app.signature('step', (name,), headers=headers) if headers else app.signature('step', (name,))

    options = {
        'chain': [
            dict(step('last')), dict(chord([step('part'), group(step('inner'))], chain(step('body'), step('after')))),
        ],
        'chord': dict(step('of a chord', other=1)),
        'link': [step('link').on_error(step('errback of a link'))],
        'link_error': [step('elsewhere', **{HEADER: 'b2'}), step('main', **{HEADER: ''})],
    }
    before = repr(options)
    given = with_branch(options)

    assert given['headers'] == {HEADER: 'b1'}
    assert repr(options) == before
    assert all_headers(given) == {
        **dict.fromkeys((
            'last', 'part', 'inner', 'body', 'after', 'of a chord', 'link', 'errback of a link'
        ), 'b1'),
        'elsewhere': 'b2', 'main': '',
    }
    assert given['chord']['options']['headers'] == {'other': 1, HEADER: 'b1'}


def test_call(known):
    """The row of a call has its branch, also if the call names another branch, or main."""
    known.branch = 'b1'
    runs = [
        CeleryResult.enqueue(HELLO_WORLD), CeleryResult.enqueue(HELLO_WORLD, headers={HEADER: 'b2'}),
        CeleryResult.enqueue(HELLO_WORLD, headers={HEADER: ''}), *CeleryResult.enqueue_many(HELLO_WORLD, [()]),
    ]
    assert [run.branch for run in runs] == ['b1', 'b2', '', 'b1']


def test_keep(known):
    """A function that is called later runs in the branch of its caller; for main it is the function itself."""
    assert branches.keep(print) is print
    known.branch = 'b1'
    later = branches.keep(branches.current)
    known.branch = 'b2'
    assert (later(), branches.current()) == ('b1', 'b2')


def test_rerun(known):
    """A run is run again in its branch."""
    run = make_result(status='completed', branch='b1')
    assert run.rerun().branch == 'b1'


def test_body(known, deliver):
    """A body runs in the branch of its message, and afterwards its process is in main."""
    task = deliver(netbox_branch='b1')
    branches.enter_run(task)
    branches.enter_run(task)
    assert branches.current() == 'b1'
    branches.leave_run(task.request_stack.top)
    branches.leave_run(task.request_stack.top)
    assert branches.current() == ''


def test_left_behind(known, deliver):
    """A run of main is in main, also if an earlier run was interrupted while it left its branch."""
    known.branch = 'b1'
    task = deliver()
    branches.enter_run(task)
    assert branches.current() == ''
    branches.leave_run(task.request_stack.top)


@pytest.mark.parametrize('wrong', [1, ['b1'], {'b': 1}, 'b' * 101, 'b\x00'])
def test_wrong_header_of_a_call(wrong):
    """A call with an invalid branch is refused, and has no row."""
    for call in (CeleryResult.enqueue, lambda task, headers: CeleryResult.enqueue_many(task, [()], headers=headers)):
        with pytest.raises(ValueError, match=HEADER):
            call(HELLO_WORLD, headers={HEADER: wrong})
    assert not CeleryResult.objects.exists()


def test_wrong_header():
    """A message with an invalid branch is rejected."""
    from celery.exceptions import InvalidTaskError

    from netbox_celery.engine.worker.messages import FIELDS, _check

    _check({'id': 'x', 'task': 'y', HEADER: 'b1'}, FIELDS)
    for wrong in (1, ['b1'], {}, 'b' * 101, 'b\x00'):
        with pytest.raises(InvalidTaskError, match=HEADER):
            _check({'id': 'x', 'task': 'y', HEADER: wrong}, FIELDS)


def test_caller():
    """Without branches, a call is made on Django's own connection, in its transaction if there is one."""
    assert database.caller() is connections['default']
    called = []
    with transaction.atomic():
        database.on_commit(lambda: called.append(1))
        assert not called
