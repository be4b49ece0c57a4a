"""Integrates NetBox Branching (`netboxlabs-netbox-branching`), if it is installed.

NetBox Branching gives each branch a schema with copies of all tables with change logging. Our tables are exempt: runs,
logs and schedules are facts, the same in all branches, and the engine writes them by SQL to main. What a task reads and
changes is in the branch in which it was called (see `netbox_celery.engine.store.branches`).

This module is imported whether or not NetBox Branching is installed, so functions import it only when they are called.
"""
import logging
from functools import wraps
from typing import Any

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models.signals import post_migrate, pre_delete
from django.utils.html import escape
from django.utils.translation import gettext as _

from .engine.exceptions import BranchNotReady
from .engine.store import branches, lifecycle
from .engine.store.database import get_connection

__all__ = (
    'install',
)

logger = logging.getLogger(__name__)

APP_LABEL = 'netbox_celery'
BRANCHING = 'netbox_branching'

#: Columns of a branch that a run needs. The others are loaded on access.
COLUMNS = ('id', 'name', 'schema_id', 'status', 'owner_id')
FIND = f'SELECT {", ".join(COLUMNS)} FROM netbox_branching_branch WHERE schema_id = %s'
#: How long a run waits for an unavailable database before it looks up its branch, seconds.
PATIENCE = 60

#: Active runs in a branch whose worker is alive.
ACTIVE_RUN = f'''
    SELECT run.id, run.name FROM {lifecycle.TABLE} AS run
    WHERE run.completed IS NULL AND run.status = 'running' AND run.branch = %(branch)s
        AND run.holder IN (SELECT key FROM {lifecycle.WORKERS} WHERE {lifecycle.ALIVE})
    ORDER BY run.id LIMIT 1
'''
#: Copies of the plugin's tables in the schemas of branches.
COPIES = '''
    SELECT branch.schema_name, tables.tablename FROM unnest(%s::text[]) AS branch (schema_name)
    JOIN pg_tables AS tables ON tables.schemaname = branch.schema_name
    WHERE starts_with(tables.tablename, 'netbox_celery_')
'''


def install() -> None:
    """Connect the plugin to NetBox Branching, if that is installed. Call this once all models are loaded."""
    if not apps.is_installed(BRANCHING):
        return
    from netbox_branching.models import Branch
    from netbox_branching.utilities import register_branching_resolver

    register_branching_resolver(is_branched)
    branches.install(NetBoxBranches())
    pre_delete.connect(protect_active_branch, sender=Branch, dispatch_uid='netbox-celery-branching')
    for action in ('archive', 'merge'):
        Branch.register_preaction_check(check_no_active_run, action)
    for model in apps.get_app_config(APP_LABEL).get_models():
        if tags := next((field for field in model._meta.many_to_many if field.name == 'tags'), None):
            tags.manager = of_main(tags.manager)
    # The signal of our own app may come before NetBox Branching has its tables
    post_migrate.connect(forget_copies, sender=apps.get_app_config(BRANCHING), dispatch_uid='netbox-celery-branching')


def is_branched(model: Any) -> bool | None:
    """Return `False` for our models, which have no tables in branches, and `None` for all others (no opinion).

    This includes the models of migrations, which are other classes.
    """
    return False if model._meta.app_label == APP_LABEL else None


