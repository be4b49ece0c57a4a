"""A form field for arguments as JSON that a message can hold."""
import json

from django import forms
from django.forms.fields import InvalidJSONInput
from django.utils.translation import gettext_lazy as _

from utilities.forms.fields import JSONField

from ..engine.store.payload import MarkerDecoder, PayloadEncoder, plain, to_jsonb

__all__ = (
    'PayloadField',
)


class PayloadField(JSONField):
    """JSON with Kombu's type markers. Unreadable or too deeply nested JSON is an error of the field."""
    default_error_messages = {
        'unreadable': _('Invalid value: {error}'),
    }

    def __init__(self, **kwargs):
        super().__init__(encoder=PayloadEncoder, decoder=MarkerDecoder, **kwargs)

    def to_python(self, value):
        try:
            value = super().to_python(value)
            to_jsonb(value)
        except RecursionError as exc:
            raise self._unreadable(_('nested too deeply')) from exc
        except (TypeError, ValueError) as exc:
            raise self._unreadable(exc) from exc
        return value

    def _unreadable(self, error):
        return forms.ValidationError(self.error_messages['unreadable'].format(error=error), code='unreadable')

    def bound_data(self, data, initial):
        try:
            return super().bound_data(data, initial)
        except (RecursionError, ValueError):
            return InvalidJSONInput(data)

    def prepare_value(self, value):
        if isinstance(value, str):
            try:
                json.loads(value, cls=self.decoder)
            except json.JSONDecodeError:
                pass
            except (RecursionError, ValueError):
                return InvalidJSONInput(value)
        try:
            return super().prepare_value(value)
        except (RecursionError, TypeError, ValueError):
            # Code has stored it; the form could not have accepted it
            return InvalidJSONInput(value) if isinstance(value, str) else super().prepare_value(plain(value))

    def has_changed(self, initial, data):
        try:
            return super().has_changed(initial, data)
        except (RecursionError, TypeError, ValueError):
            return True
