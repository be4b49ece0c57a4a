"""Everything of NetBox that its plugin documentation does not promise, in one place.

A NetBox upgrade breaks here or nowhere.
"""
import logging
from contextlib import contextmanager

from django.conf import settings
from django.contrib.contenttypes.fields import GenericRelation
from django.contrib.contenttypes.models import ContentType
from django.db import DEFAULT_DB_ALIAS, transaction
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


def netbox_version():
    """Return NetBox's version. Installed from a release archive or from Git, it is no Python distribution."""
    return settings.RELEASE.version


def plugin_packages():
    """Return the names of the installed plugins' packages."""
    return registry['plugins']['installed']


def current_user():
    """Return the user of the request that is being served, or `None` outside of one."""
    request = current_request.get()
    user = getattr(request, 'user', None)
    return user if user is not None and user.is_authenticated else None


def is_in_maintenance():
    """Whether a request is being served in maintenance mode, in which NetBox means to write nothing.

    Its middleware then makes the database session read-only, except below some addresses: with NetBox's own settings,
    those are all (`MAINTENANCE_EXEMPT_PATHS` has the home page, `/`).
    """
    return isinstance(current_request.get(), HttpRequest) and bool(get_config().MAINTENANCE_MODE)


def job_retention():
    """Return for how many days NetBox keeps its own jobs; 0: for ever. People set it in the user interface."""
    return Config().JOB_RETENTION


def delete_references(model, ids):
    """Delete what NetBox has about objects that are about to be deleted without its signals: tags, journals, ...

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
def change_tracking(user, request_id):
    """Record changes of NetBox objects as if `user` had made them in the request `request_id`.

    Change log entries, event rules and webhooks work as from the user interface; events are dispatched only if the
    block ends without an exception (`netbox.context_managers.event_tracking`). Yields the request.

    Args:
        user: A user, or a lazy object that becomes one.
        request_id: The UUID that joins the changes.
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


def save_permitted(user, instance):
    """Save a changed object, unless it then is one that its user may not change.

    As in NetBox's own views the constraints of a permission hold of an object before and after, and event rules hear
    nothing of what was rolled back.

    Raises:
        utilities.exceptions.PermissionsViolation: They may not; nothing has changed.
    """
    try:
        with transaction.atomic():
            instance.save()
            if not type(instance).objects.restrict(user, 'change').filter(pk=instance.pk).exists():
                raise PermissionsViolation
    except Exception:
        clear_events.send(sender=type(instance))
        raise


def index_for_search(instances):
    """Let the global search find objects that were written without `save()`."""
    from netbox.search.backends import search_backend

    search_backend.cache(instances, using=DEFAULT_DB_ALIAS)


def record_change(instance, request, action, message=''):
    """Write a change log entry for something a person did that no `save()` recorded.

    Args:
        instance: The object; `instance.snapshot()` before the change gives the entry its "before".
        request: The request in which the person did it.
        action: `create`, `update` or `delete` (`ObjectChangeActionChoices`).
        message: Why, as the person says it, or what the system adds.
    """
    record_changes([instance], request, action, message)


def record_changes(instances, request, action, message=''):
    """Write change log entries for several objects (see `record_change`).

    What was done is done: an entry that cannot be written is logged, and keeps nobody from being answered.
    """
    from core.models import ObjectChange

    # Names in it may be long
    message = Truncator(message).chars(ObjectChange._meta.get_field('message').max_length)
    changes = []
    for instance in instances:
        try:
            changes.append(_change_of(instance, request, action, message))
        except Exception:
            logger.exception('%s of %r by %s has no entry in the change log', action, instance, request.user)
    try:
        with transaction.atomic():
            ObjectChange.objects.db_manager(DEFAULT_DB_ALIAS).bulk_create(changes)
    except Exception:
        logger.exception('%s of %s objects by %s has no entry in the change log', action, len(changes), request.user)


def _change_of(instance, request, action, message):
    instance._changelog_message = message
    change = instance.to_objectchange(action)
    change.user = request.user
    # What `ObjectChange.save()` adds
    change.user_name = request.user.username
    change.request_id = request.id
    return change


def take_snapshot(instance):
    """Keep how an object is now, for the "before" of its entry in the change log, if it can be kept."""
    try:
        instance.snapshot()
    except Exception:
        logger.exception('How %r is now cannot be kept for the change log', instance)


ACTION_CREATE = ObjectChangeActionChoices.ACTION_CREATE
ACTION_UPDATE = ObjectChangeActionChoices.ACTION_UPDATE
