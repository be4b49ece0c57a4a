"""Request data: how to run a task, and which lines of a log to return."""
import math
from collections.abc import Mapping

from django.contrib.contenttypes.models import ContentType
from django.utils.translation import gettext_lazy as _
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from netbox.api.fields import ContentTypeField
from netbox.api.serializers import NestedTagSerializer

from ..celery import app
from ..engine.catalogue.checking import InvalidArguments, check_number
from ..engine.catalogue.queues import check_choice
from ..engine.exceptions import QueueRefused
from ..engine.store.payload import DEEPEST, to_jsonb
from ..models.fields import validate_time
from ..reading.log import DEFAULT_LIMIT, MAX_LIMIT, LogFilter

__all__ = (
    'ArgumentField',
    'LogQuerySerializer',
    'TaskRunSerializer',
    'check_argument',
)

MAX_ID = 2 ** 63 - 1
#: Maximum value of a log level's column.
MAX_LEVEL = 2 ** 15 - 1
#: Maximum number of unknown options that an error response names.
MAX_NAMED = 100
#: Maximum number of seconds, as for the `expires` of a schedule: 68 years.
MAX_SECONDS = 2 ** 31 - 1


class SecondsField(serializers.FloatField):
    """A finite number of seconds: Python also reads `nan` and `inf`, which cannot be added to a time."""

    def __init__(self, **kwargs):
        super().__init__(max_value=MAX_SECONDS, **kwargs)

    def to_internal_value(self, data):
        value = super().to_internal_value(data)
        if not math.isfinite(value):
            self.fail('invalid')
        return value


@extend_schema_field({'oneOf': [{'type': 'number', 'minimum': 0}, {'type': 'string', 'format': 'date-time'}]})
class ExpiresField(serializers.DateTimeField):
    """When to discard a run that has not started: a time or a number of seconds from now, as in Celery."""

    def to_internal_value(self, value):
        if isinstance(value, int | float) and not isinstance(value, bool):
            if value <= 0:
                raise serializers.ValidationError(_('Must be greater than 0.'))
            return SecondsField().run_validation(value)
        value = super().to_internal_value(value)
        validate_time(value)
        return value


class ArgumentField(serializers.JSONField):
    """An argument. A value that cannot be sent, or is nested too deeply, is refused before any other processing."""

    def to_internal_value(self, data):
        check_argument(data, DEEPEST - 1)
        return super().to_internal_value(data)


def check_argument(data, deepest=DEEPEST):
    """Refuse request data that cannot be an argument."""
    try:
        to_jsonb(data, deepest)
    except (TypeError, ValueError) as exc:
        raise serializers.ValidationError(_('The value cannot be sent: {error}').format(error=exc)) from exc


