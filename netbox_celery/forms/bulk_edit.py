"""Changing several tasks at once."""
from django import forms
from django.utils.translation import gettext_lazy as _

from netbox.forms import NetBoxModelBulkEditForm
from utilities.forms.rendering import FieldSet
from utilities.forms.widgets import BulkEditNullBooleanSelect

from ..models import CeleryTask

__all__ = (
    'CeleryTaskBulkEditForm',
)


class CeleryTaskBulkEditForm(NetBoxModelBulkEditForm):
    enabled = forms.NullBooleanField(
        label=_('Enabled'),
        required=False,
        widget=BulkEditNullBooleanSelect
    )

    model = CeleryTask
    fieldsets = (
        FieldSet('enabled'),
    )
