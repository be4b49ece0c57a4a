"""The form that edits a task. Everything else about a task is defined in its code."""
from netbox.forms import NetBoxModelForm
from utilities.forms.rendering import FieldSet

from ..models import CeleryTask

__all__ = (
    'CeleryTaskForm',
)


class CeleryTaskForm(NetBoxModelForm):
    fieldsets = (
        FieldSet('enabled', 'tags'),
    )

    class Meta:
        model = CeleryTask
        fields = ('enabled', 'tags')
