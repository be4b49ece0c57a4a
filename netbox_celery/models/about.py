"""The NetBox object that a row is about."""
from django.contrib.contenttypes.fields import GenericForeignKey, GenericForeignKeyDescriptor
from django.db import models
from django.utils.translation import gettext_lazy as _

__all__ = (
    'AboutObject',
    'HistoricGenericForeignKey',
)


class HistoricDescriptor(GenericForeignKeyDescriptor):

    def get_prefetch_querysets(self, instances, querysets=None):
        return super().get_prefetch_querysets(
            [instance for instance in instances if self._has_model(instance)], querysets
        )

    def fetch_one(self, instance):
        if self._has_model(instance):
            super().fetch_one(instance)
        else:
            self.field.set_cached_value(instance, None)

    def _has_model(self, instance):
        pk = getattr(instance, self.field.ct_field_attname)
        return pk is None or self.field.get_content_type(
            id=pk, using=instance._state.db
        ).model_class() is not None


class HistoricGenericForeignKey(GenericForeignKey):
    """A generic foreign key that is `None` where the model of the object is gone.

    History outlives the plugins that it is about. Django fails on a content type without a model, and with it would
    each list in which such a row stands.
    """

    def contribute_to_class(self, cls, name, **kwargs):
        super().contribute_to_class(cls, name, **kwargs)
        setattr(cls, self.attname, HistoricDescriptor(self))


class AboutObject(models.Model):
    """Rows about a NetBox object of any model, or about none."""
    object_type = models.ForeignKey(
        to='contenttypes.ContentType',
        on_delete=models.SET_NULL,
        related_name='+',
        verbose_name=_('object type'),
        blank=True,
        null=True,
        db_index=False
    )
    object_id = models.PositiveBigIntegerField(
        verbose_name=_('object ID'),
        blank=True,
        null=True
    )
    object = HistoricGenericForeignKey(
        ct_field='object_type',
        fk_field='object_id',
        for_concrete_model=False
    )

    class Meta:
        abstract = True
