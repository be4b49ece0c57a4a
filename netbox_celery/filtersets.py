"""The filters of runs, log entries, tasks, schedules and workers, for lists, REST and GraphQL."""
from typing import TYPE_CHECKING
from uuid import UUID

import django_filters
from django import forms
from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.db import DataError, connection, transaction
from django.db.models import Q
from django.utils.translation import gettext_lazy as _
from django_filters.constants import EMPTY_VALUES
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field

from netbox.filtersets import BaseFilterSet, NetBoxModelFilterSet
from users.models import User
from utilities.filters import (
    InvalidValueFilterMixin,
    MultiValueCharFilter,
    MultiValueContentTypeFilter,
    MultiValueNumberFilter,
)
from utilities.filtersets import register_filterset

from .choices import (
    ResultReasonChoices,
    ResultStatusChoices,
    ScheduleKindChoices,
    ScheduleMissedChoices,
    ScheduleOriginChoices,
    ScheduleOverlapChoices,
)
from .engine.store import branches
from .models import CeleryLogEntry, CeleryResult, CelerySchedule, CeleryTask, CeleryWorker
from .reading.viewing import error_is_readable, nameable

__all__ = (
    'CeleryLogEntryFilterSet',
    'CeleryResultFilterSet',
    'CeleryScheduleFilterSet',
    'CeleryTaskFilterSet',
    'CeleryWorkerFilterSet',
)


#: The value of a branch filter that means main.
NULL = settings.FILTERS_NULL_CHOICE_VALUE


@extend_schema_field(OpenApiTypes.UUID)
class MultiValueUUIDFilter(InvalidValueFilterMixin, MultiValueCharFilter):
    """Matches any of several UUIDs, so that a client can poll a batch of runs with one request."""

    def filter(self, qs, value):
        return super().filter(qs, [item for item in value or () if item])  # ignore blanks


class BranchFilter(MultiValueCharFilter):
    """Matches rows of any of several branches, by name or schema ID; `null` means main."""

    def __init__(self, **kwargs):
        super().__init__(method=self._filter_branch, label=_('Branch (name or schema ID)'), **kwargs)

    @staticmethod
    def _filter_branch(queryset, name, value):
        if not (wanted := [item for item in value or () if item]):
            return queryset
        found = branches.named([item for item in wanted if item != NULL])
        return queryset.filter(branch__in=found + [''] * (NULL in wanted))


class StatusFilter(django_filters.MultipleChoiceFilter):
    """Matches runs in any of several statuses. Unfinished runs have an index, however long the history."""

    def filter(self, qs, value):
        qs = super().filter(qs, value)
        is_plain = self.lookup_expr == 'exact' and not self.exclude
        if value and is_plain and set(value) <= set(ResultStatusChoices.UNFINISHED):
            # True for all of these runs, and the condition of the index
            return qs.filter(completed__isnull=True)
        return qs


def before(field_name: str) -> django_filters.DateTimeFilter:
    return django_filters.DateTimeFilter(field_name=field_name, lookup_expr='lte')


def after(field_name: str) -> django_filters.DateTimeFilter:
    return django_filters.DateTimeFilter(field_name=field_name, lookup_expr='gte')


def named(model):
    """Return a function from a request to the objects that filters accept by name: only those the user may view."""
    def queryset(request):
        user = getattr(request, 'user', None)
        return model.objects.all() if user is None else nameable(model, user)
    return queryset


