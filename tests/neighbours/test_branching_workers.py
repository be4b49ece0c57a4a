"""NetBox Branching with real workers: a task that is called in a branch runs there."""
from datetime import timedelta

import pytest
from celery import chain, chord
from django.db import connections, transaction
from django.utils import timezone
from netbox_branching.models import Branch, ChangeDiff
from netbox_branching.utilities import activate_branch
from netbox_test_plugin.side import open_gate
from netbox_test_plugin.tasks import branches as tasks
from netbox_test_plugin.tasks import kill_self

from core.models import ObjectChange
from dcim.models import Site
from netbox_celery.engine.sending.control import NotRerunnable
from netbox_celery.models import CeleryResult
from tests.integration.support import ended, lines, row, until, waiting
from utilities.exceptions import AbortRequest


@pytest.fixture(scope='module', params=['prefork', 'threads'])
def worker(request, make_instance, make_module_worker, django_db_blocker):
    """A worker of a NetBox with NetBox Branching."""
    worker = make_module_worker(
        f'branched-{request.param}', instance=make_instance(name='branched', branching=True), pool=request.param
    )
    with django_db_blocker.unblock():
        return worker.start().ready(180)


def names(branch=None):
    sites = Site.objects.using(branch.connection_name) if branch else Site.objects
    return set(sites.values_list('name', flat=True))


def called_in(branch, call):
    with activate_branch(branch):
        return call()


def test_urls_are_loaded_before_the_fork(worker):
    """NetBox Branching needs NetBox's URLs in each request: no process of a pool has to load them."""
    if worker.pool != 'prefork':
        pytest.skip('A thread has no parent')
    loaded, parent = worker.run(tasks.loaded_by, timeout=60).result

    assert loaded == parent


def test_runs_in_its_branch(worker, branch, user):
    """A task's changes are in its branch: the object, its change log, and its diff; a merge takes them to main."""
    run = called_in(branch, lambda: worker.run(tasks.site, 'new', netbox_user=user, timeout=60))

    assert (run.status, run.branch) == ('completed', branch.schema_id), run.error
    assert names(branch) == {'new'}
    assert names() == set()
    change = branch.get_unmerged_changes().get()
    assert (change.user_name, change.request_id, change.object_repr) == ('alice', run.request_id, 'new')
    assert not ObjectChange.objects.filter(changed_object_type__model='site').exists()
    assert ChangeDiff.objects.get(branch=branch).object_repr == 'new'

    branch.merge(user)
    assert names() == {'new'}
    branch.revert(user)
    assert names() == set()


def test_run_without_a_user(worker, branch, user):
    """Its changes are recorded as the branch owner's; without an owner, the run's log says so."""
    run = called_in(branch, lambda: worker.run(tasks.site, 'old', timeout=60))

    assert (run.status, run.user, names(branch)) == ('completed', None, {'old'}), run.error
    assert not branch.get_unmerged_changes().exists()
    assert 'its branch has no owner' in lines(run)[0]

    Branch.objects.filter(pk=branch.pk).update(owner=user)
    run = called_in(branch, lambda: worker.run(tasks.site, 'new', timeout=60))
    assert (run.user, branch.get_unmerged_changes().get().user) == (None, user)
    assert not lines(run)
    branch.merge(user)
    assert names() == {'new'}


def test_next_run_is_in_main(worker, branch, user):
    """The next run on the same process or thread is in main again, or in its own branch."""
    for number in range(4):
        called_in(branch, lambda number=number: worker.run(tasks.site, f'b{number}', netbox_user=user, timeout=60))
        worker.run(tasks.site, f'm{number}', netbox_user=user, timeout=60)

    assert names() == {'m0', 'm1', 'm2', 'm3'}
    assert names(branch) == {'b0', 'b1', 'b2', 'b3'}


def test_after_a_failure(worker, branch, user):
    """A run that fails in its branch leaves its process in main."""
    for number in range(4):
        run = called_in(branch, lambda number=number: worker.run(tasks.site_then_fail, f'b{number}', netbox_user=user))
        assert run.status == 'errored'
        worker.run(tasks.site, f'm{number}', netbox_user=user)

    assert names() == {'m0', 'm1', 'm2', 'm3'}


def test_after_a_time_limit(worker, make_branch, user, gate):
    """So does one with a time limit, and the next run is in its own branch."""
    if worker.pool != 'prefork':
        pytest.skip('Threads have no time limits')
    places = [make_branch('first'), make_branch('second')]
    for number in range(4):
        run = called_in(places[number % 2], lambda number=number: worker.run(
            tasks.site_at_gate, gate, f'b{number}', netbox_user=user, soft_time_limit=1, timeout=60
        ))
        assert (run.status, run.reason) == ('errored', 'soft_time_limit'), run.error
        worker.run(tasks.site, f'm{number}', netbox_user=user, timeout=60)
        called_in(places[1 - number % 2], lambda number=number: worker.run(
            tasks.site, f'o{number}', netbox_user=user, timeout=60
        ))

    assert names() == {'m0', 'm1', 'm2', 'm3'}
    assert names(places[0]) == {'o1', 'o3'}
    assert names(places[1]) == {'o0', 'o2'}


