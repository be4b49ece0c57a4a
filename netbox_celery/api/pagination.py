"""Pagination of long histories."""
from netbox.api.pagination import NetBoxPagination

from ..querysets import Estimate

__all__ = (
    'HistoryPagination',
)


class HistoryPagination(NetBoxPagination):
    """NetBox's pagination with a count that takes milliseconds, however long the history.

    Up to 10,000 rows `count` is exact; above, it is an estimate. The pages themselves then determine where the list
    ends, so that a client that follows `next` gets every row.
    """
    count: int

    def get_queryset_count(self, queryset):
        count = queryset.with_bounded_count().count()
        if isinstance(count, Estimate):
            # An estimate that is too low must not hide rows
            return Estimate(max(count, self.get_offset(self.request)))
        return count

    def paginate_queryset(self, queryset, request, view=None):
        rows = super().paginate_queryset(queryset, request, view)
        if isinstance(self.count, Estimate) and self.limit:
            if len(rows) == self.limit:
                self.count = max(self.count, self.offset + self.limit + 1)
            else:
                self.count = min(self.count, self.offset) + len(rows)
        return rows
