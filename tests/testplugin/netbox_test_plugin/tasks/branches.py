"""Tasks that show in which branch of NetBox's data they run: they create a site there."""
import os
import sys

from celery import chain, chord, shared_task
from django.db import transaction

from dcim.models import Site
from netbox_celery.models import CeleryResult
from netbox_celery.tasks import CeleryBaseTask, netbox_celery_task

from ..side import wait_at


def make_site(name):
    site = Site(name=name, slug=name)
    site.full_clean()
    site.save()
    return site.pk


@netbox_celery_task(name='netbox_test_plugin:site')
def site(self, task_id, name, *ignored):
    """Create a site."""
    return make_site(name)


@shared_task(name='netbox_test_plugin:plain_site')
def plain_site(name, *ignored):
    """Create a site, untracked."""
    return make_site(name)


@netbox_celery_task(name='netbox_test_plugin:site_at_last', max_retries=2)
def site_at_last(self, task_id, name):
    """Create a site in the second attempt."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    return make_site(name)


@netbox_celery_task(name='netbox_test_plugin:site_instead')
def site_instead(self, task_id, name):
    """Be replaced by a task that creates a site, from inside a transaction of the branch."""
    with transaction.atomic(using=Site.objects.db):
        raise self.replace(site.si(name).set(queue=self.request.delivery_info['routing_key']))


@netbox_celery_task(name='netbox_test_plugin:sites_of_others')
def sites_of_others(self, task_id, name):
    """Send other tasks that create sites, in every way."""
    queue = self.request.delivery_info['routing_key']

    def step(what):
        return site.si(f'{name}-{what}').set(queue=queue)

    step('called').apply_async()
    chain(step('first'), step('second')).apply_async()
    chord([step('part-1'), step('part-2')], step('body')).apply_async()
    step('linked').apply_async(link=step('link'))
    CeleryResult.enqueue_many(site, [(f'{name}-many',)], queue=queue)


@netbox_celery_task(name='netbox_test_plugin:site_then_fail')
def site_then_fail(self, task_id, name):
    """Create a site, and fail."""
    make_site(name)
    raise ValueError('after the site')


@netbox_celery_task(name='netbox_test_plugin:site_at_gate')
def site_at_gate(self, task_id, gate, name):
    """Create a site when the test opens a gate."""
    wait_at(gate)
    return make_site(name)


class Handled(CeleryBaseTask):
    """Creates sites in its handlers too."""
    abstract = True

    def on_success(self, retval, task_id, args, kwargs):
        make_site(f'{args[0]}-on-success')

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        make_site(f'{args[0]}-after-return')


@netbox_celery_task(name='netbox_test_plugin:handled_site', base=Handled)
def handled_site(self, task_id, name):
    """Create a site, as its handlers do."""
    return make_site(name)


@netbox_celery_task(name='netbox_test_plugin:loaded_by')
def loaded_by(self, task_id):
    """Return which process loaded NetBox's URLs, and which one is this process's parent."""
    loaded = sys.modules.get('netbox_test_plugin.urls')
    return [loaded and loaded.LOADED_BY, os.getppid()]
