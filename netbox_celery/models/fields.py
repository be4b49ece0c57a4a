"""Columns whose values people and callers choose, and which every page can show."""
import json
import math
from copy import copy
from datetime import UTC

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


def validate_time(value):
    """Refuse a time that not every time zone can show (see `netbox_celery.engine.store.times`)."""
    if not EARLIEST <= (make_aware(value, UTC) if is_naive(value) else value) <= LATEST:
        raise ValidationError(_('A time must lie between the years 1970 and 9990.'), code='out_of_range')


def with_plain_payloads(instance, exclude=()):
    """Return a copy of an object whose JSON is as people read it: what Django's serializers can write in any case."""
    shown = copy(instance)
    for field in instance._meta.concrete_fields:
        if isinstance(field, models.JSONField) and field.name != 'custom_field_data' and field.name not in exclude:
            setattr(shown, field.attname, plain(getattr(instance, field.attname)))
    return shown


def _number(text):
    return int(text) if len(text) <= MOST_DIGITS else text


class ShapedField(models.JSONField):
    """JSON that the engine alone writes. Whatever the row holds, it is read in the shape that it has for the engine."""

    @staticmethod
    def shape(value):
        """Return what there is of that shape in JSON data."""
        raise NotImplementedError

    def from_db_value(self, value, expression, connection):
        value = json.loads(value, cls=RowDecoder, parse_int=_number) if isinstance(value, str) else value
        return value if isinstance(expression, KeyTransform) else self.shape(value)

    def deconstruct(self):
        name, __, args, kwargs = super().deconstruct()
        return name, 'django.db.models.JSONField', args, kwargs


class AttemptsField(ShapedField):
    """The history of a run's attempts: a list of dicts."""

    @staticmethod
    def shape(value):
        return [attempt for attempt in value if isinstance(attempt, dict)] if isinstance(value, list) else []


class MappingField(ShapedField):
    """Names and what they stand for: a dict."""

    @staticmethod
    def shape(value):
        return plain(value) if isinstance(value, dict) else {}


class NamesField(ShapedField):
    """A list of texts."""

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
    """A number of seconds. What is none (`NaN`, `Infinity`) no JSON can hold: it is read as if there was none."""

    def from_db_value(self, value, expression, connection):
        return value if value is None or math.isfinite(value) else None

    def deconstruct(self):
        name, __, args, kwargs = super().deconstruct()
        return name, 'django.db.models.FloatField', args, kwargs


class TimeField(models.DateTimeField):
    """A time in the range of `netbox_celery.engine.store.times`; others, which SQL may have written, are read as the
    nearest.

    psycopg cannot read `infinity`, nor the years that Python's calendar lacks: one such row would end every list.
    """
    default_validators = [validate_time]

    def select_format(self, compiler, sql, params):
        return nearest_sql(sql), params * 3

    def deconstruct(self):
        # To the database it is nothing else
        name, __, args, kwargs = super().deconstruct()
        return name, 'django.db.models.DateTimeField', args, kwargs
