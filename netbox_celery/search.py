"""The global search indexes of tasks and schedules. Runs have none: each change of a run would cost another write."""
from netbox.search import SearchIndex, register_search

from .models import CelerySchedule, CeleryTask

__all__ = (
    'CeleryScheduleIndex',
    'CeleryTaskIndex',
)


@register_search
class CeleryTaskIndex(SearchIndex):
    model = CeleryTask
    fields = (
        ('name', 100),
        ('description', 500),
        ('documentation', 5000),
    )
    display_attrs = ('plugin', 'description')


@register_search
class CeleryScheduleIndex(SearchIndex):
    model = CelerySchedule
    fields = (
        ('name', 100),
        ('description', 500),
    )
    # Without the task: users who find a schedule may lack permission to view its task
    display_attrs = ('kind', 'enabled', 'description')
