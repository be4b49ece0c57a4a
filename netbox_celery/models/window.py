"""Ignore windows: how long a task that has succeeded does not run again (`netbox_celery.engine.sending.admission`)."""
from django.db import models

__all__ = (
    'IgnoreWindow',
)


class IgnoreWindow(models.Model):
    """Until when calls of a task with certain arguments are ignored. The engine's own, shown nowhere."""
    key = models.CharField(
        max_length=255,
        primary_key=True
    )
    until = models.DateTimeField()
    task_id = models.UUIDField(
        help_text='The run that opened it, which it does not keep from going on.'
    )

    def __str__(self):
        return self.key
