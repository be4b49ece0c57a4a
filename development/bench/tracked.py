"""The same within NetBox, and tasks that log. Loaded by Celery's setting `include`."""

import time

from celery import shared_task
from django.db import transaction

from netbox_celery.tasks import CeleryBaseTask, netbox_celery_task


@shared_task(name='bench:noop', base=CeleryBaseTask)
def noop(task_id):
    pass


@netbox_celery_task(name='bench:log_burst')
def log_burst(self, task_id, lines):
    """Write lines as fast as possible; returns the time of the start, and how many seconds the calls took."""
    began, counter = time.time(), time.perf_counter()
    for number in range(lines):
        self.log(f'ams-leaf-01: interface xe-0/0/{number} has no description')
    return {'began': began, 'took': time.perf_counter() - counter}


@netbox_celery_task(name='bench:log_steadily')
def log_steadily(self, task_id, bursts, lines, pause):
    """Write a few lines now and then, like tasks that do other work."""
    took = 0.0
    for __ in range(bursts):
        counter = time.perf_counter()
        for number in range(lines):
            self.log(f'ams-leaf-01: interface xe-0/0/{number} has no description')
        took += time.perf_counter() - counter
        time.sleep(pause)
    return {'took': took}


@netbox_celery_task(name='bench:log_times')
def log_times(self, task_id, pauses):
    """Write the current time, in an open transaction."""
    with transaction.atomic():
        for pause in pauses:
            self.log(repr(time.time()))
            time.sleep(pause)
