"""Base classes for the tests of pages."""

from tests.factories import grant
from utilities.testing import TestCase, disable_warnings

__all__ = (
    'ConfirmTestCases',
    'PageTestCase',
    'PluginURLMixin',
)


class PluginURLMixin:
    """The plugin's URLs, for NetBox's base classes."""

    def _get_base_url(self):
        return f'plugins:netbox_celery:{self.model._meta.model_name}_{{}}'


class PageTestCase(PluginURLMixin, TestCase):
    """A test of pages."""
    htmx = {'HX-Request': 'true'}

    def assertIn(self, member, container, msg=None):
        """Like the original, but without printing a whole page that lacks something."""
        if isinstance(container, str) and member not in container:
            self.fail(msg or f'{member!r} is not in the page')
        super().assertIn(member, container, msg)

    def assertNotIn(self, member, container, msg=None):
        if isinstance(container, str) and member in container:
            place = container.index(member)
            self.fail(msg or f'{member!r} is in the page: {container[max(0, place - 200):place + 200]!r}')
        super().assertNotIn(member, container, msg)

    def get(self, url, data=None, status=200, **kwargs):
        response = self.client.get(url, data, **kwargs)
        self.assertHttpStatus(response, status)
        return response

    def page(self, url, data=None, **kwargs):
        """Return the text of a page."""
        return self.get(url, data, **kwargs).content.decode()


class ConfirmTestCases:
    """Base classes. (Inside a class, so that they are not collected as tests themselves.)"""

    class ConfirmTestCase(PageTestCase):
        """
        What a question before an action promises: it needs its own permission on that object, a GET has no effect, a
        POST has.
        """
        model = None
        #: Name of the view and of its permission.
        action = None

        def make_object(self):
            raise NotImplementedError

        def assertDone(self, obj, response):
            """The action's effect has happened."""
            raise NotImplementedError

        def assertNotDone(self, obj):
            """Nothing has happened."""
            raise NotImplementedError

        def setUp(self):
            super().setUp()
            self.obj = self.make_object()
            self.url = f'{self.obj.get_absolute_url()}{self.action}/'

        def assertRefused(self, code):
            with disable_warnings('django.request'):
                self.assertHttpStatus(self.client.get(self.url), code)
                self.assertHttpStatus(self.client.post(self.url), code)
            self.assertNotDone(self.obj)

        def test_permitted(self):
            grant(self.user, self.model, actions=['view', self.action])
            response = self.client.post(self.url)
            self.assertHttpStatus(response, 302)
            self.assertDone(self.obj, response)

        def test_permitted_by_constraint(self):
            grant(self.user, self.model, actions=['view', self.action], constraints={'pk': self.obj.pk})
            response = self.client.post(self.url)
            self.assertHttpStatus(response, 302)
            self.assertDone(self.obj, response)

        def test_other_permissions_do_not_help(self):
            grant(self.user, self.model, actions=['view', 'add', 'change', 'delete'])
            self.assertRefused(403)

        def test_constraint_excludes_the_object(self):
            grant(self.user, self.model)
            grant(self.user, self.model, actions=[self.action], constraints={'pk': 0})
            self.assertRefused(404)

        def test_object_is_not_visible(self):
            """A user who may not view it does not learn that it exists, whatever other permissions they have."""
            self.user.object_permissions.filter(object_types__model=self.model._meta.model_name).delete()
            grant(self.user, self.model, actions=[self.action])
            self.assertRefused(404)
            grant(self.user, self.model, constraints={'pk': 0})
            self.assertRefused(404)

        def test_anonymous(self):
            self.client.logout()
            self.assertRefused(302)

        def test_question_has_no_effect(self):
            grant(self.user, self.model, actions=['view', self.action])
            page = self.page(self.url)
            self.assertIn('<form', page)
            self.assertIn('<html', page)
            self.assertNotDone(self.obj)

        def test_question_in_a_dialog(self):
            grant(self.user, self.model, actions=['view', self.action])
            dialog = self.page(self.url, headers=self.htmx)
            self.assertIn('<form', dialog)
            self.assertNotIn('<html', dialog)
            self.assertNotDone(self.obj)
