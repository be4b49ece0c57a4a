"""The log of a run: on a page of its own, in the answers to polls, and as a file."""
import json
import re

from django.contrib.auth.context_processors import PermWrapper
from django.http import Http404, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils.decorators import method_decorator
from django.utils.http import content_disposition_header
from django.utils.safestring import mark_safe
from django.utils.text import slugify
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache

from netbox.object_actions import DeleteObject
from netbox.ui import layout
from netbox.views import generic
from utilities.htmx import htmx_partial
from utilities.views import ViewTab, register_model_view

from .. import panels
from ..choices import LogLevelChoices
from ..engine.reader import log_lines
from ..forms import LogForm
from ..live import earlier_lines, follow_log, open_log
from ..models import CeleryResult
from ..object_actions import CancelResult, RerunResult

__all__ = (
    'CeleryResultLogDownloadView',
    'CeleryResultLogGroupsView',
    'CeleryResultLogLinesView',
    'CeleryResultLogView',
)

#: HTTP status with which htmx stops polling.
STOP_POLLING = 286
#: Lines that a download holds in memory.
CHUNK = 2000
#: Groups that are suggested.
GROUPS = 200

#: Columns that a part of a log's page needs of its run.
SHOWN = (
    'id', 'task_id', 'celery_name', 'name', 'status', 'reason', 'attempt', 'value', 'value_max', 'started',
    'completed', 'cancelled',
)


@register_model_view(CeleryResult, 'log')
class CeleryResultLogView(generic.ObjectView):
    queryset = CeleryResult.objects.all()
    template_name = 'generic/object.html'
    tab = ViewTab(
        label=gettext_lazy('Log'),
        weight=500
    )
    layout = layout.Layout(
        layout.Row(
            layout.Column(
                panels.ResultLogPanel(whole_page=True),
            ),
        ),
    )
    actions = (CancelResult, RerunResult, DeleteObject)


class LogPartView(generic.ObjectView):
    """Base class of what answers with a part of a page."""
    queryset = CeleryResult.objects.only(*SHOWN)

    def handle_no_permission(self):
        if htmx_partial(self.request) and not self.request.user.is_authenticated:
            # The session has ended: the login form belongs to the page, not into the log
            return HttpResponse(headers={'HX-Refresh': 'true'})
        return super().handle_no_permission()


@register_model_view(CeleryResult, 'log_lines', path='log/lines')
@method_decorator(never_cache, name='dispatch')
class CeleryResultLogLinesView(LogPartView):
    """Lines of a log: those after a cursor (a poll), those before a line, or a window at the end (new filters).

    A poll costs the new lines, and the columns of the run that its progress is made of. Only when its status or its
    attempt is another one than on the page is the whole row read, for the other panels and the buttons.
    """

    def get(self, request, pk):
        form = LogForm(request.GET)
        if 'before' in request.GET:
            return self.earlier(request, pk, form)
        if 'after' in request.GET:
            return self.poll(request, pk, form)
        result = self.get_object(pk=pk)
        return render(request, 'netbox_celery/log/view.html', {
            'object': result,
            'wanted': form.wanted,
            'window': open_log(result, request.user, form.wanted),
        })

    def earlier(self, request, pk, form):
        result = self.get_object(pk=pk)
        return render(request, 'netbox_celery/log/more.html', {
            'object': result,
            'window': earlier_lines(
                result, request.user, before=_integer(request.GET['before']), wanted=form.wanted
            ),
        })

    def poll(self, request, pk, form):
        try:
            window = follow_log(
                self.queryset, pk, request.user, after=_integer(request.GET['after']), wanted=form.wanted,
                following=form.following, shown=(
                    _integer(request.GET.get('shown_attempt')) or 1, request.GET.get('shown_grouping', 'main')
                )
            )
        except CeleryResult.DoesNotExist as exc:
            raise Http404 from exc
        response = render(request, 'netbox_celery/log/poll.html', {
            'object': window.result,
            'window': window,
            'fragments': self.render_fragments(request, window),
        })
        if window.replaces:
            response['HX-Reswap'] = 'innerHTML'
        if window.is_complete:
            response.status_code = STOP_POLLING
        return response

    def render_fragments(self, request, window):
        """Return what is to be replaced outside of the log."""
        context = {
            'request': request,
            'object': window.result,
            'perms': PermWrapper(request.user),
        }
        if request.GET.get('state') == window.state:
            return panels.ResultStatusPanel().render(context, live=True)
        context['object'] = get_object_or_404(CeleryResult.objects.restrict(request.user, 'view'), pk=window.result.pk)
        return mark_safe(''.join((
            *(panel.render(context, live=True) for panel in (panels.ResultStatusPanel(), *panels.LIVE)),
            *(action.render(context, context['object'], live=True) for action in (CancelResult, RerunResult)),
        )))


