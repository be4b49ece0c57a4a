"""Columns whose values people and callers choose, and which every page can show."""
from datetime import UTC

from django.core.exceptions import ValidationError
from django.db import models
from django.utils.timezone import is_naive, make_aware
from django.utils.translation import gettext_lazy as _

from ..engine.times import EARLIEST, LATEST, nearest_sql

__all__ = (
    'TimeField',
    'validate_time',
)


def validate_time(value):
    """Refuse a time that not every time zone can show (see `netbox_celery.engine.times`)."""
    if not EARLIEST <= (make_aware(value, UTC) if is_naive(value) else value) <= LATEST:
        raise ValidationError(_('A time must lie between the years 1970 and 9990.'), code='out_of_range')


class TimeField(models.DateTimeField):
    """A time in the range of `netbox_celery.engine.times`; others, which SQL may have written, are read as the nearest.

    psycopg cannot read `infinity`, nor the years that Python's calendar lacks: one such row would end every list.
    """
    default_validators = [validate_time]

    def select_format(self, compiler, sql, params):
        return nearest_sql(sql), params * 3

    def deconstruct(self):
        # To the database it is nothing else
        name, __, args, kwargs = super().deconstruct()
        return name, 'django.db.models.DateTimeField', args, kwargs
