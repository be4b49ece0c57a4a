"""Ignore windows: how long a task does not run again after a success (`netbox_celery.engine.sending.admission`)."""
from django.db import models

__all__ = (
    'IgnoreWindow',
)


class IgnoreWindow(models.Model):
    """Until when calls of a task with certain arguments are ignored. Internal to the engine; not shown."""
    key = models.CharField(
        max_length=255,
        primary_key=True
    )
    until = models.DateTimeField()
    task_id = models.UUIDField(
        help_text='The run that opened the window, which does not apply to this run itself.'
    )

    def __str__(self):
        return self.key
