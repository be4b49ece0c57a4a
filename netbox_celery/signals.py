"""What happens to the engine when people delete its rows, from the user interface, from REST or from a script."""
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
def cancel_deleted_run(instance, **kwargs):
    """Cancel a run whose row goes away: nobody could see or stop it any more."""
    if not instance.is_finished:
        control.cancel(instance, user=host.current_user())


@receiver(pre_delete, sender=CeleryTask)
def keep_registered_task(instance, **kwargs):
    """Refuse to delete a task that is registered: it would come back within a minute, without its settings."""
    if instance.present:
        raise AbortRequest(_(
            'The task {task} is registered and would come back. Disable it, or remove its plugin first.'
        ).format(task=escape(instance)))


@receiver(pre_delete, sender=CelerySchedule)
def keep_sourced_schedule(instance, **kwargs):
    """Refuse to delete a schedule that the settings or the code have: it would come back, without its policies."""
    if instance.is_read_only and instance.present:
        raise AbortRequest(_(
            'The schedule {schedule} comes from {origin} and would come back. Disable it, or remove it there first.'
        ).format(schedule=escape(instance), origin=instance.get_origin_display()))
