"""The querysets of tables that grow without limit: runs and their log entries."""
import json
from typing import Self

from utilities.querysets import RestrictedQuerySet

__all__ = (
    'CeleryLogEntryQuerySet',
    'Estimate',
    'HistoryQuerySet',
)

#: A bounded count is exact up to this number of rows.
EXACT_UP_TO = 10_000


class Estimate(int):
    """A number of rows that PostgreSQL's planner has estimated."""


class HistoryQuerySet(RestrictedQuerySet):
    """Rows of a table with a long history."""
    _is_count_bounded = False

    def with_bounded_count(self) -> Self:
        """Return a copy whose `count()` takes milliseconds, however many rows match. It is for the paging of lists.

        Up to 10,000 rows the count is exact; above, it is an `Estimate`. Otherwise `count()` remains exact: NetBox
        compares counts to check whether a user is permitted to perform an action.
        """
        clone = self._chain()
        clone._is_count_bounded = True
        return clone

    def _clone(self):
        clone = super()._clone()
        clone._is_count_bounded = self._is_count_bounded
        return clone

    def count(self):
        if not self._is_count_bounded or self._result_cache is not None or self.query.is_sliced:
            return super().count()
        unordered = self.order_by()
        counted = unordered[:EXACT_UP_TO + 1].count()
        if counted <= EXACT_UP_TO:
            return counted
        return Estimate(max(counted, unordered._estimate()))

    def _estimate(self):
        """Return the planner's estimate, which uses the current size of the table and the statistics of its columns."""
        plan = json.loads(self.values('pk').explain(format='json'))
        return plan[0]['Plan']['Plan Rows']


class CeleryLogEntryQuerySet(HistoryQuerySet):
    """Log entries. Users can view an entry only if they may view its run as well."""

    def restrict(self, user, action='view'):
        entries = super().restrict(user, action)
        results = self.model._meta.get_field('result').related_model.objects.restrict(user, 'view')
        return entries.filter(result__in=results) if results.query.has_filters() else entries
