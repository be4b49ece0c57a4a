"""Options of a call: whose is which, and which wins."""
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from django.contrib.auth.models import AnonymousUser

from dcim.models import Site
from extras.models import Tag
from netbox_celery.engine.calls.options import Own, lift, sent_options, split, with_fixed_times, with_header
from users.models import User


def task(**attributes):
    def run(task_id, netbox_name='mine', **kwargs):
        pass
    return SimpleNamespace(run=run, **{f'netbox_{name}': value for name, value in attributes.items()})


PLACES = ('decorator dict', 'decorator', 'call dict', 'call')


@pytest.mark.parametrize('places', [
    PLACES[first:last + 1] for first in range(4) for last in range(first, 4)
], ids=' < '.join)
def test_precedence(places):
    """The call beats the decorator; in each, a single option beats the dict."""
    decorator = {'name': 'decorator'} if 'decorator' in places else {}
    if 'decorator dict' in places:
        decorator['kwargs'] = {'netbox_name': 'decorator dict'}
    call = {'name': 'call'} if 'call' in places else {}
    if 'call dict' in places:
        call['kwargs'] = {'name': 'call dict'}
    before = repr((decorator, call))

    assert Own.merge(task(**decorator), call).name == places[-1]
    assert repr((decorator, call)) == before


def test_false_and_none():
    """`False` is a value, `None` means "not given"."""
    assert Own.merge(task(track=False), {'track': None}).track is None
    assert Own.merge(task(track=True), {'track': False}).track is False
    assert Own.merge(None, {}).track is None


@pytest.mark.parametrize('own', [{'colour': 1}, {'kwargs': {'colour': 1}}, {'kwargs': {'netbox_colour': 1}}], ids=str)
def test_unknown(own):
    """An unknown option is named in the error, with those that exist."""
    with pytest.raises(TypeError, match='netbox_colour is not an option.*netbox_value_max'):
        Own.merge(None, own)


@pytest.mark.django_db
def test_user():
    """A user may be given as an object, by key or by name; an anonymous user is none."""
    user = User.objects.create_user('alice')

    assert [Own.merge(None, {'user': given}).user_id for given in (user, user.pk, 'alice', None, AnonymousUser())] == [
        user.pk, user.pk, user.pk, None, None
    ]
    with pytest.raises(User.DoesNotExist):
        Own.merge(None, {'user': 'bob'})


def test_object_without_a_key():
    with pytest.raises(ValueError, match='has not been saved'):
        Own.merge(None, {'object': Site(name='Not yet')})


@pytest.mark.django_db
def test_object_and_tags():
    """Objects are given as such or by type and key; tags as such, by name or by slug."""
    site = Site.objects.create(name='s', slug='s')
    tags = [Tag.objects.create(name=f'Tag {n}', slug=f'tag-{n}') for n in range(3)]
    by_itself = Own.merge(None, {'object': site, 'tags': [tags[0], 'Tag 1', 'tag-2']})
    by_type = Own.merge(None, {'object': ('dcim.Site', site.pk)})

    assert (by_itself.object_type_id, by_itself.object_id) == (by_type.object_type_id, by_type.object_id)
    assert by_itself.tags == tuple(tags)
    with pytest.raises(ValueError, match="no tag 'Tag 9'"):
        Own.merge(None, {'tags': ['Tag 9']})


def test_split():
    options = {'queue': 'q', 'netbox_name': 'n'}
    assert split(options) == ({'queue': 'q'}, {'name': 'n'})
    assert options == {'queue': 'q', 'netbox_name': 'n'}


def test_lift():
    """Our options are taken out of the arguments, except where the task has a parameter of that name."""
    kwargs = {'netbox_name': 'argument', 'netbox_user': 3, 'other': 1}
    assert lift(task(), kwargs, {}) == ({'netbox_name': 'argument', 'other': 1}, {'user': 3})
    assert lift(None, kwargs, {'user': 4}) == ({'other': 1}, {'name': 'argument', 'user': 4})
    assert kwargs == {'netbox_name': 'argument', 'netbox_user': 3, 'other': 1}
    same = {'other': 1}
    assert lift(task(), same, {})[0] is same


def test_sent_options():
    """A row keeps the call's own options, and those needed to send the message again."""
    options = {
        'queue': SimpleNamespace(name='q'), 'priority': 0, 'expires': None, 'link': [], 'task_id': 'x',
        'producer': object(), 'serializer': 'json', 'ignore_result': True, 'headers': {'a': 1},
    }
    kept = sent_options(options, SimpleNamespace(serializer='json', ignore_result=False))
    assert kept == {'queue': 'q', 'priority': 0, 'ignore_result': True, 'headers': {'a': 1}}


@pytest.mark.parametrize('own, header, expected', [
    (None, True, True), (None, False, False), (None, {'begun': 1}, {'begun': 1}), (False, True, True),
    ({'window': 'a'}, True, {'window': 'a'}), ({'window': 'a'}, False, False), ({'window': 'a'}, {'b': 1}, {'b': 1}),
], ids=str)
def test_header(own, header, expected):
    """What a message says of its run already, and more, stays if it is only to say that there is one."""
    headers = {'mine': 'x'} if own is None else {'mine': 'x', 'netbox_celery': own}
    options = {'queue': 'q', 'headers': headers}
    before = repr(options)
    assert with_header(options, header) == {'queue': 'q', 'headers': {'mine': 'x', 'netbox_celery': expected}}
    assert repr(options) == before
    assert with_header({}, True) == with_header({'headers': None}, True) == {'headers': {'netbox_celery': True}}


LATER = datetime(2040, 1, 1, tzinfo=UTC)


def test_times():
    """Lengths of time become points in time, once."""
    now = datetime.now(UTC)
    given = {'countdown': 60, 'expires': 90.5, 'queue': 'q'}
    options = with_fixed_times(given)
    assert (options.keys(), given) == ({'eta', 'expires', 'queue'}, {'countdown': 60, 'expires': 90.5, 'queue': 'q'})
    assert abs(options['eta'] - now - timedelta(seconds=60)) < timedelta(seconds=5)
    assert abs(options['expires'] - now - timedelta(seconds=90)) < timedelta(seconds=5)
    assert with_fixed_times({'eta': '2040-01-01T00:00:00Z'}) == {'eta': LATER}
    assert with_fixed_times(options) == options
    for nothing in ({}, {'countdown': 0}, {'expires': LATER}):
        assert with_fixed_times(nothing) is nothing
