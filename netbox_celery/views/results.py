"""Runs: list, detail page, changes, delete, cancel and run again."""
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
    NumericPksMixin,
    VisibleBulkMixin,
    VisibleMixin,
    report_started,
    starting,
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

#: Columns that may be large and that no list needs.
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
    """What a run changed in NetBox: the change log entries with its request ID.

    The entries of a run in a branch are in that branch until it is merged. If another branch is active, the page counts
    them and links to theirs, since their own pages exist only there.
    """
    queryset = listed(CeleryResult.objects.all())
    child_model = ObjectChange
    table = ObjectChangeTable
    filterset = ObjectChangeFilterSet
    template_name = 'netbox_celery/changes.html'
    actions = ()
    tab = ViewTab(
        label=gettext_lazy('Changes'),
        # While the run is active, the count would soon be outdated
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
    """Return the changes of a run from where they are stored: its branch, while that is ready."""
    return _changes(result).using(branches.read_alias(result.branch, ObjectChange))


def _elsewhere(result):
    """Return the display data of the branch that holds the changes of a run, if it is ready and not the active one."""
    if result.branch in ('', branches.current()) or branches.check(result.branch):
        return None
    return branches.shown([result.branch]).get(result.branch)


@register_model_view(CeleryResult, 'delete')
class CeleryResultDeleteView(VisibleMixin, generic.ObjectDeleteView):
    queryset = CeleryResult.objects.all()


@register_model_view(CeleryResult, 'bulk_delete', path='delete', detail=False)
class CeleryResultBulkDeleteView(NumericPksMixin, VisibleBulkMixin, generic.BulkDeleteView):
    queryset = CeleryResult.objects.all()
    filterset = filtersets.CeleryResultFilterSet
    table = tables.CeleryResultTable

    def get_queryset(self, request):
        results = super().get_queryset(request)
        # The confirmation page shows a list; the change log entries of the deletion contain whole rows
        return results if '_confirm' in request.POST else listed(results)


@register_model_view(CeleryResult, 'cancel')
class CeleryResultCancelView(ConfirmView):
    queryset = CeleryResult.objects.all()
    permission = 'cancel'
    title = gettext_lazy('Cancel this run?')
    button = gettext_lazy('Cancel Run')
    color = 'warning'

    #: What cancelling will do, by the answer of `netbox_celery.engine.sending.control.cancellation`.
    EFFECTS = {
        'revoke': gettext_lazy('The run has not started and will be revoked.'),
        'terminate': gettext_lazy(
            'The worker process will be terminated; changes already made may remain.'
        ),
        'cooperative': gettext_lazy(
            'Its worker cannot terminate a single task. The task is asked to stop, and stops at its next cancellation '
            'check.'
        ),
    }

    def why_not(self, request, obj):
        if obj.is_finished:
            return _('There is nothing to cancel: the run has already finished.')
        if obj.is_cancelling:
            return _('Cancellation is already in progress.')
        return ''

    def describe(self, obj):
        return [self.EFFECTS[cancellation(obj)]]

    def perform(self, request, obj):
        if actions.cancel(request, obj):
            obj.refresh_from_db()
            messages.success(
                request,
                _('Cancelled {run}').format(run=obj) if obj.is_finished else
                _('Cancellation requested for {run}').format(run=obj)
            )
        else:
            obj.refresh_from_db()
            messages.info(
                request,
                _('{run} has already finished ({status})').format(
                    run=obj, status=obj.get_status_display()
                ) if obj.is_finished else
                _('Cancellation of {run} is already in progress').format(run=obj)
            )


@register_model_view(CeleryResult, 'rerun')
class CeleryResultRerunView(ConfirmView):
    queryset = CeleryResult.objects.all()
    permission = 'rerun'
    title = gettext_lazy('Run again?')
    button = gettext_lazy('Run Again')

    def why_not(self, request, obj):
        if not obj.is_rerunnable:
            return _('Its arguments are not stored (redacted or too large).')
        try:
            actions.check_rerun(request.user, obj)
        except actions.NotRunnable as exc:
            return str(exc)
        return ''

    def describe(self, obj):
        sentences = [_('Starts a new run as you with the same arguments.')]
        if not obj.is_finished:
            sentences.append(_('This run has not finished yet: both may run at the same time.'))
        return sentences

    def perform(self, request, obj):
        try:
            with starting():
                actions.check_rerun(request.user, obj)
                new = actions.rerun(request, obj)
        except NotStarted as exc:
            messages.error(request, str(exc))
            return None
        report_started(request, new, _('Started {run} again'))
        return visible_address(request.user, new)
