"""The catalogue of tasks that can be run."""
from django.db import models
from django.utils.translation import gettext_lazy as _

from netbox.models import NetBoxModel

from .fields import MappingField, ParametersField, TimeField

__all__ = (
    'CeleryTask',
)


class CeleryTask(NetBoxModel):
    """A task that NetBox or a worker has registered with Celery.

    `netbox_celery.engine.schedules.sync` keeps the rows up to date. A task that is no longer registered keeps its row,
    with `present` set to false, so that its runs and permissions keep their meaning.
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
        help_text=_('Python package that defines the task')
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
        help_text=_('Disabled tasks cannot be run from the user interface or the API')
    )
    defaults = MappingField(
        verbose_name=_('default options'),
        blank=True,
        default=dict,
        help_text=_('Execution options set in code: queue, retries, time limits, ...')
    )
    parameters = ParametersField(
        verbose_name=_('parameters'),
        blank=True,
        default=list,
        help_text=_("The task's parameters without `task_id`: name, kind, annotation, default")
    )
    present = models.BooleanField(
        verbose_name=_('registered'),
        default=True,
        help_text=_('Registered with NetBox or a worker')
    )
    last_seen = TimeField(
        verbose_name=_('last seen'),
        blank=True,
        null=True,
        help_text=_('When the task was last found registered')
    )

    #: No Help button: NetBox's default is the address of a page that exists for NetBox's own models only.
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
