"""Tasks that read and change NetBox's objects."""
import os

from django.db import connection

from dcim.models import Site
from netbox_celery.tasks import netbox_celery_task


@netbox_celery_task(name='netbox_test_plugin:change')
def change(self, task_id, name, fail=False, atomic=False):
    """Change NetBox's objects."""
    site = Site(name=name, slug=name)
    site.full_clean()
    site.save()
    site.snapshot()
    site.description = 'changed'
    site.save()
    if fail:
        raise ValueError('after the change')
    return site.pk


@netbox_celery_task(name='netbox_test_plugin:change_tags')
def change_tags(self, task_id, name, tag):
    """Change an object's tags."""
    site = Site.objects.create(name=name, slug=name)
    site.snapshot()
    site.tags.add(tag)
    return site.pk


@netbox_celery_task(name='netbox_test_plugin:query')
def query(self, task_id):
    """Use Django's database connection."""
    return [Site.objects.count(), id(connection.connection), os.getpid()]
