"""Conventions of all forms."""
from django.http import QueryDict

from netbox_celery import forms
from netbox_celery import views as all_views
from netbox_celery.filtersets import (
    CeleryResultFilterSet,
    CeleryScheduleFilterSet,
    CeleryTaskFilterSet,
    CeleryWorkerFilterSet,
)
from netbox_celery.models import CeleryTask
from netbox_celery.views.base import FilteredMixin
from utilities.testing import TestCase


class FilterFormTest(TestCase):
    FORMS = {
        forms.CeleryResultFilterForm: CeleryResultFilterSet,
        forms.CeleryScheduleFilterForm: CeleryScheduleFilterSet,
        forms.CeleryTaskFilterForm: CeleryTaskFilterSet,
        forms.CeleryWorkerFilterForm: CeleryWorkerFilterSet,
    }

    def test_every_list_has_a_form(self):
        views = [view for view in vars(all_views).values() if getattr(view, 'filterset_form', None)]
        self.assertEqual({view.filterset_form: view.filterset for view in views}, self.FORMS)

    def test_fields_are_filters(self):
        """A field without a filter would mislead."""
        for form, filterset in self.FORMS.items():
            for name in form().fields:
                if name != 'filter_id':
                    with self.subTest(form=form.__name__, field=name):
                        self.assertIn(name, filterset.base_filters)

    def test_invalid_filters_are_reported_at_their_fields(self):
        for form, query, field, message in (
            (forms.CeleryResultFilterForm, 'task_id=abc', 'task_id', '“abc” is not a valid UUID.'),
            (forms.CeleryResultFilterForm, 'root_id__n=abc', 'root_id', '“abc” is not a valid UUID.'),
            (forms.CeleryResultFilterForm, 'created__after=soon', 'created__after', 'Enter a valid date/time.'),
            (forms.CeleryScheduleFilterForm, 'enabled=maybe', 'enabled', 'Enter true or false, not maybe.'),
            (forms.CeleryTaskFilterForm, 'present=maybe', 'present', 'Enter true or false, not maybe.'),
            (forms.CeleryWorkerFilterForm, 'running=maybe', 'running', 'Enter true or false, not maybe.'),
        ):
            with self.subTest(query):
                self.assertEqual(form(QueryDict(query)).errors, {field: [message]})
        for query in ('', 'task_id__isw=abc', 'enabled=true&present=False', 'value=abc', 'q=abc'):
            for form in self.FORMS:
                with self.subTest(query, form=form):
                    self.assertEqual(form(QueryDict(query)).errors, {})

    def test_every_list_reports_an_invalid_filter(self):
        for view in vars(all_views).values():
            if getattr(view, 'filterset_form', None):
                self.assertTrue(issubclass(view, FilteredMixin), view)

    def test_fields_are_shown(self):
        bulk = (forms.CeleryTaskBulkEditForm, forms.CeleryScheduleBulkEditForm)
        for form in (*self.FORMS, forms.CeleryTaskForm, *bulk):
            kwargs = {'initial': {'pk': []}} if form in bulk else {}
            shown = {item for fieldset in form.fieldsets for item in fieldset.items}
            for name, field in form(**kwargs).fields.items():
                if name not in ('pk', 'add_tags', 'remove_tags', 'changelog_message', 'background_job', '_init_time'):
                    with self.subTest(form=form.__name__, field=name):
                        self.assertIn(name, shown)

    def test_only_settings_of_a_task_can_be_changed(self):
        """Everything else is defined by its code."""
        form = forms.CeleryTaskForm(instance=CeleryTask(name='plugin:task'))
        self.assertEqual(set(form.fields) - {'changelog_message', '_init_time'}, {'enabled', 'tags'})
