"""REST views of runs, tasks, log entries and workers.

Running tasks creates the rows, so a POST to a list creates nothing. An action that is not possible in the current state
is answered with 400 and the reason, as elsewhere in NetBox. (409 would be more precise, but pynetbox takes it for a
failed allocation of an address and hides the reason.)
"""
from django.db.models import Prefetch, prefetch_related_objects
from django.http import Http404
from django.utils.translation import gettext as _
from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.response import Response
from rest_framework.routers import APIRootView

from netbox.api.viewsets import NetBoxModelViewSet, NetBoxReadOnlyModelViewSet
from utilities.exceptions import AbortRequest

from .. import filtersets
from ..engine.catalogue.checking import InvalidArguments, check_arguments
from ..engine.sending.control import NotRerunnable
from ..models import CeleryLogEntry, CeleryResult, CeleryTask, CeleryWorker
from ..reading.log import read_log
from ..services import runs as actions
from . import serializers
from .base import ActionsMixin, SafeMixin, VisibleMixin, require_runnable, sending
from .pagination import HistoryPagination
from .parameters import LogQuerySerializer, TaskRunSerializer
from .permissions import token_permission
from .workflow import CancelSerializer, WorkflowMixin

__all__ = (
    'CeleryLogEntryViewSet',
    'CeleryResultViewSet',
    'CeleryRootView',
    'CeleryTaskViewSet',
    'CeleryWorkerViewSet',
)


class CeleryRootView(APIRootView):
    """
    Celery API root view
    """

    def get_view_name(self):
        return 'Celery'


class NotOffered:
    """Removes a method of a base class, so that routers do not bind it."""

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, instance, owner=None):
        raise AttributeError(self.name)


class EngineModelViewSet(VisibleMixin, ActionsMixin, NetBoxModelViewSet):
    """Base class for rows that the engine creates and updates: users can only annotate and delete them."""
    http_method_names = [name for name in NetBoxModelViewSet.http_method_names if name != 'put']
    create = NotOffered()


class CeleryResultViewSet(WorkflowMixin, EngineModelViewSet):
    """
    Runs of tasks. Lists omit fields that can be large (`args`, `kwargs`, `options`, `data`, `result`, `traceback`,
    `attempts`) unless requested with `fields`. Tags and custom fields can be changed; workers write all other fields.
    Deleting a run that has not finished cancels it.
    """
    queryset = CeleryResult.objects.all()
    serializer_class = serializers.CeleryResultSerializer
    filterset_class = filtersets.CeleryResultFilterSet
    pagination_class = HistoryPagination

    #: Fields that can be large, and the columns that they need.
    LARGE = {
        'args': ('args', 'options'),
        'kwargs': ('kwargs', 'options'),
        'options': ('options',),
        'data': ('data',),
        'result': ('result',),
        'traceback': ('traceback',),
        'attempts': ('attempts',),
    }

    @property
    def field_kwargs(self):
        selected = super().field_kwargs
        if self.action == 'list' and 'fields' not in selected:
            return {'omit': [*self.LARGE, *selected.get('omit', ())]}
        return selected

    def get_queryset(self):
        queryset = super().get_queryset()
        if self.action == 'list' and 'export' not in self.request.query_params:
            needed = {column for name in self.LARGE if name in self.response_fields for column in self.LARGE[name]}
            queryset = queryset.defer('message', 'exact_call', 'exact_result', *{*self.LARGE} - needed)
        return queryset

    @extend_schema(
        operation_id='plugins_celery_results_logs',
        description='The lines of a run\'s log, oldest first, and the state of the run, in one response. Poll with '
                    '`after` set to `next_after`, until `finished`. The status is read before the lines, so once the '
                    'status is final, no more lines will be added.',
        parameters=[LogQuerySerializer],
        responses={200: serializers.LogPageSerializer},
        filters=False
    )
    @action(detail=True, pagination_class=None, filterset_class=None)
    def logs(self, request, pk):
        query = LogQuerySerializer(data=request.query_params)
        query.is_valid(raise_exception=True)
        try:
            page = read_log(self.queryset, pk, **query.page())
        except (CeleryResult.DoesNotExist, ValueError) as exc:
            raise Http404 from exc
        prefetch_related_objects(page.entries, 'object_type')
        serializer = serializers.LogPageSerializer(page, context={'request': request})
        return Response(serializer.data)

    @extend_schema(
        operation_id='plugins_celery_results_cancel',
        description='Cancel a run. A waiting run is revoked immediately. An active run is terminated, or asked to stop '
                    'if its worker cannot terminate it; it finishes a little later, as its log and status show. With '
                    '`workflow`, cancel all runs of its workflow that you are allowed to cancel.',
        request=CancelSerializer,
        responses={200: serializers.CeleryResultSerializer}
    )
    @action(detail=True, methods=['post'], permission_classes=[token_permission('cancel')])
    def cancel(self, request, pk):
        result = self.get_object_to_act_on()
        query = CancelSerializer(data=request.data)
        query.is_valid(raise_exception=True)
        if query.validated_data['workflow']:
            if not actions.cancel_workflow(request, result)[0] and not actions.is_under_way(request, result):
                raise AbortRequest(_('There is nothing to cancel: all runs of the workflow have finished.'))
            result.refresh_from_db()
        elif not actions.cancel(request, result):
            result.refresh_from_db()
            if result.is_finished:
                raise AbortRequest(_('There is nothing to cancel: the run has already finished ({status}).').format(
                    status=result.get_status_display()
                ))
        return Response(self.get_serializer(result).data)

    @extend_schema(
        operation_id='plugins_celery_results_rerun',
        description='Run the task again with the same arguments, as the requesting user, who also needs the permission '
                    'to run the task.',
        request=None,
        responses={201: serializers.CeleryResultSerializer}
    )
    @action(detail=True, methods=['post'], permission_classes=[token_permission('rerun')])
    def rerun(self, request, pk):
        result = self.get_object_to_act_on()
        try:
            actions.check_rerun(request.user, result)
            with sending():
                new = actions.rerun(request, result)
        except (NotRerunnable, actions.NotRunnable) as exc:
            raise AbortRequest(str(exc)) from exc
        return self.created(new)


