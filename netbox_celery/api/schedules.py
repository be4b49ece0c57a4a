"""REST views of schedules: preview of the next runs, run now, and take ownership."""
from itertools import islice

from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import PermissionDenied
from rest_framework.response import Response

from netbox.api.viewsets import NetBoxModelViewSet
from utilities.exceptions import PermissionsViolation

from .. import filtersets
from ..models import CelerySchedule
from ..services import schedules as scheduling
from .base import ActionsMixin, VisibleMixin, require_runnable, sending
from .permissions import token_permission
from .serializers import CeleryResultSerializer, CeleryScheduleSerializer, SchedulePreviewSerializer

__all__ = (
    'CeleryScheduleViewSet',
)

MAX_PREVIEW = 100


class PreviewQuerySerializer(serializers.Serializer):
    count = serializers.IntegerField(
        min_value=1,
        max_value=MAX_PREVIEW,
        default=10,
        help_text=_('Number of times, up to {maximum}').format(maximum=MAX_PREVIEW)
    )


class CeleryScheduleViewSet(VisibleMixin, ActionsMixin, NetBoxModelViewSet):
    """
    Schedules. To create or change a schedule, users need the permission to run its task. Its runs act as its owner: the
    user who created it, or who last changed its task, arguments, options or object. Task and timing of schedules that
    are defined in the settings or in code are read-only.
    """
    queryset = CelerySchedule.objects.all()
    serializer_class = CeleryScheduleSerializer
    filterset_class = filtersets.CeleryScheduleFilterSet

    @extend_schema(
        operation_id='plugins_celery_schedules_preview',
        description='The next times at which the schedule is due, and its timing in words.',
        parameters=[PreviewQuerySerializer],
        responses={200: SchedulePreviewSerializer},
        filters=False
    )
    @action(detail=True, pagination_class=None, filterset_class=None)
    def preview(self, request, pk):
        query = PreviewQuerySerializer(data=request.query_params)
        query.is_valid(raise_exception=True)
        schedule = self.get_object_to_act_on()
        try:
            times = list(islice(schedule.due_times(), query.validated_data['count']))
        except ValueError as exc:  # its time zone or crontab is no longer valid
            raise serializers.ValidationError({'detail': str(exc)}) from exc
        return Response(SchedulePreviewSerializer({'in_words': schedule.in_words, 'next_runs': times}).data)

    @extend_schema(
        operation_id='plugins_celery_schedules_run',
        description='Run the task of the schedule now, as the requesting user, who needs the permission to run the '
                    'task. The overlap policy of the schedule applies; its timing is not affected.',
        request=None,
        responses={201: CeleryResultSerializer}
    )
    @action(detail=True, methods=['post'], permission_classes=[token_permission('view')])
    def run(self, request, pk):
        schedule = self.get_object_to_act_on()
        scheduling.check_may_run(request.user, schedule.task_id)
        require_runnable(schedule.task)
        with sending():
            result = scheduling.run_now(request, schedule)
        return self.created(result)

    @extend_schema(
        operation_id='plugins_celery_schedules_take_over',
        description='Become the owner of the schedule: future runs act as you. A schedule that was disabled because '
                    'its owner was deleted, inactive or not allowed to run its task is enabled again.',
        request=None,
        responses={200: CeleryScheduleSerializer}
    )
    @action(detail=True, methods=['post'], url_path='take-over', permission_classes=[token_permission('change')])
    def take_over(self, request, pk):
        schedule = self.get_object_to_act_on()
        try:
            scheduling.take_over(request.user, schedule)
        except ValidationError as exc:
            raise serializers.ValidationError(exc.message_dict) from exc
        except PermissionsViolation as exc:
            raise PermissionDenied from exc
        return Response(self.get_serializer(schedule).data)
