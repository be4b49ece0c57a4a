"""NetBox Branching (`netboxlabs-netbox-branching`), if it is installed: all that we know of it.

It gives a branch a schema of its own, with a copy of each table whose rows are change-logged. Ours are exempt: runs,
logs and schedules are facts, the same in each branch, and what the engine writes by SQL is main's. What a task reads
and changes is the branch's in which it was called (see `netbox_celery.engine.store.branches`).

The functions that import it do so when they are called: this module is imported whether it is there or not.
"""
import logging
from functools import wraps

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

#: What a run needs to know of its branch. Nothing else of it is loaded unless somebody asks.
COLUMNS = ('id', 'name', 'schema_id', 'status', 'owner_id')
FIND = f'SELECT {", ".join(COLUMNS)} FROM netbox_branching_branch WHERE schema_id = %s'
#: For how long a run waits for a database that is away before it looks for its branch, seconds.
PATIENCE = 60

#: Runs whose worker is alive, and that are at work in a branch.
AT_WORK = f'''
    SELECT run.id, run.name FROM {lifecycle.TABLE} AS run
    WHERE run.completed IS NULL AND run.status = 'running' AND run.branch = %(branch)s
        AND run.holder IN (SELECT key FROM {lifecycle.WORKERS} WHERE {lifecycle.ALIVE})
    ORDER BY run.id LIMIT 1
'''
#: Tables of ours in the schemas of branches.
COPIES = '''
    SELECT branch.schema_name, tables.tablename FROM unnest(%s::text[]) AS branch (schema_name)
    JOIN pg_tables AS tables ON tables.schemaname = branch.schema_name
    WHERE starts_with(tables.tablename, 'netbox_celery_')
'''


def install():
    """Connect the plugin to NetBox Branching, if that is installed. Called when all models are there."""
    if not apps.is_installed(BRANCHING):
        return
    from netbox_branching.models import Branch
    from netbox_branching.utilities import register_branching_resolver

    register_branching_resolver(is_branched)
    branches.install(NetBoxBranches())
    pre_delete.connect(keep_branch_at_work, sender=Branch, dispatch_uid='netbox-celery-branching')
    for action in ('archive', 'merge'):
        Branch.register_preaction_check(why_at_work, action)
    for model in apps.get_app_config(APP_LABEL).get_models():
        if tags := next((field for field in model._meta.many_to_many if field.name == 'tags'), None):
            tags.manager = of_main(tags.manager)
    # Our app's own signal may come before NetBox Branching has its tables
    post_migrate.connect(forget_copies, sender=apps.get_app_config(BRANCHING), dispatch_uid='netbox-celery-branching')


def is_branched(model):
    """Whether a model has a table in each branch: none of ours has. (`None`: that is not ours to say.)

    Also for models of migrations, whose classes are others.
    """
    return False if model._meta.app_label == APP_LABEL else None


class NetBoxBranches(branches.Branches):
    """What NetBox Branching knows of branches. The text that stands for one is its schema ID."""

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
            _let_go(branch.connection_name)

    def check(self, branch):
        return _why_not_ready(branch, self._find(branch))

    def is_gone(self, branch):
        from netbox_branching.choices import BranchStatusChoices as Status

        found = self._find(branch)
        return found is None or found.status in (Status.MERGED, Status.ARCHIVED, Status.FAILED)

    def read_alias(self, branch, model):
        from netbox_branching.utilities import supports_branching

        active = self._active.get()
        # The change log is read in the branch as well, as NetBox Branching's router does
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
            # As if a person had done it there: event rules and webhooks are told of the branch
            from netbox_branching.constants import COOKIE_NAME

            request.active_branch = branch
            request.COOKIES[COOKIE_NAME] = branch.schema_id

    def warm_up(self):
        """Load NetBox's addresses, which NetBox Branching asks for in each request: that takes seconds."""
        from django.urls import reverse

        try:
            for name in ('api-root', 'graphql'):
                reverse(name)
        except Exception:
            logger.exception("NetBox's addresses could not be loaded before the first run")

    def _find(self, branch):
        """Return a `Branch` by its schema ID, or `None`; read by the engine's own connection, in one statement."""
        from netbox_branching.models import Branch

        rows = get_connection().execute(FIND, (branch,), patience=PATIENCE)
        if not rows:
            return None
        found = dict(zip(COLUMNS, rows[0]))
        names = [field.attname for field in Branch._meta.concrete_fields if field.attname in found]
        return Branch.from_db(DEFAULT_DB_ALIAS, names, [found[name] for name in names])


