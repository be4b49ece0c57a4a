"""REST view of the workflow of a run, and the options of a cancellation."""
from typing import TYPE_CHECKING

from django.utils.translation import gettext_lazy as _
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.response import Response

from netbox.api.fields import ChoiceField
from netbox.api.serializers import BaseModelSerializer

from ..choices import ResultReasonChoices, ResultStatusChoices
from ..models import CeleryResult
from ..reading.viewing import reader_of_context
from ..reading.workflow import load_workflow
from .serializers import PlainJSONField

if TYPE_CHECKING:
    from netbox.api.viewsets import NetBoxModelViewSet as MixedInto
else:
    MixedInto = object

__all__ = (
    'CancelSerializer',
    'WorkflowMixin',
    'WorkflowSerializer',
)


class CancelSerializer(serializers.Serializer):
    """Options of a cancellation."""
    workflow = serializers.BooleanField(
        default=False,
        help_text=_('Cancel all runs of the workflow and keep them from starting others')
    )


class WorkflowRunSerializer(BaseModelSerializer):
    """A run in the tree."""
    status = ChoiceField(choices=ResultStatusChoices, read_only=True)
    reason = ChoiceField(choices=ResultReasonChoices, read_only=True)
    duration = serializers.DurationField(read_only=True, allow_null=True)
    attempts = PlainJSONField()
    parent = serializers.SerializerMethodField(
        help_text='`id` of the nearest ancestor that you are allowed to view.'
    )
    depth = serializers.SerializerMethodField(
        help_text='Level of indentation; increases only where a run has started several others.'
    )

    class Meta:
        model = CeleryResult
        fields = [
            'id', 'url', 'display_url', 'display', 'parent', 'depth', 'task_id', 'parent_id', 'root_id', 'group_id',
            'celery_name', 'name', 'status', 'reason', 'error', 'attempt', 'attempts', 'created', 'scheduled',
            'started', 'completed', 'cancelled', 'duration',
        ]
        read_only_fields = fields

    def _node(self, run):
        return self.context['nodes'][run.pk]

    def get_parent(self, run) -> int | None:
        parent = self._node(run).parent
        return parent and parent.run.pk

    def to_representation(self, run):
        reader = reader_of_context(self.context)
        assert reader is not None  # there always is a request
        return super().to_representation(run) | {
            'error': reader.error_of(run), 'attempts': reader.attempts_of(run)
        }

    def get_depth(self, run) -> int:
        return self._node(run).depth


class WorkflowSerializer(serializers.Serializer):
    """The runs of a workflow that the user is allowed to view."""
    root_id = serializers.UUIDField(
        help_text='Shared by the whole workflow: the ID of the first run, or of the group that starts the workflow.'
    )
    count = serializers.SerializerMethodField(
        help_text='Number of runs in this response.'
    )
    hidden = serializers.IntegerField(
        help_text='Number of runs hidden (no permission). Runs that they started move to the nearest visible ancestor.'
    )
    is_cut = serializers.BooleanField(
        help_text='The workflow has more runs than a response contains.'
    )
    finished = serializers.BooleanField(
        source='is_finished',
        help_text='All runs in this response have finished.'
    )
    runs = serializers.SerializerMethodField(
        help_text='The runs in the order of the tree: each before its descendants.'
    )

    def get_count(self, workflow) -> int:
        return len(workflow.nodes)

    @extend_schema_field(WorkflowRunSerializer(many=True))
    def get_runs(self, workflow):
        reader = reader_of_context(self.context)
        assert reader is not None  # there always is a request
        reader.load_runs(filter(None, (node.run.quoted_id for node in workflow.nodes)))
        context = {**self.context, 'nodes': {node.run.pk: node for node in workflow.nodes}}
        return WorkflowRunSerializer([node.run for node in workflow.nodes], many=True, context=context).data


class WorkflowMixin(MixedInto):
    """The action of the run viewset that returns a whole workflow."""

    @extend_schema(
        operation_id='plugins_celery_results_workflow',
        description='The workflow of a run: its runs as a flat list in the order of the tree. A later step gets a run '
                    'when it is sent, or when it is certain that it never will be.',
        responses={200: WorkflowSerializer},
        filters=False
    )
    @action(detail=True, pagination_class=None, filterset_class=None)
    def workflow(self, request, pk):
        workflow = load_workflow(self.get_object(), request.user)
        return Response(WorkflowSerializer(workflow, context={'request': request}).data)
