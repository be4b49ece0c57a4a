from netbox_celery.tasks import netbox_celery_task


@netbox_celery_task(name='netbox_broken_plugin:half')
def half(self, task_id):
    return HALF


import library_that_nobody_has  # noqa: E402, F401

HALF = 'whole'
