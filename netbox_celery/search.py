"""What NetBox's global search finds: tasks and schedules. Runs are too many: an index costs a write for each change."""
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
    # Not the task, which not everybody who finds a schedule may view
    display_attrs = ('kind', 'enabled', 'description')
