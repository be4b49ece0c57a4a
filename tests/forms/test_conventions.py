"""What holds for all forms."""
from netbox_celery import forms
from netbox_celery import views as all_views
from netbox_celery.filtersets import (
    CeleryResultFilterSet,
    CeleryScheduleFilterSet,
    CeleryTaskFilterSet,
    CeleryWorkerFilterSet,
)
from netbox_celery.models import CeleryTask
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
        """A field that filters nothing misleads."""
        for form, filterset in self.FORMS.items():
            for name in form().fields:
                if name != 'filter_id':
                    with self.subTest(form=form.__name__, field=name):
                        self.assertIn(name, filterset.base_filters)

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
        """All else is in its code."""
        form = forms.CeleryTaskForm(instance=CeleryTask(name='plugin:task'))
        self.assertEqual(set(form.fields) - {'changelog_message', '_init_time'}, {'enabled', 'tags'})
