"""Which beat sends: the one that holds the lease. A dead beat cannot renew it.

The lease only saves work: schedules are safe with several leaders (`netbox_celery.engine.schedules.firing`). It is a
row, and each statement about it is a transaction of its own, so it does not depend on the PostgreSQL session, and works
behind a pooler that gives each transaction a different session. The beat that sends renews the lease each time it asks
what is due. A beat that is dead, hangs, or has lost the network does not, and another takes over when the lease has
expired.
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
#: After this time a lease that is not renewed expires, seconds: longer than beat sleeps
#: (`DatabaseScheduler.max_interval`).
LEASE = 8
#: Options of a connection with which libpq notices within 10 s that the network is down; the last is in milliseconds.
CLIENT_SIDE = {
    'connect_timeout': 5, 'keepalives': 1, 'keepalives_idle': 4, 'keepalives_interval': 2, 'keepalives_count': 3,
    'tcp_user_timeout': 10_000,
}
LEASES = 'netbox_celery_lease'
LAST = f'clock_timestamp() + make_interval(secs => {LEASE})'

# GUARANTEE: one of the beats that ask gets an expired lease. All times are PostgreSQL's. A lease that ends later than
# possible was written before PostgreSQL's clock was set back, and has expired, too.
ACQUIRE = f"""
    INSERT INTO {LEASES} AS lease (name, holder, until) VALUES ('{NAME}', %(holder)s, {LAST})
    ON CONFLICT (name) DO UPDATE SET holder = EXCLUDED.holder, until = EXCLUDED.until
    WHERE lease.holder = EXCLUDED.holder OR lease.until NOT BETWEEN clock_timestamp() AND {LAST}
    RETURNING true
"""
# GUARANTEE: a beat does not send if another one holds the lease.
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


def harden_connections() -> None:
    """Make new connections of this process notice within seconds that the network is down."""
    settings = connections.settings[DEFAULT_DB_ALIAS]
    settings['OPTIONS'] = connections[DEFAULT_DB_ALIAS].settings_dict['OPTIONS'] = {
        **settings.get('OPTIONS', {}), **CLIENT_SIDE
    }


class Leadership:
    """The lease of the beat that sends. Another beat that asks for it gets it when it has expired."""

    def __init__(self) -> None:
        self._connection = EngineConnection()
        self._holder = {'holder': uuid4()}
        #: Whether this beat held the lease when it last asked.
        self.is_held = False

    def acquire(self) -> bool:
        """Try to get the lease, and return whether this beat holds it."""
        self.is_held = bool(self._connection.execute(ACQUIRE, self._holder))
        return self.is_held

    def seconds_to_next(self) -> float | None:
        """Return the seconds until a schedule is due next, `inf` if there is none, or `None` if another beat sends now.
        """
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

    def seconds_left(self) -> float:
        """Return the maximum number of seconds until the lease expires."""
        found = self._connection.execute(LEFT)
        return min(max(found[0][0], 0), LEASE) if found else 0

    def release(self) -> None:
        """Give the lease up, so that another beat can send."""
        if self.is_held:
            self.is_held = False
            try:
                self._connection.execute(RELEASE, self._holder)
            except UNAVAILABLE:
                pass  # it expires
        self._connection.close()
