"""The entries of a run's log. The engine's recorder (`netbox_celery.engine.store.recorder`) writes them with `COPY`."""
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ..choices import LogLevelChoices
from ..querysets import CeleryLogEntryQuerySet
from .about import AboutObject
from .fields import TimeField

__all__ = (
    'CeleryLogEntry',
)


class CeleryLogEntry(AboutObject):
    """An entry of a run's log. Its primary key is the cursor with which readers follow the log."""
    result = models.ForeignKey(
        to='netbox_celery.CeleryResult',
        # PostgreSQL deletes them (ON DELETE CASCADE, migration 0001): a million entries, without loading any. Django
        # does not allow DB_CASCADE in a model that also has a relation with the Python-level SET_NULL.
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        related_name='log_entries',
        verbose_name=_('run'),
        db_index=False
    )
    attempt = models.PositiveIntegerField(
        verbose_name=_('attempt'),
        default=1
    )
    level = models.PositiveSmallIntegerField(
        verbose_name=_('level'),
        choices=LogLevelChoices,
        default=LogLevelChoices.LEVEL_INFO
    )
    grouping = models.CharField(
        verbose_name=_('grouping'),
        max_length=100,
        default='main'
    )
    message = models.TextField(
        verbose_name=_('message')
    )
    object_type = models.ForeignKey(
        to='contenttypes.ContentType',
        on_delete=models.SET_NULL,
        related_name='+',
        verbose_name=_('object type'),
        blank=True,
        null=True,
        db_index=False,
        db_constraint=False
    )
    created = TimeField(
        verbose_name=_('created'),
        default=timezone.now
    )

    objects = CeleryLogEntryQuerySet.as_manager()

    class Meta:
        ordering = ('pk',)
        indexes = (
            models.Index(fields=('result', 'id')),
        )
        verbose_name = _('log entry')
        verbose_name_plural = _('log entries')

    def __str__(self):
        return self.message[:100]

    def get_absolute_url(self):
        return self.result.get_absolute_url()

    def get_level_color(self):
        return LogLevelChoices.colors.get(self.level)