@register_model_view(CeleryResult, 'log_groups', path='log/groups')
class CeleryResultLogGroupsView(LogPartView):
    """The groups in a log, for suggestions."""

    def get(self, request, pk):
        result = self.get_object(pk=pk)
        groups = log_lines(result.pk).order_by('grouping').values_list('grouping', flat=True).distinct()[:GROUPS]
        return render(request, 'netbox_celery/log/groups.html', {'groups': groups})


def _integer(text):
    """Return the number in an address, or 0: what is not a number has not been written by us."""
    return int(text) if text and re.fullmatch('[0-9]{1,18}', text) else 0


#
# Download
#

@register_model_view(CeleryResult, 'log_download', path='log/download')
@method_decorator(never_cache, name='dispatch')
class CeleryResultLogDownloadView(generic.ObjectView):
    """A run's whole log as a file, sent while it is read: it may have a million lines."""
    queryset = CeleryResult.objects.only(*SHOWN)

    def get(self, request, pk):
        result = self.get_object(pk=pk)
        as_json = request.GET.get('format') == 'json'
        write = _json_lines if as_json else _text_lines
        response = StreamingHttpResponse(
            write(_iterate(result.pk)),
            content_type='application/json' if as_json else 'text/plain; charset=utf-8'
        )
        name = slugify(str(result).replace(':', '-')) or 'run'
        response['Content-Disposition'] = content_disposition_header(
            as_attachment=True, filename=f'{name}-{result.pk}.{"json" if as_json else "log"}'
        )
        return response


def _iterate(pk):
    """Yield the entries of a run's log, a chunk in memory at a time and no cursor kept open in between."""
    after = 0
    while chunk := list(log_lines(pk, after).select_related('object_type')[:CHUNK]):
        yield from chunk
        after = chunk[-1].pk


def _text_lines(entries):
    for entry in entries:
        group = '' if entry.grouping == 'main' else f' [{entry.grouping}]'
        yield f'{entry.created.isoformat(timespec="milliseconds")} {_level(entry):<8}{group} {entry.message}\n'


def _json_lines(entries):
    separator = '[\n'
    for entry in entries:
        yield separator + json.dumps({
            'id': entry.pk,
            'created': entry.created.isoformat(),
            'attempt': entry.attempt,
            'level': {'value': entry.level, 'label': str(entry.get_level_display())},
            'grouping': entry.grouping,
            'message': entry.message,
            'object_type': entry.object_type and '.'.join(entry.object_type.natural_key()),
            'object_id': entry.object_id,
        }, ensure_ascii=False)
        separator = ',\n'
    yield '[]\n' if separator == '[\n' else '\n]\n'


def _level(entry):
    """Return a level's name as log files have it, whatever the reader's language."""
    return LEVEL_NAMES.get(entry.level, str(entry.level))


LEVEL_NAMES = {
    value: name.removeprefix('LEVEL_') for name, value in vars(LogLevelChoices).items() if name.startswith('LEVEL_')
}
