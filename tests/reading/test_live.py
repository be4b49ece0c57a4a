"""The window in which a live page shows a run's log: where it opens, how it moves, and what its lines show."""
from datetime import timedelta

import pytest
from django.utils import timezone

from dcim.models import Region, Site
from netbox_celery.config import get_config
from netbox_celery.models import CeleryLogEntry, CeleryResult
from netbox_celery.reading import live
from netbox_celery.reading.log import LogFilter
from tests.factories import grant, make_log, make_result, make_worker
from users.models import User

pytestmark = pytest.mark.django_db


@pytest.fixture
def user():
    return User.objects.create_user('reader')


@pytest.fixture
def run():
    return make_result('running')


@pytest.fixture(autouse=True)
def small_window(monkeypatch):
    monkeypatch.setattr(live, 'WINDOW', 3)


def texts(window):
    return [line.entry.message for line in window.lines]


def follow(run, user, **options):
    return live.follow_log(CeleryResult.objects.all(), run.pk, user, **options)


def test_opens_at_the_end(run, user):
    """With the last lines, and the cursors for reading on, in both directions."""
    lines = make_log(run, *'abcde')
    make_log(make_result('running'), 'of another run')
    window = live.open_log(run, user)
    assert texts(window) == ['c', 'd', 'e']
    assert (window.after, window.before, window.replaces) == (lines[4].pk, lines[2].pk, True)
    earlier = live.earlier_lines(run, user, before=window.before)
    assert (texts(earlier), earlier.before) == (['a', 'b'], None)


@pytest.mark.parametrize('count, has_earlier', [(0, False), (2, False), (3, False), (4, True)])
def test_lines_before(run, user, count, has_earlier):
    make_log(run, *'abcd'[:count])
    window = live.open_log(run, user)
    assert texts(window) == list('abcd'[:count][-3:])
    assert (window.before is not None) is has_earlier


def test_follow(run, user):
    """Each poll returns new lines, until there are none."""
    make_log(run, 'a')
    window = live.open_log(run, user)
    make_log(run, 'b', 'c')
    window = follow(run, user, after=window.after)
    assert (texts(window), window.has_more, window.replaces) == (['b', 'c'], False, False)
    assert texts(follow(run, user, after=window.after)) == []


@pytest.mark.parametrize('following', [True, False])
def test_log_that_grows_faster(run, user, following):
    """A following page jumps to the end; another one gets line after line."""
    make_log(run, *'abcdefgh')
    window = follow(run, user, after=0, following=following)
    assert texts(window) == (['f', 'g', 'h'] if following else ['a', 'b', 'c'])
    assert (window.replaces, window.has_more) == (following, not following)


def test_run_that_may_not_be_viewed(run, user):
    with pytest.raises(CeleryResult.DoesNotExist):
        live.follow_log(CeleryResult.objects.none(), run.pk, user, after=0)


@pytest.mark.parametrize('status, has_more, expected', [
    ('running', False, False), ('completed', False, True), ('errored', True, False), ('revoked', False, True),
])
def test_is_complete(status, has_more, expected):
    """The run has finished, and all of its lines were read."""
    assert live.LogWindow(make_result(status), has_more=has_more).is_complete is expected


def test_state(run):
    """It changes with the status, the attempt and a cancel, and with nothing else."""
    states = [live.LogWindow(run).state]
    for changed in ({'value': 5}, {'attempt': 2}, {'cancelled': timezone.now()}, {'status': 'retrying'}):
        CeleryResult.objects.filter(pk=run.pk).update(**changed)
        run.refresh_from_db()
        states.append(live.LogWindow(run).state)
    assert states[0] == states[1] and len(set(states)) == 4


def test_headings(run, user):
    """They show where an attempt or a group starts, also from poll to poll."""
    make_log(run, 'a', 'b')
    make_log(run, 'c', grouping='x')
    window = live.open_log(run, user)
    assert [(line.begins_attempt, line.begins_group) for line in window.lines] == [
        (False, False), (False, False), (False, True)
    ]
    assert window.shown == (1, 'x')
    make_log(run, 'd', grouping='x')
    make_log(run, 'e', grouping='x', attempt=2)
    window = follow(run, user, after=window.after, shown=window.shown)
    assert [(line.begins_attempt, line.begins_group) for line in window.lines] == [(False, False), (True, False)]
    assert window.shown == (2, 'x')
    assert follow(run, user, after=window.after, shown=window.shown).shown == (2, 'x')


def test_search(run, user):
    """Matches are marked as they are written; everything else is escaped."""
    make_log(run, 'one <b> and <B>', 'another')
    window = live.open_log(run, user, LogFilter(search='<b>'))
    line, = window.lines
    assert line.message == 'one <mark>&lt;b&gt;</mark> and <mark>&lt;B&gt;</mark>'
    assert hasattr(line.message, '__html__')
    plain = live.open_log(run, user).lines[0].message
    assert plain == 'one <b> and <B>' and not hasattr(plain, '__html__')


def test_objects(run, user, django_assert_num_queries):
    """Objects that the reader may view, with one query for each type."""
    sites = [Site.objects.create(name=name, slug=name) for name in ('seen', 'hidden')]
    region = Region.objects.create(name='region', slug='region')
    for thing in (*sites, region):
        make_log(run, 'about it', object=thing)
    gone = Site.objects.create(name='gone', slug='gone')
    grant(user, Site, constraints={'name': 'seen'})
    lines = live.open_log(run, user).lines
    assert [line.object for line in lines] == [sites[0], None, None]
    assert [line.object_url for line in lines] == [sites[0].get_absolute_url(), None, None]
    CeleryLogEntry.objects.filter(object_id=sites[0].pk).update(object_id=gone.pk)
    gone.delete()
    assert [line.object for line in live.open_log(run, user).lines] == [None] * 3


@pytest.mark.parametrize('columns, expected', [
    ({}, True), ({'stopped': timezone.now()}, False), ({'heartbeat': 'old'}, False), (None, False),
], ids=['alive', 'stopped', 'silent', 'none'])
def test_worker(columns, expected):
    if columns is not None:
        if 'heartbeat' in columns:
            columns = {'heartbeat': timezone.now() - timedelta(seconds=get_config().worker_lost_after + 1)}
        make_worker(**columns)
    assert live.is_worker_alive() is expected
