"""REST: follow runs, cancel them, run them again; find tasks and run them.

Rows appear by running tasks, so nothing is created by a POST to a list. What cannot be done as things stand is
answered with 400 and the reason, as elsewhere in NetBox. (409 would say it better, but pynetbox takes that for a
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
    """Takes a method of a base class away. Routers bind what a viewset has: this one has it not."""

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, instance, owner=None):
        raise AttributeError(self.name)


class EngineModelViewSet(VisibleMixin, ActionsMixin, NetBoxModelViewSet):
    """Base class for rows that the engine makes and keeps: people annotate and delete them."""
    http_method_names = [name for name in NetBoxModelViewSet.http_method_names if name != 'put']
    create = NotOffered()


class CeleryResultViewSet(WorkflowMixin, EngineModelViewSet):
    """
    Runs of tasks. Lists leave out what can be large (`args`, `kwargs`, `options`, `data`, `result`, `traceback`,
    `attempts`) unless it is asked for with `fields`. Tags and custom fields can be changed, all else is written by
    the workers. A run that is deleted before its end is cancelled.
    """
    queryset = CeleryResult.objects.all()
    serializer_class = serializers.CeleryResultSerializer
    filterset_class = filtersets.CeleryResultFilterSet
    pagination_class = HistoryPagination

    #: What can be large, and the columns that it is made of.
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
        description='The lines of a run\'s log, oldest first, and where the run stands: one poll is enough. Ask again '
                    'with `after` set to `next_after`, until `finished`. The status is read before the lines, so '
                    'with a finished status nothing is added to the log any more.',
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
        description='Cancel a run. One that waits is revoked at once. One that runs is terminated where its worker '
                    'can do that, or asked to stop: it ends a little later, as its log and status will say. With '
                    '`workflow`, all runs of its workflow that you may cancel.',
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
                raise AbortRequest(_('There is nothing to cancel: all runs of the workflow have ended.'))
            result.refresh_from_db()
        elif not actions.cancel(request, result):
            result.refresh_from_db()
            if result.is_finished:
                raise AbortRequest(_('There is nothing to cancel: the run has ended ({status}).').format(
                    status=result.get_status_display()
                ))
        return Response(self.get_serializer(result).data)

    @extend_schema(
        operation_id='plugins_celery_results_rerun',
        description='Run the task again with the same arguments, under the name of the requesting user. This needs '
                    'the permission to run the task, too.',
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
    The catalogue of tasks that workers and NetBox have registered. A task can be enabled and disabled, its tags and
    custom fields can be changed. One that is absent can be deleted.
    """
    queryset = CeleryTask.objects.all()
    serializer_class = serializers.CeleryTaskSerializer
    filterset_class = filtersets.CeleryTaskFilterSet
    blind_actions = ('run',)

    @extend_schema(
        operation_id='plugins_celery_tasks_run',
        description='Run the task under the name of the requesting user. Arguments are checked against the task\'s '
                    '`parameters`; what is wrong with them is answered under `parameters`, by name.',
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
    Lines of the logs of all runs that the user may view. Who follows one run asks for its `logs`.
    """
    queryset = CeleryLogEntry.objects.all()
    serializer_class = serializers.CeleryLogEntrySerializer
    filterset_class = filtersets.CeleryLogEntryFilterSet
    pagination_class = HistoryPagination
    # What the brief form of a run shows, without its arguments and its result
    field_prefetches = {
        ('result',): [
            Prefetch('result', CeleryResult.objects.only('id', 'task_id', 'celery_name', 'name', 'status')),
        ],
    }


class CeleryWorkerViewSet(SafeMixin, NetBoxReadOnlyModelViewSet):
    """
    Workers that are running, or were not long ago.
    """
    queryset = CeleryWorker.objects.all()
    serializer_class = serializers.CeleryWorkerSerializer
    filterset_class = filtersets.CeleryWorkerFilterSet
