"""The next runs of a schedule for display, also while it is being edited."""
from datetime import timedelta
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from django.utils import timezone
from django.utils.timesince import timeuntil
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ..choices import ScheduleKindChoices
from ..models import CelerySchedule

__all__ = (
    'upcoming',
)

#: Number of runs that are shown.
SHOWN = 10


def upcoming(schedule: CelerySchedule) -> dict[str, Any]:
    """Return the context for the template of the next runs.

    Times are in NetBox's time zone; the page's script converts them to the browser's. If a crontab has another time
    zone than NetBox, each time is also given in the time zone of the schedule.
    """
    try:
        times = list(islice(schedule.due_times(), SHOWN))
        obstacle = '' if times else _('No further runs')
    except ValueError as exc:
        times, obstacle = [], str(exc)
    now = timezone.now()
    current = timezone.get_current_timezone_name()
    is_elsewhere = schedule.kind == ScheduleKindChoices.KIND_CRONTAB and schedule.timezone != current
    zone = ZoneInfo(schedule.timezone) if is_elsewhere and times else None
    return {
        'in_words': schedule.in_words,
        'times': [(moment, zone and moment.astimezone(zone), _until(moment, now)) for moment in times],
        'zone': current,
        'other_zone': schedule.timezone if zone else '',
        'obstacle': obstacle,
        'idle': _why_idle(schedule),
    }


def _why_idle(schedule):
    if not schedule.present:
        return _('The schedule is no longer defined at its origin; it would run at:')
    return '' if schedule.enabled else _('The schedule is disabled; it would run at:')


def _until(moment, now):
    """Return the time left as text, with seconds, which Django's `timeuntil` leaves out."""
    seconds = round((moment - now).total_seconds())
    if seconds >= 60:
        # Django rounds down: just under a minute would become "0 minutes"
        return timeuntil(now + timedelta(seconds=seconds), now)
    return ngettext('{count} second', '{count} seconds', seconds).format(count=seconds) if seconds > 0 else _('now')