class NetBoxBranches(branches.Branches):
    """The branches of NetBox Branching. A branch is identified by its schema ID."""

    def __init__(self):
        from netbox_branching.contextvars import active_branch

        self._active = active_branch

    def current(self):
        branch = self._active.get()
        return branch.schema_id if branch is not None else ''

    def alias(self):
        branch = self._active.get()
        return branch.connection_name if branch is not None else None

    def aliases(self):
        return _aliases()

    def owner_id(self):
        branch = self._active.get()
        return branch.owner_id if branch is not None else None

    def enter(self, branch):
        found = self._find(branch)
        if why := _why_not_ready(branch, found):
            raise BranchNotReady(why)
        entered = self._active.get()
        _close_others(found.connection_name)
        self._active.set(found)
        return (entered,)

    def enter_main(self):
        entered = self._active.get()
        self._active.set(None)
        return (entered,)

    def leave(self, entered):
        branch = self._active.get()
        self._active.set(*entered)
        if branch is not None:
            _release(branch.connection_name)

    def check(self, branch):
        return _why_not_ready(branch, self._find(branch))

    def is_gone(self, branch):
        from netbox_branching.choices import BranchStatusChoices as Status

        found = self._find(branch)
        return found is None or found.status in (Status.MERGED, Status.ARCHIVED, Status.FAILED)

    def read_alias(self, branch, model):
        from netbox_branching.utilities import supports_branching

        active = self._active.get()
        # The change log, too, is read from the branch, as by the router of NetBox Branching
        is_read_there = supports_branching(model) or model._meta.label == 'core.ObjectChange'
        if active is None and not branch or not is_read_there:
            return None
        if not branch or active is not None and active.schema_id == branch:
            return active.connection_name
        found = self._find(branch)
        if found is not None and found.ready:
            return found.connection_name
        return active and active.connection_name

    def shown(self, branches):
        from netbox_branching.models import Branch

        found = {branch.schema_id: branch for branch in Branch.objects.filter(schema_id__in=branches)}
        return {
            schema_id: {
                'id': branch.pk, 'name': branch.name, 'status': branch.status, 'url': branch.get_absolute_url(),
                'label': str(branch.get_status_display()), 'color': branch.get_status_color(),
            } for schema_id, branch in found.items()
        }

    def named(self, names):
        from netbox_branching.models import Branch

        return list(Branch.objects.filter(name__in=names).values_list('schema_id', flat=True))

    def mark_request(self, request):
        branch = self._active.get()
        if branch is not None:
            # As for a request by a user in the branch, so that event rules and webhooks receive the branch
            from netbox_branching.constants import COOKIE_NAME

            request.active_branch = branch
            request.COOKIES[COOKIE_NAME] = branch.schema_id

    def warm_up(self):
        """Load NetBox's URL patterns, which NetBox Branching resolves in each request: loading them takes seconds."""
        from django.urls import reverse

        try:
            for name in ('api-root', 'graphql'):
                reverse(name)
        except Exception:
            logger.exception("NetBox's URL patterns could not be loaded before the first run")

    def _find(self, branch):
        """Return a `Branch` by its schema ID, or `None`, read by the engine's own connection in one statement."""
        from netbox_branching.models import Branch

        rows = get_connection().execute(FIND, (branch,), patience=PATIENCE)
        if not rows:
            return None
        found = dict(zip(COLUMNS, rows[0]))
        names = [field.attname for field in Branch._meta.concrete_fields if field.attname in found]
        return Branch.from_db(DEFAULT_DB_ALIAS, names, [found[name] for name in names])


def _why_not_ready(schema_id, branch):
    """Return why nothing can run in a branch, or an empty string."""
    if branch is None:
        return f'The branch {schema_id} was deleted'
    if branch.ready:
        return ''
    return f'The branch {branch.name} [{schema_id}] is not ready: its status is {branch.get_status_display()}'


# Connections of branches

def _aliases():
    """Return a list of the aliases of the branch connections that this thread has."""
    from netbox_branching.utilities import _get_tracked_branch_aliases

    # NetBox Branching remembers all aliases, also those of other greenlets; Django, those of this thread
    return [alias for alias in _get_tracked_branch_aliases().copy() if hasattr(connections._connections, alias)]


def _close_others(alias):
    """Close the connections of other branches: a process keeps at most one."""
    for other in _aliases():
        if other != alias and not connections[other].in_atomic_block:
            connections[other].close()


