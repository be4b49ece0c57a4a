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

from celery.beat import Scheduler
from celery.signals import beat_embedded_init
from django.db import ProgrammingError, close_old_connections, connections

from .engine import catalogue, schedules, sources
from .engine.database import MIGRATE, UNAVAILABLE
from .engine.leader import Leadership, harden_connections

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
        except Exception:
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
        catalogue.sync(force=True)
        sources.sync(self.app, {**self.data, **self.app.conf.beat_schedule}, is_leader=True)
        schedules.resume_after_clock()

    def _send(self):
        permissions, number = {}, 0
        until = time.monotonic() + SENDING_TIME
        for pk in schedules.find_due():
            number += schedules.fire(pk, permissions)
            if time.monotonic() > until:
                break
        return 0 if number else SHORT_WAIT

    def close(self):
        super().close()
        self.leadership.release()

    @property
    def info(self):
        return '    . schedules -> the database of NetBox'


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
