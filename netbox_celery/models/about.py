"""The reference from a row to the NetBox object that it is about."""
from typing import TYPE_CHECKING

from django.contrib.contenttypes.fields import GenericForeignKey, GenericForeignKeyDescriptor
from django.contrib.contenttypes.models import ContentType
from django.db import models
from django.utils.translation import gettext_lazy as _

from netbox.models import BaseModel

from ..engine.store import branches

__all__ = (
    'AboutObject',
    'HistoricGenericForeignKey',
    'find_type',
)


def find_type(pk: int, using: str | None = None) -> ContentType | None:
    """Return a content type, or `None`: a log entry may refer to one that has been deleted."""
    try:
        return ContentType.objects.db_manager(using).get_for_id(pk)
    except ContentType.DoesNotExist:
        return None


class HistoricDescriptor(GenericForeignKeyDescriptor):

    def get_prefetch_querysets(self, instances, querysets=None):
        return super().get_prefetch_querysets(
            [instance for instance in instances if self._has_model(instance)], querysets
        )

    def fetch_one(self, instance):
        """Load the object from the branch of the row, or from the branch in which this code runs.

        Django would load it from where the row is stored, which is main.
        """
        if not self._has_model(instance):
            self.field.set_cached_value(instance, None)
            return
        type_id, pk = getattr(instance, self.field.ct_field_attname), getattr(instance, self.field.fk_field)
        model = None if type_id is None else self.field.get_content_type(id=type_id).model_class()
        using = None if model is None else branches.read_alias(getattr(instance, 'branch', ''), model)
        if model is None or using is None:
            super().fetch_one(instance)
        else:
            self.field.set_cached_value(instance, model._base_manager.using(using).filter(pk=pk).first())

    def _has_model(self, instance):
        pk = getattr(instance, self.field.ct_field_attname)
        return pk is None or self.field.get_content_type(
            id=pk, using=instance._state.db
        ).model_class() is not None


class HistoricGenericForeignKey(GenericForeignKey):
    """A generic foreign key that is `None` if the model of the object no longer exists.

    History outlives the plugins that it refers to. Django raises an exception for a content type without a model, which
    would break every list that contains such a row.
    """

    def get_content_type(self, obj=None, id=None, using=None, model=None):
        if id is None:
            return super().get_content_type(obj=obj, using=using, model=model)
        return find_type(id, using) or ContentType()  # without a model

    def contribute_to_class(self, cls, name, **kwargs):
        super().contribute_to_class(cls, name, **kwargs)
        setattr(cls, self.attname, HistoricDescriptor(self))


class AboutObject(BaseModel):
    """Base class of rows that may refer to a NetBox object of any model.

    List it after NetBox's base classes, so that its `clean()` is the last one before `BaseModel.clean()`.
    """
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

    if TYPE_CHECKING:
        object_type_id: int | None

    class Meta:
        abstract = True

    @property
    def is_object_gone(self) -> bool:
        """Whether the object has been deleted."""
        return self.object_id is not None and self.object is None

    def clean(self):
        """Check that the object exists, as NetBox does, unless it is the stored one.

        The stored object, or its whole model, may have been deleted. That must not prevent changes to other fields.
        """
        about = self.object_type_id, self.object_id
        if not self._is_stored_about(*about):
            super().clean()
            return
        self.object_type_id = self.object_id = None
        try:
            super().clean()
        finally:
            self.object_type_id, self.object_id = about

    def _is_stored_about(self, object_type_id, object_id):
        return object_id is not None and not self._state.adding and type(self).objects.filter(
            pk=self.pk, object_type_id=object_type_id, object_id=object_id
        ).exists()
