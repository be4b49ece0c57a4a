"""What the plugin uses of NetBox beyond its plugin documentation works as the plugin expects."""
from types import SimpleNamespace
from uuid import uuid4

import pytest
from django.contrib.auth.models import AnonymousUser

from core.models import ObjectChange
from dcim.models import Site
from netbox.context import current_request, events_queue
from netbox_celery import host
from netbox_celery.engine.calls.run import Run
from netbox_celery.engine.runs.context import change_context
from netbox_celery.models import CeleryResult
from tests.factories import grant, make_result
from users.models import User
from utilities.exceptions import PermissionsViolation

pytestmark = pytest.mark.django_db


@pytest.fixture
def user():
    return User.objects.create_user('olga')


@pytest.fixture
def request_of():
    """Serve a user's request."""
    token = current_request.set(None)
    yield lambda **attributes: current_request.set(SimpleNamespace(**attributes))
    current_request.reset(token)


def test_current_user(request_of, user):
    """There is none outside a request, before NetBox has authenticated it, and for anonymous users."""
    assert host.current_user() is None
    for attributes in ({}, {'user': None}, {'user': AnonymousUser()}):
        request_of(**attributes)
        assert host.current_user() is None
    request_of(user=user)
    assert host.current_user() == user


def test_changes_are_joined_by_the_request(user):
    """By the run's request ID, as text or UUID, or else by the run's own ID."""
    request_id, task_id = uuid4(), uuid4()
    cases = (request_id, request_id), (str(request_id), request_id), (None, task_id)
    for number, (given, expected) in enumerate(cases):
        ObjectChange.objects.all().delete()
        with change_context(Run(str(task_id), user_id=user.pk, request_id=given)):
            Site.objects.create(name=f'Site {number}', slug=f'site-{number}')
        change = ObjectChange.objects.get()
        assert (change.user, change.user_name, change.request_id) == (user, 'olga', expected)
    assert current_request.get() is None


@pytest.mark.parametrize('run', [None, Run(str(uuid4()))], ids=['untracked', 'nobody'])
def test_changes_without_a_user_are_not_recorded(run):
    with change_context(run):
        Site.objects.create(name='Site', slug='site')
    assert not ObjectChange.objects.exists()


def test_request_ends_with_an_error(user):
    with pytest.raises(ValueError, match='in the body'):
        with change_context(Run(str(uuid4()), user_id=user.pk)):
            raise ValueError('in the body')
    assert current_request.get() is None


def test_user_is_loaded_when_needed(user, django_assert_num_queries):
    """A run that changes nothing needs no query for it."""
    with django_assert_num_queries(0), change_context(Run(str(uuid4()), user_id=user.pk)):
        pass


@pytest.mark.parametrize('length', [0, 200, 201, 5_000])
def test_messages_of_any_length(user, length):
    """A change-log entry is written however long the names in its message are, cut if needed."""
    results = [make_result(name=f'run {number}') for number in range(2)]
    host.record_changes(results, SimpleNamespace(user=user, id=uuid4()), host.ACTION_UPDATE, 'x' * length)
    changes = list(ObjectChange.objects.all())
    assert {change.changed_object_id for change in changes} == {result.pk for result in results}
    for change in changes:
        assert (change.user_name, change.action) == ('olga', 'update')
        assert len(change.message) == min(length, 200)


def test_own_package_is_a_plugin():
    assert 'netbox_celery' in host.plugin_packages()


def test_save_permitted(user):
    """Event rules get what was saved, and nothing that was refused."""
    grant(user, Site, actions=['change'], constraints={'description': ''})
    site = Site.objects.create(name='Site', slug='site')
    with host.change_tracking(user, uuid4()):
        site.description = 'Mine'
        with pytest.raises(PermissionsViolation):
            host.save_permitted(user, site)
        assert not events_queue.get()
        site.name, site.description = 'Renamed', ''
        host.save_permitted(user, site)
        assert len(events_queue.get()) == 1
    site.refresh_from_db()
    assert (site.name, site.description) == ('Renamed', '')
    assert ObjectChange.objects.count() == 1


@pytest.mark.parametrize('broken', ['to_objectchange', 'bulk_create'])
def test_entry_that_cannot_be_written(user, monkeypatch, caplog, broken):
    """The action stays done, and its answer is sent, without an entry in the change log."""
    def fail(*args, **kwargs):
        raise ValueError('broken')
    monkeypatch.setattr(CeleryResult if broken == 'to_objectchange' else type(ObjectChange.objects), broken, fail)
    request = SimpleNamespace(user=user, id=uuid4())
    host.record_change(make_result(), request, host.ACTION_CREATE)
    assert 'No change log entr' in caplog.text and not ObjectChange.objects.exists()
