"""Signatures inside messages: our options in them become JSON, and what signatures tell."""
import copy
import json
from uuid import uuid4

import pytest
from celery import chain, chord, group

from dcim.models import Site
from extras.models import Tag
from netbox_celery.celery import app
from netbox_celery.engine.calls.options import Own
from netbox_celery.engine.workflows.canvas import (
    as_request,
    first_steps,
    leaves,
    portable,
    root_of,
    with_portable_links,
)
from users.models import User


def sig(name='tests:x', *args, **options):
    return app.signature(name, args=args, options=options)


@pytest.mark.django_db
@pytest.mark.parametrize('shape', [
    lambda step: step,
    lambda step: chain(sig(), step, app=app),
    lambda step: group(sig(), step, app=app),
    lambda step: chord([sig(), step], sig(), app=app),
    lambda step: chord([sig()], step, app=app),
    lambda step: chain(sig(), group(sig(), chain(sig(), step, app=app), app=app), app=app),
    lambda step: sig(link=[step]),
    lambda step: sig(link_error=sig(link=step)),
    lambda step: sig(chain=[sig(), step]),
    lambda step: sig(chord=chord([step], sig(), app=app)),
    lambda step: app.signature('celery.starmap', kwargs={'task': step, 'it': [1]}),
], ids=['alone', 'chain', 'group', 'header', 'body', 'nested', 'link', 'deep link', 'rest', 'chord', 'starmap'])
@pytest.mark.parametrize('place', ['options', 'dict', 'kwargs'])
def test_portable(shape, place):
    """Objects in any place are written as JSON that means the same; the caller's objects are unchanged."""
    user, tag = User.objects.create_user('alice'), Tag.objects.create(name='Tag', slug='tag')
    site = Site.objects.create(name='s', slug='s')
    own = {'netbox_user': user, 'netbox_object': site, 'netbox_tags': [tag, 'tag'], 'netbox_name': 'n'}
    given = {'netbox_kwargs': own} if place == 'dict' else own
    step = sig('tests:inner', 1, 2, queue='q', **({} if place == 'kwargs' else given))
    if place == 'kwargs':
        step['kwargs'] = {**given, 'other': 3}
    held = shape(step)
    before = copy.deepcopy(held)
    text = json.dumps(portable(held))

    assert held == before
    written = next(found for found in walk(json.loads(text)) if found.get('task') == 'tests:inner')
    assert written['args'] == [1, 2] and written['options']['queue'] == 'q'
    found = written['kwargs'] if place == 'kwargs' else written['options']
    read = {name.removeprefix('netbox_'): value for name, value in found.items() if name.startswith('netbox_')}
    assert Own.merge(None, read) == Own.merge(None, {
        'user': user, 'object': site, 'tags': [tag, tag], 'name': 'n'
    })