class TaskRunSerializer(serializers.Serializer):
    """Arguments of a task and options of the run. All are optional."""
    #: Options with another name in `CeleryResult.enqueue`.
    RENAMED = {'name': 'netbox_name', 'tags': 'netbox_tags', 'eta': 'schedule_at'}
    #: Only one of these may be given.
    START_TIMES = ('schedule_at', 'eta', 'countdown')

    args = serializers.ListField(
        child=ArgumentField(allow_null=True),
        default=list,
        help_text=_('Positional arguments')
    )
    kwargs = serializers.DictField(
        child=ArgumentField(allow_null=True),
        default=dict,
        help_text=_('Keyword arguments')
    )
    name = serializers.CharField(
        max_length=255,
        required=False,
        help_text=_('Display name; defaults to the task name')
    )
    queue = serializers.CharField(
        max_length=255,
        required=False
    )
    priority = serializers.IntegerField(
        min_value=0,
        max_value=255,
        required=False,
        help_text=_('0 is highest on Redis, lowest on RabbitMQ')
    )
    schedule_at = serializers.DateTimeField(
        validators=(validate_time,),
        required=False,
        help_text=_('Earliest start of the run; defaults to now')
    )
    eta = serializers.DateTimeField(
        validators=(validate_time,),
        required=False,
        help_text=_("Celery's name for `schedule_at`")
    )
    countdown = SecondsField(
        min_value=0,
        required=False,
        help_text=_('Earliest start of the run, in seconds from now')
    )
    expires = ExpiresField(
        required=False,
        help_text=_('Discard the run if not started by this time, or within this many seconds')
    )
    time_limit = SecondsField(
        min_value=1,
        required=False,
        help_text=_('Terminate the run after this many seconds')
    )
    soft_time_limit = SecondsField(
        min_value=1,
        required=False,
        help_text=_('Interrupt the task after this many seconds, so that it can clean up')
    )
    object_type = ContentTypeField(
        queryset=ContentType.objects.all(),
        required=False,
        help_text=_('Type of the related NetBox object, such as `dcim.device`')
    )
    object_id = serializers.IntegerField(
        min_value=1,
        max_value=MAX_ID,
        required=False
    )
    tags = NestedTagSerializer(
        many=True,
        required=False
    )

    def to_internal_value(self, data):
        self._check_number(data)
        values = super().to_internal_value(data)
        # Ignoring a misspelled option would run the task in another way than intended
        if unknown := set(data) - set(self.fields):
            raise serializers.ValidationError({
                name: [_('Unknown option. Valid options are: {options}.').format(options=', '.join(self.fields))]
                for name in sorted(unknown)[:MAX_NAMED]
            })
        return values

    def validate_queue(self, value):
        try:
            check_choice(app, value)
        except QueueRefused as exc:
            raise serializers.ValidationError(str(exc)) from exc
        return value

    @staticmethod
    def _check_number(data):
        """Refuse too many arguments before each of them is checked."""
        if not isinstance(data, Mapping):
            return
        args, kwargs = data.get('args'), data.get('kwargs')
        try:
            check_number(args if isinstance(args, list) else (), kwargs if isinstance(kwargs, Mapping) else {})
        except InvalidArguments as exc:
            raise serializers.ValidationError({'parameters': {
                name: [message] for name, message in exc.errors.items()
            }}) from exc

    def validate(self, attrs):
        times = [name for name in self.START_TIMES if name in attrs]
        if len(times) > 1:
            raise serializers.ValidationError({
                times[1]: _('Only one of {options} can be given.').format(options=', '.join(self.START_TIMES))
            })
        if ('object_type' in attrs) != ('object_id' in attrs):
            raise serializers.ValidationError({
                'object_id': _('object_type and object_id must be given together.')
            })
        if attrs.get('soft_time_limit', 0) >= attrs.get('time_limit', math.inf):
            raise serializers.ValidationError({
                'soft_time_limit': _('Must be less than time_limit, or the task is killed before it can clean up.')
            })
        return attrs

    def validated_options(self):
        """Return the options for `netbox_celery.services.runs.run`."""
        options = {
            self.RENAMED.get(name, name): value for name, value in self.validated_data.items()
            if name not in ('args', 'kwargs', 'object_type', 'object_id')
        }
        if 'object_type' in self.validated_data:
            options['instance'] = self._get_object()
        return options

    def _get_object(self):
        """Return the related object of the run, which the user must be allowed to view."""
        model = self.validated_data['object_type'].model_class()
        pk = self.validated_data['object_id']
        found = None
        if hasattr(getattr(model, 'objects', None), 'restrict'):
            found = model.objects.restrict(self.context['request'].user, 'view').filter(pk=pk).first()
        if found is None:
            raise serializers.ValidationError({'object_id': _('Object not found.')})
        return found


class LogQuerySerializer(serializers.Serializer):
    """Which lines of a log to return. Filters are those of `log-entries/`."""
    after = serializers.IntegerField(
        min_value=0,
        max_value=MAX_ID,
        default=0,
        help_text=_('Return lines after this one: `next_after` of the previous response, or 0 for all')
    )
    limit = serializers.IntegerField(
        min_value=0,
        default=DEFAULT_LIMIT,
        help_text=_('Maximum number of lines, up to {maximum} (0 = {maximum})').format(maximum=MAX_LIMIT)
    )
    offset = serializers.IntegerField(
        min_value=0,
        max_value=MAX_ID,
        default=0,
        help_text=_('Lines to skip after `after`, for clients that page by offset; not needed with the cursor')
    )
    level = serializers.ListField(
        child=serializers.IntegerField(min_value=0, max_value=MAX_LEVEL),
        default=list,
        help_text=_('Lines of these levels')
    )
    level__gte = serializers.IntegerField(
        min_value=0,
        max_value=MAX_LEVEL,
        required=False,
        help_text=_('Lines of this level and above')
    )
    grouping = serializers.ListField(
        child=serializers.CharField(),
        default=list,
        help_text=_('Lines of these groupings')
    )
    q = serializers.CharField(
        required=False,
        help_text=_('Lines whose message contains this text')
    )

    def validate_limit(self, value):
        return min(value or MAX_LIMIT, MAX_LIMIT)

    def page(self):
        """Return the arguments for `netbox_celery.reading.log.read_log`."""
        data = self.validated_data
        return {
            'after': data['after'],
            'limit': data['limit'],
            'offset': data['offset'],
            'wanted': LogFilter(
                levels=tuple(data['level']),
                min_level=data.get('level__gte'),
                groupings=tuple(data['grouping']),
                search=data.get('q', ''),
            ),
        }
