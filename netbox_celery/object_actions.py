"""The action buttons of runs, tasks and schedules. Each is shown if the action is possible and permitted."""
from typing import Any

from django.utils.translation import gettext_lazy as _

from netbox.object_actions import DeleteObject, ObjectAction
from utilities.permissions import get_permission_for_model

from .services.runs import may_run

__all__ = (
    'BulkCancel',
    'BulkRerun',
    'CancelResult',
    'DeleteAbsentTask',
    'DeleteSchedule',
    'DisableSchedule',
    'EnableSchedule',
    'RerunResult',
    'RunSchedule',
    'RunTask',
    'TakeOverSchedule',
)


class ConditionalAction(ObjectAction):
    """A button that depends on the state of the object, and on the permission for this specific object.

    It has its own element, so that a live page can show or hide it when the state changes.

    Attributes:
        icon: Name of an MDI icon.
        color: Bootstrap's name of the button color.
        confirm: Whether the view asks for confirmation in a dialog.
    """
    template_name = 'netbox_celery/buttons/object_action.html'
    url_kwargs = ['pk']
    icon = ''
    color = 'primary'
    confirm = True

    @classmethod
    def is_applicable(cls, obj: Any) -> bool:
        """Whether the action is possible in the object's current state."""
        raise NotImplementedError

    @classmethod
    def get_context(cls, context, obj):
        return {
            'name': cls.name,
            'icon': cls.icon,
            'color': cls.color,
            'confirm': cls.confirm,
            'offered': cls.is_applicable(obj) and cls.is_permitted(context['request'].user, obj),
        }

    @classmethod
    def is_permitted(cls, user: Any, obj: Any) -> bool:
        """Whether a user may perform the action on this specific object."""
        return all(
            user.has_perm(get_permission_for_model(obj, action), obj) for action in cls.permissions_required
        )


class CancelResult(ConditionalAction):
    """Cancel an unfinished run."""
    name = 'cancel'
    label = _('Cancel')
    permissions_required = {'cancel'}
    icon = 'stop-circle-outline'
    color = 'warning'

    @classmethod
    def is_applicable(cls, obj: Any) -> bool:
        return not obj.is_finished and not obj.is_cancelling


class RerunResult(ConditionalAction):
    """Run a task again with the arguments of a finished run."""
    name = 'rerun'
    label = _('Run Again')
    permissions_required = {'rerun'}
    icon = 'replay'

    @classmethod
    def is_applicable(cls, obj: Any) -> bool:
        return obj.is_finished and obj.is_rerunnable


class RunTask(ConditionalAction):
    """Run a task of the catalogue."""
    name = 'run'
    label = _('Run')
    permissions_required = {'run'}
    icon = 'play'
    confirm = False

    @classmethod
    def is_applicable(cls, obj: Any) -> bool:
        return obj.enabled and obj.present


class DeleteAbsentTask(DeleteObject):
    """Delete a task that is no longer registered. A registered task would reappear."""

    @classmethod
    def render(cls, context, obj, **kwargs):
        return '' if obj.present else super().render(context, obj, **kwargs)


class ScheduleAction(ConditionalAction):
    """A button of a schedule, for users who may run its task."""

    @classmethod
    def is_permitted(cls, user: Any, obj: Any) -> bool:
        return super().is_permitted(user, obj) and may_run(user, obj.task)


class RunSchedule(ScheduleAction):
    """Run the task of a schedule now."""
    name = 'run'
    label = _('Run Now')
    permissions_required = {'view'}
    icon = 'play'

    @classmethod
    def is_applicable(cls, obj: Any) -> bool:
        return obj.task.enabled and obj.task.present


class EnableSchedule(ScheduleAction):
    """Enable a schedule."""
    name = 'enable'
    label = _('Enable')
    permissions_required = {'change'}
    icon = 'calendar-check'
    color = 'success'

    @classmethod
    def is_applicable(cls, obj: Any) -> bool:
        return not obj.enabled


class DisableSchedule(ScheduleAction):
    """Disable a schedule."""
    name = 'disable'
    label = _('Disable')
    permissions_required = {'change'}
    icon = 'calendar-remove'
    color = 'secondary'

    @classmethod
    def is_applicable(cls, obj: Any) -> bool:
        return obj.enabled


class TakeOverSchedule(ScheduleAction):
    """Take ownership of a schedule."""
    name = 'take_over'
    label = _('Take Ownership')
    permissions_required = {'change'}
    icon = 'account-arrow-left'
    color = 'secondary'

    @classmethod
    def is_applicable(cls, obj: Any) -> bool:
        return True

    @classmethod
    def is_permitted(cls, user: Any, obj: Any) -> bool:
        return obj.owner_id != user.pk and super().is_permitted(user, obj)


class DeleteSchedule(DeleteObject):
    """Delete a schedule. One that is defined in settings or code would reappear."""

    @classmethod
    def render(cls, context, obj, **kwargs):
        return '' if obj.is_read_only and obj.present else super().render(context, obj, **kwargs)


class BulkResultAction(ObjectAction):
    """A button for the selected runs of a list."""
    multi = True
    template_name = 'netbox_celery/buttons/bulk_action.html'
    icon = ''
    color = 'primary'

    @classmethod
    def get_context(cls, context, obj):
        return {
            'name': cls.name,
            'icon': cls.icon,
            'color': cls.color,
        }


class BulkCancel(BulkResultAction):
    """Cancel the selected runs."""
    name = 'bulk_cancel'
    label = _('Cancel Selected')
    permissions_required = {'cancel'}
    icon = 'stop-circle-outline'
    color = 'warning'


class BulkRerun(BulkResultAction):
    """Run the tasks of the selected runs again."""
    name = 'bulk_rerun'
    label = _('Run Selected Again')
    permissions_required = {'rerun'}
    icon = 'replay'