def _why_not_ready(schema_id, branch):
    """Return in words why nothing can run in a branch, or an empty string."""
    if branch is None:
        return f'The branch {schema_id} was deleted'
    if branch.ready:
        return ''
    return f'The branch {branch.name} [{schema_id}] is not ready: its status is {branch.get_status_display()}'


# Connections of branches

def _aliases():
    """Return the aliases of branches' connections that this thread has, a list."""
    from netbox_branching.utilities import _get_tracked_branch_aliases

    # NetBox Branching remembers each that there ever was, also in other greenlets; Django, those of this thread
    return [alias for alias in _get_tracked_branch_aliases().copy() if hasattr(connections._connections, alias)]


def _close_others(alias):
    """Close the connections of other branches: a process keeps one at the most."""
    for other in _aliases():
        if other != alias and not connections[other].in_atomic_block:
            connections[other].close()


def _let_go(alias):
    """Do at the end of a run what Django does at the end of a request."""
    connection = connections[alias]
    if (connection.settings_dict.get('OPTIONS') or {}).get('pool'):
        connection.close()
    else:
        connection.close_if_unusable_or_obsolete()


# Branches that runs are at work in

def _at_work(branch):
    """Return in words what is at work in a branch, or an empty string."""
    from .config import get_config

    found = get_connection().execute(AT_WORK, {
        'branch': branch.schema_id, 'lost_after': get_config().worker_lost_after, 'steady': float('inf'),
    })
    if not found:
        return ''
    pk, name = found[0]
    return f'The Celery run {name} ({pk}) is at work in this branch. Wait until it has finished, or cancel it.'


def why_at_work(branch):
    """Keep a branch from being merged or archived while runs are at work in it.

    What they change after the merge has begun would be lost; and PostgreSQL passes over a schema that is not there any
    more, so that they would change main.
    """
    from netbox_branching.utilities import BranchActionIndicator

    why = _at_work(branch)
    return BranchActionIndicator(not why, why)


def keep_branch_at_work(instance, **kwargs):
    """Keep a branch from being deleted while runs are at work in it, for the same reason."""
    from utilities.exceptions import AbortRequest

    if why := _at_work(instance):
        raise AbortRequest(why)


# Tags of our objects

def of_main(manager):
    """Return a class of managers of tags as one for objects that are main's: so are their tags, in whatever branch.

    NetBox Branching gives each branch the table that says which object has which tags, and merges of it what the change
    log of the objects says: of ours, nothing.
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


def check_tags(tags):
    """Refuse tags that are not in main.

    Raises:
        utilities.exceptions.AbortRequest: One is not.
    """
    from extras.models import Tag
    from utilities.exceptions import AbortRequest

    in_main = Tag.objects.using(DEFAULT_DB_ALIAS).filter(pk__in=[tag.pk for tag in tags])
    known = set(in_main.values_list('pk', flat=True))
    for tag in tags:
        if tag.pk not in known:
            raise AbortRequest(_(
                'The tag {tag} exists only in a branch. Runs, tasks and schedules are in main, and can only have tags '
                'of main.'
            ).format(tag=escape(tag)))


# Branches of before our models were exempt

def forget_copies(using=DEFAULT_DB_ALIAS, **kwargs):
    """Drop the copies of our tables that branches got before our models were exempt: they hide those of main."""
    from netbox_branching.models import Branch

    if using != DEFAULT_DB_ALIAS:
        return
    schemas = [branch.schema_name for branch in Branch.objects.only('schema_id')]
    with connections[using].cursor() as cursor:
        cursor.execute(COPIES, (schemas,))
        for schema, table in cursor.fetchall():
            logger.warning('The copy of %s in %s is dropped: what it should hold is in main', table, schema)
            cursor.execute(f'DROP TABLE IF EXISTS "{schema}"."{table}" CASCADE')
