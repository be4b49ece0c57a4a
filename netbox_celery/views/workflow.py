"""The workflow of a run: tree, timeline, and cancelling the whole workflow."""
from dataclasses import dataclass

from django.contrib import messages
from django.http import Http404
from django.shortcuts import render
from django.utils.decorators import method_decorator
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.cache import never_cache

from netbox.object_actions import DeleteObject
from netbox.views import generic
from utilities.htmx import htmx_partial
from utilities.string import humanize_duration
from utilities.views import ViewTab, register_model_view

from ..engine.workflows.family import members
from ..models import CeleryResult
from ..object_actions import CancelResult, RerunResult
from ..reading.viewing import Reader, load_beside
from ..reading.workflow import MAX_RUNS, Group, Node, bars, is_workflow, load_workflow, rows, span
from ..services import runs as actions
from .base import ConfirmView, parse_number, reload_page

__all__ = (
    'CeleryResultCancelWorkflowView',
    'CeleryResultWorkflowView',
)

#: Lines that a page shows, and that "Show more" adds.
PAGE = 200
#: Maximum indent on a page.
MAX_DEPTH = 8


@dataclass
class Line:
    """A line of the page: a run or a group of runs."""
    item: Node | Group
    bars: list[dict[str, str]]
    duration: str
    #: Address that expands or collapses a group.
    toggle: str = ''
    #: Error of a run, as the reader may read it.
    error: str = ''

    @property
    def is_group(self):
        return isinstance(self.item, Group)

    @property
    def indent(self):
        return min(self.item.depth, MAX_DEPTH)


@register_model_view(CeleryResult, 'workflow')
@method_decorator(never_cache, name='dispatch')
class CeleryResultWorkflowView(generic.ObjectView):
    """The runs of a workflow as a tree beside a timeline, refreshed every two seconds until the workflow finishes.

    The address holds which groups are expanded: this needs no script and survives polls and reloads.
    """
    queryset = CeleryResult.objects.all()
    template_name = 'netbox_celery/workflow/page.html'
    actions = (CancelResult, RerunResult, DeleteObject)
    tab = ViewTab(
        label=gettext_lazy('Workflow'),
        badge=lambda result: members(result).order_by()[:MAX_RUNS].count(),
        visible=is_workflow,
        weight=550
    )

    def handle_no_permission(self):
        return reload_page() if htmx_partial(self.request) else super().handle_no_permission()

    def get(self, request, **kwargs):
        if not htmx_partial(request):
            return super().get(request, **kwargs)
        try:
            result = self.get_object(**kwargs)
        except Http404:
            return reload_page()
        return render(request, 'netbox_celery/workflow/view.html', {
            'object': result, **self.get_extra_context(request, result)
        })

    def get_extra_context(self, request, instance):
        opened = {key for key in request.GET.get('open', '').split(',') if key}
        limit = min(parse_number(request.GET.get('limit', '')), MAX_RUNS) or PAGE
        workflow = load_workflow(instance, request.user)
        shown = rows(workflow, opened)
        reader = Reader(request.user)
        load_beside(reader, [item.run for item in shown[:limit] if not isinstance(item, Group)], ['error'])

        def address(opened=opened, limit=limit):
            query = {key: value for key, value in (
                ('open', ','.join(sorted(opened))), ('limit', limit if limit != PAGE else '')
            ) if value}
            return f'{request.path}?{urlencode(query)}'

        return {
            'workflow': workflow,
            'lines': [self._line(workflow, item, opened, address, reader) for item in shown[:limit]],
            'address': address(),
            'more': address(limit=limit + PAGE) if len(shown) > limit else '',
            'left_out': max(0, len(shown) - limit),
            'max_runs': MAX_RUNS,
            'duration': humanize_duration(workflow.duration) if workflow.nodes else '',
            'can_cancel': not workflow.is_finished and request.user.has_perm(
                'netbox_celery.cancel_celeryresult', instance
            ),
        }

    @staticmethod
    def _line(workflow, item, opened, address, reader):
        if isinstance(item, Group):
            return Line(item, [span(workflow, item.nodes)], '', address(opened=opened ^ {item.key}))
        run = item.run
        elapsed = run.duration
        return Line(
            item, bars(workflow, run), '' if elapsed is None else humanize_duration(elapsed),
            error=reader.error_of(run)
        )


@register_model_view(CeleryResult, 'cancel_workflow', path='cancel-workflow')
class CeleryResultCancelWorkflowView(ConfirmView):
    queryset = CeleryResult.objects.all()
    permission = 'cancel'
    title = gettext_lazy('Cancel this workflow?')
    button = gettext_lazy('Cancel Workflow')
    color = 'warning'

    def why_not(self, request, obj):
        if not actions.cancellable(request, obj).exists():
            return _('There is nothing to cancel: all runs have finished or are already being cancelled.')
        return ''

    def describe(self, obj):
        return [_(
            'All cancellable runs of this workflow are cancelled: waiting runs are revoked, active ones terminated or '
            'asked to stop. No further steps start.'
        )]

    def perform(self, request, obj):
        cancelled, left = actions.cancel_workflow(request, obj)
        if cancelled:
            messages.success(request, ngettext(
                'Cancelled {count} run of the workflow', 'Cancelled {count} runs of the workflow', cancelled
            ).format(count=cancelled))
        else:
            messages.info(request, _('There was nothing to cancel'))
        if left:
            messages.warning(request, ngettext(
                '{count} run continues (no permission to cancel)',
                '{count} runs continue (no permission to cancel)', left
            ).format(count=left))
