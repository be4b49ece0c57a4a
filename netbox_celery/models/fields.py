"""Model fields for values that users and callers choose. Pages can display whatever the row holds."""
import json
import math
from copy import copy
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models.fields.json import KeyTransform
from django.utils.timezone import is_naive, make_aware
from django.utils.translation import gettext_lazy as _

from ..engine.store.payload import MOST_DIGITS, RowDecoder, plain
from ..engine.store.times import EARLIEST, LATEST, nearest_sql

__all__ = (
    'AttemptsField',
    'IntervalField',
    'MappingField',
    'NamesField',
    'ParametersField',
    'TimeField',
    'validate_time',
    'with_plain_payloads',
)


def validate_time(value: datetime) -> None:
    """Reject a time that some time zones cannot display (see `netbox_celery.engine.store.times`)."""
    if not EARLIEST <= (make_aware(value, UTC) if is_naive(value) else value) <= LATEST:
        raise ValidationError(_('The time must be between the years 1970 and 9990.'), code='out_of_range')


def with_plain_payloads(instance, exclude=()):
    """Return a copy of an object with its JSON in display form, which Django's serializers can always write."""
    shown = copy(instance)
    for field in instance._meta.concrete_fields:
        if isinstance(field, models.JSONField) and field.name != 'custom_field_data' and field.name not in exclude:
            setattr(shown, field.attname, plain(getattr(instance, field.attname)))
    return shown


def _number(text):
    return int(text) if len(text) <= MOST_DIGITS else text


class ShapedField(models.JSONField):
    """JSON that only the engine writes. Whatever the row holds, it is read in the shape that the engine expects."""

    @staticmethod
    def shape(value):
        """Return the part of JSON data that has this shape."""
        raise NotImplementedError

    def from_db_value(self, value, expression, connection):
        value = json.loads(value, cls=RowDecoder, parse_int=_number) if isinstance(value, str) else value
        return value if isinstance(expression, KeyTransform) else self.shape(value)

    def deconstruct(self):
        name, __, args, kwargs = super().deconstruct()
        return name, 'django.db.models.JSONField', args, kwargs


class AttemptsField(ShapedField):
    """The attempts of a run so far: a list of dicts."""

    @staticmethod
    def shape(value):
        return [attempt for attempt in value if isinstance(attempt, dict)] if isinstance(value, list) else []


class MappingField(ShapedField):
    """Names and their values: a dict."""

    @staticmethod
    def shape(value):
        return plain(value) if isinstance(value, dict) else {}


class NamesField(ShapedField):
    """A list of strings."""

    @staticmethod
    def shape(value):
        return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


class ParametersField(ShapedField):
    """The parameters of a task: a list of dicts (see `netbox_celery.engine.catalogue.registry.parameters`)."""
    TYPES = {'name': str, 'kind': str, 'annotation': str, 'required': bool}

    @classmethod
    def shape(cls, value):
        return [plain(parameter) for parameter in value if isinstance(parameter, dict) and all(
            isinstance(parameter.get(name), type) for name, type in cls.TYPES.items()
        )] if isinstance(value, list) else []


class IntervalField(models.FloatField):
    """A number of seconds. `NaN` and `Infinity`, which JSON cannot hold, are read as `None`."""

    def from_db_value(self, value, expression, connection):
        return value if value is None or math.isfinite(value) else None

    def deconstruct(self):
        name, __, args, kwargs = super().deconstruct()
        return name, 'django.db.models.FloatField', args, kwargs


class TimeField(models.DateTimeField):
    """A time in the range of `netbox_celery.engine.store.times`. A time outside it is read as the nearest one inside.

    SQL can write such times, but psycopg cannot read `infinity` or years outside Python's calendar: one such row would
    break every list.
    """
    default_validators = [validate_time]

    if TYPE_CHECKING:
        # On an instance Django stores the value itself
        def __get__(self, instance: models.Model | None, owner: type) -> Any: ...
        def __set__(self, instance: models.Model, value: Any) -> None: ...

    def select_format(self, compiler, sql, params):
        return nearest_sql(sql), params * 3

    def deconstruct(self):
        # To the database it is a plain `DateTimeField`
        name, __, args, kwargs = super().deconstruct()
        return name, 'django.db.models.DateTimeField', args, kwargs
