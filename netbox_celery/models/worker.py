"""The workers and whether they are alive, so that the runs of lost workers can be found."""
from typing import Any

from django.db import models
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from utilities.querysets import RestrictedQuerySet

from ..config import get_config
from ..engine.store.lifecycle import WORKER_STATE
from .fields import MappingField, NamesField, TimeField

__all__ = (
    'CeleryWorker',
)


class CeleryWorker(models.Model):
    """One start of a worker (main process and pool). `netbox_celery.engine.worker.presence` writes the rows."""
    key = models.UUIDField(
        verbose_name=_('key'),
        unique=True,
        help_text=_('Unique per worker start')
    )
    name = models.CharField(
        verbose_name=_('name'),
        max_length=255,
        help_text=_('Node name, such as celery@host')
    )
    host = models.CharField(
        verbose_name=_('host'),
        max_length=255
    )
    pid = models.PositiveIntegerField(
        verbose_name=_('process ID')
    )
    pool = models.CharField(
        verbose_name=_('pool'),
        max_length=50
    )
    concurrency = models.PositiveIntegerField(
        verbose_name=_('concurrency')
    )
    queues = NamesField(
        verbose_name=_('queues'),
        default=list
    )
    versions = MappingField(
        verbose_name=_('versions'),
        default=dict
    )
    started = TimeField(
        verbose_name=_('started')
    )
    heartbeat = TimeField(
        verbose_name=_('heartbeat')
    )
    stopped = TimeField(
        verbose_name=_('stopped'),
        blank=True,
        null=True
    )

    objects = RestrictedQuerySet.as_manager()

    class Meta:
        ordering = ('name', '-started')
        verbose_name = _('worker')
        verbose_name_plural = _('workers')

    def __str__(self):
        return self.name

    def get_absolute_url(self):
        return reverse('plugins:netbox_celery:celeryworker', args=[self.pk])

    @property
    def is_alive(self) -> bool:
        """Whether the worker has not stopped and its last heartbeat is recent enough."""
        age = (timezone.now() - self.heartbeat).total_seconds()
        return self.stopped is None and age < self.lost_after

    @property
    def lost_after(self) -> float:
        """Seconds without a heartbeat after which the worker counts as lost.

        They come from the worker's own settings, as does the interval of its heartbeats.
        """
        own = self._state_of_worker.get('lost_after')
        return own if isinstance(own, int | float) else get_config().worker_lost_after

    @property
    def package_versions(self) -> dict[str, Any]:
        """Versions of the software that the worker runs."""
        return {name: version for name, version in self.versions.items() if name != WORKER_STATE}

    @property
    def _state_of_worker(self) -> dict[str, Any]:
        # Stored in the same column as the versions
        state = self.versions.get(WORKER_STATE)
        return state if isinstance(state, dict) else {}

    @property
    def autoscale(self) -> dict[str, Any] | None:
        """The limits of an autoscaled pool, `min` and `max`, or `None` if the pool has a fixed size."""
        limits = self._state_of_worker.get('autoscale')
        return limits if isinstance(limits, dict) and {'min', 'max'} <= limits.keys() else None

    @property
    def display_concurrency(self) -> str:
        """Number of tasks that the worker can run at a time, for display."""
        if limits := self.autoscale:
            return _('{min} to {max}').format(min=limits['min'], max=limits['max'])
        return str(self.concurrency)

    @property
    def not_loaded(self) -> list[dict[str, Any]]:
        """Modules that the worker could not import: dicts with `plugin`, `module`, `error` and `place`."""
        found = self._state_of_worker.get('not_loaded')
        return [failure for failure in found if isinstance(failure, dict)] if isinstance(found, list) else []
