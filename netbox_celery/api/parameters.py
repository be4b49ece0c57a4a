"""What clients send: how a task is to be run, and which lines of a log they want."""
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
#: The highest number that the column of a line's level can hold.
MAX_LEVEL = 2 ** 15 - 1
#: Options that do not exist of which an answer tells.
MAX_NAMED = 100
#: The longest time that can be said in seconds: that of a schedule's `expires`, 68 years.
MAX_SECONDS = 2 ** 31 - 1


class SecondsField(serializers.FloatField):
    """A number of seconds that can be added to a time: `nan` and `inf`, numbers for Python, cannot."""

    def __init__(self, **kwargs):
        super().__init__(max_value=MAX_SECONDS, **kwargs)

    def to_internal_value(self, data):
        value = super().to_internal_value(data)
        if not math.isfinite(value):
            self.fail('invalid')
        return value


@extend_schema_field({'oneOf': [{'type': 'number', 'minimum': 0}, {'type': 'string', 'format': 'date-time'}]})
class ExpiresField(serializers.DateTimeField):
    """When a run that has not started is given up: a time, or a number of seconds from now, as Celery has it."""

    def to_internal_value(self, value):
        if isinstance(value, int | float) and not isinstance(value, bool):
            if value <= 0:
                raise serializers.ValidationError(_('Must be greater than 0.'))
            return SecondsField().run_validation(value)
        value = super().to_internal_value(value)
        validate_time(value)
        return value


class ArgumentField(serializers.JSONField):
    """An argument: what cannot be sent, or is nested too deeply, is refused before anything descends into it."""

    def to_internal_value(self, data):
        check_argument(data, DEEPEST - 1)
        return super().to_internal_value(data)


def check_argument(data, deepest=DEEPEST):
    """Refuse data of a request that cannot be an argument."""
    try:
        to_jsonb(data, deepest)
    except (TypeError, ValueError) as exc:
        raise serializers.ValidationError(_('This cannot be sent: {error}').format(error=exc)) from exc


class TaskRunSerializer(serializers.Serializer):
    """How a task is to be run: its arguments, and options of this run. All are optional."""
    #: Options that stand under another name here than in `CeleryResult.enqueue`.
    RENAMED = {'name': 'netbox_name', 'tags': 'netbox_tags', 'eta': 'schedule_at'}
    #: There is one time before which a run does not start.
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
        help_text=_("What is shown for the run, instead of the task's name")
    )
    queue = serializers.CharField(
        max_length=255,
        required=False
    )
    priority = serializers.IntegerField(
        min_value=0,
        max_value=255,
        required=False,
        help_text=_('With Redis 0 is the highest, with RabbitMQ the lowest')
    )
    schedule_at = serializers.DateTimeField(
        validators=(validate_time,),
        required=False,
        help_text=_('Earliest time of the start')
    )
    eta = serializers.DateTimeField(
        validators=(validate_time,),
        required=False,
        help_text=_("Celery's name for `schedule_at`")
    )
    countdown = SecondsField(
        min_value=0,
        required=False,
        help_text=_('Earliest time of the start, in seconds from now')
    )
    expires = ExpiresField(
        required=False,
        help_text=_('Give the run up if it has not started by then: a time, or seconds from now')
    )
    time_limit = SecondsField(
        min_value=1,
        required=False,
        help_text=_('End the run after so many seconds')
    )
    soft_time_limit = SecondsField(
        min_value=1,
        required=False,
        help_text=_('Interrupt the task after so many seconds, so that it can tidy up')
    )
    object_type = ContentTypeField(
        queryset=ContentType.objects.all(),
        required=False,
        help_text=_('Type of the NetBox object that the run concerns, such as `dcim.device`')
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
        # A misspelt option that is passed over would run the task otherwise than was meant
        if unknown := set(data) - set(self.fields):
            raise serializers.ValidationError({
                name: [_('There is no such option. Options are: {options}.').format(options=', '.join(self.fields))]
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
        """Refuse too many arguments before they are looked at one by one."""
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
                'soft_time_limit': _('Must be less than time_limit, or the task is killed before it can tidy up.')
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
        """Return the object that the run is to concern, which the user must be allowed to view."""
        model = self.validated_data['object_type'].model_class()
        pk = self.validated_data['object_id']
        found = None
        if hasattr(getattr(model, 'objects', None), 'restrict'):
            found = model.objects.restrict(self.context['request'].user, 'view').filter(pk=pk).first()
        if found is None:
            raise serializers.ValidationError({'object_id': _('There is no such object.')})
        return found


class LogQuerySerializer(serializers.Serializer):
    """Which lines of a log are wanted. Filters are those of `log-entries/`."""
    after = serializers.IntegerField(
        min_value=0,
        max_value=MAX_ID,
        default=0,
        help_text=_('Lines after this one: `next_after` of the last answer, 0 for the beginning')
    )
    limit = serializers.IntegerField(
        min_value=0,
        default=DEFAULT_LIMIT,
        help_text=_('Most lines to answer, {maximum} at most (0: as many)').format(maximum=MAX_LIMIT)
    )
    offset = serializers.IntegerField(
        min_value=0,
        max_value=MAX_ID,
        default=0,
        help_text=_('Lines to skip after `after`. The cursor does not need it; clients that page by offset do')
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
