"""Which beat sends: one at a time, by a lease that a dead one cannot renew.

The lease saves work, nothing else: schedules are safe with several leaders (`netbox_celery.engine.schedules.firing`).
It is a row, and each statement about it a transaction of its own: so it holds whatever session of PostgreSQL's executes
them, also behind a pooler that gives each transaction another one. Who sends renews it with each look at what is
due. Who is dead, hangs, or is cut off from the network does not, and another takes over when it has run out.
"""
from uuid import uuid4

from django.db import DEFAULT_DB_ALIAS, connections

from ..store.database import UNAVAILABLE, EngineConnection

__all__ = (
    'Leadership',
    'harden_connections',
)

#: Name of the lease.
NAME = 'beat'
#: For how long one holds that is not renewed, seconds: longer than beat sleeps (`DatabaseScheduler.max_interval`).
LEASE = 8
#: How libpq finds out that the network is cut: after 10 s. As options of a connection, milliseconds in the last.
CLIENT_SIDE = {
    'connect_timeout': 5, 'keepalives': 1, 'keepalives_idle': 4, 'keepalives_interval': 2, 'keepalives_count': 3,
    'tcp_user_timeout': 10_000,
}
LEASES = 'netbox_celery_lease'
LAST = f'clock_timestamp() + make_interval(secs => {LEASE})'

# GUARANTEE: of those that ask, one gets a lease that has run out. All times are PostgreSQL's. One that lies further in
# the future than any lease can was written before its clock was set back, and has run out, too.
ACQUIRE = f"""
    INSERT INTO {LEASES} AS lease (name, holder, until) VALUES ('{NAME}', %(holder)s, {LAST})
    ON CONFLICT (name) DO UPDATE SET holder = EXCLUDED.holder, until = EXCLUDED.until
    WHERE lease.holder = EXCLUDED.holder OR lease.until NOT BETWEEN clock_timestamp() AND {LAST}
    RETURNING true
"""
# GUARANTEE: who finds that another holds the lease does not send.
ASK = f"""
    WITH renewed AS (
        UPDATE {LEASES} SET until = {LAST} WHERE name = '{NAME}' AND holder = %(holder)s RETURNING true
    )
    SELECT (
        SELECT EXTRACT(EPOCH FROM min(next_run) - clock_timestamp())::float
        FROM netbox_celery_celeryschedule WHERE enabled AND isfinite(next_run)
    ) FROM renewed
"""
LEFT = f"SELECT EXTRACT(EPOCH FROM until - clock_timestamp())::float FROM {LEASES} WHERE name = '{NAME}'"
RELEASE = f"DELETE FROM {LEASES} WHERE name = '{NAME}' AND holder = %(holder)s"


def harden_connections():
    """Let connections that this process makes from now on notice within seconds that the network is cut."""
    settings = connections.settings[DEFAULT_DB_ALIAS]
    settings['OPTIONS'] = connections[DEFAULT_DB_ALIAS].settings_dict['OPTIONS'] = {
        **settings.get('OPTIONS', {}), **CLIENT_SIDE
    }


class Leadership:
    """The place of the beat that sends. Another that asks for it gets it when this one's lease has run out."""

    def __init__(self):
        self._connection = EngineConnection()
        self._holder = {'holder': uuid4()}
        #: Whether this beat was the one that sends when it last asked.
        self.is_held = False

    def acquire(self):
        """Try to become the one that sends. Returns whether that is so."""
        self.is_held = bool(self._connection.execute(ACQUIRE, self._holder))
        return self.is_held

    def seconds_to_next(self):
        """Return in how many seconds a schedule is due next, `inf` if none is, or `None` if another beat sends now."""
        try:
            found = self._connection.execute(ASK, self._holder)
        except UNAVAILABLE:
            self.is_held = False
            raise
        self.is_held = bool(found)
        if not found:
            return None
        ((seconds,),) = found
        return float('inf') if seconds is None else seconds

    def seconds_left(self):
        """Return for how many seconds the lease of the one that sends holds, at the most."""
        found = self._connection.execute(LEFT)
        return min(max(found[0][0], 0), LEASE) if found else 0

    def release(self):
        """Let another one send."""
        if self.is_held:
            self.is_held = False
            try:
                self._connection.execute(RELEASE, self._holder)
            except UNAVAILABLE:
                pass  # it runs out
        self._connection.close()
