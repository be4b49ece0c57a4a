"""The only access to NetBox features that its plugin documentation does not cover.

If a NetBox upgrade breaks something, it breaks here.
"""
import logging
from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib.contenttypes.fields import GenericRelation
from django.contrib.contenttypes.models import ContentType
from django.db import DEFAULT_DB_ALIAS, models, transaction
from django.http import HttpRequest
from django.utils.text import Truncator

from core.choices import ObjectChangeActionChoices
from core.signals import clear_events
from netbox.config import Config, get_config
from netbox.context import current_request
from netbox.registry import registry
from utilities.exceptions import PermissionsViolation
from utilities.request import NetBoxFakeRequest, apply_request_processors

__all__ = (
    'change_tracking',
    'current_user',
    'delete_references',
    'index_for_search',
    'is_in_maintenance',
    'job_retention',
    'netbox_version',
    'plugin_packages',
    'record_change',
    'record_changes',
    'save_permitted',
    'take_snapshot',
)

logger = logging.getLogger(__name__)


def netbox_version() -> str:
    """Return NetBox's version. NetBox installed from an archive or from Git is not a Python distribution."""
    return settings.RELEASE.version


def plugin_packages() -> list[str]:
    """Return the package names of the installed plugins."""
    return registry['plugins']['installed']


def current_user() -> Any:
    """Return the user of the current request, or `None` outside a request."""
    request = current_request.get()
    user = getattr(request, 'user', None)
    return user if user is not None and user.is_authenticated else None


def is_in_maintenance() -> bool:
    """Whether a request is being served in maintenance mode, in which NetBox intends to write nothing.

    Its middleware then makes the database session read-only, except for exempt paths. NetBox's defaults exempt all
    paths, since `MAINTENANCE_EXEMPT_PATHS` contains the home page, `/`.
    """
    return isinstance(current_request.get(), HttpRequest) and bool(get_config().MAINTENANCE_MODE)


def job_retention() -> int:
    """Return the number of days that NetBox keeps its own jobs (0: forever), as set in the user interface."""
    return Config().JOB_RETENTION


def delete_references(model: type[models.Model], ids: Collection[int]) -> None:
    """Delete NetBox's tags, journal entries etc. of objects that will be deleted without sending signals.

    Args:
        model: The objects' model.
        ids: Their primary keys.
    """
    from extras.models import CachedValue, Notification, TaggedItem

    object_type = ContentType.objects.get_for_model(model)
    related = {field.related_model: (field.content_type_field_name, field.object_id_field_name)
               for field in model._meta.private_fields if isinstance(field, GenericRelation)}
    related |= {TaggedItem: ('content_type', 'object_id'), Notification: ('object_type', 'object_id'),
                CachedValue: ('object_type', 'object_id')}
    for about, (type_field, id_field) in related.items():
        about.objects.using(DEFAULT_DB_ALIAS).filter(**{type_field: object_type, f'{id_field}__in': ids}).delete()


@contextmanager
def change_tracking(user: Any, request_id: UUID) -> Generator[HttpRequest]:
    """Record changes to NetBox objects as if `user` had made them in the request `request_id`.

    Change log entries, event rules and webhooks work as in the user interface. Events are dispatched only if the block
    finishes without an exception (`netbox.context_managers.event_tracking`). Yields the request.

    Args:
        user: A user, or a lazy object that evaluates to one.
        request_id: The UUID that the changes have in common.
    """
    request = NetBoxFakeRequest({
        'META': {},
        'COOKIES': {},
        'POST': {},
        'GET': {},
        'FILES': {},
        'user': user,
        'method': None,
        'path': '',
        'path_info': '',
        'id': request_id,
    })
    with apply_request_processors(request):
        yield request


def save_permitted(user: Any, instance: models.Model) -> None:
    """Save a changed object, unless the user may not change the object in its new state.

    As in NetBox's own views, the constraints of a permission apply before and after the change, and event rules do not
    receive changes that were rolled back.

    Raises:
        utilities.exceptions.PermissionsViolation: The user may not change it; nothing was saved.
    """
    try:
        with transaction.atomic():
            instance.save()
            if not type(instance).objects.restrict(user, 'change').filter(pk=instance.pk).exists():
                raise PermissionsViolation
    except Exception:
        clear_events.send(sender=type(instance))
        raise


def index_for_search(instances: Iterable[models.Model]) -> None:
    """Add objects that were written without `save()` to the global search."""
    from netbox.search.backends import search_backend

    search_backend.cache(instances, using=DEFAULT_DB_ALIAS)


def record_change(instance: Any, request: HttpRequest, action: str, message: str = '') -> None:
    """Write a change log entry for a user's change that was made without `save()`.

    Args:
        instance: The object. Call `instance.snapshot()` before the change, so that the entry has the previous state.
        request: The request of the user.
        action: `create`, `update` or `delete` (`ObjectChangeActionChoices`).
        message: The user's reason for the change, or a note of the system.
    """
    record_changes([instance], request, action, message)


def record_changes(instances: Iterable[Any], request: HttpRequest, action: str, message: str = '') -> None:
    """Write change log entries for several objects (see `record_change`).

    The changes have already been made, so an entry that cannot be written is only logged: the request still succeeds.
    """
    from core.models import ObjectChange

    # The message may contain long names
    message = Truncator(message).chars(ObjectChange._meta.get_field('message').max_length)
    changes = []
    for instance in instances:
        try:
            changes.append(_change_of(instance, request, action, message))
        except Exception:
            logger.exception('No change log entry for %s of %r by %s', action, instance, request.user)
    try:
        with transaction.atomic():
            ObjectChange.objects.db_manager(DEFAULT_DB_ALIAS).bulk_create(changes)
    except Exception:
        logger.exception('No change log entries for %s of %s objects by %s', action, len(changes), request.user)


def _change_of(instance, request, action, message):
    instance._changelog_message = message
    change = instance.to_objectchange(action)
    change.user = request.user
    # `bulk_create()` bypasses `ObjectChange.save()`, which sets these
    change.user_name = request.user.username
    change.request_id = request.id
    return change


def take_snapshot(instance: Any) -> None:
    """Keep the current state of an object for its change log entry. A failure is only logged."""
    try:
        instance.snapshot()
    except Exception:
        logger.exception('Cannot take a snapshot of %r for the change log', instance)


ACTION_CREATE = ObjectChangeActionChoices.ACTION_CREATE
ACTION_UPDATE = ObjectChangeActionChoices.ACTION_UPDATE
