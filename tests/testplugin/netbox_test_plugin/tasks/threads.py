"""Tasks whose bodies start threads."""
import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from celery import shared_task

from netbox_celery.tasks import netbox_celery_task

from ..side import wait_at

logger = logging.getLogger(__name__)

COUNT = 20


def work(task, task_id, number):
    """Log by every way which run works."""
    task.log(f'{task_id} logs {number}')
    logger.info('%s is heard %s', task_id, number)
    if task.celery_result is not None:
        task.celery_result.increment_value()
    return task.is_cancelled()


def share(task, task_id, how):
    if how == 'asyncio':
        return asyncio.run(share_with_asyncio(task, task_id))
    with ThreadPoolExecutor(4) as pool:
        if how == 'plain':
            return list(pool.map(lambda number: work(task, task_id, number), range(COUNT)))
        waits = [pool.submit(copy_context().run, work, task, task_id, number) for number in range(COUNT)]
        return [wait.result() for wait in waits]


async def share_with_asyncio(task, task_id):
    return await asyncio.gather(*(asyncio.to_thread(work, task, task_id, number) for number in range(COUNT)))


@netbox_celery_task(name='netbox_test_plugin:share_out')
def share_out(self, task_id, how, gate=None):
    """Let threads do the work, and wait at a gate."""
    if gate:
        wait_at(gate)
    return share(self, task_id, how)


@shared_task(name='netbox_test_plugin:share_out_untracked', bind=True)
def share_out_untracked(self, how):
    """A task without a row, whose threads use a task that has one."""
    return share(share_out, self.request.id, how)
