"""What NetBox's global search finds: tasks. Runs are too many, and an index costs a write for each change of theirs."""
from netbox.search import SearchIndex, register_search

from .models import CeleryTask

__all__ = (
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
