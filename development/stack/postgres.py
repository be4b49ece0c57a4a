"""
A private PostgreSQL cluster: its own data directory, its own port, reachable by TCP on 127.0.0.1 alone.

PostgreSQL refuses to run as root. Root starts it as the user `postgres`, with the one capability that is needed to
reach a checkout below `/root`. Unix sockets are off: their paths are limited to 107 bytes.
"""

import os
import pwd
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

import psycopg

from .paths import STATE
from .processes import Process, StackError, birth_of, free_port, tail, wait_until

__all__ = (
    'Cluster',
    'major_version',
)

MINIMUM_VERSION = 15
USER = 'netbox'
DATABASE = 'netbox'

# For data that can be created again at any time
NOT_DURABLE = {
    'fsync': 'off',
    'full_page_writes': 'off',
    'synchronous_commit': 'off',
}


class Cluster:
    """
    Args:
        directory: Data directory, created by `initialise()` or as a copy of another one
        password: Password of its superuser, `netbox`
        durable: Whether it survives a crash of the machine, which costs time on each commit
    """

    def __init__(self, directory, password, *, durable=True):
        self.directory = Path(directory)
        self.password = password
        self.durable = durable
        self.port = None
        self.process = None

    #
    # Creating
    #

    @property
    def exists(self):
        return (self.directory / 'PG_VERSION').exists()

    @property
    def major_version(self):
        """
        The version that created the data, which is the only one that can read them.
        """
        return int((self.directory / 'PG_VERSION').read_text())

    def initialise(self):
        password_file = self.directory.with_name(f'{self.directory.name}.password')
        self._make_directory()
        try:
            with open(os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 'w') as handle:
                handle.write(self.password)
            if owner := owner_of_clusters():
                shutil.chown(password_file, owner)
            run(
                'initdb', '--pgdata', self.directory, '--username', USER, '--pwfile', password_file,
                '--auth', 'scram-sha-256', '--encoding', 'UTF8', '--locale', 'C.UTF-8', '--wal-segsize', '4',
                '--no-sync', '--no-instructions',
            )
        finally:
            password_file.unlink(missing_ok=True)

    def copy(self, template):
        """
        Become a copy of another cluster's directory, which must not be in use.
        """
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(['cp', '-a', '--reflink=auto', '--', template, self.directory], check=True)

    def _make_directory(self):
        self.directory.mkdir(parents=True, mode=0o700)
        if owner := owner_of_clusters():
            shutil.chown(self.directory, owner)

    #
    # Running
    #

    def start(self, log, *, port=None, die_with_parent=False):
        """
        Start the server and wait until it answers.
        """
        self.evict()
        settings = {
            'listen_addresses': '127.0.0.1',
            'unix_socket_directories': '',
            'max_connections': '200',
            **({} if self.durable else NOT_DURABLE),
        }
        # Another process may take the port after it was found free
        for _attempt in range(3):
            self.port = free_port(port)
            options = [f'-c{name}={value}' for name, value in {**settings, 'port': self.port}.items()]
            self.process = Process.start(
                'postgres',
                [binary('postgres'), '-D', self.directory, *options],
                log,
                identity=change_of_user(),
                # PostgreSQL's user may not be able to read the current folder
                cwd='/',
                stop_signal='SIGINT' if self.durable else 'SIGQUIT',
                die_with_parent=die_with_parent,
            )
            wait_until(lambda: not self.process.running or self.answers(), timeout=60)
            if self.process.running and self.answers():
                return self
            self.process.stop()
            port = None
        raise StackError(f'PostgreSQL does not start. Its log, {log}, ends with:\n\n{tail(log)}')

    def stop(self):
        """
        End the server: the connections of others are closed.
        """
        if self.process:
            self.process.stop()
            self.process = None

    def shut_down(self):
        """
        End the server so that its data can be copied.
        """
        if self.process:
            self.process.stop_signal = 'SIGINT'
            self.stop()

    def evict(self):
        """
        End a server that still runs on these data, left behind by a killed process.

        In a copy of the data of a running server, or after its id was given to another process, PostgreSQL would take
        that process for the server of these data, and not start. It then recovers an incomplete copy, as after a crash.
        """
        lock = self.directory / 'postmaster.pid'
        with suppress(OSError, ValueError, IndexError):
            pid = int(lock.read_text().splitlines()[0])
            # A server's working directory is its data directory: the id alone may belong to another process by now
            place = Path(os.readlink(f'/proc/{pid}/cwd'))
            if place == self.directory.resolve():
                os.kill(pid, signal.SIGQUIT)
                wait_until(lambda: not birth_of(pid), timeout=20)
            else:
                lock.unlink()

    def answers(self):
        return self._command('pg_isready', '--timeout=1', '--quiet').returncode == 0

    #
    # Databases
    #

    def url(self, database=DATABASE):
        return f'postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}'

    def connect(self, database='postgres'):
        """
        Return a connection that commits each statement.
        """
        return psycopg.connect(self.url(database), autocommit=True)

    def create_database(self, name, template='template0'):
        with self.connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')

    def dump(self, database, path):
        self._checked('pg_dump', '--format=custom', '--no-owner', '--no-privileges', f'--file={path}', database)

    def restore(self, database, path):
        self._checked(
            'pg_restore', '--no-owner', '--no-privileges', '--exit-on-error', f'--jobs={min(4, os.cpu_count() or 1)}',
            f'--dbname={database}', path,
        )

    def _checked(self, *command):
        result = self._command(*command)
        if result.returncode:
            raise StackError(f'{command[0]} failed:\n\n{result.stdout}{result.stderr}')

    def _command(self, name, *arguments):
        return subprocess.run(
            [binary(name), *map(str, arguments)],
            env={
                **os.environ,
                'PGHOST': '127.0.0.1',
                'PGPORT': str(self.port),
                'PGUSER': USER,
                'PGPASSWORD': self.password,
                'PGDATABASE': 'postgres',
            },
            capture_output=True,
            text=True,
        )