def walk(value):
    """Return all dicts in JSON."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(item)


@pytest.mark.parametrize('value', [
    None, 5, 'text', [], {}, {'no': 'signature'}, [{'task': 'x'}], sig(netbox_user=7, netbox_tags=['a']),
    chain(sig(), group(sig(), sig(), app=app), app=app), {'task': 'x', 'kwargs': None, 'options': None},
], ids=repr)
def test_left_as_it_is(value):
    """Where nothing has to be changed, nothing is copied."""
    assert portable(value) is value
    options = {'link': value, 'queue': 'q'}
    assert with_portable_links(options) is options


@pytest.mark.parametrize('signature, names', [
    (sig('a'), 'a'),
    (chain(sig('a'), sig('b'), sig('c'), app=app), 'a b c'),
    (group(sig('a'), sig('b'), app=app), 'a b'),
    (chord([sig('a'), sig('b')], sig('c'), app=app), 'a b c'),
    (chord(group(sig('a'), app=app), chain(sig('b'), sig('c'), app=app), app=app), 'a b c'),
    (chain(sig('a'), group(sig('b'), chain(sig('c'), sig('d'), app=app), app=app), app=app), 'a b c d'),
    ({'task': 'celery.group', 'kwargs': None}, ''),
    ({'task': 'celery.chord', 'kwargs': {'header': {'task': 'a'}, 'body': None}}, 'a'),
    (app.signature('celery.starmap', kwargs={'task': sig('a'), 'it': []}), 'celery.starmap'),
], ids=str)
def test_leaves(signature, names):
    """The single tasks, in the order in which they run; also after a round trip through a message."""
    assert ' '.join(leaf['task'] for leaf in leaves(signature)) == names
    assert ' '.join(leaf['task'] for leaf in leaves(json.loads(json.dumps(signature)))) == names


@pytest.mark.parametrize('signature, names', [
    (sig('a'), 'a'),
    (chain(sig('a'), sig('b'), app=app), 'a'),
    (group(sig('a'), chain(sig('b'), sig('c'), app=app), app=app), 'a b'),
    (chord([sig('a'), chain(sig('b'), sig('c'), app=app)], sig('d'), app=app), 'a b'),
    ({'task': 'celery.chain', 'kwargs': {'tasks': []}}, ''), ({'task': 'celery.group', 'kwargs': None}, ''),
], ids=str)
def test_first_steps(signature, names):
    """They are parts of the signature itself."""
    signature = json.loads(json.dumps(signature))
    for step in (found := first_steps(signature)):
        step['marked'] = True
    assert ' '.join(step['task'] for step in found) == names
    assert json.dumps(signature).count('marked') == len(found)


def test_leaves_of_a_group():
    """The last task of a member gets its group, as if it was sent; one with a group keeps its own."""
    outer, inner = str(uuid4()), str(uuid4())
    members = group(
        sig('a'), chain(sig('b'), sig('c'), app=app), group(sig('d'), app=app, task_id=inner),
        chord([sig('e')], sig('f'), app=app, task_id=inner), sig('g', group_id=inner), app=app, task_id=outer,
    )
    before = copy.deepcopy(members)
    found = {leaf['task']: leaf['options'].get('group_id') for leaf in leaves(json.loads(json.dumps(members)))}
    assert found == {'a': outer, 'b': None, 'c': outer, 'd': outer, 'e': inner, 'f': outer, 'g': inner}
    assert members == before


def test_root():
    """A call belongs to its outermost group, which is found at the end of what follows."""
    inner, outer = str(uuid4()), str(uuid4())
    body = sig('body', group_id=outer)
    assert root_of({}) is None
    assert root_of({'chord': body}) is None
    assert root_of({'group_id': inner}) == inner
    assert root_of({'group_id': inner, 'chord': body}) == outer
    assert root_of({'chain': [sig('last', group_id=outer), sig('next')], 'group_id': inner}) == outer
    assert root_of({'chain': [sig('last', chord=body)]}) == outer
    assert root_of({'group_id': inner, 'chord': chain(sig(), body, app=app)}) == outer
    assert root_of({'group_id': inner, 'chord': chain(sig(), chord([sig()], body, app=app), app=app)}) == outer
    # What follows a chord as a whole
    middle = chord([sig()], sig('middle', group_id=inner), app=app, chain=[sig('last', group_id=outer), sig('next')])
    assert root_of({'group_id': inner, 'chord': middle}) == outer


def test_root_of_a_circle():
    """Such a signature cannot be sent, but the search ends."""
    circle = sig('x', group_id='g')
    circle['options']['chord'] = circle
    assert root_of(circle['options']) == 'g'


@pytest.mark.parametrize('errbacks, expected', [(None, []), ({'task': 'e'}, [{'task': 'e'}]), ([1, 2], [1, 2])])
def test_request(errbacks, expected):
    task_id = uuid4()
    request = as_request(task_id, 'tests:x', {'chain': [1], 'link_error': errbacks, 'group_id': 'g', 'queue': 'q'})
    assert (request.id, request.task, request.chain, request.chord) == (str(task_id), 'tests:x', [1], None)
    assert (request.errbacks, request.group, request.retries) == (expected, 'g', 0)
