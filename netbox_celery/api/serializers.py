"""Serializers of runs, log lines, tasks, schedules and workers.

Except for schedules, few fields are writable. The engine writes the columns of a run at any time, so a change of tags
or custom fields saves only these columns.
"""
from django.contrib.contenttypes.models import ContentType
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.utils.urls import remove_query_param, replace_query_param

from netbox.api.fields import ChoiceField, ContentTypeField
from netbox.api.gfk_fields import GFKSerializerField
from netbox.api.serializers import BaseModelSerializer, NetBoxModelSerializer, ValidatedModelSerializer
from users.api.serializers_.users import UserSerializer

from ..choices import (
    LogLevelChoices,
    ResultReasonChoices,
    ResultStatusChoices,
    ScheduleKindChoices,
    ScheduleMissedChoices,
    ScheduleOriginChoices,
    ScheduleOverlapChoices,
)
from ..engine.store import branches
from ..models import CeleryLogEntry, CeleryResult, CelerySchedule, CeleryTask, CeleryWorker
from ..models.redaction import shown
from ..reading.viewing import BESIDE, load_beside, reader_of_context
from ..services import schedules as scheduling
from .parameters import check_argument

__all__ = (
    'CeleryLogEntrySerializer',
    'CeleryResultSerializer',
    'CeleryScheduleSerializer',
    'CeleryTaskSerializer',
    'CeleryWorkerSerializer',
    'LogLineSerializer',
    'LogPageSerializer',
    'SchedulePreviewSerializer',
)


class PayloadField(serializers.JSONField):
    """JSON without Kombu's type markers."""

    def to_internal_value(self, data):
        check_argument(data)
        return super().to_internal_value(data)

    def to_representation(self, value):
        return shown(value)


class PlainJSONField(PayloadField):

    def __init__(self, **kwargs):
        super().__init__(read_only=True, **kwargs)


class BesideSerializer(serializers.ModelSerializer):
    """Replaces related objects that the reader may not view with their ID.

    The NetBox object becomes `null`, as its ID is a field of its own.
    """

    def to_representation(self, instance):
        data = super().to_representation(instance)
        reader = reader_of_context(self.context)
        if reader is None:
            return data
        self._load_page(reader, instance)
        for name in BESIDE.intersection(data) - {'error'}:
            if data.get(name) is not None and not reader.may_view(beside := getattr(instance, name)):
                data[name] = None if name == 'object' else {'id': beside.pk}
        return data

    def _load_page(self, reader, instance):
        page = getattr(self.parent, 'instance', None) if isinstance(self.parent, serializers.ListSerializer) else None
        if not isinstance(page, list):
            load_beside(reader, [instance], self.fields)
        elif self.context.get('celery_page') is not page:
            self.context['celery_page'] = page
            load_beside(reader, page, self.fields)


class BranchSerializer(serializers.Serializer):
    """A branch of NetBox Branching. Of a deleted branch, only the schema ID is known."""
    id = serializers.IntegerField(allow_null=True)
    display = serializers.CharField()
    name = serializers.CharField(allow_null=True)
    schema_id = serializers.CharField()
    status = serializers.CharField(allow_null=True)


@extend_schema_field(BranchSerializer(allow_null=True))
class BranchField(serializers.Field):
    """The branch of a row; `null` is main."""

    def __init__(self, **kwargs):
        super().__init__(read_only=True, **kwargs)

    def to_representation(self, value):
        if not value:
            return None
        known = self.context.setdefault('celery_branches', {})
        if value not in known:
            known[value] = branches.shown([value]).get(value, {})
        branch = known[value]
        return {
            'id': branch.get('id'), 'display': branch.get('name', value), 'name': branch.get('name'),
            'schema_id': value, 'status': branch.get('status'),
        }


class NarrowSaveSerializer(ValidatedModelSerializer):
    """Saves only the columns that a request changes: the engine may have written the others meanwhile."""

    def update(self, instance, validated_data):
        columns = {field.name for field in instance._meta.concrete_fields} & set(validated_data)
        for name in columns:
            setattr(instance, name, validated_data[name])
        instance.save(update_fields=[*columns, 'last_updated'])
        return instance


class CeleryTaskSerializer(NetBoxModelSerializer, NarrowSaveSerializer):

    class Meta:
        model = CeleryTask
        fields = [
            'id', 'url', 'display_url', 'display', 'name', 'plugin', 'description', 'documentation', 'enabled',
            'present', 'last_seen', 'defaults', 'parameters', 'tags', 'custom_fields', 'created', 'last_updated',
        ]
        read_only_fields = [
            'name', 'plugin', 'description', 'documentation', 'present', 'last_seen', 'defaults', 'parameters',
        ]
        brief_fields = ('id', 'url', 'display', 'name', 'description', 'enabled', 'present')