def check_pattern(pattern: str) -> None:
    """Reject an invalid regular expression, which would make PostgreSQL abort the query of a list."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT '' ~ %s", [pattern])
    except DataError as exc:
        raise forms.ValidationError(_('Invalid regular expression: {error}').format(error=exc)) from exc


class StrictForm(forms.Form):
    """Accepts only true or false for a boolean, and only valid regular expressions.

    Django's field would read any other value of a boolean as unknown, which filters nothing.
    """

    def clean(self):
        super().clean()
        for name, value in list(self.cleaned_data.items()):
            if value and name.endswith(('__regex', '__iregex')):
                for pattern in value if isinstance(value, list | tuple) else [value]:
                    try:
                        check_pattern(pattern)
                    except forms.ValidationError as exc:
                        self.add_error(name, exc)
                        break
        for name, field in self.fields.items():
            entered = self.data.get(name) if isinstance(field, forms.NullBooleanField) else None
            if entered not in (None, '') and self.cleaned_data.get(name) is None:
                self.add_error(name, _('Enter true or false, not {value}.').format(value=entered))


if TYPE_CHECKING:
    from django_filters import FilterSet as MixinBase
else:
    MixinBase = object


class StrictMixin(MixinBase):
    """A filter with an invalid value finds nothing instead of everything: users may be about to delete what they find.

    (REST responds with 400.)
    """

    def get_form_class(self):
        form = super().get_form_class()
        return type(form.__name__, (StrictForm, form), {})

    def filter_queryset(self, queryset):
        return super().filter_queryset(queryset) if self.is_valid() else queryset.none()


class SingleTableMixin(MixinBase):
    """Removes `DISTINCT` from filters of the table's own columns, which match each row at most once.

    django-filter adds it to filters that accept several values, because they may need joins. With a long history,
    PostgreSQL would then read and sort all matching rows for a page of fifty.
    """

    @classmethod
    def get_filters(cls):
        filters = super().get_filters()
        for name, filter in filters.items():
            if name.partition('__')[0] not in ('tag', 'tag_id'):
                filter.distinct = False
        return filters


def parse_uuid(value: str) -> UUID | None:
    """Return the UUID in a text, or `None`."""
    try:
        return UUID(value.strip())
    except ValueError:
        return None


@register_filterset
class CeleryResultFilterSet(StrictMixin, SingleTableMixin, NetBoxModelFilterSet):
    branch = BranchFilter()
    task_id = MultiValueUUIDFilter()
    root_id = MultiValueUUIDFilter()
    parent_id = MultiValueUUIDFilter()
    group_id = MultiValueUUIDFilter()
    request_id = MultiValueUUIDFilter()
    status = StatusFilter(
        choices=ResultStatusChoices,
        null_value=None
    )
    reason = django_filters.MultipleChoiceFilter(
        choices=ResultReasonChoices,
        null_value=None
    )
    error = MultiValueCharFilter()
    user_id = django_filters.ModelMultipleChoiceFilter(
        queryset=User.objects.all(),
        label=_('User (ID)')
    )
    user = django_filters.ModelMultipleChoiceFilter(
        field_name='user__username',
        queryset=named(User),
        to_field_name='username',
        label=_('User (name)')
    )
    schedule_id = django_filters.ModelMultipleChoiceFilter(
        queryset=CelerySchedule.objects.all(),
        label=_('Schedule (ID)')
    )
    schedule = django_filters.ModelMultipleChoiceFilter(
        field_name='schedule__name',
        queryset=named(CelerySchedule),
        to_field_name='name',
        label=_('Schedule (name)')
    )
    object_type = MultiValueContentTypeFilter()
    object_type_id = django_filters.ModelMultipleChoiceFilter(
        queryset=ContentType.objects.all(),
        label=_('Object type (ID)')
    )
    created__before = before('created')
    created__after = after('created')
    scheduled__before = before('scheduled')
    scheduled__after = after('scheduled')
    started__before = before('started')
    started__after = after('started')
    completed__before = before('completed')
    completed__after = after('completed')

    class Meta:
        model = CeleryResult
        fields = (
            'id', 'celery_name', 'name', 'queue', 'worker', 'object_id', 'value', 'value_max', 'step', 'attempt',
            'scheduled', 'expires', 'sent', 'started', 'completed', 'cancelled', 'concurrency_key', 'stale_after',
        )

    def search(self, queryset, name, value):
        if not value.strip():
            return queryset
        # An ID means a single run, which does not require a search of the whole history
        if task_id := parse_uuid(value):
            return queryset.filter(task_id=task_id)
        return queryset.filter(
            Q(name__icontains=value) |
            Q(celery_name__icontains=value) |
            Q(error__icontains=value) & self._readable()
        )

    def filter_queryset(self, queryset):
        found = super().filter_queryset(queryset)
        is_by_error = any(
            self.form.cleaned_data.get(name) not in EMPTY_VALUES for name, filter in self.filters.items()
            if filter.field_name == 'error'
        ) if self.is_valid() else False
        return found.filter(self._readable()) if is_by_error else found

    def _readable(self):
        """Return the condition under which errors may be searched: users must not guess what they quote from others."""
        return error_is_readable(self.request and self.request.user)


@register_filterset
class CeleryLogEntryFilterSet(StrictMixin, SingleTableMixin, BaseFilterSet):
    q = django_filters.CharFilter(
        method='search',
        label=_('Search')
    )
    result_id = django_filters.ModelMultipleChoiceFilter(
        queryset=CeleryResult.objects.only('pk'),
        label=_('Run (ID)')
    )
    task_id = MultiValueUUIDFilter(
        field_name='result__task_id',
        label=_('Task ID of the run')
    )
    level = MultiValueNumberFilter()
    message = MultiValueCharFilter()
    object_type = MultiValueContentTypeFilter()
    object_type_id = django_filters.ModelMultipleChoiceFilter(
        queryset=ContentType.objects.all(),
        label=_('Object type (ID)')
    )
    created__before = before('created')
    created__after = after('created')

    class Meta:
        model = CeleryLogEntry
        fields = ('id', 'attempt', 'grouping', 'object_id', 'created')

    def search(self, queryset, name, value):
        if not value.strip():
            return queryset
        return queryset.filter(message__icontains=value)


@register_filterset
class CeleryTaskFilterSet(StrictMixin, NetBoxModelFilterSet):
    runnable = django_filters.BooleanFilter(
        method='filter_runnable',
        label=_('You are allowed to run it')
    )

    class Meta:
        model = CeleryTask
        fields = ('id', 'name', 'plugin', 'description', 'enabled', 'present', 'last_seen')

    def search(self, queryset, name, value):
        if not value.strip():
            return queryset
        return queryset.filter(
            Q(name__icontains=value) |
            Q(plugin__icontains=value) |
            Q(description__icontains=value)
        )

    def filter_runnable(self, queryset, name, value):
        user = getattr(self.request, 'user', None)
        if user is None:
            return queryset
        runnable = queryset.model.objects.restrict(user, 'run').values('pk')
        return queryset.filter(pk__in=runnable) if value else queryset.exclude(pk__in=runnable)


@register_filterset
class CeleryScheduleFilterSet(StrictMixin, NetBoxModelFilterSet):
    branch = BranchFilter()
    task_id = django_filters.ModelMultipleChoiceFilter(
        queryset=CeleryTask.objects.all(),
        label=_('Task (ID)')
    )
    task = django_filters.ModelMultipleChoiceFilter(
        field_name='task__name',
        queryset=named(CeleryTask),
        to_field_name='name',
        label=_('Task (name)')
    )
    owner_id = django_filters.ModelMultipleChoiceFilter(
        queryset=User.objects.all(),
        null_label=_('None'),
        label=_('Owner (ID)')
    )
    owner = django_filters.ModelMultipleChoiceFilter(
        field_name='owner__username',
        queryset=named(User),
        to_field_name='username',
        label=_('Owner (name)')
    )
    kind = django_filters.MultipleChoiceFilter(
        choices=ScheduleKindChoices,
        null_value=None
    )
    origin = django_filters.MultipleChoiceFilter(
        choices=ScheduleOriginChoices,
        null_value=None
    )
    missed = django_filters.MultipleChoiceFilter(
        choices=ScheduleMissedChoices,
        null_value=None
    )
    overlap = django_filters.MultipleChoiceFilter(
        choices=ScheduleOverlapChoices,
        null_value=None
    )
    object_type = MultiValueContentTypeFilter()
    object_type_id = django_filters.ModelMultipleChoiceFilter(
        queryset=ContentType.objects.all(),
        label=_('Object type (ID)')
    )
    next_run__before = before('next_run')
    next_run__after = after('next_run')
    last_run__before = before('last_run')
    last_run__after = after('last_run')

    class Meta:
        model = CelerySchedule
        fields = (
            'id', 'name', 'description', 'enabled', 'present', 'crontab', 'timezone', 'interval', 'at', 'start', 'end',
            'queue', 'priority', 'expires', 'object_id', 'missed_max', 'last_run', 'next_run', 'stopped',
        )

    @classmethod
    def get_filters(cls):
        filters = super().get_filters()
        # In REST, `start` is the start of a page. The lookups of the field remain
        filters.pop('start', None)
        return filters

    def search(self, queryset, name, value):
        if not value.strip():
            return queryset
        return queryset.filter(
            Q(name__icontains=value) |
            Q(description__icontains=value) |
            Q(task__name__icontains=value, task__in=named(CeleryTask)(self.request))
        )


@register_filterset
class CeleryWorkerFilterSet(StrictMixin, BaseFilterSet):
    q = django_filters.CharFilter(
        method='search',
        label=_('Search')
    )
    key = MultiValueUUIDFilter()
    running = django_filters.BooleanFilter(
        field_name='stopped',
        lookup_expr='isnull',
        label=_('Running')
    )

    class Meta:
        model = CeleryWorker
        fields = ('id', 'name', 'host', 'pid', 'pool', 'concurrency', 'started', 'heartbeat', 'stopped')

    def search(self, queryset, name, value):
        if not value.strip():
            return queryset
        return queryset.filter(
            Q(name__icontains=value) |
            Q(host__icontains=value)
        )
