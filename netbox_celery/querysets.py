"""Querysets of the tables that grow without end: runs and the lines of their logs."""
import json

from utilities.querysets import RestrictedQuerySet

__all__ = (
    'CeleryLogEntryQuerySet',
    'Estimate',
    'HistoryQuerySet',
)

#: Up to so many rows, a bounded count is exact.
EXACT_UP_TO = 10_000


class Estimate(int):
    """A number of rows that was not counted but estimated by PostgreSQL's planner."""


class HistoryQuerySet(RestrictedQuerySet):
    """Rows of a table with a long history."""
    _is_count_bounded = False

    def with_bounded_count(self):
        """Return a copy whose `count()` takes milliseconds, however many rows match. Lists page by it.

        Up to 10,000 rows the count is exact; above, it is an `Estimate`. Elsewhere `count()` stays what it is:
        NetBox compares counts to find out whether a user may do what they ask for.
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
        """Return how many rows the planner expects. It knows the table's present size, and the values' statistics."""
        plan = json.loads(self.values('pk').explain(format='json'))
        return plan[0]['Plan']['Plan Rows']


class CeleryLogEntryQuerySet(HistoryQuerySet):
    """Lines of logs. Who reads one must be allowed to view the run as well."""

    def restrict(self, user, action='view'):
        entries = super().restrict(user, action)
        results = self.model._meta.get_field('result').related_model.objects.restrict(user, 'view')
        return entries.filter(result__in=results) if results.query.has_filters() else entries
