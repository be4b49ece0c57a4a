"""Schedules: list, detail page, runs, and the forms that create and change them."""
from copy import copy
from functools import partial

from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import OuterRef, Subquery
from django.http import Http404
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.generic import View

from extras.ui.panels import CustomFieldsPanel, TagsPanel
from netbox.object_actions import (
    AddObject,
    BulkDelete,
    BulkEdit,
    BulkExport,
    BulkImport,
    BulkRename,
    CloneObject,
    EditObject,
)
from netbox.ui import layout
from netbox.ui.panels import ObjectsTablePanel
from netbox.views import generic
from utilities.exceptions import AbortRequest
from utilities.forms import restrict_form_fields
from utilities.htmx import htmx_partial
from utilities.querydict import normalize_querydict
from utilities.string import humanize_duration
from utilities.views import ConditionalLoginRequiredMixin, ViewTab, register_model_view

from .. import __version__, filtersets, forms, panels, tables
from ..choices import ResultStatusChoices, ScheduleOriginChoices
from ..models import CeleryResult, CelerySchedule
from ..object_actions import (
    BulkCancel,
    BulkRerun,
    DeleteSchedule,
    DisableSchedule,
    EnableSchedule,
    RunSchedule,
    TakeOverSchedule,
)
from ..reading.history import HISTORY, measure, runs_of
from ..reading.upcoming import upcoming
from ..reading.viewing import Reader
from ..services import schedules as scheduling
from .base import FilteredMixin, NumericPksMixin, VisibleBulkMixin, VisibleMixin, parse_number
from .results import listed

__all__ = (
    'CeleryScheduleBulkDeleteView',
    'CeleryScheduleBulkEditView',
    'CeleryScheduleBulkImportView',
    'CeleryScheduleBulkRenameView',
    'CeleryScheduleDeleteView',
    'CeleryScheduleEditView',
    'CeleryScheduleListView',
    'CeleryScheduleRunsView',
    'CeleryScheduleView',
    'SchedulePreviewView',
)

#: Form fields that define the timing. The preview shows the errors of these fields only.
WHEN = ('kind', 'crontab', 'timezone', 'interval', 'interval_unit', 'at', 'start', 'end')


def with_last_run(schedules, results):
    """Annotate schedules with their last run among `results`."""
    runs = results.filter(schedule=OuterRef('pk')).order_by('-pk')
    return schedules.annotate(
        last_result=Subquery(runs.values('pk')[:1]),
        last_status=Subquery(runs.values('status')[:1]),
    )


class WithLastRunMixin:
    """Schedules with the last run that the user may view."""
    queryset = with_last_run(CelerySchedule.objects.all(), CeleryResult.objects.all())

    def get_queryset(self, request):
        return with_last_run(CelerySchedule.objects.all(), CeleryResult.objects.restrict(request.user, 'view'))


@register_model_view(CelerySchedule, 'list', path='', detail=False)
class CeleryScheduleListView(FilteredMixin, WithLastRunMixin, generic.ObjectListView):
    filterset = filtersets.CeleryScheduleFilterSet
    filterset_form = forms.CeleryScheduleFilterForm
    table = tables.CeleryScheduleTable
    actions = (AddObject, BulkImport, BulkExport, BulkEdit, BulkRename, BulkDelete)


@register_model_view(CelerySchedule)
class CeleryScheduleView(generic.ObjectView):
    queryset = CelerySchedule.objects.select_related('task', 'owner')
    template_name = 'netbox_celery/celeryschedule.html'
    actions = (
        RunSchedule, EnableSchedule, DisableSchedule, TakeOverSchedule, CloneObject, EditObject, DeleteSchedule,
    )
    layout = layout.SimpleLayout(
        left_panels=[
            panels.SchedulePanel(),
            panels.ScheduleTimesPanel(),
            panels.SchedulePolicyPanel(),
            TagsPanel(),
        ],
        right_panels=[
            panels.ScheduleNextPanel(),
            panels.ScheduleArgumentsPanel(),
            panels.ScheduleOptionsPanel(),
            panels.PayloadPanel('options', title=gettext_lazy('Further Options')),
            CustomFieldsPanel(),
        ],
        bottom_panels=[
            ObjectsTablePanel(
                model='netbox_celery.CeleryResult',
                title=gettext_lazy('Recent Runs'),
                filters={'schedule_id': lambda context: context['object'].pk},
                exclude_columns=['schedule', 'celery_name'],
            ),
        ],
    )