#
# The installed PostgreSQL
#

@cache
def bin_directory():
    """
    Return the folder of the newest installed PostgreSQL. Debian does not put the servers on the PATH.
    """
    candidates = {path.parent for path in Path('/usr/lib/postgresql').glob('*/bin/initdb')}
    if pg_config := shutil.which('pg_config'):
        candidates.add(Path(subprocess.check_output([pg_config, '--bindir'], text=True).strip()))
    if initdb := shutil.which('initdb'):
        candidates.add(Path(initdb).resolve().parent)
    versions = {version_of(path): path for path in candidates if (path / 'initdb').exists()}
    if not versions:
        raise StackError('PostgreSQL was not found. On Debian and Ubuntu: sudo apt-get install postgresql')
    if max(versions) < MINIMUM_VERSION:
        raise StackError(f'NetBox needs PostgreSQL {MINIMUM_VERSION} or later; there is {max(versions)}.')
    return versions[max(versions)]


def version_of(directory):
    output = subprocess.check_output([directory / 'postgres', '--version'], text=True)
    return int(re.search(r'\d+', output).group())


def major_version():
    return version_of(bin_directory())


def binary(name):
    return str(bin_directory() / name)


def run(name, *arguments):
    result = subprocess.run(
        [*change_of_user(), binary(name), *arguments], cwd='/', capture_output=True, text=True
    )
    if result.returncode:
        raise StackError(f'{name} failed:\n\n{result.stdout}{result.stderr}')


@cache
def owner_of_clusters():
    """
    Return the user that PostgreSQL has to run as, or nothing if that is the current one.
    """
    if os.geteuid() != 0:
        return None
    for name in ('postgres', 'nobody'):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise StackError('PostgreSQL does not run as root, and there is no user "postgres".')


@cache
def change_of_user():
    """
    Return the prefix of a command that runs it as PostgreSQL's user: nothing if that is the current one.
    """
    if not (owner := owner_of_clusters()):
        return []
    group = str(pwd.getpwnam(owner).pw_gid)
    identity = ['setpriv', '--reuid', owner, '--regid', group, '--clear-groups']
    STATE.mkdir(parents=True, exist_ok=True)
    if subprocess.run([*identity, 'test', '-x', STATE], cwd='/', capture_output=True).returncode == 0:
        return identity
    # That user may not be able to enter one of the parent folders
    return [*identity, '--inh-caps', '+dac_override', '--ambient-caps', '+dac_override']
