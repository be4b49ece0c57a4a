"""Signal receivers for the deletion of runs, tasks and schedules, from the user interface, REST or a script."""
from typing import Any

from django.db.models.signals import pre_delete
from django.dispatch import receiver
from django.utils.html import escape
from django.utils.translation import gettext as _

from utilities.exceptions import AbortRequest

from . import host
from .engine.sending import control
from .models import CeleryResult, CelerySchedule, CeleryTask

__all__ = (
    'cancel_deleted_run',
    'keep_registered_task',
    'keep_sourced_schedule',
)


@receiver(pre_delete, sender=CeleryResult)
def cancel_deleted_run(instance: CeleryResult, **kwargs: Any) -> None:
    """Cancel an unfinished run before its row is deleted: users could no longer see or stop it."""
    if not instance.is_finished:
        control.cancel(instance, user=host.current_user())


@receiver(pre_delete, sender=CeleryTask)
def keep_registered_task(instance: CeleryTask, **kwargs: Any) -> None:
    """Reject the deletion of a registered task: it would reappear within a minute, without its settings."""
    if instance.present:
        raise AbortRequest(_(
            'The task {task} is registered and would reappear. Disable it, or remove its plugin first.'
        ).format(task=escape(instance)))


@receiver(pre_delete, sender=CelerySchedule)
def keep_sourced_schedule(instance: CelerySchedule, **kwargs: Any) -> None:
    """Reject the deletion of a schedule defined in settings or code: it would reappear, without its policies."""
    if instance.is_read_only and instance.present:
        raise AbortRequest(_(
            'The schedule {schedule} is defined in {origin} and would reappear. Disable it, or remove it there first.'
        ).format(schedule=escape(instance), origin=instance.get_origin_display()))
