"""Which beat sends: one at a time, by a PostgreSQL lock that a dead one cannot keep.

The lock saves work, nothing else: schedules are safe with several leaders (`netbox_celery.engine.schedules`). It
belongs to a session of its own. PostgreSQL ends that session when its process dies, when the network is cut, and when
the process hangs and has said nothing for ten seconds.
"""
import logging

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.signals import connection_created

from .database import UNAVAILABLE, EngineConnection

__all__ = (
    'Leadership',
    'harden_connections',
)

logger = logging.getLogger(__name__)

#: Key of the advisory lock ("beat" on a phone's keys).
LOCK = 2328
#: How libpq finds out that the network is cut: after 10 s. As options of a connection, milliseconds in the last.
CLIENT_SIDE = {
    'connect_timeout': 5, 'keepalives': 1, 'keepalives_idle': 4, 'keepalives_interval': 2, 'keepalives_count': 3,
    'tcp_user_timeout': 10_000,
}
#: How PostgreSQL does, so that it frees the locks of such a session.
SERVER_SIDE = """
    SELECT set_config('tcp_keepalives_idle', '4', false), set_config('tcp_keepalives_interval', '2', false),
        set_config('tcp_keepalives_count', '3', false), set_config('tcp_user_timeout', '10s', false)
"""
ACQUIRE = """
    SELECT set_config('idle_session_timeout', '10s', false), pg_backend_pid(), pg_try_advisory_lock(%s)
"""
ASK = """
    SELECT pg_backend_pid(), (
        SELECT EXTRACT(EPOCH FROM min(next_run) - clock_timestamp())::float
        FROM netbox_celery_celeryschedule WHERE enabled AND isfinite(next_run)
    )
"""


def harden_connections():
    """Let connections that this process makes from now on notice within seconds that the network is cut."""
    settings = connections.settings[DEFAULT_DB_ALIAS]
    settings['OPTIONS'] = connections[DEFAULT_DB_ALIAS].settings_dict['OPTIONS'] = {
        **settings.get('OPTIONS', {}), **CLIENT_SIDE
    }
    connection_created.connect(_harden_session, dispatch_uid=__name__)


def _harden_session(connection, **kwargs):
    if connection.alias == DEFAULT_DB_ALIAS:
        with connection.cursor() as cursor:
            cursor.execute(SERVER_SIDE)


class Leadership:
    """The place of the beat that sends. Another that asks for it gets it when this one's session has ended."""

    def __init__(self):
        self._connection = EngineConnection()
        self._session = None

    @property
    def is_held(self):
        """Whether this beat was the one that sends when it last asked."""
        return self._session is not None

    def acquire(self):
        """Try to become the one that sends. Returns whether that is so."""
        ((__, session, locked),) = self._connection.execute(ACQUIRE, (LOCK,))
        self._session = session if locked else None
        return locked

    def seconds_to_next(self):
        """Return in how many seconds a schedule is due next, `inf` if none is, or `None` if another beat sends now."""
        try:
            ((session, seconds),) = self._connection.execute(ASK)
        except UNAVAILABLE:
            self._session = None
            raise
        if session != self._session:
            # The connection broke and was made anew: the lock is gone with the old one
            self._session = None
            return None
        return float('inf') if seconds is None else seconds

    def release(self):
        self._session = None
        self._connection.close()
