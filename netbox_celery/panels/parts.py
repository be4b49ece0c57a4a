"""Parts that the panels of several pages share."""
from typing import TYPE_CHECKING

from django.utils.html import format_html

from netbox.ui import attrs, panels

from ..engine.store import branches
from ..models.redaction import shown
from ..reading.viewing import Reader, hidden_text

__all__ = (
    'BranchAttr',
    'PayloadPanel',
    'SparseAttributesPanel',
    'VisibleGenericAttr',
    'VisibleRelatedAttr',
    'description_of',
    'shown_arguments',
)


def description_of(choices, value):
    """Return the description of a value in a `ChoiceSet`, or an empty string."""
    return next((choice.description for choice in choices.CHOICES if choice.value == value), '')


def shown_arguments(obj):
    """Return the arguments of a run or a schedule for display, redacted as the caller asked."""
    args, kwargs = obj.display_args, obj.display_kwargs
    return {
        'positional': list(enumerate(args, start=1)) if isinstance(args, list) else [],
        'named': list(kwargs.items()) if isinstance(kwargs, dict) else [],
        'representations': [text for text in (args, kwargs) if isinstance(text, str)],
    }


if TYPE_CHECKING:
    from netbox.ui.attrs import ObjectAttribute as MixedInto
else:
    MixedInto = object


class VisibleAttrMixin(MixedInto):
    """An object related to the one on the page. Users who may not view it see only that there is one."""

    def render(self, obj, context):
        if self.hidden(obj, context['perms'].user):
            return format_html('<span class="text-secondary">{}</span>', hidden_text())
        return super().render(obj, context)

    def hidden(self, obj, user):
        value = self.get_value(obj)
        return value is not None and not Reader(user).may_view(value)


class VisibleRelatedAttr(VisibleAttrMixin, attrs.RelatedObjectAttr):
    pass


class VisibleGenericAttr(VisibleAttrMixin, attrs.GenericForeignKeyAttr):
    pass


class BranchAttr(attrs.ObjectAttribute):
    """The branch of a row: its name, and its status if it is not ready."""
    template_name = 'netbox_celery/attrs/branch.html'

    def get_context(self, obj, attr, value, context):
        return {'branch': branches.shown([value]).get(value)}


class SparseAttributesPanel(panels.ObjectAttributesPanel):
    """Shows only the attributes that have a value: most attributes of a run have none."""

    def get_context(self, context):
        ctx = super().get_context(context)
        ctx['attrs'] = [attr for attr in ctx['attrs'] if attr['value'] != attrs.ObjectAttribute.placeholder]
        return ctx


class PayloadPanel(panels.JSONPanel):
    """A JSON field with values in Celery's encoding, shown as plain JSON; hidden if it is empty."""

    def get_context(self, context):
        ctx = super().get_context(context)
        return ctx | {'data': shown(ctx['data'])}

    def should_render(self, context):
        return context['data'] not in (None, {}, [])
