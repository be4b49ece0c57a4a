"""The catalogue of tasks: list, detail page, and the form that runs a task."""
from django.contrib import messages
from django.db.models import OuterRef, Subquery
from django.db.models.functions import Coalesce
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from extras.ui.panels import CustomFieldsPanel, TagsPanel
from netbox.object_actions import BulkDelete, BulkEdit, BulkExport, EditObject
from netbox.ui import layout
from netbox.ui.panels import ObjectsTablePanel
from netbox.views import generic
from netbox.views.generic.base import BaseObjectView
from utilities.permissions import get_permission_for_model
from utilities.views import GetReturnURLMixin, register_model_view

from .. import filtersets, forms, panels, tables
from ..choices import ResultStatusChoices
from ..models import CeleryResult, CeleryTask
from ..object_actions import DeleteAbsentTask, RunTask
from ..reading.unloaded import unloaded_modules
from ..services import runs as actions
from .base import (
    FilteredMixin,
    NotStarted,
    NumericPksMixin,
    VisibleBulkMixin,
    VisibleMixin,
    report_started,
    starting,
    visible_address,
)

__all__ = (
    'CeleryTaskBulkDeleteView',
    'CeleryTaskBulkEditView',
    'CeleryTaskDeleteView',
    'CeleryTaskEditView',
    'CeleryTaskListView',
    'CeleryTaskRunView',
    'CeleryTaskView',
)

#: Maximum number of runs counted per task, so that a long history does not slow down the list.
COUNTED = 1000


class Count(Subquery):
    """The number of rows of a subquery; the subquery may be sliced."""
    template = '(SELECT COUNT(*) FROM (%(subquery)s) AS counted)'


def with_runs(tasks, results):
    """Annotate tasks with their number of runs (up to 1,001) and their last run among `results`."""
    runs = results.filter(celery_name=OuterRef('name')).order_by('-pk')
    return tasks.annotate(
        run_count=Coalesce(Count(runs.values('pk')[:COUNTED + 1]), 0),
        last_result=Subquery(runs.values('pk')[:1]),
        last_status=Subquery(runs.values('status')[:1]),
    )


class WithRunsMixin:
    """Tasks with the number of runs and the last run that the user may view."""
    queryset = with_runs(CeleryTask.objects.all(), CeleryResult.objects.all())

    def get_queryset(self, request):
        return with_runs(CeleryTask.objects.all(), CeleryResult.objects.restrict(request.user, 'view'))


@register_model_view(CeleryTask, 'list', path='', detail=False)
class CeleryTaskListView(FilteredMixin, WithRunsMixin, generic.ObjectListView):
    filterset = filtersets.CeleryTaskFilterSet
    filterset_form = forms.CeleryTaskFilterForm
    table = tables.CeleryTaskTable
    template_name = 'netbox_celery/celerytask_list.html'
    actions = (BulkExport, BulkEdit, BulkDelete)

    def get_extra_context(self, request):
        return super().get_extra_context(request) | {'unloaded': unloaded_modules(request.user)}


@register_model_view(CeleryTask)
class CeleryTaskView(generic.ObjectView):
    queryset = CeleryTask.objects.all()
    template_name = 'generic/object.html'
    actions = (RunTask, EditObject, DeleteAbsentTask)
    layout = layout.SimpleLayout(
        left_panels=[
            panels.TaskUnloadedPanel(),
            panels.TaskPanel(),
            panels.TaskDocumentationPanel(),
            TagsPanel(),
        ],
        right_panels=[
            panels.TaskParametersPanel(),
            panels.PayloadPanel('defaults', title=gettext_lazy('Default Options')),
            CustomFieldsPanel(),
        ],
        bottom_panels=[
            panels.TaskSchedulesPanel(
                model='netbox_celery.CelerySchedule',
                filters={'task_id': lambda context: context['object'].pk},
                exclude_columns=['task'],
            ),
            ObjectsTablePanel(
                model='netbox_celery.CeleryResult',
                title=gettext_lazy('Recent Runs'),
                filters={'celery_name': lambda context: context['object'].name},
                exclude_columns=['celery_name'],
            ),
        ],
    )


@register_model_view(CeleryTask, 'edit')
class CeleryTaskEditView(VisibleMixin, generic.ObjectEditView):
    queryset = CeleryTask.objects.all()
    form = forms.CeleryTaskForm


@register_model_view(CeleryTask, 'delete')
class CeleryTaskDeleteView(VisibleMixin, generic.ObjectDeleteView):
    queryset = CeleryTask.objects.all()


@register_model_view(CeleryTask, 'bulk_edit', path='edit', detail=False)
class CeleryTaskBulkEditView(NumericPksMixin, VisibleMixin, WithRunsMixin, generic.BulkEditView):
    filterset = filtersets.CeleryTaskFilterSet
    table = tables.CeleryTaskTable
    form = forms.CeleryTaskBulkEditForm


@register_model_view(CeleryTask, 'bulk_delete', path='delete', detail=False)
class CeleryTaskBulkDeleteView(NumericPksMixin, VisibleBulkMixin, WithRunsMixin, generic.BulkDeleteView):
    filterset = filtersets.CeleryTaskFilterSet
    table = tables.CeleryTaskTable


@register_model_view(CeleryTask, 'run')
class CeleryTaskRunView(GetReturnURLMixin, BaseObjectView):
    """Ask for the arguments of a task, then run it."""
    queryset = CeleryTask.objects.all()
    template_name = 'netbox_celery/run.html'

    def get_required_permission(self):
        return get_permission_for_model(CeleryTask, 'run')

    def get(self, request, pk):
        task = self.get_object(pk=pk)
        return self.ask(request, task, forms.RunForm(task))

    def post(self, request, pk):
        task = self.get_object(pk=pk)
        form = forms.RunForm(task, request.POST)
        if reason := actions.why_not_runnable(task):
            messages.error(request, reason)
        elif form.is_valid():
            try:
                with starting():
                    result = actions.run(request, task, *form.arguments, **form.options)
            except NotStarted as exc:
                messages.error(request, str(exc))
            else:
                is_scheduled = result.status == ResultStatusChoices.STATUS_SCHEDULED
                message = _('Scheduled {run}') if is_scheduled else _('Started {run}')
                report_started(request, result, message)
                # Users who may only run the task stay on this page
                return redirect(visible_address(request.user, result, task) or request.path)
        return self.ask(request, task, form)

    def ask(self, request, task, form):
        return render(request, self.template_name, {
            'object': task,
            'form': form,
            'obstacle': actions.why_not_runnable(task),
            'return_url': self.get_return_url(request, task),
        })
