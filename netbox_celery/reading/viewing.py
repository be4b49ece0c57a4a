"""Who may view what stands beside a row: its user, schedule, task and NetBox object, and the run that it names.

A run that a reader may view can concern objects that they may not. Of those they learn that there is one, and no name.
Pages, lists, exports and REST ask a `Reader`, which looks up whole pages at once. (GraphQL restricts by itself.)
"""
from django.db.models import Exists, Func, OuterRef, Q, TextField, UUIDField, Value
from django.db.models.functions import Cast
from django.utils.translation import gettext as _

from users.models import User
from utilities.permissions import get_permission_for_model
from utilities.querysets import RestrictedQuerySet

from ..choices import ResultReasonChoices
from ..engine.store.payload import plain
from ..engine.store.redaction import QUOTED_RUN
from ..models import CeleryResult, CeleryTask

__all__ = (
    'BESIDE',
    'Reader',
    'error_is_readable',
    'hidden_text',
    'in_sight',
    'is_unconstrained',
    'is_viewable',
    'load_beside',
    'nameable',
    'no_tasks_text',
    'order_by_visible',
    'reader_of_context',
    'viewable',
)


def hidden_text():
    """Return what a page shows in the place of the name of an object that its reader may not view."""
    return _('(hidden)')


def no_tasks_text():
    """Return why the catalogue of tasks is empty, for those who look for tasks; nothing if it is not."""
    if CeleryTask.objects.exists():
        return ''
    return _(
        'No tasks yet. Start a worker (celery -A netbox_celery worker): it registers the tasks of all plugins.'
    )


def viewable(model, user, action='view'):
    """Return the objects of a model that a user may view, a queryset; also of a model without NetBox's manager."""
    manager = model._default_manager
    return (manager if hasattr(manager, 'restrict') else RestrictedQuerySet(model)).restrict(user, action)


def is_unconstrained(user, model, action='view'):
    """Whether a user may do something to all objects of a model, whatever they are."""
    return not viewable(model, user, action).query.has_filters()


def in_sight(queryset, user):
    """Restrict what somebody changes or deletes to what they may view, if they may view any of its kind.

    As everywhere in NetBox, the permission to change or to delete is enough for who may view nothing of that kind. Who
    may view some, and so is kept from others, is kept from changing and deleting these, too.
    """
    permission = get_permission_for_model(queryset.model, 'view')
    return queryset.restrict(user, 'view') if user.has_perm(permission) else queryset


class Reader:
    """Says which objects a user may view. Each answer is remembered: a reader lives as long as a page.

    Args:
        user: The user, or `None` for who is nobody: they may view nothing.
    """

    def __init__(self, user):
        self.user = user
        #: By model: whether all objects (`True`) or none (`False`) may be viewed, or `None` if it depends on them.
        self._models = {}
        #: By model: the primary keys that were looked up, and those of them that may be viewed.
        self._known, self._viewable = {}, {}
        self._known_runs, self._viewable_runs = set(), set()

    def load(self, model, pks):
        """Look objects up together, in one query at most."""
        known = self._known.setdefault(model, set())
        if self._sees_all_or_none(model) is None and (new := {pk for pk in pks if pk is not None} - known):
            known |= new
            found = viewable(model, self.user).filter(pk__in=new).values_list('pk', flat=True)
            self._viewable.setdefault(model, set()).update(found)

    def may_view(self, obj):
        """Whether the user may view an object. Everybody may know their own name."""
        return self.may_view_key(obj._meta.model, obj.pk)

    def may_view_key(self, model, pk):
        """Whether the user may view the object of a model that has this primary key."""
        if self.user is not None and model._meta.concrete_model is User and pk == self.user.pk:
            return True
        answer = self._sees_all_or_none(model)
        if answer is None:
            self.load(model, [pk])
            answer = pk in self._viewable.get(model, ())
        return answer

    def load_runs(self, task_ids):
        """Look runs up together that other runs name."""
        if self._sees_all_or_none(CeleryResult) is None and (new := set(map(str, task_ids)) - self._known_runs):
            self._known_runs |= new
            found = viewable(CeleryResult, self.user).filter(task_id__in=new).values_list('task_id', flat=True)
            self._viewable_runs.update(map(str, found))

    def may_view_run(self, task_id):
        """Whether the user may view the run with this ID."""
        answer = self._sees_all_or_none(CeleryResult)
        if answer is None:
            self.load_runs([task_id])
            answer = str(task_id) in self._viewable_runs
        return answer

    def error_of(self, result):
        """Return the error of a run as the user may read it: what it copies from another run, that must be visible."""
        culprit = result.quoted_id
        return result.error if culprit is None or self.may_view_run(culprit) else result.error_without_quote

    def attempts_of(self, result):
        """Return the attempts of a run as the user may read them (see `error_of`)."""
        culprit = result.quoted_id
        return plain(
            result.attempts if culprit is None or self.may_view_run(culprit) else result.attempts_without_quote
        )

    def _sees_all_or_none(self, model):
        if model not in self._models:
            query = viewable(model, self.user).query
            self._models[model] = False if query.is_empty() else None if query.has_filters() else True
        return self._models[model]