def _release(alias):
    """Close the connection at the end of a run as Django does at the end of a request."""
    connection = connections[alias]
    if (connection.settings_dict.get('OPTIONS') or {}).get('pool'):
        connection.close()
    else:
        connection.close_if_unusable_or_obsolete()


# Branches with active runs

def _active_run(branch):
    """Return which run is active in a branch as a sentence, or an empty string."""
    from .config import get_config

    found = get_connection().execute(ACTIVE_RUN, {
        'branch': branch.schema_id, 'lost_after': get_config().worker_lost_after, 'steady': float('inf'),
    })
    if not found:
        return ''
    pk, name = found[0]
    return f'The Celery run {name} ({pk}) is active in this branch. Wait until it has finished, or cancel it.'


def check_no_active_run(branch):
    """Prevent a branch from being merged or archived while runs are active in it.

    Changes made after the merge has started would be lost. And PostgreSQL skips a schema that no longer exists, so that
    the runs would change main.
    """
    from netbox_branching.utilities import BranchActionIndicator

    why = _active_run(branch)
    return BranchActionIndicator(not why, why)


def protect_active_branch(instance, **kwargs):
    """Prevent a branch from being deleted while runs are active in it, for the same reason."""
    from utilities.exceptions import AbortRequest

    if why := _active_run(instance):
        raise AbortRequest(why)


# Tags of our objects

def of_main(manager: Any) -> type:
    """Return a subclass of a tag manager that reads and writes the tags of objects in main, whatever branch is active.

    NetBox Branching copies the table that assigns tags to objects to each branch, but merges only what the change log
    of the objects contains, which for ours is nothing.
    """
    from netbox_branching.utilities import deactivate_branch

    def outside(method):
        @wraps(method)
        def method_in_main(self, *args, **kwargs):
            with deactivate_branch():
                return method(self, *args, **kwargs)
        return method_in_main

    class MainTags(manager):

        def get_queryset(self, extra_filters=None):
            found = super().get_queryset(extra_filters)
            if self.prefetch_cache_name in getattr(self.instance, '_prefetched_objects_cache', ()):
                return found
            return found.using(DEFAULT_DB_ALIAS)

        def _to_tag_model_instances(self, tags, tag_kwargs):
            check_tags([tag for tag in tags if not isinstance(tag, str)])
            return super()._to_tag_model_instances(tags, tag_kwargs)

    for name in ('add', 'set', 'remove', 'clear'):
        setattr(MainTags, name, outside(getattr(manager, name)))
    return MainTags


def check_tags(tags: list[Any]) -> None:
    """Refuse tags that do not exist in main.

    Raises:
        utilities.exceptions.AbortRequest: A tag exists only in a branch.
    """
    from extras.models import Tag
    from utilities.exceptions import AbortRequest

    in_main = Tag.objects.using(DEFAULT_DB_ALIAS).filter(pk__in=[tag.pk for tag in tags])
    known = set(in_main.values_list('pk', flat=True))
    for tag in tags:
        if tag.pk not in known:
            raise AbortRequest(_(
                'The tag {tag} exists only in a branch. Runs, tasks and schedules are stored in main and can only have '
                'tags from main.'
            ).format(tag=escape(tag)))


# Branches created before our models were exempt

def forget_copies(using=DEFAULT_DB_ALIAS, **kwargs):
    """Drop the copies of our tables in branches created before our models were exempt: they hide the tables in main."""
    from netbox_branching.models import Branch

    if using != DEFAULT_DB_ALIAS:
        return
    schemas = [branch.schema_name for branch in Branch.objects.only('schema_id')]
    with connections[using].cursor() as cursor:
        cursor.execute(COPIES, (schemas,))
        for schema, table in cursor.fetchall():
            logger.warning('Dropping the copy of %s in %s: the rows are in main', table, schema)
            cursor.execute(f'DROP TABLE IF EXISTS "{schema}"."{table}" CASCADE')