@register_model_view(CelerySchedule, 'runs')
class CeleryScheduleRunsView(FilteredMixin, generic.ObjectChildrenView):
    """The runs of a schedule: success rate, durations, and a list."""
    queryset = CelerySchedule.objects.select_related('task', 'owner')
    child_model = CeleryResult
    table = tables.CeleryResultTable
    filterset = filtersets.CeleryResultFilterSet
    filterset_form = forms.CeleryResultFilterForm
    template_name = 'netbox_celery/schedule/runs.html'
    actions = (BulkCancel, BulkRerun, BulkDelete)
    tab = ViewTab(
        label=gettext_lazy('Runs'),
        badge=lambda schedule: CeleryResult.objects.filter(schedule=schedule).order_by()[:HISTORY].count(),
        permission='netbox_celery.view_celeryresult',
        weight=500
    )

    def get_children(self, request, parent):
        return listed(runs_of(parent, request.user).with_bounded_count())

    def get_extra_context(self, request, instance):
        history = measure(runs_of(instance, request.user))
        labels = dict(ResultStatusChoices)
        return {
            'history': history,
            'statuses': [
                (labels[status], ResultStatusChoices.colors.get(status), count)
                for status, count in history.statuses.items()
            ],
            'durations': [
                (label, None if duration is None else _words(duration)) for label, duration in (
                    (_('median'), history.median), (_('95th percentile'), history.p95),
                    (_('shortest'), history.shortest), (_('mean'), history.mean), (_('longest'), history.longest),
                )
            ],
        }


def _words(duration):
    seconds = duration.total_seconds()
    if seconds >= 60:
        return humanize_duration(duration)
    return _('{seconds} s').format(seconds=f'{seconds:.2f}' if seconds >= 1 else f'{seconds:.3f}')


#
# Creating and changing
#

@register_model_view(CelerySchedule, 'add', detail=False)
@register_model_view(CelerySchedule, 'edit')
class CeleryScheduleEditView(VisibleMixin, generic.ObjectEditView):
    queryset = CelerySchedule.objects.select_related('task', 'owner')
    template_name = 'netbox_celery/schedule/edit.html'
    htmx_template_name = 'netbox_celery/schedule/form.html'

    def setup(self, request, *args, **kwargs):
        super().setup(request, *args, **kwargs)
        self.form = partial(forms.CeleryScheduleForm, user=request.user)

    def handle_no_permission(self):
        if htmx_partial(self.request) and not self.request.user.is_authenticated:
            raise PermissionDenied  # keep what is filled in; the preview says that the session has expired
        return super().handle_no_permission()

    def post(self, request, *args, **kwargs):
        if not htmx_partial(request):
            return super().post(request, *args, **kwargs)
        # Another kind, task or object type was chosen: render the fields for it, and save nothing
        form = self.form(instance=self.get_object(**kwargs), initial=normalize_querydict(request.POST))
        restrict_form_fields(form, request.user)
        response = render(request, self.htmx_template_name, {'form': form})
        response['HX-Trigger-After-Settle'] = 'celery-schedule-form'
        return response

    def get_extra_context(self, request, instance):
        return {'notes': list(self._notes(request.user, instance)), 'version': __version__, 'is_empty': True}

    @staticmethod
    def _notes(user, schedule):
        if not schedule.pk:
            return
        if schedule.is_read_only and schedule.present:
            yield {'level': 'info', 'icon': 'lock-outline', 'text': (
                _('Defined in the settings: timing and task are read-only. The schedule can be disabled, not deleted.')
                if schedule.origin == ScheduleOriginChoices.ORIGIN_SETTINGS else
                _('Defined in code: timing and task are read-only. The schedule can be disabled, not deleted.')
            )}
        if schedule.is_object_gone:
            yield {'level': 'info', 'icon': 'link-off', 'text': _(
                'The related object was deleted. The reference is kept until you change it.'
            )}
        if not scheduling.may_run(user, schedule.task_id):
            yield {'level': 'warning', 'icon': 'alert', 'text': _(
                'You cannot save changes: you do not have permission to run its task.'
            )}
        elif schedule.owner_id != user.pk:
            what = _('the object') if schedule.is_read_only else _('the task, arguments, options or object')
            yield {'level': 'info', 'icon': 'account-arrow-left', 'text': _(
                'Its runs act as {owner}. Changing {what} makes you the owner; runs will act as you.'
            ).format(owner=Reader(user).owner_text(schedule), what=what)}


