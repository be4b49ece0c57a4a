"""Runs: list, detail, and what people do to them."""
from django.contrib import messages
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from core.filtersets import ObjectChangeFilterSet
from core.models import ObjectChange
from core.tables import ObjectChangeTable
from extras.ui.panels import CustomFieldsPanel, TagsPanel
from netbox.object_actions import BulkDelete, BulkExport, DeleteObject
from netbox.ui import layout
from netbox.ui.panels import PluginContentPanel
from netbox.views import generic
from utilities.views import ViewTab, register_model_view

from .. import filtersets, forms, panels, tables
from ..engine.sending.control import cancellation
from ..engine.store import branches
from ..models import CeleryResult
from ..object_actions import BulkCancel, BulkRerun, CancelResult, RerunResult
from ..services import runs as actions
from .base import (
    ConfirmView,
    FilteredMixin,
    NotStarted,
    VisibleBulkMixin,
    VisibleMixin,
    WholePksMixin,
    starting,
    tell_started,
    visible_address,
)

__all__ = (
    'CeleryResultBulkDeleteView',
    'CeleryResultCancelView',
    'CeleryResultChangesView',
    'CeleryResultDeleteView',
    'CeleryResultListView',
    'CeleryResultRerunView',
    'CeleryResultView',
    'listed',
)

#: Columns that may be large. No list needs them.
LARGE = (
    'args', 'kwargs', 'options', 'result', 'data', 'traceback', 'attempts', 'message', 'exact_call', 'exact_result',
)


def listed(results):
    """Return a queryset of runs without their large columns."""
    return results.defer(*LARGE)


@register_model_view(CeleryResult, 'list', path='', detail=False)
class CeleryResultListView(FilteredMixin, generic.ObjectListView):
    queryset = listed(CeleryResult.objects.with_bounded_count())
    filterset = filtersets.CeleryResultFilterSet
    filterset_form = forms.CeleryResultFilterForm
    table = tables.CeleryResultTable
    actions = (BulkExport, BulkCancel, BulkRerun, BulkDelete)


@register_model_view(CeleryResult)
class CeleryResultView(generic.ObjectView):
    queryset = CeleryResult.objects.select_related('user', 'schedule')
    template_name = 'generic/object.html'
    actions = (CancelResult, RerunResult, DeleteObject)
    layout = layout.Layout(
        layout.Row(
            layout.Column(
                panels.ResultStatusPanel(),
                PluginContentPanel('left_page'),
            ),
            layout.Column(
                panels.ResultRunPanel(),
                PluginContentPanel('right_page'),
            ),
        ),
        layout.Row(
            layout.Column(
                panels.ResultErrorPanel(),
                panels.ResultLogPanel(),
                panels.ResultAttemptsPanel(),
            ),
        ),
        layout.Row(
            layout.Column(
                panels.ResultArgumentsPanel(),
                panels.ResultOptionsPanel(),
                TagsPanel(),
            ),
            layout.Column(
                panels.ResultValuePanel(),
                panels.ResultDataPanel(),
                CustomFieldsPanel(),
            ),
        ),
        layout.Row(
            layout.Column(
                PluginContentPanel('full_width_page'),
            ),
        ),
    )


@register_model_view(CeleryResult, 'changes')
class CeleryResultChangesView(generic.ObjectChildrenView):
    """What a run changed in NetBox: the entries of the change log that its request ID joins.

    Those of a run in a branch are in that branch until it is merged. Elsewhere the page counts them and leads there,
    since the entries' own pages exist only there.
    """
    queryset = listed(CeleryResult.objects.all())
    child_model = ObjectChange
    table = ObjectChangeTable
    filterset = ObjectChangeFilterSet
    template_name = 'netbox_celery/changes.html'
    actions = ()
    tab = ViewTab(
        label=gettext_lazy('Changes'),
        # Before the end it would be wrong a moment later
        badge=lambda result: _own_changes(result)[:1000].count() if result.is_finished else None,
        visible=lambda result: result.request_id is not None,
        permission='core.view_objectchange',
        weight=600
    )

    def get_children(self, request, parent):
        return _changes(parent).restrict(request.user, 'view')

    def get_extra_context(self, request, instance):
        return super().get_extra_context(request, instance) | {'elsewhere': _elsewhere(instance)}


