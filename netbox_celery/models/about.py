"""The NetBox object that a row is about."""
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


def find_type(pk, using=None):
    """Return a content type, or `None`: a line of a log may name one that has been deleted."""
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
        """Load the object of a row: as it is in the row's branch, or in that in which this code runs.

        Django would look for it where the row is, which is main.
        """
        if not self._has_model(instance):
            self.field.set_cached_value(instance, None)
            return
        type_id, pk = getattr(instance, self.field.ct_field_attname), getattr(instance, self.field.fk_field)
        model = None if type_id is None else self.field.get_content_type(id=type_id).model_class()
        using = None if model is None else branches.read_alias(getattr(instance, 'branch', ''), model)
        if using is None:
            super().fetch_one(instance)
        else:
            self.field.set_cached_value(instance, model._base_manager.using(using).filter(pk=pk).first())

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

    def get_content_type(self, obj=None, id=None, using=None, model=None):
        if id is None:
            return super().get_content_type(obj=obj, using=using, model=model)
        return find_type(id, using) or ContentType()  # of no model

    def contribute_to_class(self, cls, name, **kwargs):
        super().contribute_to_class(cls, name, **kwargs)
        setattr(cls, self.attname, HistoricDescriptor(self))


class AboutObject(BaseModel):
    """Rows about a NetBox object of any model, or about none.

    As a base class it stands behind NetBox's, so that its `clean()` is the last one before `BaseModel.clean()`.
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

    class Meta:
        abstract = True

    @property
    def is_object_gone(self):
        """Whether the object has been deleted since."""
        return self.object_id is not None and self.object is None

    def clean(self):
        """Check that the object exists, as NetBox does, if it is another one than is stored.

        One that is stored may be gone by now, and with it its model: that keeps nobody from changing the rest.
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
