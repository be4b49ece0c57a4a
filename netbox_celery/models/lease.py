"""Leases: which process holds a role that only one may hold (`netbox_celery.engine.schedules.leader`)."""
from django.db import models

__all__ = (
    'Lease',
)


class Lease(models.Model):
    """Which process holds a role, and until when unless it renews the lease. Internal to the engine; not shown."""
    name = models.CharField(
        max_length=50,
        primary_key=True
    )
    holder = models.UUIDField()
    until = models.DateTimeField()

    def __str__(self):
        return self.name