def test_what_comes_after(worker, branch, user):
    """Retries, replacements, handlers, steps, callbacks and calls of a run are in its branch, tracked or not."""
    queue = {'queue': worker.queue}

    def step(name):
        return tasks.site.si(name).set(**queue)

    def call():
        chain(step('first'), step('second')).apply_async()
        chord([step('part-1'), step('part-2')], step('body')).apply_async()
        worker.send(tasks.site, 'linked', link=step('link'))
        worker.send(tasks.site_then_fail, 'failed', link_error=tasks.site.si('errback').set(**queue))
        worker.send(tasks.plain_site, 'plain', link=tasks.plain_site.si('plain-link').set(**queue))
        return [worker.send(task, task.name.partition(':')[2], netbox_user=user) for task in (
            tasks.site_at_last, tasks.site_instead, tasks.handled_site, tasks.sites_of_others
        )]

    runs = called_in(branch, call)
    expected = {
        'first', 'second', 'part-1', 'part-2', 'body', 'linked', 'link', 'failed', 'errback', 'plain', 'plain-link',
        'site_at_last', 'site_instead', 'handled_site', 'handled_site-on-success', 'handled_site-after-return',
        *(f'sites_of_others-{what}' for what in (
            'called', 'first', 'second', 'part-1', 'part-2', 'body', 'linked', 'link', 'many'
        )),
    }
    until(lambda: names(branch) >= expected, 90, lambda: expected - names(branch))

    assert {ended(run).status for run in runs} == {'completed'}
    assert names(branch) == expected
    assert names() == set()
    assert set(CeleryResult.objects.values_list('branch', flat=True)) == {branch.schema_id}


def test_lost_process(worker, branch):
    """What a worker's main process sends, which is in no branch, is in the run's branch."""
    if worker.pool != 'prefork':
        pytest.skip('A thread is not lost by itself')
    run = called_in(branch, lambda: worker.run(
        kill_self, timeout=60, link_error=tasks.site.si('errback').set(queue=worker.queue)
    ))
    assert (run.status, run.reason) == ('errored', 'worker_lost')
    until(lambda: names(branch) == {'errback'}, 60, lambda: names(branch))
    assert names() == set()


def test_sent_again(worker, branch):
    """A message that was lost is sent again from its row, and runs in the branch."""
    def call():
        with transaction.atomic(using=branch.connection_name):
            run = CeleryResult.enqueue(tasks.site, args=('new',), queue=worker.queue)
            # The process dies after its commit
            connections[branch.connection_name].run_on_commit = []
            return run
    run = called_in(branch, call)
    CeleryResult.objects.filter(pk=run.pk).update(created=timezone.now() - timedelta(minutes=5))

    assert ended(run, 60).status == 'completed'
    assert (names(branch), names()) == ({'new'}, set())


@pytest.mark.parametrize('status', ['merged', 'archived', 'syncing', 'pending-migrations', None])
def test_branch_is_not_ready(worker, branch, user, status):
    """A run whose branch is no longer ready fails with a reason, and its body does not run, also not in main."""
    with activate_branch(branch):
        if status:
            Branch.objects.filter(pk=branch.pk).update(status=status)
        else:
            Branch.objects.filter(pk=branch.pk).delete()
        run = worker.run(tasks.site, 'new', netbox_user=user, timeout=60)

    assert (run.status, run.reason) == ('failed', 'branch_not_ready')
    assert branch.schema_id in run.error
    assert ('branch is' not in run.error) and (status or 'deleted') in run.error.lower().replace(' ', '-')
    assert names() == set()
    with pytest.raises(NotRerunnable, match=branch.schema_id):
        run.rerun()


def test_merge_while_a_run_is_at_work(worker, branch, user, gate):
    """A branch is not merged, archived or deleted while it has an active run."""
    run = called_in(branch, lambda: worker.send(tasks.site_at_gate, gate, 'new', netbox_user=user))
    waiting(run, 'running', timeout=60)
    fresh = Branch.objects.get(pk=branch.pk)

    assert 'is active in this branch' in str(fresh.can_merge.message)
    assert not fresh.can_archive
    with pytest.raises(AbortRequest, match='is active in this branch'):
        fresh.delete()

    open_gate(gate)
    assert ended(run).status == 'completed'
    Branch.objects.get(pk=branch.pk).merge(user)
    assert names() == {'new'}


def test_run_again(worker, branch, user):
    """A run is run again in its branch, from anywhere; one of main where the call is made."""
    first = called_in(branch, lambda: worker.run(tasks.site, 'again', netbox_user=user, timeout=60))
    Site.objects.using(branch.connection_name).all().delete()

    again = ended(first.rerun())
    assert (again.status, again.branch) == ('completed', branch.schema_id)
    assert (names(branch), names()) == ({'again'}, set())

    in_main = worker.run(tasks.site, 'main', netbox_user=user)
    assert called_in(branch, lambda: ended(in_main.rerun())).branch == branch.schema_id
    assert (names(branch), names()) == ({'again', 'main'}, {'main'})


def test_cancel(worker, branch, user, gate):
    """A run in a branch is cancelled like any other, from the branch and from main."""
    with activate_branch(branch):
        waits = worker.send(tasks.site, 'new', countdown=600)
        assert row(waits).cancel(user)
    assert ended(waits).status == 'revoked'
    runs = called_in(branch, lambda: worker.send(tasks.site_at_gate, gate, 'new'))
    waiting(runs, 'running', timeout=60)
    assert row(runs).cancel(user)
    open_gate(gate)
    assert ended(runs).status == 'revoked'
