"""What panels of more than one page are made of."""
from netbox.ui import attrs, panels

from ..engine.payload import plain

__all__ = (
    'PayloadPanel',
    'SparseAttributesPanel',
    'description_of',
)


def description_of(choices, value):
    """Return the sentence that a `ChoiceSet` has about a value, or an empty string."""
    return next((choice.description for choice in choices.CHOICES if choice.value == value), '')


class SparseAttributesPanel(panels.ObjectAttributesPanel):
    """Shows the attributes that have a value. Of a run most have none, and which ones those are tells nothing."""

    def get_context(self, context):
        ctx = super().get_context(context)
        ctx['attrs'] = [attr for attr in ctx['attrs'] if attr['value'] != attrs.ObjectAttribute.placeholder]
        return ctx


class PayloadPanel(panels.JSONPanel):
    """A JSON field that holds values as Celery sends them, shown as plain JSON; nothing if it is empty."""

    def get_context(self, context):
        ctx = super().get_context(context)
        return ctx | {'data': plain(ctx['data'])}

    def should_render(self, context):
        return context['data'] not in (None, {}, [])