class CeleryScheduleSerializer(BesideSerializer, NetBoxModelSerializer):
    kind = ChoiceField(choices=ScheduleKindChoices, required=False)
    origin = ChoiceField(choices=ScheduleOriginChoices, read_only=True)
    missed = ChoiceField(choices=ScheduleMissedChoices, required=False)
    overlap = ChoiceField(choices=ScheduleOverlapChoices, required=False)
    owner = UserSerializer(nested=True, read_only=True)
    task = CeleryTaskSerializer(nested=True)
    args = PayloadField(required=False, help_text='Positional arguments, an array')
    kwargs = PayloadField(required=False, help_text='Keyword arguments, an object')
    options = PlainJSONField()
    object_type = ContentTypeField(queryset=ContentType.objects.all(), required=False, allow_null=True)
    object = GFKSerializerField(read_only=True, allow_missing_serializer=True)
    in_words = serializers.CharField(read_only=True, help_text='Timing in words')
    branch = BranchField()

    def to_representation(self, instance):
        data = super().to_representation(instance)
        # Redacted as the settings ask: `argsrepr` and `kwargsrepr` replace secret values
        return data | {
            name: getattr(instance, f'display_{name}') for name in ('args', 'kwargs')
            if name in data and instance.hides(name)
        }

    class Meta:
        model = CelerySchedule
        fields = [
            'id', 'url', 'display_url', 'display', 'name', 'description', 'enabled', 'origin', 'present', 'owner',
            'kind', 'in_words', 'crontab', 'timezone', 'interval', 'at', 'start', 'end', 'task', 'args', 'kwargs',
            'queue', 'priority', 'expires', 'options', 'branch', 'object_type', 'object_id', 'object', 'missed',
            'missed_max', 'overlap', 'last_run', 'next_run', 'stopped', 'tags', 'custom_fields', 'created',
            'last_updated',
        ]
        read_only_fields = ['present', 'last_run', 'next_run', 'stopped']
        brief_fields = ('id', 'url', 'display', 'name', 'description', 'enabled', 'next_run')

    def validate(self, data):
        if self.nested:
            return data
        user, before = self.context['request'].user, self.instance
        # Before any error reveals the task's parameters
        scheduling.check_may_run(
            user, data['task'].pk if 'task' in data else None, before.task_id if before else None
        )
        scheduling.check_object(user, before, *(
            data.get(name, getattr(before, name, None)) for name in ('object_type', 'object_id')
        ))
        data = super().validate(data)
        schedule = before
        if schedule is None:
            columns = {field.name for field in CelerySchedule._meta.concrete_fields}
            schedule = CelerySchedule(**{name: value for name, value in data.items() if name in columns})
        scheduling.authorize(user, schedule)
        return {**data, 'owner': schedule.owner}


class SchedulePreviewSerializer(serializers.Serializer):
    """The next times at which a schedule is due."""
    in_words = serializers.CharField()
    next_runs = serializers.ListField(
        child=serializers.DateTimeField(),
        help_text='The next times at which the schedule is due, if it is enabled.'
    )


class CeleryResultSerializer(BesideSerializer, NetBoxModelSerializer, NarrowSaveSerializer):
    status = ChoiceField(choices=ResultStatusChoices, read_only=True)
    reason = ChoiceField(choices=ResultReasonChoices, read_only=True)
    user = UserSerializer(nested=True, read_only=True)
    schedule = CeleryScheduleSerializer(nested=True, read_only=True)
    branch = BranchField()
    object_type = ContentTypeField(read_only=True)
    # The model of the related object may have no serializer
    object = GFKSerializerField(read_only=True, allow_missing_serializer=True)
    percentage = serializers.FloatField(read_only=True, allow_null=True)
    duration = serializers.DurationField(read_only=True, allow_null=True)
    # Redacted as the caller asked: `argsrepr` and `kwargsrepr` replace secret values
    args = PlainJSONField(source='display_args')
    kwargs = PlainJSONField(source='display_kwargs')
    options = PlainJSONField(source='display_options')
    data = PlainJSONField()
    result = PlainJSONField()
    attempts = PlainJSONField()

    class Meta:
        model = CeleryResult
        fields = [
            'id', 'url', 'display_url', 'display', 'task_id', 'celery_name', 'name', 'status', 'reason', 'user',
            'schedule', 'branch', 'object_type', 'object_id', 'object', 'queue', 'worker', 'value', 'value_max',
            'percentage', 'step', 'attempt', 'scheduled', 'expires', 'sent', 'started', 'completed', 'cancelled',
            'duration', 'error', 'args', 'kwargs', 'options', 'data', 'result', 'traceback', 'attempts',
            'concurrency_key', 'stale_after', 'request_id', 'parent_id', 'root_id', 'group_id', 'tags', 'custom_fields',
            'created', 'last_updated',
        ]
        read_only_fields = [
            'task_id', 'celery_name', 'name', 'object_id', 'queue', 'worker', 'value', 'value_max', 'step', 'attempt',
            'scheduled', 'expires', 'sent', 'started', 'completed', 'cancelled', 'error', 'traceback', 'attempts',
            'concurrency_key', 'stale_after', 'request_id', 'parent_id', 'root_id', 'group_id',
        ]
        brief_fields = ('id', 'url', 'display', 'task_id', 'celery_name', 'name', 'status')

    def to_representation(self, instance):
        data = super().to_representation(instance)
        if (reader := reader_of_context(self.context)) is not None:
            if 'error' in data:
                data['error'] = reader.error_of(instance)
            if 'attempts' in data:
                data['attempts'] = reader.attempts_of(instance)
        return data


