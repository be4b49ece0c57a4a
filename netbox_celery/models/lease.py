"""Leases: which process does what only one shall do (`netbox_celery.engine.schedules.leader`)."""
from django.db import models

__all__ = (
    'Lease',
)


class Lease(models.Model):
    """Who does something, and until when if it says nothing more. The engine's own, shown nowhere."""
    name = models.CharField(
        max_length=50,
        primary_key=True
    )
    holder = models.UUIDField()
    until = models.DateTimeField()

    def __str__(self):
        return self.name
