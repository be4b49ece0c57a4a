"""Runs on pages of NetBox."""
from django.contrib.contenttypes.models import ContentType

from dcim.models import Site
from netbox_celery.models import CeleryResult
from tests.factories import grant, make_result
from tests.views.bases import PageTestCase


class ObjectRunsTest(PageTestCase):
    """The page of an object lists the runs about it."""

    def setUp(self):
        super().setUp()
        grant(self.user, Site)
        self.site = Site.objects.create(name='Site 1', slug='site-1')
        self.other = Site.objects.create(name='Site 2', slug='site-2')
        self.result = make_result('completed', object=self.site)
        content_type = ContentType.objects.get_for_model(Site)
        self.table = f'/plugins/celery/results/?embedded=True&object_type_id={content_type.pk}'

    def test_runs_are_listed(self):
        grant(self.user, CeleryResult)
        page = self.page(self.site.get_absolute_url())
        self.assertIn('Celery Runs', page)
        self.assertIn(f'{self.table}&amp;object_id={self.site.pk}', page)
        listed = self.page('/plugins/celery/results/', {
            'embedded': True, 'object_type_id': ContentType.objects.get_for_model(Site).pk, 'object_id': self.site.pk,
        }, headers=self.htmx)
        self.assertIn(self.result.get_absolute_url(), listed)

    def test_no_runs(self):
        grant(self.user, CeleryResult)
        self.assertNotIn('Celery Runs', self.page(self.other.get_absolute_url()))

    def test_permission(self):
        self.assertNotIn('Celery Runs', self.page(self.site.get_absolute_url()))
        grant(self.user, CeleryResult, constraints={'pk': 0})
        self.assertNotIn('Celery Runs', self.page(self.site.get_absolute_url()))
