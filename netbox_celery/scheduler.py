"""Beat's scheduler: `celery -A netbox_celery beat`, and `worker -B`.

Schedules are rows (`netbox_celery.models.CelerySchedule`). Beat asks the database at least every five seconds which one
is due next, so changes take effect within that time. It has no state of its own, and needs no file. Any number of beats
may run: one sends, the others are on standby.
"""
import ctypes
import logging
import signal
import sys
import time
from copy import copy, deepcopy
from typing import Any

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

#: How often a beat on standby checks whether the one that sends has stopped, seconds. It takes over from a dead one as
#: soon as the lease has expired.
STANDBY_INTERVAL = 3
#: Time between two rounds of housekeeping of the beat that sends, seconds.
HOUSEKEEPING_INTERVAL = 60
#: How long beat sends before it renews its lease, seconds.
SENDING_TIME = 1
#: How long beat waits if a schedule is due but is being edited, or after it lost its lease, seconds.
SHORT_WAIT = 0.2


class DatabaseScheduler(Scheduler):
    """Celery's scheduler with schedules in NetBox's database."""

    #: Maximum time until an edit takes effect, seconds.
    max_interval = 5

    def __init__(self, *args, **kwargs):
        self.leadership = Leadership()
        self._housekeeping_due = self._complaint_due = 0.0
        super().__init__(*args, **kwargs)
        self.max_interval = min(self.max_interval, type(self).max_interval)

    def setup_schedule(self):
        """Prepare beat, in the process in which it will run. Connections are made later, when they are used."""
        harden_connections()
        discovery.log_failures()
        self.install_default_entries(self.data)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Start the runs that are due.

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
                logger.warning('beat: another beat has taken over, this one is on standby')
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
                # Beat must continue: whatever is wrong with one schedule, others are due
                logger.exception('beat: unexpected error, trying again')
        connections.close_all()
        return STANDBY_INTERVAL

    def _take_over(self):
        if self.leadership.acquire():
            logger.info('beat: this one is active')
            self._housekeeping_due = self._complaint_due = 0.0
            return True
        if time.monotonic() >= self._complaint_due:
            logger.warning('beat: another beat is active, this one is on standby')
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
        permissions: dict[tuple[int, int], bool] = {}
        number = 0
        until = time.monotonic() + SENDING_TIME
        for pk in schedules.find_due():
            number += schedules.fire(pk, permissions, self._start)
            if time.monotonic() > until:
                break
        return 0 if number else SHORT_WAIT

    def _start(self, row, moment):
        """Start a run by `apply_entry`, as beat does: others patch that method, such as Sentry's monitor of beat.

        Raises:
            django.db.DatabaseError: The database is unavailable.
        """
        entry = Entry(self.app, row, moment)
        try:
            self.apply_entry(entry)
        except Exception:
            # The error is that of others: Celery's own `apply_entry` logs errors
            logger.exception('beat: instrumentation of the schedule %s failed', row)
        if not entry.is_applied:
            self.apply_async(entry)
        if entry.error is not None:
            raise entry.error

    def apply_async(self, entry, producer=None, advance=True, **kwargs):
        """Start the run of an entry that is due (see `celery.beat.Scheduler.apply_async`).

        The call is made from its row. Of the entry's options, only headers are used, which others may have added.
        """
        if not isinstance(entry, Entry):
            return super().apply_async(entry, producer=producer, advance=advance, **kwargs)
        entry.is_applied = True
        try:
            return schedules.start_run(entry.row, entry.moment, headers=entry.options.get('headers'))
        except Exception as exc:
            entry.error = exc  # since `apply_entry` only logs it
            raise

    def close(self):
        super().close()
        self.leadership.release()

    @property
    def info(self):
        return '    . schedules -> the database of NetBox'


class Entry(ScheduleEntry):
    """A schedule that is due, in the form of Celery's beat. It is made for one run."""

    #: Whether the start of the run was tried.
    is_applied = False
    #: Why the run could not be started.
    error: Exception | None = None

    def __init__(self, app, row, moment):
        super().__init__(
            name=row.name, task=row.task.name, args=row.args, kwargs=row.kwargs, schedule=timing_of(row),
            options=deepcopy(row.options), last_run_at=row.last_run, app=app
        )
        self.row = row
        self.moment = moment


def timing_of(row):
    """Return the timing of a schedule as one of Celery's schedules, or `None` if it is due once."""
    if row.kind == Kind.KIND_INTERVAL:
        return schedule(row.interval)
    if row.kind == Kind.KIND_CRONTAB:
        cron = copy(parse_crontab(row.crontab))
        cron.tz = parse_timezone(row.timezone)
        return cron
    return None


#: The sockets of the worker that forked this beat. They are closed already, and must not be closed again in this
#: process, where other files have their numbers.
_inherited: list[Any] = []


@beat_embedded_init.connect
def on_embedded_init(**kwargs):
    """Leave the worker's connections to the worker, and die with it: `worker -B` forks."""
    for connection in connections.all(initialized_only=True):
        _inherited.append(connection.connection)
        connection.connection = None
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
