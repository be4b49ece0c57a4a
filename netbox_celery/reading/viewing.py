"""Decides who may view the objects related to a row: its user, schedule, task, NetBox object, and quoted run.

A reader may view a run but not the objects related to it. They then see that there is such an object, but not its name.
Pages, lists, exports and REST ask a `Reader`, which checks a whole page at a time. (GraphQL restricts by itself.)
"""
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from django.db.models import Exists, Func, Model, OuterRef, Q, QuerySet, TextField, UUIDField, Value
from django.db.models.functions import Cast
from django.utils.translation import gettext as _

from users.models import User
from utilities.permissions import get_permission_for_model
from utilities.querysets import RestrictedQuerySet

from ..choices import ResultReasonChoices
from ..engine.store.payload import plain
from ..models import CeleryResult, CelerySchedule, CeleryTask
from ..models.redaction import QUOTED_RUN

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


def hidden_text() -> str:
    """Return what a page shows instead of the name of an object that the reader may not view."""
    return _('(hidden)')


def no_tasks_text() -> str:
    """Return why the catalogue has no tasks, or an empty string if it has some."""
    if CeleryTask.objects.exists():
        return ''
    return _(
        'No tasks yet. Start a worker (celery -A netbox_celery worker): it registers the tasks of all plugins.'
    )


def viewable(model: type[Model], user: User | None, action: str = 'view') -> QuerySet:
    """Return a queryset of the objects of a model that a user may view, also for models without NetBox's manager."""
    manager = model._default_manager
    return (manager if hasattr(manager, 'restrict') else RestrictedQuerySet(model)).restrict(user, action)


def is_unconstrained(user: User | None, model: type[Model], action: str = 'view') -> bool:
    """Whether a user has the permission for all objects of a model, without constraints."""
    return not viewable(model, user, action).query.has_filters()


def in_sight(queryset: QuerySet, user: User) -> QuerySet:
    """Restrict what a user changes or deletes to what they may view, if they may view any object of the model.

    A user without the view permission needs only the permission to change or delete, as everywhere in NetBox. A user
    who may view some objects may change and delete only those.
    """
    permission = get_permission_for_model(queryset.model, 'view')
    return queryset.restrict(user, 'view') if user.has_perm(permission) else queryset


class Reader:
    """Tells which objects a user may view. Answers are cached: create one reader per response.

    Args:
        user: The user, or `None` for no user, who may view nothing.
    """

    def __init__(self, user: User | None):
        self.user = user
        #: By model: whether all (`True`) or no (`False`) objects may be viewed; `None` if it depends on the object.
        self._models: dict[type[Model], bool | None] = {}
        #: By model: the primary keys that were looked up, and which of them may be viewed.
        self._known: dict[type[Model], set[Any]] = {}
        self._viewable: dict[type[Model], set[Any]] = {}
        self._known_runs: set[str] = set()
        self._viewable_runs: set[str] = set()

    def load(self, model: type[Model], pks: Iterable[Any]) -> None:
        """Look up objects in at most one query."""
        known = self._known.setdefault(model, set())
        if self._sees_all_or_none(model) is None and (new := {pk for pk in pks if pk is not None} - known):
            known |= new
            found = viewable(model, self.user).filter(pk__in=new).values_list('pk', flat=True)
            self._viewable.setdefault(model, set()).update(found)

    def may_view(self, obj: Model) -> bool:
        """Whether the user may view an object. Users may always view themselves."""
        return self.may_view_key(obj._meta.model, obj.pk)

    def may_view_key(self, model: type[Model], pk: Any) -> bool:
        """Whether the user may view the object of a model that has this primary key."""
        if self.user is not None and model._meta.concrete_model is User and pk == self.user.pk:
            return True
        answer = self._sees_all_or_none(model)
        if answer is None:
            self.load(model, [pk])
            answer = pk in self._viewable.get(model, ())
        return answer

    def owner_text(self, schedule: CelerySchedule) -> str:
        """Return the owner of a schedule as text, `(hidden)` if the user may not view that user."""
        if schedule.owner is None:
            return _('no user')
        return str(schedule.owner) if self.may_view(schedule.owner) else hidden_text()

    def load_runs(self, task_ids: Iterable[UUID | str]) -> None:
        """Look up runs that other runs quote in at most one query."""
        if self._sees_all_or_none(CeleryResult) is None and (new := set(map(str, task_ids)) - self._known_runs):
            self._known_runs |= new
            found = viewable(CeleryResult, self.user).filter(task_id__in=new).values_list('task_id', flat=True)
            self._viewable_runs.update(map(str, found))

    def may_view_run(self, task_id: UUID | str) -> bool:
        """Whether the user may view the run with this ID."""
        answer = self._sees_all_or_none(CeleryResult)
        if answer is None:
            self.load_runs([task_id])
            answer = str(task_id) in self._viewable_runs
        return answer

    def error_of(self, result: CeleryResult) -> str:
        """Return the error of a run, without the quote of another run if the user may not view that run."""
        culprit = result.quoted_id
        return result.error if culprit is None or self.may_view_run(culprit) else result.error_without_quote

    def attempts_of(self, result: CeleryResult) -> list[dict[str, Any]]:
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


