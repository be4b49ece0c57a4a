"""What the last runs of a schedule tell: how often it succeeds, and how long it takes.

PostgreSQL reckons it, over no more than the last thousand runs, which an index finds: a schedule with a long history
costs no more than one with a short one.
"""
from dataclasses import dataclass
from datetime import timedelta

from django.db.models import Aggregate, Avg, Count, DurationField, ExpressionWrapper, F, Max, Min, Q

from ..choices import ResultStatusChoices as Status
from ..models import CeleryResult

__all__ = (
    'HISTORY',
    'History',
    'measure',
    'runs_of',
)

#: So many runs are looked at, the latest ones.
HISTORY = 1000
#: Statuses that tell whether the task works: cancelled and ignored runs tell nothing of that.
TELLING = (Status.STATUS_COMPLETED, Status.STATUS_FAILED, Status.STATUS_ERRORED)


class Percentile(Aggregate):
    """A continuous percentile, such as the median (0.5)."""
    function = 'PERCENTILE_CONT'
    template = '%(function)s(%(fraction)s) WITHIN GROUP (ORDER BY %(expressions)s)'
    output_field = DurationField()


@dataclass(frozen=True)
class History:
    """What `measure()` found.

    Attributes:
        count: How many runs were looked at.
        statuses: How many of them have which status, those that there are.
        success_rate: Per cent of those that completed, failed or errored that completed; `None` if there are none.
        median, p95, shortest, mean, longest: Durations of those that have begun and ended; `None` without any.
    """
    count: int
    statuses: dict[str, int]
    success_rate: float | None
    median: timedelta | None
    p95: timedelta | None
    shortest: timedelta | None
    mean: timedelta | None
    longest: timedelta | None

    @property
    def is_cut(self):
        """Whether there may be more runs than were looked at."""
        return self.count >= HISTORY


def runs_of(schedule, user):
    """Return the runs of a schedule that a user may view, the latest first."""
    return CeleryResult.objects.restrict(user, 'view').filter(schedule=schedule).order_by('-pk')


def measure(runs):
    """Measure the latest of some runs. Returns a `History`.

    Args:
        runs: A queryset of results, ordered by what makes them the latest.
    """
    duration = ExpressionWrapper(F('completed') - F('started'), output_field=DurationField())
    found = runs.annotate(took=duration).values('status', 'took')[:HISTORY].aggregate(
        median=Percentile('took', fraction=0.5), p95=Percentile('took', fraction=0.95),
        shortest=Min('took'), mean=Avg('took'), longest=Max('took'),
        **{f'status_{status}': Count('status', filter=Q(status=status)) for status in Status.values()},
    )
    statuses = {
        status: count for status in Status.values() if (count := found.pop(f'status_{status}'))
    }
    telling = sum(statuses.get(status, 0) for status in TELLING)
    return History(
        count=sum(statuses.values()),
        statuses=statuses,
        success_rate=100 * statuses.get(Status.STATUS_COMPLETED, 0) / telling if telling else None,
        **found
    )
