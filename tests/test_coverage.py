"""Each surface of each model is tested by NetBox's own tests of that surface, like NetBox's models."""
from importlib import import_module
from pathlib import Path

import pytest
from django.apps import apps
from django.urls import NoReverseMatch, reverse

from netbox.registry import registry
from netbox_celery import filtersets, tables
from netbox_celery.api.urls import router
from netbox_celery.graphql import types
from netbox_celery.models import CeleryWorker
from utilities.testing import APIViewTestCases, TableTestCases, ViewTestCases
from utilities.testing.filtersets import BaseFilterSetTestMixin

MODELS = list(apps.get_app_config('netbox_celery').get_models())

#: NetBox's test of a view of the user interface, by the view's name.
VIEWS = {
    '': ViewTestCases.GetObjectViewTestCase,
    'changelog': ViewTestCases.GetObjectChangelogViewTestCase,
    'add': ViewTestCases.CreateObjectViewTestCase,
    'edit': ViewTestCases.EditObjectViewTestCase,
    'delete': ViewTestCases.DeleteObjectViewTestCase,
    'list': ViewTestCases.ListObjectsViewTestCase,
    'bulk_import': ViewTestCases.BulkImportObjectsViewTestCase,
    'bulk_edit': ViewTestCases.BulkEditObjectsViewTestCase,
    'bulk_delete': ViewTestCases.BulkDeleteObjectsViewTestCase,
    'bulk_rename': ViewTestCases.BulkRenameObjectsViewTestCase,
}

#: NetBox's test of an action of REST, by the method of the viewset.
ACTIONS = {
    'retrieve': APIViewTestCases.GetObjectViewTestCase,
    'list': APIViewTestCases.ListObjectsViewTestCase,
    'create': APIViewTestCases.CreateObjectViewTestCase,
    'partial_update': APIViewTestCases.UpdateObjectViewTestCase,
    'destroy': APIViewTestCases.DeleteObjectViewTestCase,
}


@pytest.fixture(scope='module')
def tested():
    """Return all values of an attribute of our tests, such as `model`, by base class."""
    here = Path(__file__).parent
    for path in (*here.glob('test_*.py'), *here.glob('api/test_*.py'), *here.glob('views/test_*.py')):
        if path != Path(__file__):
            import_module('.'.join(path.relative_to(here.parent).with_suffix('').parts))

    def subclasses(base):
        for cls in base.__subclasses__():
            yield cls
            yield from subclasses(cls)

    return lambda base, attribute: {getattr(cls, attribute, None) for cls in subclasses(base)}


def has_view(model, name):
    kwargs = {} if name in ('add', 'list') or name.startswith('bulk_') else {'pk': 1}
    try:
        reverse('_'.join(filter(None, (f'plugins:netbox_celery:{model._meta.model_name}', name))), kwargs=kwargs)
    except NoReverseMatch:
        return False
    return True


@pytest.mark.parametrize('name', VIEWS)
def test_views(tested, name):
    models = {model for model in MODELS if has_view(model, name)}
    assert models
    assert models <= tested(VIEWS[name], 'model')


@pytest.mark.parametrize('action', ACTIONS)
def test_rest(tested, action):
    models = {
        viewset.queryset.model for __, viewset, __ in router.registry
        if callable(getattr(viewset, action, None)) and method(action) in viewset.http_method_names
    }
    assert models
    assert models <= tested(ACTIONS[action], 'model')


def method(action):
    return {'create': 'post', 'partial_update': 'patch', 'destroy': 'delete'}.get(action, 'get')


def test_graphql(tested):
    models = {getattr(types, name).__strawberry_django_definition__.model for name in types.__all__}
    assert CeleryWorker in models
    assert models <= tested(APIViewTestCases.GraphQLTestCase, 'model')


def test_filtersets(tested):
    ours = {getattr(filtersets, name) for name in filtersets.__all__}
    assert ours <= set(registry['filtersets'].values())
    assert ours <= tested(BaseFilterSetTestMixin, 'filterset')


def test_tables(tested):
    assert {getattr(tables, name) for name in tables.__all__} <= tested(TableTestCases.StandardTableTestCase, 'table')
