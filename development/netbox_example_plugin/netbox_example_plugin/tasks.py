"""
Tasks as in network automation. NetBox lists them under Celery > Tasks, where they can be run.

NetBox shows the docstrings as descriptions of the tasks, and asks for the annotated parameters in the form that runs
them.
"""

import random
import time

from celery import shared_task
from celery.schedules import crontab
from celery.utils.log import get_task_logger
from django.utils import timezone

from dcim.choices import DeviceStatusChoices
from dcim.models import Device
from netbox_celery.tasks import CeleryBaseTask, TaskFailed, netbox_celery_task

__all__ = (
    'DeviceUnreachable',
    'audit_devices',
    'backup_configs',
    'flaky',
    'hello_world',
    'slow',
)

logger = get_task_logger(__name__)

AUDIT_MARK = 'Last audit:'


class DeviceUnreachable(Exception):
    """A device did not answer. A later attempt may succeed."""


@shared_task(name='netbox_example_plugin:hello_world', base=CeleryBaseTask, bind=True)
def hello_world(self, task_id, name: str = 'World'):
    """
    Greet a person. The smallest possible task.

    Args:
        name: Name of the person
    """
    self.log(f'Hello {name}!')
    return f'Hello {name}!'


@netbox_celery_task(name='netbox_example_plugin:audit_devices')
def audit_devices(self, task_id, site: str = '', delay: float = 0.5):
    """
    Look for gaps in the data of devices, and record the time and the findings in the comments of each device.

    The changes are in NetBox's change log, under the user who started the task.

    Args:
        site: Slug of a site, to check only its devices
        delay: Seconds per device, to make the progress visible
    """
    devices = Device.objects.order_by('name')
    if site:
        devices = devices.filter(site__slug=site)
    devices = list(devices.select_related('site', 'platform', 'device_type'))
    if not devices:
        raise TaskFailed('No devices to check')

    findings = 0
    self.log(f'Checking {len(devices)} devices')
    for number, device in enumerate(devices, start=1):
        if self.is_cancelled():
            self.log_warning(f'Cancelled: {len(devices) - number + 1} devices were not checked')
            break
        gaps = find_gaps(device)
        note_audit(device, gaps)
        if gaps:
            findings += len(gaps)
            self.log_warning(f'{device.name} lacks {" and ".join(gaps)}', obj=device)
        else:
            self.log_success(f'{device.name} is complete', obj=device)
        self.progress(number, len(devices), step=f'{device.site}: {device.name}')
        time.sleep(delay)
    self.log(f'Gaps found: {findings}')
    return {'devices': len(devices), 'gaps': findings}


def find_gaps(device):
    return [
        description for description, value in (
            ('a serial number', device.serial),
            ('an asset tag', device.asset_tag),
            ('a platform', device.platform),
        ) if not value
    ]


def note_audit(device, gaps):
    """
    Write one line about the latest audit into a device's comments.
    """
    device.snapshot()
    kept = [line for line in device.comments.splitlines() if not line.startswith(AUDIT_MARK)]
    when = timezone.localtime().isoformat(sep=' ', timespec='seconds')
    device.comments = '\n'.join([*kept, f'{AUDIT_MARK} {when}, {", ".join(gaps) or "nothing"} missing'])
    device.full_clean()
    device.save()


@netbox_celery_task(name='netbox_example_plugin:backup_configs', schedule=crontab(minute=0, hour=1))
def backup_configs(self, task_id, delay: float = 0.3):
    """
    Simulate a backup of the configuration of every device, with a group of log lines for each.

    Devices that are not active are skipped with a warning. If a device does not answer, the run fails after the
    others are done.

    Args:
        delay: Seconds per device, to make the progress visible
    """
    devices = list(Device.objects.order_by('site__name', 'name').select_related('site', 'platform'))
    unreachable = []
    for number, device in enumerate(devices, start=1):
        if self.is_cancelled():
            break
        self.progress(number - 1, len(devices), step=str(device.site))
        group = device.name
        if device.status == DeviceStatusChoices.STATUS_FAILED:
            self.log_failure('No answer on port 22', grouping=group, obj=device)
            unreachable.append(device.name)
        elif device.status != DeviceStatusChoices.STATUS_ACTIVE:
            self.log_warning(f'Skipped: device is {device.get_status_display().lower()}', grouping=group, obj=device)
        else:
            self.log_debug(f'Connecting as {device.platform or "an unknown platform"}', grouping=group)
            time.sleep(delay)
            lines = random.Random(device.name).randint(180, 900)
            self.log_success(f'Saved {lines} lines', grouping=group, obj=device)
            # Records of Python's logging are written to the run's log as well
            logger.info('%s: %d lines', device.name, lines)
    self.progress(len(devices), len(devices), step='Done')
    if unreachable:
        raise TaskFailed(f'No backup of {", ".join(unreachable)}')
    return {'devices': len(devices)}


@shared_task(
    name='netbox_example_plugin:flaky',
    base=CeleryBaseTask,
    bind=True,
    autoretry_for=(DeviceUnreachable,),
    max_retries=5,
    retry_backoff=True,
    retry_jitter=False,
)
def flaky(self, task_id, succeed_on: int = 3):
    """
    Fail until the given attempt. Retried automatically after 1 second, 2, 4 and so on.

    Args:
        succeed_on: Number of the attempt that succeeds; above 6, none does
    """
    attempt = self.request.retries + 1
    self.log(f'Attempt {attempt}')
    if attempt < succeed_on:
        raise DeviceUnreachable('Connection timed out')
    self.log_success('The device answers')
    return attempt


@netbox_celery_task(name='netbox_example_plugin:slow')
def slow(self, task_id, seconds: int = 60):
    """
    Run for a while. Checks every second whether it has been cancelled; if so, it cleans up and returns.

    Args:
        seconds: Duration in seconds
    """
    for second in range(1, seconds + 1):
        if self.is_cancelled():
            self.log_warning(f'Cancelled after {second - 1} seconds')
            return second - 1
        time.sleep(1)
        self.progress(second, seconds, step=f'Second {second}')
        if second % 5 == 0:
            self.log(f'{second} of {seconds} seconds')
    return seconds
