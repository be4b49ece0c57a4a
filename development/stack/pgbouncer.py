"""
A private PgBouncer in front of a cluster, in transaction mode: each transaction of a client may get another session.

Like PostgreSQL, it refuses to run as root; it then runs as PostgreSQL's user.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import psycopg

from .postgres import DATABASE, USER, change_of_user, owner_of_clusters
from .processes import Process, StackError, free_port, tail, wait_until

__all__ = (
    'PgBouncer',
)


class PgBouncer:
    """
    Args:
        directory: Folder for its configuration
        cluster: The running `Cluster`
        pool_size: Sessions of PostgreSQL that all clients share
    """

    def __init__(self, directory, cluster, *, pool_size=10):
        self.directory = Path(directory)
        self.cluster = cluster
        self.pool_size = pool_size
        self.port = None
        self.process = None

    @staticmethod
    def binary():
        """
        Return its path, or nothing if it is not installed. Debian does not put it on the PATH.
        """
        return shutil.which('pgbouncer') or shutil.which('pgbouncer', path='/usr/sbin')

    def start(self, log, *, die_with_parent=False):
        """
        Start it and wait until PostgreSQL answers through it.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        # Another process may take the port after it was found free
        for _attempt in range(3):
            self.port = free_port()
            self._write('users.txt', f'"{USER}" "{self.cluster.password}"')
            self._write('pgbouncer.ini', '\n'.join((
                '[databases]',
                f'* = host=127.0.0.1 port={self.cluster.port}',
                '[pgbouncer]',
                'listen_addr = 127.0.0.1',
                f'listen_port = {self.port}',
                'unix_socket_dir =',
                'auth_type = scram-sha-256',
                f'auth_file = {self.directory / "users.txt"}',
                'pool_mode = transaction',
                f'default_pool_size = {self.pool_size}',
                'max_client_conn = 500',
            )))
            self.process = Process.start(
                'pgbouncer', [self.binary(), self.directory / 'pgbouncer.ini'], log, identity=change_of_user(),
                cwd='/', die_with_parent=die_with_parent,
            )
            wait_until(lambda: not self.process.running or self.answers(), timeout=30)
            if self.process.running and self.answers():
                return self
            self.process.stop()
        raise StackError(f'PgBouncer does not start. Its log, {log}, ends with:\n\n{tail(log)}')

    def stop(self):
        if self.process:
            self.process.stop()
            self.process = None

    def answers(self):
        with suppress(psycopg.OperationalError):
            url = f'postgresql://{USER}:{self.cluster.password}@127.0.0.1:{self.port}/{DATABASE}'
            with psycopg.connect(url, connect_timeout=2) as connection:
                return connection.execute('SELECT true').fetchone()[0]
        return False

    def _write(self, name, text):
        path = self.directory / name
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), 'w') as handle:
            handle.write(f'{text}\n')
        if owner := owner_of_clusters():
            shutil.chown(path, owner)
