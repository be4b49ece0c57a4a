"""What the views of runs and tasks share: asking before doing, and saying why a task was not started."""
import re
from contextlib import contextmanager

from amqp.exceptions import AMQPError
from celery.exceptions import CeleryError, QueueNotFound
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from kombu.exceptions import EncodeError, OperationalError

from netbox.views.generic.base import BaseObjectView
from utilities.htmx import htmx_partial
from utilities.permissions import get_permission_for_model
from utilities.views import GetReturnURLMixin

from ..choices import ResultStatusChoices
from ..engine.sending.control import NotRerunnable
from ..reading.viewing import Reader, in_sight
from ..services import runs as actions

__all__ = (
    'ConfirmView',
    'FilteredMixin',
    'NotStarted',
    'VisibleBulkMixin',
    'VisibleMixin',
    'WholePksMixin',
    'reload_page',
    'starting',
    'tell_started',
    'visible_address',
    'whole',
)


class NotStarted(Exception):
    """A task was not started; the text tells the user why."""


@contextmanager
def starting():
    """Turn what may keep a task from being started into `NotStarted`."""
    try:
        yield
    except OperationalError as exc:
        raise NotStarted(_(
            'The task was not started, because the message broker cannot be reached ({error}). Check that it is '
            'running and that its address in the configuration is right, then try again.'
        ).format(error=exc)) from exc
    except QueueNotFound as exc:
        raise NotStarted(_('The task was not started, because there is no such queue.')) from exc
    except AMQPError as exc:
        raise NotStarted(_('The task was not started, because the message broker refuses it: {error}').format(
            error=exc
        )) from exc
    except (NotRerunnable, actions.NotRunnable) as exc:
        raise NotStarted(str(exc)) from exc
    except (CeleryError, EncodeError, TypeError, ValueError) as exc:
        # Its policy says no; or the code has changed since the catalogue was brought up to date, or the earlier run
        raise NotStarted(_('The task was not started: {error}').format(error=exc)) from exc


def tell_started(request, run, message):
    """Tell who started a task what has become of it.

    Args:
        request: The request.
        run: What `enqueue` returned.
        message: What is said of a new run, with a place for `{run}`.
    """
    if run.joined and not Reader(request.user).may_view(run):
        messages.info(request, _('A run with the same key is under way already, which you may not view'))
    elif run.joined:
        messages.info(request, _('{run} is under way already, with the same key').format(run=run))
    elif run.status == ResultStatusChoices.STATUS_IGNORED:
        messages.warning(request, run.error)
    else:
        messages.success(request, message.format(run=run))


def reload_page():
    """Answer a poll to which there is no answer any more: the page is loaded anew, with the login form or why not."""
    return HttpResponse(headers={'HX-Refresh': 'true'})


def visible_address(user, *objects):
    """Return the address of the first object that a user may view, or an empty string."""
    return next((
        obj.get_absolute_url() for obj in objects if user.has_perm(get_permission_for_model(obj, 'view'), obj)
    ), '')


def whole(text):
    """Return the number in what a page sends back, or 0: what is not a number has not been written by us."""
    return int(text) if text and re.fullmatch('[0-9]{1,18}', text) else 0


class WholePksMixin:
    """For NetBox's views of many objects, which end for a primary key that is no number: it selects nothing."""

    def post(self, request, *args, **kwargs):
        given = request.POST.getlist('pk')
        selected = [pk for pk in given if whole(pk)]
        if selected != given:
            request.POST = request.POST.copy()
            request.POST.setlist('pk', selected)
        return super().post(request, *args, **kwargs)


class FilteredMixin:
    """For lists: if nothing is found because a filter has a wrong value, the page says so."""

    def get(self, request, *args, **kwargs):
        if request.GET and not htmx_partial(request):
            form = self.filterset(request.GET, request=request).form
            for name, errors in form.errors.items():
                messages.error(request, _('Nothing is found, because the filter "{name}" is wrong: {error}').format(
                    name=form[name].label, error=' '.join(errors)
                ))
        return super().get(request, *args, **kwargs)


class VisibleMixin:
    """For views that change and delete objects: the user must see them (`netbox_celery.reading.viewing.in_sight`)."""

    def get_queryset(self, request):
        return in_sight(super().get_queryset(request), request.user)


class VisibleBulkMixin(VisibleMixin):
    """Likewise for NetBox's view that deletes many: with filters, it asks for all that match, whosever they are."""

    def post(self, request, **kwargs):
        filterset, permitted = self.filterset, self.queryset.values('pk')

        def filter_permitted(data, queryset, **options):
            return filterset(data, queryset.filter(pk__in=permitted), **options)

        self.filterset = filter_permitted
        return super().post(request, **kwargs)


class ConfirmView(GetReturnURLMixin, BaseObjectView):
    """Ask before something is done to an object, on a page or, from one of its buttons, in a dialog.

    Who does it must be allowed to view the object, too.

    Attributes:
        permission: The action that the user must be permitted on the object.
        title: The question's heading.
        button: Text of the button that does it.
        color: Bootstrap's name of that button's colour.
    """
    template_name = 'netbox_celery/confirm.html'
    permission = None
    title = ''
    button = ''
    color = 'primary'

    def get_queryset(self, request):
        return super().get_queryset(request).restrict(request.user, 'view')

    def get_required_permission(self):
        return get_permission_for_model(self.queryset.model, self.permission)

    def why_not(self, request, obj):
        """Return in words why it cannot be done as things stand, or an empty string."""
        raise NotImplementedError

    def describe(self, obj):
        """Return what will happen, as a list of sentences."""
        raise NotImplementedError

    def perform(self, request, obj):
        """Do it, and tell the user. Returns the address to go to, or `None` to go back."""
        raise NotImplementedError

    def get(self, request, pk):
        obj = self.get_object(pk=pk)
        obstacle = self.why_not(request, obj)
        return render(request, 'netbox_celery/inc/confirm.html' if htmx_partial(request) else self.template_name, {
            'object': obj,
            'title': self.title,
            'sentences': [obstacle] if obstacle else self.describe(obj),
            'button': '' if obstacle else self.button,
            'color': self.color,
            'form_url': request.path,
            'return_url': self.get_return_url(request, obj),
            'in_dialog': htmx_partial(request),
        })

    def post(self, request, pk):
        obj = self.get_object(pk=pk)
        return redirect(self.perform(request, obj) or self.get_return_url(request, obj))
