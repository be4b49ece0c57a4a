"""What several views share: confirmation pages, visibility checks, and messages about tasks that did not start."""
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from netbox.views.generic.base import BaseObjectView as MixedInto
else:
    MixedInto = object

__all__ = (
    'ConfirmView',
    'FilteredMixin',
    'NotStarted',
    'NumericPksMixin',
    'VisibleBulkMixin',
    'VisibleMixin',
    'parse_number',
    'reload_page',
    'report_started',
    'starting',
    'visible_address',
)


class NotStarted(Exception):
    """A task was not started; the text is the reason for the user."""


@contextmanager
def starting():
    """Turn every error that prevents a task from being started into `NotStarted`."""
    try:
        yield
    except OperationalError as exc:
        raise NotStarted(_(
            'The task was not started: the message broker cannot be reached ({error}). Check that it is running and '
            'that its configured address is correct, then try again.'
        ).format(error=exc)) from exc
    except QueueNotFound as exc:
        raise NotStarted(_('The task was not started: queue not found.')) from exc
    except AMQPError as exc:
        raise NotStarted(_('The task was not started: the message broker rejected it: {error}').format(
            error=exc
        )) from exc
    except (NotRerunnable, actions.NotRunnable) as exc:
        raise NotStarted(str(exc)) from exc
    except (CeleryError, EncodeError, TypeError, ValueError) as exc:
        # Its policy forbids the run, or the code has changed since the last catalogue sync or since the earlier run
        raise NotStarted(_('The task was not started: {error}').format(error=exc)) from exc


def report_started(request, run, message):
    """Show the user what happened to the task that they started.

    Args:
        request: The request.
        run: What `enqueue` returned.
        message: Text for a new run, with a placeholder `{run}`.
    """
    if run.joined and not Reader(request.user).may_view(run):
        messages.info(request, _('A run with the same key is already active (no permission to view it)'))
    elif run.joined:
        messages.info(request, _('{run} is already active (same key)').format(run=run))
    elif run.status == ResultStatusChoices.STATUS_IGNORED:
        messages.warning(request, run.error)
    else:
        messages.success(request, message.format(run=run))


def reload_page():
    """Answer a poll that can no longer be served: the page reloads, and shows the login form or the reason."""
    return HttpResponse(headers={'HX-Refresh': 'true'})


def visible_address(user, *objects):
    """Return the address of the first object that a user may view, or an empty string."""
    return next((
        obj.get_absolute_url() for obj in objects if user.has_perm(get_permission_for_model(obj, 'view'), obj)
    ), '')


def parse_number(text):
    """Return the number that a page sent back, or 0: our pages send nothing but numbers."""
    return int(text) if text and re.fullmatch('[0-9]{1,18}', text) else 0


class NumericPksMixin(MixedInto):
    """For NetBox's bulk views, which crash on a primary key that is not a number: such a key selects nothing."""

    def post(self, request, *args, **kwargs):
        given = request.POST.getlist('pk')
        selected = [pk for pk in given if parse_number(pk)]
        if selected != given:
            request.POST = request.POST.copy()
            request.POST.setlist('pk', selected)
        return super().post(request, *args, **kwargs)


class FilteredMixin(MixedInto):
    """For lists: a filter with an invalid value matches nothing, and the page says so."""

    def get(self, request, *args, **kwargs):
        if request.GET and not htmx_partial(request):
            form = self.filterset(request.GET, request=request).form
            for name, errors in form.errors.items():
                messages.error(request, _('Invalid filter "{name}": {error}').format(
                    name=form[name].label, error=' '.join(errors)
                ))
        return super().get(request, *args, **kwargs)


class VisibleMixin(MixedInto):
    """For views that change and delete objects: the user must see them (`netbox_celery.reading.viewing.in_sight`)."""

    def get_queryset(self, request):
        return in_sight(super().get_queryset(request), request.user)


class VisibleBulkMixin(VisibleMixin):
    """Likewise for NetBox's bulk delete: with filters, NetBox takes all matching objects, also those out of sight."""
    filterset: Any

    def post(self, request, **kwargs):
        filterset, permitted = self.filterset, self.queryset.values('pk')

        def filter_permitted(data, queryset, **options):
            return filterset(data, queryset.filter(pk__in=permitted), **options)

        self.filterset = filter_permitted
        return super().post(request, **kwargs)


class ConfirmView(GetReturnURLMixin, BaseObjectView):
    """Ask for confirmation before acting on an object: on a page, or in a dialog if opened by a button.

    The user must also be allowed to view the object.

    Attributes:
        permission: The action that the user must be permitted on the object.
        title: Heading of the question.
        button: Text of the button that confirms.
        color: Bootstrap's name of that button's color.
    """
    template_name = 'netbox_celery/confirm.html'
    permission: str | None = None
    title = ''
    button = ''
    color = 'primary'

    def get_queryset(self, request):
        return super().get_queryset(request).restrict(request.user, 'view')

    def get_required_permission(self):
        return get_permission_for_model(self.queryset.model, self.permission)

    def why_not(self, request, obj):
        """Return why the action is not possible now, or an empty string."""
        raise NotImplementedError

    def describe(self, obj):
        """Return what will happen as a list of sentences."""
        raise NotImplementedError

    def perform(self, request, obj):
        """Do it and show a message. Returns the address to go to, or `None` to go back."""
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