def _changes(result):
    return ObjectChange.objects.valid_models().filter(request_id=result.request_id)


def _own_changes(result):
    """Return the changes of a run where they are: in its branch, while that is ready."""
    return _changes(result).using(branches.read_alias(result.branch, ObjectChange))


def _elsewhere(result):
    """Return what is shown of the branch that has the changes of a run, if it is ready and not the active one."""
    if result.branch in ('', branches.current()) or branches.check(result.branch):
        return None
    return branches.shown([result.branch]).get(result.branch)


@register_model_view(CeleryResult, 'delete')
class CeleryResultDeleteView(VisibleMixin, generic.ObjectDeleteView):
    queryset = CeleryResult.objects.all()


@register_model_view(CeleryResult, 'bulk_delete', path='delete', detail=False)
class CeleryResultBulkDeleteView(WholePksMixin, VisibleBulkMixin, generic.BulkDeleteView):
    queryset = CeleryResult.objects.all()
    filterset = filtersets.CeleryResultFilterSet
    table = tables.CeleryResultTable

    def get_queryset(self, request):
        results = super().get_queryset(request)
        # The question shows a list; the change log entries that the deletion makes hold whole rows
        return results if '_confirm' in request.POST else listed(results)


@register_model_view(CeleryResult, 'cancel')
class CeleryResultCancelView(ConfirmView):
    queryset = CeleryResult.objects.all()
    permission = 'cancel'
    title = gettext_lazy('Cancel this run?')
    button = gettext_lazy('Cancel Run')
    color = 'warning'

    #: What a cancel will do, by `netbox_celery.engine.sending.control.cancellation`.
    EFFECTS = {
        'revoke': gettext_lazy('It has not begun, and will not.'),
        'terminate': gettext_lazy(
            'It is running, and will be stopped immediately, in the middle of what it does. Changes that it has made '
            'so far may remain.'
        ),
        'cooperative': gettext_lazy(
            'It is running in a worker that cannot end a single task. It is asked to stop, and does so when it next '
            'looks whether it was cancelled.'
        ),
    }

    def why_not(self, request, obj):
        if obj.is_finished:
            return _('There is nothing to cancel: it has ended.')
        if obj.is_cancelling:
            return _('It is being cancelled already.')
        return ''

    def describe(self, obj):
        return [self.EFFECTS[cancellation(obj)]]

    def perform(self, request, obj):
        if actions.cancel(request, obj):
            obj.refresh_from_db()
            messages.success(
                request,
                _('Cancelled {run}').format(run=obj) if obj.is_finished else
                _('Asked {run} to stop').format(run=obj)
            )
        else:
            obj.refresh_from_db()
            messages.info(
                request,
                _('There was nothing to cancel: {run} has ended ({status})').format(
                    run=obj, status=obj.get_status_display()
                ) if obj.is_finished else
                _('{run} is being cancelled already').format(run=obj)
            )


@register_model_view(CeleryResult, 'rerun')
class CeleryResultRerunView(ConfirmView):
    queryset = CeleryResult.objects.all()
    permission = 'rerun'
    title = gettext_lazy('Run this again?')
    button = gettext_lazy('Run Again')

    def why_not(self, request, obj):
        if not obj.is_rerunnable:
            return _('Its arguments were not kept: they are hidden by its caller, or too large.')
        try:
            actions.check_rerun(request.user, obj)
        except actions.NotRunnable as exc:
            return str(exc)
        return ''

    def describe(self, obj):
        sentences = [_('The task is started anew with the same arguments, under your name. This run stays as it is.')]
        if not obj.is_finished:
            sentences.append(_('This run has not ended yet: both may run at the same time.'))
        return sentences

    def perform(self, request, obj):
        try:
            with starting():
                actions.check_rerun(request.user, obj)
                new = actions.rerun(request, obj)
        except NotStarted as exc:
            messages.error(request, str(exc))
            return None
        tell_started(request, new, _('Started {run} again'))
        return visible_address(request.user, new)
