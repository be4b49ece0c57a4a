"""Success rate and durations of the last runs of a schedule.

PostgreSQL computes them over at most the last thousand runs, which it finds by an index: a long history costs no more
than a short one.
"""
from dataclasses import dataclass
from datetime import timedelta

from django.db.models import Aggregate, Avg, Count, DurationField, ExpressionWrapper, F, Max, Min, Q, QuerySet

from users.models import User

from ..choices import ResultStatusChoices as Status
from ..models import CeleryResult, CelerySchedule

__all__ = (
    'HISTORY',
    'History',
    'measure',
    'runs_of',
)

#: Maximum number of runs that are measured, the latest ones.
HISTORY = 1000
#: Statuses that count for the success rate: revoked and ignored runs do not show whether the task works.
COUNTED = (Status.STATUS_COMPLETED, Status.STATUS_FAILED, Status.STATUS_ERRORED)


class Percentile(Aggregate):
    """A continuous percentile, such as the median (0.5)."""
    function = 'PERCENTILE_CONT'
    template = '%(function)s(%(fraction)s) WITHIN GROUP (ORDER BY %(expressions)s)'
    output_field = DurationField()


@dataclass(frozen=True)
class History:
    """The figures that `measure()` returns.

    Attributes:
        count: Number of runs measured.
        statuses: Number of runs by status, without statuses that do not occur.
        success_rate: Percentage of completed runs among those that completed, failed or errored; `None` if there are
            none.
        median, p95, shortest, mean, longest: Durations of the runs that started and finished; `None` if there are none.
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
        """Whether there may be more runs than were measured."""
        return self.count >= HISTORY


def runs_of(schedule: CelerySchedule, user: User) -> QuerySet:
    """Return the runs of a schedule that a user may view, latest first."""
    return CeleryResult.objects.restrict(user, 'view').filter(schedule=schedule).order_by('-pk')


def measure(runs: QuerySet) -> History:
    """Measure the first runs of a queryset. Returns a `History`.

    Args:
        runs: A queryset of runs, latest first.
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
    counted = sum(statuses.get(status, 0) for status in COUNTED)
    return History(
        count=sum(statuses.values()),
        statuses=statuses,
        success_rate=100 * statuses.get(Status.STATUS_COMPLETED, 0) / counted if counted else None,
        **found
    )
