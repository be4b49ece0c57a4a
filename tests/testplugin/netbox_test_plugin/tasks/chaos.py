"""Tasks that keep a journal of what their bodies did, in a file that outlives what a test kills.

Each line is one write to a file that is open for appending, so the order of the lines is the order of the events, for
all processes. A process is identified by its ID and its start time.
"""
import json
import os
import time
from pathlib import Path

from netbox_celery.tasks import netbox_celery_task

from ..side import folder

__all__ = (
    'LINES',
    'early',
    'journal',
    'late',
    'logging',
    'process',
    'read_journal',
    'rejecting',
    'retrying',
    'step',
)

#: Lines in the log of `logging`.
LINES = 10


def process(pid):
    """Return what identifies a process, or `None` if it does not exist."""
    try:
        return f'{pid}:{Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]}'
    except OSError:
        return None


def journal(what, **fields):
    line = json.dumps({'what': what, **fields}) + '\n'
    file = os.open(folder() / 'journal', os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def read_journal():
    """Return the entries, in order."""
    try:
        return [json.loads(line) for line in (folder() / 'journal').read_text().splitlines()]
    except FileNotFoundError:
        return []


def work(task, task_id, seconds, fails=False):
    """Record the start and the end of one claim's work, and return what identifies it."""
    # Which of the run's claims this is, as the row counts them
    claims = task.request.netbox_run.claims
    me = {'run': task_id, 'claims': claims, 'process': process(os.getpid())}
    journal('start', **me)
    time.sleep(seconds)
    journal('failed' if fails else 'end', **me)
    return f'{task_id} {claims} {me["process"]}'


@netbox_celery_task(name='netbox_test_plugin:chaos_early')
def early(self, task_id, seconds):
    """Must not be repeated."""
    return work(self, task_id, seconds)


@netbox_celery_task(name='netbox_test_plugin:chaos_late', acks_late=True)
def late(self, task_id, seconds):
    """May be repeated if its worker is lost."""
    return work(self, task_id, seconds)


@netbox_celery_task(name='netbox_test_plugin:chaos_rejecting', acks_late=True, reject_on_worker_lost=True)
def rejecting(self, task_id, seconds):
    """May be repeated if its worker or its process is lost."""
    return work(self, task_id, seconds)


@netbox_celery_task(
    name='netbox_test_plugin:chaos_retrying', acks_late=True, reject_on_worker_lost=True, autoretry_for=(ValueError,),
    default_retry_delay=0.2, max_retries=2
)
def retrying(self, task_id, seconds):
    """Fails twice."""
    fails = self.request.retries < 2
    done = work(self, task_id, seconds / 2, fails)
    if fails:
        raise ValueError('wrong')
    return done


@netbox_celery_task(name='netbox_test_plugin:chaos_logging', acks_late=True)
def logging(self, task_id, seconds):
    """Logs what it does."""
    for number in range(LINES):
        self.log(f'{self.request.netbox_run.claims} {number}')
        self.progress(number + 1, LINES)
    return work(self, task_id, seconds)


@netbox_celery_task(name='netbox_test_plugin:chaos_step')
def step(self, task_id, seconds):
    """Is one step of a chain."""
    return work(self, task_id, seconds / 3)
