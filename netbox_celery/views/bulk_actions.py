"""Bulk actions on runs: cancel, and run again."""
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from netbox.views.generic.base import BaseMultiObjectView
from utilities.permissions import get_permission_for_model
from utilities.views import GetReturnURLMixin, register_model_view

from .. import filtersets, tables
from ..choices import ResultStatusChoices
from ..models import CeleryResult
from ..services import runs as actions
from .base import NotStarted, parse_number, starting
from .results import listed

__all__ = (
    'CeleryResultBulkCancelView',
    'CeleryResultBulkRerunView',
)

#: Rows shown on the confirmation page.
SHOWN = 50


class BulkResultView(GetReturnURLMixin, BaseMultiObjectView):
    """Ask for confirmation, then act on the selected runs of a list, or on all that match its filters.

    Attributes:
        permission: The action that the user must be permitted on each run; other runs are skipped.
        statuses: Runs with another status are skipped, too.
        limit: Maximum number of runs per request, which has to finish before the web server times out.
        title, description, button, color: Texts and color of the confirmation page.
    """
    queryset = CeleryResult.objects.all()
    filterset = filtersets.CeleryResultFilterSet
    table = tables.CeleryResultTable
    template_name = 'netbox_celery/bulk_confirm.html'
    permission: str | None = None
    statuses: tuple[str, ...] = ()
    limit = 0
    title = ''
    description = ''
    button = ''
    color = 'primary'

    def get_queryset(self, request):
        # Users must be allowed to view what they act on
        return super().get_queryset(request).restrict(request.user, 'view')

    def get_required_permission(self):
        return get_permission_for_model(CeleryResult, self.permission)

    def perform(self, request, results):
        """Act on a queryset of runs, and show a message."""
        raise NotImplementedError

    def get_selected(self, request):
        """Return the selected runs that the user may act on."""
        if request.POST.get('_all'):
            results = self.filterset(request.GET, self.queryset, request=request).qs
            # Not the runs that were created after the confirmation page was shown
            if newest := request.POST.get('newest', ''):
                results = results.filter(pk__lte=parse_number(newest))
        else:
            results = self.queryset.filter(pk__in=list(map(parse_number, request.POST.getlist('pk'))))
        return results.filter(status__in=self.statuses).order_by('-pk')

    def get(self, request):
        return redirect(self.get_return_url(request))

    def post(self, request):
        selected = self.get_selected(request)
        if '_confirm' in request.POST:
            # Oldest first, in the order in which they were created
            self.perform(request, selected.order_by('pk')[:self.limit])
            return redirect(self.get_return_url(request))
        count = selected.count()
        if not count:
            messages.warning(request, _('This action is not possible for any of the selected runs.'))
            return redirect(self.get_return_url(request))
        shown = list(listed(selected).prefetch_related('user', 'object', 'tags')[:SHOWN])
        table = self.table(shown, orderable=False)
        table.configure(request)
        return render(request, self.template_name, {
            'model': CeleryResult,
            'title': self.title,
            'description': self.description,
            'button': self.button,
            'color': self.color,
            'count': count,
            'limit': self.limit,
            'newest': shown[0].pk,
            'all': request.POST.get('_all'),
            'pks': request.POST.getlist('pk'),
            'table': table,
            'return_url': self.get_return_url(request),
        })


@register_model_view(CeleryResult, 'bulk_cancel', path='cancel', detail=False)
class CeleryResultBulkCancelView(BulkResultView):
    permission = 'cancel'
    statuses = ResultStatusChoices.UNFINISHED
    limit = 10_000
    title = gettext_lazy('Cancel runs?')
    description = gettext_lazy(
        'Runs that have not started are revoked. Active runs are terminated, or asked to stop if their worker cannot '
        'terminate them. Finished runs are not affected.'
    )
    button = gettext_lazy('Cancel Runs')
    color = 'warning'

    def perform(self, request, results):
        cancelled = actions.cancel_many(request, results.values_list('pk', flat=True))
        message = ngettext('Cancelled {count} run', 'Cancelled {count} runs', cancelled)
        messages.success(request, message.format(count=cancelled))


@register_model_view(CeleryResult, 'bulk_rerun', path='rerun', detail=False)
class CeleryResultBulkRerunView(BulkResultView):
    permission = 'rerun'
    statuses = ResultStatusChoices.FINISHED
    limit = 1000
    title = gettext_lazy('Run again?')
    description = gettext_lazy(
        'Starts new runs as you with the same arguments. Runs that have not finished are not affected.'
    )
    button = gettext_lazy('Run Again')

    def perform(self, request, results):
        started = 0
        failures: dict[str, int] = {}
        for result in results:
            try:
                with starting():
                    actions.check_rerun(request.user, result)
                    actions.rerun(request, result)
                started += 1
            except PermissionDenied:
                reason = _('You do not have permission to run the task {task}.').format(task=result.celery_name)
                failures[reason] = failures.get(reason, 0) + 1
            except NotStarted as exc:
                failures[str(exc)] = failures.get(str(exc), 0) + 1
        if started:
            message = ngettext('Started {count} run again', 'Started {count} runs again', started)
            messages.success(request, message.format(count=started))
        for reason, count in failures.items():
            messages.error(request, ngettext(
                '{count} run not started: {reason}', '{count} runs not started: {reason}', count
            ).format(count=count, reason=reason))
