"""What applies to each POST action with a permission of its own."""
from django.urls import reverse
from rest_framework import status

from tests.factories import grant
from users.constants import TOKEN_PREFIX
from users.models import Token
from utilities.testing import APITestCase

__all__ = (
    'ActionTestCases',
)


class ActionTestCases:
    """Base classes. (Inside a class, so that they are not collected as tests themselves.)"""

    class ActionTestCase(APITestCase):
        """
        An action needs its own permission on that object, and the object must be visible. Nothing else helps, and
        nothing else is needed.
        """
        view_namespace = 'plugins-api:netbox_celery'
        #: Name of the action and of its permission.
        action = None
        #: Status of the answer to a request that is permitted.
        succeeds_with = status.HTTP_200_OK

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

        def url(self, obj=None):
            viewname = f'{self._get_view_namespace()}:{self.model._meta.model_name}-{self.action}'
            return reverse(viewname, kwargs={'pk': (obj or self.obj).pk})

        def post(self, data=None, obj=None, **header):
            return self.client.post(self.url(obj), data or {}, format='json', **(header or self.header))

        def assertRefused(self, code, **header):
            self.assertHttpStatus(self.post(**header), code)
            self.assertNotDone(self.obj)

        def test_permitted(self):
            grant(self.user, self.model, actions=['view', self.action])
            response = self.post()
            self.assertHttpStatus(response, self.succeeds_with)
            self.assertDone(self.obj, response)

        def test_permitted_by_constraint(self):
            grant(self.user, self.model, constraints={'pk': self.obj.pk})
            grant(self.user, self.model, actions=[self.action], constraints={'pk': self.obj.pk})
            response = self.post()
            self.assertHttpStatus(response, self.succeeds_with)
            self.assertDone(self.obj, response)

        def test_no_permission(self):
            self.assertRefused(status.HTTP_403_FORBIDDEN)

        def test_other_permissions_do_not_help(self):
            grant(self.user, self.model, actions=['view', 'add', 'change', 'delete'])
            self.assertRefused(status.HTTP_403_FORBIDDEN)

        def test_constraint_excludes_the_object(self):
            """A user who may view it, but not do this to it, gets a 403."""
            grant(self.user, self.model)
            grant(self.user, self.model, actions=[self.action], constraints={'pk': 0})
            self.assertRefused(status.HTTP_403_FORBIDDEN)

        def test_object_is_not_visible(self):
            """A user who may not view it does not learn that it exists."""
            grant(self.user, self.model, actions=[self.action])
            self.assertRefused(status.HTTP_404_NOT_FOUND)
            grant(self.user, self.model, constraints={'pk': 0})
            self.assertRefused(status.HTTP_404_NOT_FOUND)

        def test_read_only_token(self):
            grant(self.user, self.model, actions=['view', self.action])
            token = Token.objects.create(user=self.user, write_enabled=False)
            header = {'HTTP_AUTHORIZATION': f'Bearer {TOKEN_PREFIX}{token.key}.{token.token}'}
            self.assertRefused(status.HTTP_403_FORBIDDEN, **header)

        def test_anonymous(self):
            self.assertRefused(status.HTTP_403_FORBIDDEN, HTTP_ACCEPT='application/json')

        def test_superuser(self):
            self.user.is_superuser = True
            self.user.save()
            response = self.post()
            self.assertHttpStatus(response, self.succeeds_with)
            self.assertDone(self.obj, response)

        def test_unknown_object(self):
            grant(self.user, self.model, actions=['view', self.action])
            response = self.client.post(self.url().replace(f'/{self.obj.pk}/', '/0/'), **self.header)
            self.assertHttpStatus(response, status.HTTP_404_NOT_FOUND)

        def test_only_post(self):
            grant(self.user, self.model, actions=['view', 'change', 'delete', self.action])
            for method in ('get', 'put', 'patch', 'delete'):
                response = getattr(self.client, method)(self.url(), **self.header)
                self.assertHttpStatus(response, status.HTTP_405_METHOD_NOT_ALLOWED)
            self.assertNotDone(self.obj)