class CeleryLogEntrySerializer(BesideSerializer, BaseModelSerializer):
    # There is no page for a single line
    display_url = None
    result = CeleryResultSerializer(nested=True, read_only=True)
    level = ChoiceField(choices=LogLevelChoices, read_only=True)
    object_type = ContentTypeField(read_only=True)
    object = GFKSerializerField(read_only=True, allow_missing_serializer=True)

    class Meta:
        model = CeleryLogEntry
        fields = [
            'id', 'url', 'display', 'result', 'attempt', 'level', 'grouping', 'message', 'object_type', 'object_id',
            'object', 'created',
        ]
        brief_fields = ('id', 'url', 'display', 'level', 'message', 'created')


class LogLineSerializer(BesideSerializer):
    """A log line for clients that follow one run: without the run."""
    level = ChoiceField(choices=LogLevelChoices, read_only=True)
    object_type = ContentTypeField(read_only=True)
    object = GFKSerializerField(read_only=True, allow_missing_serializer=True)

    class Meta:
        model = CeleryLogEntry
        fields = [
            'id', 'created', 'attempt', 'level', 'grouping', 'message', 'object_type', 'object_id', 'object',
        ]


class LogPageSerializer(serializers.Serializer):
    """The log lines since the last poll, and the state of the run before they were read."""
    count = serializers.SerializerMethodField(
        help_text='Number of lines in this response.'
    )
    next = serializers.SerializerMethodField(
        help_text='URL of the lines that exist now but did not fit into this response.'
    )
    next_after = serializers.IntegerField(
        help_text='Value of `after` for the next poll.'
    )
    finished = serializers.BooleanField(
        help_text='The run has finished and this is the end of its log: stop polling.'
    )
    status = ChoiceField(choices=ResultStatusChoices, source='result.status')
    reason = ChoiceField(choices=ResultReasonChoices, source='result.reason')
    attempt = serializers.IntegerField(source='result.attempt')
    value = serializers.IntegerField(source='result.value', allow_null=True)
    value_max = serializers.IntegerField(source='result.value_max', allow_null=True)
    percentage = serializers.FloatField(source='result.percentage', allow_null=True)
    step = serializers.CharField(source='result.step')
    results = LogLineSerializer(source='entries', many=True)

    def to_representation(self, page):
        if (reader := reader_of_context(self.context)) is not None:
            load_beside(reader, page.entries)
        return super().to_representation(page)

    def get_count(self, page) -> int:
        return len(page.entries)

    @extend_schema_field(serializers.URLField(allow_null=True))
    def get_next(self, page):
        if not page.has_more:
            return None
        url = replace_query_param(self.context['request'].build_absolute_uri(), 'after', page.next_after)
        return remove_query_param(url, 'offset')


class AutoscaleSerializer(serializers.Serializer):
    """Minimum and maximum size of a worker's pool."""
    min = serializers.IntegerField()
    max = serializers.IntegerField()


class NotLoadedSerializer(serializers.Serializer):
    """A module that could not be imported: its tasks are not available there."""
    plugin = serializers.CharField()
    module = serializers.CharField()
    error = serializers.CharField()
    place = serializers.CharField()


class CeleryWorkerSerializer(BaseModelSerializer):
    is_alive = serializers.BooleanField(read_only=True)
    autoscale = AutoscaleSerializer(read_only=True, allow_null=True)
    versions = serializers.DictField(source='package_versions', read_only=True)
    not_loaded = NotLoadedSerializer(many=True, read_only=True)

    class Meta:
        model = CeleryWorker
        fields = [
            'id', 'url', 'display_url', 'display', 'key', 'name', 'host', 'pid', 'pool', 'concurrency', 'autoscale',
            'queues', 'versions', 'not_loaded', 'started', 'heartbeat', 'stopped', 'is_alive',
        ]
        brief_fields = ('id', 'url', 'display', 'name', 'is_alive')
