"""Actions on one schedule: run it now, enable it, disable it, take it over."""
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from utilities.exceptions import PermissionsViolation
from utilities.views import register_model_view

from ..models import CelerySchedule
from ..reading.viewing import Reader
from ..services import runs as actions
from ..services import schedules as scheduling
from .base import ConfirmView, NotStarted, report_started, starting, visible_address

__all__ = (
    'CeleryScheduleDisableView',
    'CeleryScheduleEnableView',
    'CeleryScheduleRunView',
    'CeleryScheduleTakeOverView',
)


class ScheduleConfirmView(ConfirmView):
    """Ask for confirmation before acting on a schedule. The user must be allowed to run its task."""
    queryset = CelerySchedule.objects.select_related('task', 'owner')
    permission = 'change'

    def get_object(self, **kwargs):
        schedule = super().get_object(**kwargs)
        scheduling.check_may_run(self.request.user, schedule.task_id)
        return schedule

    def change(self, schedule):
        """Apply the change."""
        raise NotImplementedError

    def perform(self, request, obj):
        if obstacle := self.why_not(request, obj):
            messages.info(request, obstacle)
            return
        try:
            self.change(obj)
        except ValidationError as exc:
            for message in exc.messages:
                messages.error(request, message)
        except PermissionsViolation as exc:
            messages.error(request, exc.message)
        else:
            messages.success(request, self.done.format(schedule=obj))


@register_model_view(CelerySchedule, 'run')
class CeleryScheduleRunView(ScheduleConfirmView):
    permission = 'view'
    title = gettext_lazy('Run now?')
    button = gettext_lazy('Run Now')

    def why_not(self, request, obj):
        return actions.why_not_runnable(obj.task)

    def describe(self, obj):
        return [_(
            'Runs its task now as you, with its arguments and options. The schedule is not affected.'
        )]

    def perform(self, request, obj):
        try:
            if obstacle := self.why_not(request, obj):
                raise NotStarted(obstacle)
            with starting():
                result = scheduling.run_now(request, obj)
        except NotStarted as exc:
            messages.error(request, str(exc))
            return None
        report_started(request, result, _('Started {run}'))
        return visible_address(request.user, result)


@register_model_view(CelerySchedule, 'enable')
class CeleryScheduleEnableView(ScheduleConfirmView):
    title = gettext_lazy('Enable this schedule?')
    button = gettext_lazy('Enable')
    color = 'success'
    done = gettext_lazy('Enabled {schedule}')

    def why_not(self, request, obj):
        if obj.enabled:
            return _('The schedule is already enabled.')
        if why := scheduling.why_not_runnable_as_owner(obj, Reader(request.user)):
            return _('{why} Take ownership first.').format(why=why)
        return ''

    def describe(self, obj):
        return [
            _('Resumes its schedule, running as {owner}.').format(
                owner=Reader(self.request.user).owner_text(obj)
            ),
            _('Runs missed while disabled are not caught up.'),
        ]

    def change(self, schedule):
        scheduling.set_enabled(self.request.user, schedule, True)


@register_model_view(CelerySchedule, 'disable')
class CeleryScheduleDisableView(ScheduleConfirmView):
    title = gettext_lazy('Disable this schedule?')
    button = gettext_lazy('Disable')
    color = 'warning'
    done = gettext_lazy('Disabled {schedule}')

    def why_not(self, request, obj):
        return '' if obj.enabled else _('The schedule is already disabled.')

    def describe(self, obj):
        return [_('Stays off until re-enabled. Active runs continue.')]

    def change(self, schedule):
        scheduling.set_enabled(self.request.user, schedule, False)


@register_model_view(CelerySchedule, 'take_over', path='take-over')
class CeleryScheduleTakeOverView(ScheduleConfirmView):
    title = gettext_lazy('Take ownership?')
    button = gettext_lazy('Take Ownership')
    done = gettext_lazy('You now own {schedule}')

    def why_not(self, request, obj):
        return _('You already own it.') if obj.owner_id == request.user.pk else ''

    def describe(self, obj):
        sentences = [
            _('Future runs act as you instead of {owner}.').format(
                owner=Reader(self.request.user).owner_text(obj)
            ) if obj.owner else
            _('Future runs act as you.')
        ]
        if obj.stopped:
            sentences.append(_('The schedule was disabled because its owner could not run the task; it is re-enabled.'))
        elif not obj.enabled:
            sentences.append(_('The schedule stays disabled.'))
        return sentences

    def change(self, schedule):
        scheduling.take_over(self.request.user, schedule)