#: What can stand beside a row.
BESIDE = frozenset(('user', 'schedule', 'owner', 'task', 'object', 'error'))


def load_beside(reader, rows, names=BESIDE):
    """Look up together what rows show beside them: a query for each model at most, none if the user may view all of it.

    Args:
        reader: The `Reader`.
        rows: Rows of one of our models, a list.
        names: What they show; a name that their model has not counts for nothing.
    """
    if not rows:
        return
    model = type(rows[0])
    fields = {field.name: field for field in model._meta.concrete_fields}
    for name in BESIDE.intersection(names) - {'object', 'error'}:
        if name in fields:
            reader.load(fields[name].related_model, {getattr(row, fields[name].attname) for row in rows})
    if 'object' in names and 'object_id' in fields:
        _load_objects(reader, rows)
    if 'error' in names and model is CeleryResult:
        reader.load_runs(filter(None, (row.quoted_id for row in rows)))


def _load_objects(reader, rows):
    wanted = {}
    for row in rows:
        if row.object_type_id and row.object_id:
            wanted.setdefault(row.object_type_id, set()).add(row.object_id)
    about = type(rows[0])._meta.get_field('object')
    for type_id, pks in wanted.items():
        model = about.get_content_type(id=type_id, using=rows[0]._state.db).model_class()
        if model is not None:
            reader.load(model, pks)


def error_is_readable(user, prefix=''):
    """Return the condition under which a user may read the errors of runs as they are stored (see `Reader.error_of`).

    Args:
        user: The user, or `None` where nobody in particular asks, as in code.
        prefix: How the rows that are filtered lead to the runs, such as `result__`.
    """
    if user is None or is_unconstrained(user, CeleryResult):
        return Q()
    # The pattern has a group for each way to name a run, of which one is filled
    quoted = Func(
        Func(OuterRef(f'{prefix}error'), Value(QUOTED_RUN.pattern), function='REGEXP_MATCH', output_field=TextField()),
        Value(''), function='ARRAY_TO_STRING', output_field=TextField()
    )
    named = viewable(CeleryResult, user).filter(task_id=Cast(quoted, UUIDField()))
    return (
        ~Q(**{f'{prefix}reason': ResultReasonChoices.REASON_UPSTREAM_FAILED}) |
        ~Q(**{f'{prefix}error__regex': QUOTED_RUN.pattern}) | Q(Exists(named))
    )


def is_viewable(name, model, user, prefix=''):
    """Return the condition that what stands beside rows may be viewed by a user: names are not to be guessed."""
    own = Q(**{f'{prefix}{name}': user.pk}) if model is User else Q()
    return Q(**{f'{prefix}{name}__in': viewable(model, user)}) | own


def order_by_visible(model, user, name):
    """Return by what rows are ordered that are to be ordered by a column: an order tells of names.

    By the primary key of what stands beside them, and by their own in the place of their error, if the user may not
    view all that these name.

    Args:
        model: One of our models.
        user: Who reads, or `None`.
        name: The column, perhaps with a `-` before it.
    """
    column = name.removeprefix('-')
    if column not in BESIDE:
        return name
    field = model._meta.get_field(column)
    if is_unconstrained(user, CeleryResult if column == 'error' else field.related_model):
        return name
    return name.replace(column, 'pk' if column == 'error' else field.attname)


def nameable(model, user):
    """Return the objects of a model that may be named to a user, a queryset: those that they may view, and they."""
    if is_unconstrained(user, model) and not viewable(model, user).query.is_empty():
        return model.objects.all()
    own = Q(pk=user.pk) if model is User else Q(pk__in=())
    return model.objects.filter(Q(pk__in=viewable(model, user)) | own)


def reader_of_context(context):
    """Return the reader of what a serializer answers, or `None` if it is not for a user, as with webhooks."""
    request = context.get('request')
    if request is None:
        return None
    if 'celery_reader' not in context:
        context['celery_reader'] = Reader(request.user)
    return context['celery_reader']
