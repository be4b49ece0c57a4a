"""The object of a run may be deleted, and so may the plugin that it belongs to."""
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ValidationError
from django.test import TestCase

from dcim.models import Site
from extras.models import Tag
from netbox_celery.models import CeleryLogEntry, CeleryResult
from tests.factories import make_log, make_result
from users.models import User


class HistoricGenericForeignKeyTest(TestCase):

    @classmethod
    def setUpTestData(cls):
        gone = ContentType.objects.create(app_label='gone_plugin', model='thing')
        cls.site = Site.objects.create(name='Site 1', slug='site-1')
        deleted = Site.objects.create(name='Site 2', slug='site-2')
        cls.about_gone = make_result(object_type=gone, object_id=1)
        cls.about_deleted = make_result(object=deleted)
        deleted.delete()
        cls.about_site = make_result(object=cls.site)
        cls.about_nothing = make_result()
        cls.expected = [(cls.about_gone, None), (cls.about_deleted, None), (cls.about_site, cls.site),
                        (cls.about_nothing, None)]
        make_log(cls.about_gone, 'one', object_type=gone, object_id=1)
        make_log(cls.about_gone, 'two', object=cls.site)

    def test_one_by_one(self):
        for result, expected in self.expected:
            self.assertEqual(CeleryResult.objects.get(pk=result.pk).object, expected)

    def test_prefetched(self):
        results = CeleryResult.objects.order_by('pk').prefetch_related('object')
        self.assertEqual([(result, result.object) for result in results], self.expected)
        only_gone = CeleryResult.objects.filter(pk=self.about_gone.pk).prefetch_related('object')
        self.assertEqual([result.object for result in only_gone], [None])
        lines = CeleryLogEntry.objects.prefetch_related('object')
        self.assertEqual([line.object for line in lines], [None, self.site])

    def test_pages(self):
        """No page and no answer with such a row fails."""
        user = User.objects.create_superuser(username='admin')
        self.client.force_login(user)
        page, rest = self.about_gone.get_absolute_url(), f'/api/plugins/celery/results/{self.about_gone.pk}/'
        for url in (
            '/plugins/celery/results/', page, f'{page}log/', '/api/plugins/celery/results/', rest, f'{rest}logs/',
            '/api/plugins/celery/log-entries/',
        ):
            with self.subTest(url):
                self.assertEqual(self.client.get(url).status_code, 200)

    def test_annotated(self):
        """Tags and custom fields of such a row can be changed."""
        user = User.objects.create_superuser(username='admin')
        self.client.force_login(user)
        tag = Tag.objects.create(name='Known', slug='known')
        for result in (self.about_gone, self.about_deleted):
            response = self.client.patch(
                f'/api/plugins/celery/results/{result.pk}/', {'tags': [tag.pk]}, content_type='application/json'
            )
            self.assertEqual(response.status_code, 200, response.content)
            self.assertEqual(list(result.tags.all()), [tag])
            result.refresh_from_db()
            self.assertIsNotNone(result.object_id)
            result.full_clean()

    def test_another_deleted_object(self):
        self.about_site.object_id = 4711
        with self.assertRaises(ValidationError):
            self.about_site.full_clean()
