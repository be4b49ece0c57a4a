"""The catalogue of tasks: what can be run, and by whom."""
from django.db import models
from django.utils.translation import gettext_lazy as _

from netbox.models import NetBoxModel

from .fields import MappingField, ParametersField, TimeField

__all__ = (
    'CeleryTask',
)


class CeleryTask(NetBoxModel):
    """A task that a worker or NetBox itself has registered with Celery.

    `netbox_celery.engine.schedules.sync` keeps the rows current. A task that is registered no more stays, marked
    absent: its runs and the permissions on it keep their meaning.
    """
    name = models.CharField(
        verbose_name=_('name'),
        max_length=255,
        unique=True,
        help_text=_('Name under which the task is registered')
    )
    plugin = models.CharField(
        verbose_name=_('plugin'),
        max_length=100,
        blank=True,
        help_text=_('Python package that the task comes from')
    )
    description = models.CharField(
        verbose_name=_('description'),
        max_length=200,
        blank=True,
        help_text=_("First line of the task's docstring")
    )
    documentation = models.TextField(
        verbose_name=_('documentation'),
        blank=True,
        help_text=_("The task's docstring")
    )
    enabled = models.BooleanField(
        verbose_name=_('enabled'),
        default=True,
        help_text=_('A disabled task cannot be run from the user interface or the API')
    )
    defaults = MappingField(
        verbose_name=_('default options'),
        blank=True,
        default=dict,
        help_text=_('Execution options that the code sets: queue, retries, time limits, ...')
    )
    parameters = ParametersField(
        verbose_name=_('parameters'),
        blank=True,
        default=list,
        help_text=_("The task's parameters without `task_id`: name, kind, annotation, default")
    )
    present = models.BooleanField(
        verbose_name=_('present'),
        default=True,
        help_text=_('Whether a worker or NetBox has the task registered')
    )
    last_seen = TimeField(
        verbose_name=_('last seen'),
        blank=True,
        null=True,
        help_text=_('When the task was last found registered')
    )

    #: NetBox's own is the address of a page that only NetBox's models have: a Help button that leads nowhere.
    docs_url = None

    class Meta:
        ordering = ('name',)
        permissions = (
            ('run', 'Run the task'),
        )
        verbose_name = _('task')
        verbose_name_plural = _('tasks')

    def __str__(self):
        return self.name
