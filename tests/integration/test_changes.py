"""Tasks change NetBox's objects as the user who started them."""
import pytest
from netbox_test_plugin import tasks

from core.models import ObjectChange, ObjectType
from dcim.models import Site
from extras.models import EventRule, Tag
from netbox_celery.models import CeleryResult

from .support import ended, until


def changes(site):
    return ObjectChange.objects.filter(changed_object_id=site, changed_object_type__model='site').order_by('pk')


def test_changes_under_the_users_name(worker, user):
    """Changes are in the change log under the user's name, joined by the run's request ID."""
    result = worker.run(tasks.change, 'new', netbox_user=user)

    assert result.status == 'completed'
    first, second = changes(result.result)
    assert (first.action, second.action) == ('create', 'update')
    assert {(change.user, change.user_name, change.request_id) for change in (first, second)} == {
        (user, 'alice', result.request_id)
    }
    assert second.prechange_data['description'] == ''
    assert second.postchange_data['description'] == 'changed'


def test_changes_without_a_user(worker):
    """Without a user there are no entries, as for NetBox's housekeeping."""
    result = worker.run(tasks.change, 'new')

    assert (result.status, result.user) == ('completed', None)
    assert Site.objects.get(pk=result.result).description == 'changed'
    assert not ObjectChange.objects.exists()


def test_user_is_inherited(worker, user):
    """Calls of a task run as the same user, unless they name another one."""
    first = worker.run(tasks.call, worker.queue, netbox_user=user)

    child = ended(first.result)
    assert child.user == user


def test_users_do_not_mix(worker, user):
    """Runs of several users, and of none, stay apart on the same processes and threads."""
    from users.models import User

    users = [user, User.objects.create_user('bob'), None]
    runs = [(worker.send(tasks.change, f's{n}', netbox_user=users[n % 3]), users[n % 3]) for n in range(18)]

    for run, who in runs:
        result = ended(run, 60)
        found = list(changes(result.result).values_list('user__username', 'request_id'))
        assert found == ([(who.username, result.request_id)] * 2 if who else [])


def test_changes_of_a_failing_task(worker, user):
    """Changes committed before a failure stay, with their entries."""
    result = worker.run(tasks.change, 'new', True, netbox_user=user)

    assert result.status == 'errored'
    site = Site.objects.get(name='new')
    assert changes(site.pk).count() == 2


def test_deleted_user(worker, user):
    """If the user is deleted before the run, it runs without a user."""
    run = worker.send(tasks.change, 'new', netbox_user=user, countdown=1)
    user.delete()

    result = ended(run)
    assert (result.status, result.user) == ('completed', None)
    assert not ObjectChange.objects.exists()


@pytest.mark.parametrize('fails', [False, True])
def test_event_rules(prefork, user, fails):
    """Event rules see a task's changes like those of a request: when it is done, if it did not fail.

    The rule's webhook is queued as NetBox queues it, for its own workers.
    """
    from django_rq import get_queue

    from extras.models import Webhook

    webhook = Webhook.objects.create(name='w', payload_url='http://127.0.0.1:1/')
    rule = EventRule.objects.create(
        name='r', event_types=['object_created', 'object_updated'], action_type='webhook',
        action_object_type=ObjectType.objects.get_for_model(Webhook), action_object_id=webhook.pk,
    )
    rule.object_types.set([ObjectType.objects.get_for_model(Site)])
    queue = get_queue('default')
    queue.empty()

    result = prefork.run(tasks.change, 'new', fails, netbox_user=user)
    assert result.status == ('errored' if fails else 'completed')
    if fails:
        assert queue.count == 0
        return
    job, = until(lambda: queue.jobs)
    queue.empty()
    request = job.kwargs['request']
    assert (request.id, request.user) == (result.request_id, user)
    assert (job.kwargs['event_type'], job.kwargs['data']['description']) == ('object_created', 'changed')


def test_status_writes_make_no_changes(worker, user):
    """A run's own status is not recorded as a change in NetBox."""
    worker.run(tasks.retry, 1, netbox_user=user)

    assert not ObjectChange.objects.exists()
    assert CeleryResult.objects.count() == 1


def test_tags_of_a_task(worker, user):
    """Many-to-many changes in a task are recorded as well."""
    Tag.objects.create(name='t', slug='t')
    result = worker.run(tasks.change_tags, 'new', 't', netbox_user=user)

    assert result.status == 'completed'
    assert changes(result.result).last().postchange_data['tags'] == ['t']