#: Names of what can be related to a row.
BESIDE = frozenset(('user', 'schedule', 'owner', 'task', 'object', 'error'))


def load_beside(reader: Reader, rows: Sequence[Model], names: Iterable[str] = BESIDE) -> None:
    """Look up what is related to rows: at most one query per model, and none if the user may view all its objects.

    Args:
        reader: The `Reader`.
        rows: A list of rows of one of our models.
        names: Related names that are shown; names that the model does not have are ignored.
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
    wanted: dict[int, set[int]] = {}
    for row in rows:
        if row.object_type_id and row.object_id:
            wanted.setdefault(row.object_type_id, set()).add(row.object_id)
    about = type(rows[0])._meta.get_field('object')
    for type_id, pks in wanted.items():
        model = about.get_content_type(id=type_id, using=rows[0]._state.db).model_class()
        if model is not None:
            reader.load(model, pks)


def error_is_readable(user: User | None, prefix: str = '') -> Q:
    """Return the condition under which a user may read the errors of runs as they are stored (see `Reader.error_of`).

    Args:
        user: The user, or `None` for no restriction, as in code.
        prefix: Lookup path from the filtered rows to the runs, such as `result__`.
    """
    if user is None or is_unconstrained(user, CeleryResult):
        return Q()
    # The pattern has a group for each way to quote a run; only one of them matches
    quoted = Func(
        Func(OuterRef(f'{prefix}error'), Value(QUOTED_RUN.pattern), function='REGEXP_MATCH', output_field=TextField()),
        Value(''), function='ARRAY_TO_STRING', output_field=TextField()
    )
    named = viewable(CeleryResult, user).filter(task_id=Cast(quoted, UUIDField()))
    return (
        ~Q(**{f'{prefix}reason': ResultReasonChoices.REASON_UPSTREAM_FAILED}) |
        ~Q(**{f'{prefix}error__regex': QUOTED_RUN.pattern}) | Q(Exists(named))
    )


def is_viewable(name: str, model: type[Model], user: User, prefix: str = '') -> Q:
    """Return the condition that a user may view what is related to rows, so that filters do not reveal names."""
    own = Q(**{f'{prefix}{name}': user.pk}) if model is User else Q()
    return Q(**{f'{prefix}{name}__in': viewable(model, user)}) | own


def order_by_visible(model: type[Model], user: User | None, name: str) -> str:
    """Return the column to order by when a user asks for another one, since an order reveals names.

    If the user may not view all related objects, rows are ordered by the primary key of the related object; instead of
    the error, by their own primary key.

    Args:
        model: One of our models.
        user: The reader, or `None`.
        name: The requested column, optionally with a leading `-`.
    """
    column = name.removeprefix('-')
    if column not in BESIDE:
        return name
    field = model._meta.get_field(column)
    if is_unconstrained(user, CeleryResult if column == 'error' else field.related_model):
        return name
    return name.replace(column, 'pk' if column == 'error' else field.attname)


def nameable(model: type[Model], user: User) -> QuerySet:
    """Return a queryset of the objects of a model whose names a user may see: those they may view, and themselves."""
    if is_unconstrained(user, model) and not viewable(model, user).query.is_empty():
        return model.objects.all()
    own = Q(pk=user.pk) if model is User else Q(pk__in=())
    return model.objects.filter(Q(pk__in=viewable(model, user)) | own)


def reader_of_context(context: dict[str, Any]) -> Reader | None:
    """Return the reader for a serializer's output, or `None` if it is not for a user, as with webhooks."""
    request = context.get('request')
    if request is None:
        return None
    if 'celery_reader' not in context:
        context['celery_reader'] = Reader(request.user)
    return context['celery_reader']
