"""The middleware that reports a read-only database on the plugin's pages."""
from urllib.parse import urljoin

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.translation import gettext as _

from .engine.store.database import is_read_only

__all__ = (
    'ReadOnlyMiddleware',
)


class ReadOnlyMiddleware:
    """Shows a message if the database is read-only, as NetBox's own middleware does in maintenance mode.

    On a standby, or with `default_transaction_read_only`, NetBox would show its error page. REST handles this itself.
    """

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        match = request.resolver_match
        if request.method != 'POST' or match is None or 'netbox_celery' not in match.namespaces:
            return None
        if not is_read_only(exception):
            return None
        messages.error(request, _(
            'Nothing was changed: the database is read-only, as in maintenance mode or on a standby. Try again later.'
        ))
        return HttpResponseRedirect(_page_of(request, match))


def _page_of(request, match):
    """Return the URL of the page that sent the request, or that of the list if the view has no page."""
    view = getattr(match.func, 'view_class', None)
    return request.path_info if view is None or hasattr(view, 'get') else urljoin(request.path_info, '..')
