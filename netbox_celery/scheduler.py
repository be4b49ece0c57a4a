"""Beat's scheduler: `celery -A netbox_celery beat`, and `worker -B`.

Schedules are rows (`netbox_celery.models.CelerySchedule`). Beat asks the database at least every five seconds when one
is due next, so what people change takes effect by then; and it keeps nothing, so no file has to be kept for it. Any
number of beats may run: one sends, the others wait to take its place.
"""
import ctypes
import logging
import signal
import sys
import time
from copy import copy, deepcopy

from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import schedule
from celery.signals import beat_embedded_init
from django.db import ProgrammingError, close_old_connections, connections

from .choices import ScheduleKindChoices as Kind
from .engine.catalogue import discovery
from .engine.schedules import firing as schedules
from .engine.schedules import sources
from .engine.schedules.due import parse_crontab, parse_timezone
from .engine.schedules.leader import Leadership, harden_connections
from .engine.schedules.sync import sync_catalogue
from .engine.store.database import MIGRATE, UNAVAILABLE, is_read_only

__all__ = (
    'DatabaseScheduler',
)

logger = logging.getLogger(__name__)

#: How often a beat that does not send looks whether the one that does has stopped, seconds. The place of one that is
#: gone it takes as soon as the lease has run out.
STANDBY_INTERVAL = 3
#: How often the one that sends looks after what changes seldom, seconds.
HOUSEKEEPING_INTERVAL = 60
#: For how long it sends before it renews its lease, seconds.
SENDING_TIME = 1
#: How long it waits where a schedule is due but is being edited, or the database is away, seconds.
SHORT_WAIT = 0.2


class DatabaseScheduler(Scheduler):
    """Celery's scheduler with schedules in NetBox's database."""

    #: Seconds after which an edit has taken effect.
    max_interval = 5

    def __init__(self, *args, **kwargs):
        self.leadership = Leadership()
        self._housekeeping_due = self._complaint_due = 0.0
        super().__init__(*args, **kwargs)
        self.max_interval = min(self.max_interval, type(self).max_interval)

    def setup_schedule(self):
        """Called where beat is going to run. Its connections are made later, in the process that uses them."""
        harden_connections()
        discovery.log_failures()
        self.install_default_entries(self.data)

    def tick(self, *args, **kwargs):
        """Start what is due.

        Returns:
            Seconds after which to call it again.
        """
        close_old_connections()
        try:
            if not self.leadership.is_held and not self._take_over():
                return min(STANDBY_INTERVAL, self.leadership.seconds_left() + SHORT_WAIT)
            self._keep_house()
            seconds = self.leadership.seconds_to_next()
            if seconds is None:
                logger.warning('beat: nothing is sent from here any more, another beat has taken the place')
                return SHORT_WAIT
            return min(seconds, self.max_interval) if seconds > 0 else self._send()
        except UNAVAILABLE as exc:
            logger.warning('beat: nothing is sent, the database is unavailable: %s', exc)
        except ProgrammingError as exc:
            logger.error('beat: nothing is sent, trying again: %s %s', exc, MIGRATE)
        except Exception as exc:
            if is_read_only(exc):
                logger.warning('beat: nothing is sent, the database is read-only: %s', exc)
            else:
                # It must go on: whatever is wrong with one thing, the others are due.
                logger.exception('beat: something failed, trying again')
        connections.close_all()
        return STANDBY_INTERVAL

    def _take_over(self):
        if self.leadership.acquire():
            logger.info('beat: this one sends what is due')
            self._housekeeping_due = self._complaint_due = 0.0
            return True
        if time.monotonic() >= self._complaint_due:
            logger.warning('beat: nothing is sent from here, another beat sends; waiting to take its place')
            self._complaint_due = time.monotonic() + HOUSEKEEPING_INTERVAL
        return False

    def _keep_house(self):
        if time.monotonic() < self._housekeeping_due:
            return
        self._housekeeping_due = time.monotonic() + HOUSEKEEPING_INTERVAL
        sync_catalogue()
        sources.sync(self.app, {**self.data, **self.app.conf.beat_schedule}, is_leader=True)
        schedules.resume_after_clock()

    def _send(self):
        permissions, number = {}, 0
        until = time.monotonic() + SENDING_TIME
        for pk in schedules.find_due():
            number += schedules.fire(pk, permissions, self._start)
            if time.monotonic() > until:
                break
        return 0 if number else SHORT_WAIT

    def _start(self, row, moment):
        """Start a run by `apply_entry`, as beat does: that is where others listen, such as Sentry's monitor of beat.

        Raises:
            django.db.DatabaseError: The database is away.
        """
        entry = Entry(self.app, row, moment)
        try:
            self.apply_entry(entry)
        except Exception:
            # Ours only logs what goes wrong
            logger.exception('beat: who listens to what schedule %s starts has failed', row)
        if not entry.is_applied:
            self.apply_async(entry)
        if entry.error is not None:
            raise entry.error

    def apply_async(self, entry, producer=None, advance=True, **kwargs):
        """Start the run of an entry that is due (see `celery.beat.Scheduler.apply_async`).

        Its row says all that it is called with. Of the entry's options, headers that others have added go along.
        """
        if not isinstance(entry, Entry):
            return super().apply_async(entry, producer=producer, advance=advance, **kwargs)
        entry.is_applied = True
        try:
            return schedules.start_run(entry.row, entry.moment, headers=entry.options.get('headers'))
        except Exception as exc:
            entry.error = exc  # or `apply_entry` would keep it to itself
            raise

    def close(self):
        super().close()
        self.leadership.release()

    @property
    def info(self):
        return '    . schedules -> the database of NetBox'


class Entry(ScheduleEntry):
    """A schedule that is due, as Celery's beat knows it. It is made for one run."""

    #: Whether the run was started, or could not be.
    is_applied = False
    #: What kept it from being started.
    error = None

    def __init__(self, app, row, moment):
        super().__init__(
            name=row.name, task=row.task.name, args=row.args, kwargs=row.kwargs, schedule=timing_of(row),
            options=deepcopy(row.options), last_run_at=row.last_run, app=app
        )
        self.row = row
        self.moment = moment


def timing_of(row):
    """Return when a schedule is due as a schedule of Celery's; of one that is due once, `None`."""
    if row.kind == Kind.KIND_INTERVAL:
        return schedule(row.interval)
    if row.kind == Kind.KIND_CRONTAB:
        cron = copy(parse_crontab(row.crontab))
        cron.tz = parse_timezone(row.timezone)
        return cron
    return None


#: The sockets of the worker that forked this beat: closed already, and never to be closed again in this process, where
#: others have taken their numbers.
_inherited = []


@beat_embedded_init.connect
def on_embedded_init(**kwargs):
    """Leave the worker's connections to the worker, and end with it: `worker -B` forks."""
    for connection in connections.all(initialized_only=True):
        _inherited.append(connection.connection)
        connection.connection = None
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