class CeleryTaskViewSet(EngineModelViewSet):
    """
    The catalogue of tasks that workers and NetBox have registered. Tasks can be enabled and disabled, and their tags
    and custom fields can be changed. A task that is no longer registered can be deleted.
    """
    queryset = CeleryTask.objects.all()
    serializer_class = serializers.CeleryTaskSerializer
    filterset_class = filtersets.CeleryTaskFilterSet
    blind_actions = ('run',)

    @extend_schema(
        operation_id='plugins_celery_tasks_run',
        description='Run the task as the requesting user. Arguments are checked against the `parameters` of the task; '
                    'errors are returned under `parameters`, by name.',
        request=TaskRunSerializer,
        responses={201: serializers.CeleryResultSerializer}
    )
    @action(detail=True, methods=['post'], permission_classes=[token_permission('run')])
    def run(self, request, pk):
        task = self.get_object_to_act_on()
        require_runnable(task)
        run = TaskRunSerializer(data=request.data, context=self.get_serializer_context())
        run.is_valid(raise_exception=True)
        args, kwargs = run.validated_data['args'], run.validated_data['kwargs']
        try:
            check_arguments(task, args, kwargs)
        except InvalidArguments as exc:
            raise ValidationError({
                'parameters': {name: [message] for name, message in exc.errors.items()}
            }) from exc
        try:
            with sending():
                result = actions.run(request, task, args, kwargs, **run.validated_options())
        except actions.NotRunnable as exc:
            raise AbortRequest(str(exc)) from exc
        return self.created(result)


class CeleryLogEntryViewSet(SafeMixin, NetBoxReadOnlyModelViewSet):
    """
    Log lines of all runs that the user is allowed to view. To follow one run, use its `logs`.
    """
    queryset = CeleryLogEntry.objects.all()
    serializer_class = serializers.CeleryLogEntrySerializer
    filterset_class = filtersets.CeleryLogEntryFilterSet
    pagination_class = HistoryPagination
    # Columns of the brief form of a run, without its arguments and its result
    field_prefetches = {
        ('result',): [
            Prefetch('result', CeleryResult.objects.only('id', 'task_id', 'celery_name', 'name', 'status')),
        ],
    }


class CeleryWorkerViewSet(SafeMixin, NetBoxReadOnlyModelViewSet):
    """
    Workers that are running, or were running recently.
    """
    queryset = CeleryWorker.objects.all()
    serializer_class = serializers.CeleryWorkerSerializer
    filterset_class = filtersets.CeleryWorkerFilterSet
