"""The log of a run: its page, the responses to polls, and the download."""
import json

from django.contrib.auth.context_processors import PermWrapper
from django.http import Http404, StreamingHttpResponse
from django.shortcuts import get_object_or_404, render
from django.template.loader import render_to_string
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
from ..forms import LogForm
from ..models import CeleryResult
from ..models.about import find_type
from ..object_actions import CancelResult, RerunResult
from ..reading.live import earlier_lines, follow_log, open_log
from ..reading.log import log_lines
from .base import parse_number, reload_page

__all__ = (
    'CeleryResultLogDownloadView',
    'CeleryResultLogGroupsView',
    'CeleryResultLogLinesView',
    'CeleryResultLogView',
)

#: HTTP status that makes htmx stop polling.
STOP_POLLING = 286
#: Lines that a download holds in memory at a time.
CHUNK = 2000
#: Maximum number of suggested groups.
GROUPS = 200

#: Columns of the run that the parts of a log page need.
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
    """Base class for views that return a part of a page."""
    queryset = CeleryResult.objects.only(*SHOWN)

    def handle_no_permission(self):
        if htmx_partial(self.request) and not self.request.user.is_authenticated:
            # The session has expired: the login form must replace the page, not the log
            return reload_page()
        return super().handle_no_permission()


@register_model_view(CeleryResult, 'log_lines', path='log/lines')
@method_decorator(never_cache, name='dispatch')
class CeleryResultLogLinesView(LogPartView):
    """Lines of a log: those after a cursor (a poll), those before a line, or a window at the end (new filters).

    A poll reads the new lines and the columns of the run that its progress needs. It reads the whole row, for the other
    panels and the buttons, only if the status or the attempt differs from what the page shows.
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
                result, request.user, before=parse_number(request.GET['before']), wanted=form.wanted
            ),
        })

    def poll(self, request, pk, form):
        try:
            window = follow_log(
                self.queryset, pk, request.user, after=parse_number(request.GET['after']), wanted=form.wanted,
                following=form.following, shown=(
                    parse_number(request.GET.get('shown_attempt')) or 1, request.GET.get('shown_grouping', 'main')
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
        """Return the HTML that replaces parts of the page outside of the log lines."""
        context = {
            'request': request,
            'object': window.result,
            'perms': PermWrapper(request.user),
            'live': True,
        }
        is_whole_page = 'whole_page' in request.GET
        fragments = [render_to_string('netbox_celery/log/badge.html', context)] if is_whole_page else []
        if request.GET.get('state') == window.state:
            shown: tuple = () if is_whole_page else (panels.ResultStatusPanel(),)
        else:
            shown = () if is_whole_page else panels.LIVE
            context['object'] = get_object_or_404(
                CeleryResult.objects.restrict(request.user, 'view'), pk=window.result.pk
            )
            fragments += [
                action.render(context, context['object'], live=True) for action in (CancelResult, RerunResult)
            ]
        fragments += [panel.render(context, live=True) for panel in shown]
        return mark_safe(''.join(fragments))


@register_model_view(CeleryResult, 'log_groups', path='log/groups')
class CeleryResultLogGroupsView(LogPartView):
    """The groups in a log, as suggestions for the filter."""

    def get(self, request, pk):
        result = self.get_object(pk=pk)
        groups = log_lines(result.pk).order_by('grouping').values_list('grouping', flat=True).distinct()[:GROUPS]
        return render(request, 'netbox_celery/log/groups.html', {'groups': groups})


#
# Download
#

@register_model_view(CeleryResult, 'log_download', path='log/download')
@method_decorator(never_cache, name='dispatch')
class CeleryResultLogDownloadView(generic.ObjectView):
    """The whole log of a run as a file, streamed: a log may have a million lines."""
    queryset = CeleryResult.objects.only(*SHOWN)

    def get(self, request, pk):
        result = self.get_object(pk=pk)
        as_json = request.GET.get('format') == 'json'
        response = StreamingHttpResponse(
            _as_json(_chunks(result.pk)) if as_json else _as_text(_chunks(result.pk)),
            content_type='application/json' if as_json else 'text/plain; charset=utf-8'
        )
        name = slugify(str(result).replace(':', '-')) or 'run'
        response['Content-Disposition'] = content_disposition_header(
            as_attachment=True, filename=f'{name}-{result.pk}.{"json" if as_json else "log"}'
        )
        return response


COLUMNS = ('id', 'created', 'attempt', 'level', 'grouping', 'message', 'object_type', 'object_id')


def _chunks(pk):
    """Yield the lines of a run's log as lists of tuples of `COLUMNS`. No database cursor stays open in between."""
    after = 0
    while chunk := list(log_lines(pk, after).values_list(*COLUMNS)[:CHUNK]):
        yield chunk
        after = chunk[-1][0]


def _as_text(chunks):
    for chunk in chunks:
        yield ''.join(
            f'{created.isoformat(timespec="milliseconds")} {LEVEL_NAMES.get(level, str(level)):<8}'
            f'{"" if grouping == "main" else f" [{grouping}]"} {message}\n'
            for __, created, __, level, grouping, message, __, __ in chunk
        )


def _as_json(chunks):
    labels = {value: str(label) for value, label in dict(LogLevelChoices).items()}
    separator = '[\n'
    for chunk in chunks:
        yield separator + ',\n'.join(
            json.dumps({
                'id': pk,
                'created': created.isoformat(),
                'attempt': attempt,
                'level': {'value': level, 'label': labels.get(level, str(level))},
                'grouping': grouping,
                'message': message,
                'object_type': _type_name(object_type),
                'object_id': object_id,
            }, ensure_ascii=False)
            for pk, created, attempt, level, grouping, message, object_type, object_id in chunk
        )
        separator = ',\n'
    yield '[]\n' if separator == '[\n' else '\n]\n'


def _type_name(pk):
    found = find_type(pk) if pk else None
    return found and '.'.join(found.natural_key())


#: Level names as in log files, not translated.
LEVEL_NAMES = {
    value: name.removeprefix('LEVEL_') for name, value in vars(LogLevelChoices).items() if name.startswith('LEVEL_')
}
