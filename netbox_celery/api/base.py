"""What the REST views share: error responses, access to objects of actions, and sending tasks."""
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from amqp.exceptions import AMQPError
from celery.exceptions import CeleryError, QueueNotFound
from django.core.exceptions import SuspiciousOperation
from django.db import DataError, InternalError
from django.db.models import JSONField
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django_filters.rest_framework import DjangoFilterBackend
from kombu.exceptions import EncodeError, OperationalError
from rest_framework import status
from rest_framework.exceptions import APIException, ParseError, ValidationError
from rest_framework.filters import OrderingFilter
from rest_framework.generics import get_object_or_404
from rest_framework.parsers import JSONParser
from rest_framework.response import Response
from rest_framework.settings import api_settings

from utilities.exceptions import AbortRequest

from ..engine.exceptions import DatabaseReadOnly, QueueRefused
from ..engine.store.database import is_read_only
from ..engine.store.payload import clean_text
from ..reading.viewing import Reader, in_sight, order_by_visible
from ..services import runs as actions
from . import serializers

if TYPE_CHECKING:
    from netbox.api.viewsets import NetBoxModelViewSet as MixedInto
else:
    MixedInto = object

__all__ = (
    'ActionsMixin',
    'SafeMixin',
    'VisibleMixin',
    'require_runnable',
    'sending',
)


class BrokerUnavailable(APIException):
    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_detail = gettext_lazy(
        'The task was not started: the message broker cannot be reached. Check that it is running and that its '
        'configured address is correct, then try again.'
    )
    default_code = 'broker_unavailable'


class VisibleMixin(MixedInto):
    """For viewsets that change and delete: users must see the objects (`reading.viewing.in_sight`)."""
    queryset: Any

    def initial(self, request, *args, **kwargs):
        super().initial(request, *args, **kwargs)
        if request.method in ('PUT', 'PATCH', 'DELETE'):
            self.queryset = in_sight(self.queryset, request.user)


class ReadOnly(APIException):
    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_detail = gettext_lazy(
        'Nothing was changed: the database is read-only (SQLSTATE 25006), as in maintenance mode or on a standby.'
    )


class BodyParser(JSONParser):
    """Parses JSON. JSON nested too deeply for Python is answered like invalid JSON."""

    def parse(self, stream, media_type=None, parser_context=None):
        try:
            return super().parse(stream, media_type, parser_context)
        except RecursionError as exc:
            raise ParseError(_('JSON parse error - nested too deeply')) from exc


class VisibleOrdering(OrderingFilter):
    """Orders by plain columns only: not by payloads, and not by names of objects that the user may not view."""

    def get_valid_fields(self, queryset, view, context=None):
        columns = {
            field.name for field in queryset.model._meta.concrete_fields if not isinstance(field, JSONField)
        }
        return [pair for pair in super().get_valid_fields(queryset, view, context or {}) if pair[0] in columns]

    def get_ordering(self, request, queryset, view):
        ordering = super().get_ordering(request, queryset, view)
        return ordering and [order_by_visible(queryset.model, request.user, name) for name in ordering]


class SafeMixin(MixedInto):
    """For all viewsets: any invalid request is answered with 400."""
    filter_backends = (DjangoFilterBackend, VisibleOrdering)

    def handle_exception(self, exc):
        if isinstance(exc, SuspiciousOperation):
            exc = ParseError(_('The request is too large or malformed: {error}').format(error=exc))
        elif isinstance(exc, InternalError) and is_read_only(exc):
            exc = ReadOnly(exc if isinstance(exc, DatabaseReadOnly) else None)
        elif isinstance(exc, DataError):
            exc = ParseError(_('The database rejected the value: {error}').format(error=exc))
        response = super().handle_exception(exc)
        # The response may quote the request, which may contain text that cannot be sent back
        response.data = _sendable(response.data)
        return response


def _sendable(data):
    if isinstance(data, dict):
        return {_sendable(key): _sendable(item) for key, item in data.items()}
    if isinstance(data, list):
        return [_sendable(item) for item in data]
    return clean_text(data) if isinstance(data, str) and not data.isprintable() else data


class ActionsMixin(SafeMixin):
    """For viewsets with actions that have their own permissions."""
    parser_classes = [BodyParser if cls is JSONParser else cls for cls in api_settings.DEFAULT_PARSER_CLASSES]

    #: Actions that do not require the permission to view the object.
    blind_actions: tuple[str, ...] = ()

    def get_object_to_act_on(self):
        """Return the object of an action with its own permission (see `token_permission`).

        Raises:
            Http404: The object does not exist, or the user may not view it (nor perform the action on it).
            PermissionDenied: The user may view the object, but not perform the action on it.
        """
        # The viewset's own queryset is restricted by the add permission, which is irrelevant here
        objects, user = self.queryset.model.objects, self.request.user
        known = objects.restrict(user, 'view')
        if self.action in self.blind_actions:
            known |= objects.restrict(user, self.action)
        obj = get_object_or_404(known, pk=self.kwargs['pk'])
        self.check_object_permissions(self.request, obj)
        return obj

    def created(self, result):
        """Return the response for a new run, or for the active run that the call has joined.

        A joined run is shown to users who may view it. Others get only its IDs.
        """
        if result.joined and not Reader(self.request.user).may_view(result):
            return Response({
                'id': result.pk,
                'task_id': str(result.task_id),
                'detail': _('The call joined an active run (no permission to view it).'),
            })
        serializer = serializers.CeleryResultSerializer(result, context=self.get_serializer_context())
        return Response(
            serializer.data, status=status.HTTP_200_OK if result.joined else status.HTTP_201_CREATED,
            headers=self.get_success_headers(serializer.data)
        )


@contextmanager
def sending():
    """Turn every error that prevents a task from being sent into an error response."""
    try:
        yield
    except OperationalError as exc:
        raise BrokerUnavailable from exc
    except DatabaseReadOnly:
        raise
    except QueueNotFound as exc:
        raise ValidationError({'queue': [_('Queue not found.')]}) from exc
    except AMQPError as exc:
        message = _('The message broker rejected the message: {error}')
        raise ValidationError({'queue': [message.format(error=exc)]}) from exc
    except QueueRefused as exc:
        raise ValidationError({'queue': [str(exc)]}) from exc
    except (CeleryError, EncodeError, TypeError, ValueError) as exc:
        # Its policy forbids the run, or the code has changed since the last catalogue sync or since the earlier run
        raise ValidationError({'detail': str(exc)}) from exc


def require_runnable(task):
    """Raise `AbortRequest` if a task of the catalogue cannot be run."""
    if reason := actions.why_not_runnable(task):
        raise AbortRequest(reason)
