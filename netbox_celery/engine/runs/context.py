"""The user and request under which a task changes NetBox objects.

A run may outlive its user. The change log entries that it makes from then on have the user's name, as the earlier ones
do, and no user. A reference to a deleted user would end the body or, worse, keep the entry of a change from being
written.
"""
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models.signals import pre_save
from django.dispatch import receiver
from django.utils.functional import SimpleLazyObject

from ... import host
from ...choices import LogLevelChoices
from ..sending.rows import USERS
from ..store.branches import current, mark_request, owner_id
from ..store.database import execute
from ..store.recorder import recorder

__all__ = (
    'change_context',
)

LOCK_USER = f'SELECT id FROM {USERS} WHERE id = %s FOR KEY SHARE'
GONE = 'The user of this run was deleted: change log entries that it makes from now on have no user'
UNMERGED = (
    'This run has no user, and its branch has no owner: NetBox records none of its changes, and NetBox Branching does '
    'not merge them'
)
#: The run whose body makes changes.
_current: ContextVar = ContextVar('netbox_celery_acting', default=None)


def change_context(run):
    """Return a context manager for the body of a run.

    Changes of NetBox objects in it are recorded under the user who started the run, with the run's request ID. Without
    a user there are no change log entries, as for NetBox's own housekeeping. In a branch there are entries of the
    branch's owner, if it has one: changes without an entry are not merged.

    Args:
        run: The `Run`, or `None` for a body that is not tracked.
    """
    if run is None or run.user_id is None and not _is_of_owner(run):
        return nullcontext()
    return _acting(run)


def _is_of_owner(run):
    """Whether the changes of a run without a user are recorded under the owner of its branch."""
    if not current():
        return False
    if owner_id() is None and run.is_new_warning('owner'):
        recorder.log(run, UNMERGED, level=LogLevelChoices.LEVEL_WARNING)
    return owner_id() is not None


def _user_id(run):
    return run.user_id if run.user_id is not None else owner_id()


@contextmanager
def _acting(run):
    request_id = run.request_id if isinstance(run.request_id, UUID) else UUID(str(run.request_id or run.task_id))
    token = _current.set(run)
    try:
        with host.change_tracking(SimpleLazyObject(lambda: _load_user(run)), request_id) as request:
            mark_request(request)
            yield
    finally:
        _current.reset(token)


def _load_user(run):
    from django.contrib.auth import get_user_model

    model = get_user_model()
    try:
        return model.objects.get(pk=_user_id(run))
    except model.DoesNotExist:
        _tell(run)
        # Changes need a user: `_check_user` removes the reference
        return model(pk=_user_id(run), username=f'deleted user {_user_id(run)}')


@receiver(pre_save, sender='core.ObjectChange')
def _check_user(instance, using=DEFAULT_DB_ALIAS, **kwargs):
    """Leave a deleted user out of a change log entry.

    GUARANTEE: the lock keeps the user from being deleted until the entry is committed, with everything else in the
    transaction of the body. It is the one that the foreign key takes in any case.
    """
    run = _current.get()
    if run is None or instance.user_id is None or instance.user_id != _user_id(run):
        return
    if not execute(connections[using], LOCK_USER, (instance.user_id,)):
        # In a branch, NetBox Branching cannot merge changes without a user
        instance.user_id = owner if (owner := owner_id()) != instance.user_id else None
        _tell(run)


def _tell(run):
    if run.is_new_warning('user'):
        recorder.log(run, GONE, level=LogLevelChoices.LEVEL_WARNING)