@register_model_view(CelerySchedule, 'preview', detail=False)
class SchedulePreviewView(ConditionalLoginRequiredMixin, View):
    """The next runs of the schedule in the form, updated while the user types."""

    def handle_no_permission(self):
        return render(self.request, 'netbox_celery/schedule/preview.html', {
            'errors': [_('Your session has expired. Log in again to continue.')],
        })

    def post(self, request):
        user = request.user
        schedule = CelerySchedule()
        if pk := request.GET.get('id', ''):
            schedule = CelerySchedule.objects.restrict(user, 'change').filter(pk=parse_number(pk)).first()
            if schedule is None:
                raise Http404
        elif not user.has_perm('netbox_celery.add_celeryschedule'):
            raise PermissionDenied
        form = forms.CeleryScheduleForm(request.POST, instance=schedule, user=user)
        errors = [
            error for name in WHEN if name in form.errors and request.POST.get(name) for error in form.errors[name]
        ]
        is_empty = not errors and any(name in form.errors for name in WHEN)
        context = {'errors': errors, 'is_empty': is_empty}
        if not errors and not is_empty:
            if set(form.changed_data) & set(WHEN):
                schedule.next_run = None
            context |= upcoming(schedule)
        return render(request, 'netbox_celery/schedule/preview.html', context)


@register_model_view(CelerySchedule, 'delete')
class CeleryScheduleDeleteView(VisibleMixin, generic.ObjectDeleteView):
    queryset = CelerySchedule.objects.all()


@register_model_view(CelerySchedule, 'bulk_import', path='import', detail=False)
class CeleryScheduleBulkImportView(generic.BulkImportView):
    queryset = CelerySchedule.objects.all()
    model_form = forms.CeleryScheduleImportForm

    def post(self, request):
        try:
            return super().post(request)
        except RecursionError:
            # The parsers of JSON and YAML raise it
            messages.error(request, _('The data cannot be imported: it is nested too deeply.'))
            return redirect(request.path)

    def save_object(self, object_form, request):
        _authorize(request.user, object_form.instance)
        return super().save_object(object_form, request)


@register_model_view(CelerySchedule, 'bulk_edit', path='edit', detail=False)
class CeleryScheduleBulkEditView(NumericPksMixin, VisibleMixin, WithLastRunMixin, generic.BulkEditView):
    filterset = filtersets.CeleryScheduleFilterSet
    table = tables.CeleryScheduleTable
    form = forms.CeleryScheduleBulkEditForm

    def pre_save_operations(self, form, obj):
        _authorize(self.request.user, obj)


@register_model_view(CelerySchedule, 'bulk_rename', path='rename', detail=False)
class CeleryScheduleBulkRenameView(NumericPksMixin, VisibleMixin, generic.BulkRenameView):
    queryset = CelerySchedule.objects.all()
    filterset = filtersets.CeleryScheduleFilterSet

    def _rename_objects(self, form, selected_objects, field_names=None):
        # NetBox saves them without validation. It shows the error that is raised here, and renames nothing
        pks = super()._rename_objects(form, selected_objects, field_names)
        for schedule in selected_objects:
            if schedule.has_changes:
                renamed = copy(schedule)
                renamed.name = schedule.new_names.name
                try:
                    _authorize(self.request.user, renamed)
                    renamed.full_clean(validate_unique=False)  # the database checks that once all have their new names
                except ValidationError as exc:
                    raise AbortRequest(' '.join(exc.messages)) from exc
        return pks


def _authorize(user, schedule):
    """Check that a user may save one of several schedules; errors start with its name."""
    try:
        scheduling.authorize(user, schedule)
    except PermissionDenied as exc:
        raise ValidationError(f'{schedule}: {exc}') from exc
    except ValidationError as exc:
        raise ValidationError([f'{schedule}: {message}' for message in exc.messages]) from exc


@register_model_view(CelerySchedule, 'bulk_delete', path='delete', detail=False)
class CeleryScheduleBulkDeleteView(NumericPksMixin, VisibleBulkMixin, WithLastRunMixin, generic.BulkDeleteView):
    filterset = filtersets.CeleryScheduleFilterSet
    table = tables.CeleryScheduleTable
