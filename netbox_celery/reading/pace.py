"""The rate of a run and the time left."""
from dataclasses import dataclass
from datetime import timedelta

from django.utils import timezone
from django.utils.formats import number_format
from django.utils.translation import gettext as _

from utilities.string import humanize_duration

from ..choices import ResultStatusChoices
from ..engine.store.times import moment
from ..models import CeleryResult

__all__ = (
    'Pace',
    'measure_pace',
)

#: Seconds before which a rate says more about the start than about the run.
SETTLED_AFTER = 1
#: Units of a rate, by length in seconds: the shortest in which the rate is at least one is used.
UNITS = (
    (1, '/s'),
    (60, '/min'),
    (3600, '/h'),
)


@dataclass(frozen=True)
class Pace:
    """The mean rate of the current attempt."""
    #: Steps per second.
    rate: float
    #: Time left, or `None` if the maximum is unknown.
    left: timedelta | None

    @property
    def rate_text(self):
        for seconds, unit in UNITS:
            if self.rate * seconds >= 1:
                break
        value = self.rate * seconds
        digits = 0 if value >= 10 else 1
        return f'{number_format(round(value, digits), digits, force_grouping=True)}{unit}'

    @property
    def left_text(self):
        if self.left is None:
            return ''
        # Seconds do not matter beyond an hour
        precision = 60 if self.left > timedelta(hours=1) else 1
        rounded = timedelta(seconds=max(1, round(self.left.total_seconds() / precision)) * precision)
        return _('about {duration} left').format(duration=humanize_duration(rounded))


def measure_pace(result: CeleryResult) -> Pace | None:
    """Return the `Pace` of a run, or `None` if it is not known (yet)."""
    if result.status != ResultStatusChoices.STATUS_RUNNING or not result.value or result.value < 0:
        return None
    started = _start_of_attempt(result)
    elapsed = (timezone.now() - started).total_seconds() if started else 0
    if elapsed < SETTLED_AFTER:
        return None
    rate = result.value / elapsed
    return Pace(rate=rate, left=_time_left(result, rate))


def _time_left(result, rate):
    if not result.value_max:
        return None
    try:
        return timedelta(seconds=max(0, result.value_max - result.value) / rate)
    except OverflowError:
        return None  # more than a timedelta can hold


def _start_of_attempt(result):
    if result.attempt > 1 and result.attempts:
        return moment(result.attempts[-1].get('started'))
    return result.started
