"""The next runs of a schedule as a page shows them, also of one that is still being filled in."""
from datetime import timedelta
from itertools import islice
from zoneinfo import ZoneInfo

from django.utils import timezone
from django.utils.timesince import timeuntil
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ..choices import ScheduleKindChoices

__all__ = (
    'upcoming',
)

#: So many are shown.
SHOWN = 10


def upcoming(schedule):
    """Return what the template of the next runs needs, a dict.

    The times are those of NetBox's time zone; the page's script shows them in the browser's. By a crontab in another
    time zone than NetBox's, the time on the schedule's own clock stands beside them.
    """
    try:
        times = list(islice(schedule.due_times(), SHOWN))
        obstacle = '' if times else _('It is not due any more.')
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
        return _('It is gone from where it came from: these would be its times.')
    return '' if schedule.enabled else _('It is disabled: these would be its times.')


def _until(moment, now):
    """Return in words how long it is until then: Django's own words know no seconds."""
    seconds = round((moment - now).total_seconds())
    if seconds >= 60:
        # Django rounds down: of a minute that is a moment short it would say "0 minutes"
        return timeuntil(now + timedelta(seconds=seconds), now)
    return ngettext('{count} second', '{count} seconds', seconds).format(count=seconds) if seconds > 0 else _('now')
