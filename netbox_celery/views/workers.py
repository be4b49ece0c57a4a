"""Workers: list and detail page."""
from django.utils.translation import gettext_lazy as _

from netbox.object_actions import BulkExport
from netbox.ui import layout
from netbox.ui.panels import ObjectsTablePanel
from netbox.views import generic
from utilities.views import register_model_view

from .. import filtersets, forms, panels, tables
from ..choices import ResultStatusChoices
from ..models import CeleryWorker
from .base import FilteredMixin

__all__ = (
    'CeleryWorkerListView',
    'CeleryWorkerView',
)


@register_model_view(CeleryWorker, 'list', path='', detail=False)
class CeleryWorkerListView(FilteredMixin, generic.ObjectListView):
    queryset = CeleryWorker.objects.all()
    filterset = filtersets.CeleryWorkerFilterSet
    filterset_form = forms.CeleryWorkerFilterForm
    table = tables.CeleryWorkerTable
    actions = (BulkExport,)


@register_model_view(CeleryWorker)
class CeleryWorkerView(generic.ObjectView):
    queryset = CeleryWorker.objects.all()
    template_name = 'netbox_celery/untracked_object.html'
    actions = ()
    layout = layout.SimpleLayout(
        left_panels=[
            panels.WorkerPanel(),
            panels.NotLoadedPanel(),
        ],
        right_panels=[
            panels.VersionsPanel('versions', title=_('Versions')),
        ],
        bottom_panels=[
            ObjectsTablePanel(
                model='netbox_celery.CeleryResult',
                title=_('Running'),
                filters={
                    'worker': lambda context: context['object'].name,
                    'status': ResultStatusChoices.STATUS_RUNNING,
                },
                exclude_columns=['worker'],
            ),
        ],
    )
